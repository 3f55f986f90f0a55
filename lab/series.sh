#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Writes the patch series to build/series/ and checks it: see lab/series.py.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

lab/deps.sh base build test series
lab/base.sh
lab/tree.py
take_lock build/series.lock "the series"
lab/series.py "$@"
