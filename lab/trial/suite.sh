#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs a suite on an installed system, as lab/test.sh does in a guest. What
# lab/test_setup.sh sets up for it is put back. usage: suite.sh SUITE
set -eu

here=$(dirname "$(realpath "$0")")
limit=$(cat /proc/sys/vm/max_map_count)
modprobe -a zram loop
status=0
unshare --mount sh "$here/test_setup.sh" env MREMAP_EXPECT=patched "$here/suites/$1" || status=$?
echo "$limit" >/proc/sys/vm/max_map_count
swapoff -a
modprobe -r zram
losetup -D
exit "$status"
