#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs in the guest: a command, and then what lines the kernel has counted, for
# lab/cover.sh. usage: cover_inside.sh COMMAND [ARG...]
status=0
"$@" || status=$?

# Files of debugfs have no length until they are read.
mkdir -p /counts
cd /sys/kernel/debug/gcov || exit
find . -name '*.gcda' | while read -r file; do
	to=/counts/${file##*/cover/}
	mkdir -p "${to%/*}"
	cat "$file" >"$to"
done
echo "counts:"
tar -c -C /counts . | base64
exit "$status"
