#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Profile a program that moves its own text, and look for the name of what ran there.
# usage: perf.sh TEXT
#   TEXT  the program built from text.c
set -euo pipefail

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
name=spin_in_moved_text

# There is no performance counter in the guest, but a timer of the kernel's own.
perf record --quiet --event cpu-clock --freq 200 --output "$scratch/data" -- "$1"
perf script --input "$scratch/data" --fields ip,sym --comm "${1##*/}" >"$scratch/symbols"
all=$(wc -l <"$scratch/symbols")
found=$(grep -c "$name" "$scratch/symbols" || true)
echo "$found of $all samples are in $name()"
if ((all < 100 || 2 * found < all)); then
	echo "verdict: symbols lost"
	exit 1
fi
