#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Compiles kselftests of mremap() by their own Makefile.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

(($# >= 3)) || die "usage: lab/selftests.sh SOURCE OUT CFLAGS [TEST...]
The tests of the kernel source SOURCE go to the folder OUT, all of mremap unless told.
Warnings are errors. ARCH and CROSS_COMPILE in the environment are those of Kbuild."
source=$(realpath -e "$1") cflags=$3
mkdir -p "$2"
out=$(realpath "$2")
tests=("${@:4}")
folder=$source/tools/testing/selftests/mm
((${#tests[@]})) || mapfile -t tests < <(
	sed -n 's/^TEST_GEN_FILES += \(mremap_\w*\)$/\1/p' "$folder/Makefile")

# run_logged LOG WHAT COMMAND...: the output is of interest only on failure.
run_logged() {
	local log=$1 what=$2
	shift 2
	"$@" >"$log" 2>&1 || {
		grep -E -m 10 'error|Error|\*\*\*' "$log" >&2
		die "$what failed, see $log"
	}
}

unset MAKEFLAGS MFLAGS MAKELEVEL
headers=build/headers${ARCH:+.$ARCH}
take_lock "$headers.lock" "the kernel's headers"
if [[ ! $headers/usr/include -nt build/tree.version ]]; then
	run_logged "$headers.log" "installing the kernel's headers" \
		make -C "$source" O="$PWD/$headers" headers_install
	touch "$headers/usr/include"
fi
exec 9>&-
run_logged "$out.log" "building the tests" \
	make -C "$folder" OUTPUT="$out" CC="ccache ${CROSS_COMPILE-}gcc" \
	KHDR_INCLUDES="-isystem $PWD/$headers/usr/include" \
	EXTRA_CFLAGS="$cflags" "${tests[@]/#/$out/}"
# What upstream's own files are warned of is not ours to mend. As what is compiled
# is not warned of again, it is taken away.
ours=$(cd tools/testing/selftests/mm && printf '^%s:.*warning: \n' *.[ch])
if grep -f <(echo "$ours") "$out.log"; then
	rm -f "${tests[@]/#/$out/}"
	exit 1
fi
