#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Real programs on the patched kernel: builds what is missing, boots over this
# machine's root file system and prints a table. TREE=base runs them on the
# unpatched kernel, for comparison.
# usage: [TREE=patched|base] lab/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

memory=3072	# MB; the largest program holds 1 GB, and tmpfs the files of sort

if [ $# -ne 0 ]; then
	echo "usage: [TREE=patched|base] lab/run.sh" >&2
	exit 2
fi

lab/deps.sh build guest run
image=$(lab/image.sh "${TREE:-patched}" prod | tail -n 1)

mkdir -p build/run
for program in realloc args moved; do
	gcc -O2 -Wall -Wextra -Werror -static -o "build/run/$program" "lab/run/$program.c"
done

lab/guest.py --image "$image" --root host --smp 2 --mem "$memory" --timeout 1800 \
	--log build/run/kernel.log -- lab/run/inside.py build/run
echo "the kernel log is clean: build/run/kernel.log"
