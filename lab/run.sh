#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Boots a kernel over this machine's root file system, runs real programs on it
# and prints a table of what came of each.

. "$(dirname "$0")/common.sh"

(($# <= 2)) || die "usage: lab/run.sh [patched|base [FLAVOR]]
FLAVOR is lean unless told, which is built in less than half of prod's time.
With ALL=1 in the environment, more programs run"
tree=${1:-patched} flavor=${2:-lean}

memory=3072 # MB; the largest program holds 1 GB, and sort's files are in memory too

image=$(lab/image.sh "$tree" "$flavor" | tail -n 1)
lab/deps.sh guest run
more=() timeout=1800
if [[ ${ALL-} ]]; then
	# What cannot be had is skipped.
	lab/deps.sh run-all || true
	more=("${image%/arch/*}") timeout=7200
fi

lab/programs.sh build/run lab/run/{realloc,hugetlb,args,moved,text}.c

lab/guest.py --image "$image" --root host --mem "$memory" --timeout "$timeout" \
	--log build/run/kernel.log -- lab/run/inside.py build/run "${more[@]}"
echo "kernel log clean, see build/run/kernel.log"
