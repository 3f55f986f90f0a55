#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Looks at the sources themselves, by what the kernel and Debian have for that.
# Each check is a function that prints what is wrong and fails, or returns
# $skipped after printing what it lacks. What an upstream file that we patch has
# wrong already in the base does not count.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

quick_checks=(shell python spelling mutants checkpatch maintainers kernel_doc selftests gcc stack
	sparse clang)
checks=("${quick_checks[@]}" coccinelle smatch)
skipped=77
# No function of mm/mremap*.c may take more bytes of the stack, of which there are 16 KB.
most_stack=2304
selftest_flags="-Wextra -Wshadow -Wstrict-prototypes"

out=build/check

usage="usage: lab/check.sh [--quick | CHECK...], checks: ${checks[*]}
  --quick  without coccinelle, which takes half of the time, and smatch"
if [[ ${1-} == --quick ]]; then
	checks=("${quick_checks[@]}")
elif [[ ${1-} == -* ]]; then
	die "$usage"
elif (($#)); then
	checks=("$@")
fi

# repository_files PATTERN...: tracked, or not yet
repository_files() {
	git ls-files --cached --others --exclude-standard -- "$@"
}

# Paths in the kernel's tree of what is ours: as whole files, or by a patch.
whole_files() {
	local path
	while read -r path; do
		[[ ! -e $path ]] || echo "$path"
	done <build/tree.overlaid
}

patched_files() {
	grep -vxFf <(whole_files) build/tree.overlaid
}

# What both print is not new. Line numbers differ.
without_lines() {
	sed -E 's/:[0-9]+(:[0-9-]+)?:/:/; s/on line [0-9]+//' "$1" | sort
}

new_lines() {
	comm -13 <(without_lines "$1") <(without_lines "$2")
}

# fail_if_any: what comes in is wrong
fail_if_any() {
	! grep '' ;
}

# compare NAME COMMAND...: the command gets a tree, and prints what it finds there.
compare() {
	local name=$1 kernel
	shift
	for kernel in base tree; do
		"$@" "$kernel" >"$out/$name.$kernel" || { cat "$out/$name.$kernel"; return 1; }
	done
	new_lines "$out/$name.base" "$out/$name.tree" | fail_if_any
}

check_shell() {
	repository_files lab .ci | xargs grep -lE '^#!.*\<(ba)?sh$|^# shellcheck shell=' |
		xargs shellcheck --external-sources --source-path=SCRIPTDIR
}

check_python() {
	local files
	mapfile -t files < <(repository_files 'lab/*.py')
	pyflakes3 "${files[@]}"
	mypy --strict --cache-dir="$out/mypy" "${files[@]}"
}

check_spelling() {
	# "bu" is how manual pages write a bullet.
	repository_files ':!*.patch' ':!COPYING' | xargs codespell --ignore-words-list bu
}

check_checkpatch() {
	lab/checkpatch.py
}

# All that is ours alone is in our entry, and all of that entry is there.
check_maintainers() {
	local path
	cd build/tree
	grep -A 20 '^MEMORY MAPPING - MREMAP$' MAINTAINERS | awk '!NF { exit } /^F:/ { print $2 }' |
		while read -r path; do compgen -G "$path" >/dev/null || echo "no $path"; done | fail_if_any
	while read -r path; do
		found=$(perl scripts/get_maintainer.pl --no-git --no-git-fallback --sections -f "$path")
		[[ $found == *"MEMORY MAPPING - MREMAP"* ]] || echo "$path is in no entry of ours"
	done < <(cd ../.. && whole_files) | fail_if_any
}

# That they apply, and break something that the document promises.
check_mutants() {
	lab/mutants.sh --check
}

kernel_doc() {
	build/tree/scripts/kernel-doc -none -Wall "${sources[@]/#/build/$1/}" 2>&1 |
		sed "s,build/$1/,,"
}

check_kernel_doc() {
	mapfile -t sources < <(whole_files | grep '\.[ch]$')
	kernel_doc tree | fail_if_any
	mapfile -t sources < <(patched_files | grep '\.[ch]$')
	compare kernel-doc kernel_doc
}

check_selftests() {
	# Its log must not be the one of this check.
	lab/selftests.sh build/tree "$out/tests" "$selftest_flags"
}

compile() {
	lab/objects.sh "build/$1" "$1"
}

check_gcc() {
	compile tree
}

# The functions of the KUnit tests are in the objects as well.
check_stack() {
	local name
	compile tree >/dev/null
	for name in mremap mremap_call; do
		objdump -d build/objects/tree/obj/mm/$name.o |
			perl build/tree/scripts/checkstack.pl x86_64 "$most_stack" >"$out/stack.list"
		while read -r _ function rest; do
			! grep -qw "$function" mm/$name.c || echo "$function $rest"
		done <"$out/stack.list"
	done | fail_if_any
}

# pte_offset_map_lock() does not tell sparse that it locks, so that every
# pte_unmap_unlock() looks like one too many.
analyse() {
	local object found there=()
	for object in "${objects[@]}"; do
		[[ ! -e build/$1/${object%o}c ]] || there+=("$object")
	done
	found=$(lab/objects.sh "build/$1" "$1" C=2 "${there[@]}") || return
	grep -v '/rcupdate\.h:.*context imbalance in .* - unexpected unlock$' <<<"$found" || true
}

check_sparse() {
	mapfile -t objects < <(grep -E '^(mm|fs)/[a-z_]+\.c$' build/tree.overlaid | sed 's/c$/o/')
	compare sparse analyse
}

check_clang() {
	lab/objects.sh build/tree clang LLVM=1 CC="ccache clang" HOSTCC="ccache clang"
}

# find_patterns TREE FILE...: coccicheck goes through a folder, one of these files only
find_patterns() {
	local path folder=$PWD/$out/cocci.$1
	rm -rf "$folder"
	for path in "${@:2}"; do
		install -D "build/$1/$path" "$folder/$path"
	done
	make -C build/objects/tree O=obj coccicheck MODE=report M="$folder" J="$(nproc)" \
		>"$folder.log" 2>&1 || { tail "$folder.log"; return 1; }
	sed -n "s,^$folder/\(.*:[0-9].*\),\1,p" "$folder.log"
}

# It is slow: the base's files are only of interest where something is found.
check_coccinelle() {
	local files found=$out/coccinelle
	mapfile -t files < <(grep -E '^(mm|fs)/.*\.c$' build/tree.overlaid)
	compile tree >/dev/null
	find_patterns tree "${files[@]}" >"$found.tree" || { cat "$found.tree"; return 1; }
	mapfile -t files < <(cut -d: -f1 "$found.tree" | sort -u | grep -xFf <(patched_files))
	: >"$found.base"
	((!${#files[@]})) || find_patterns base "${files[@]}" >"$found.base"
	new_lines "$found.base" "$found.tree" | fail_if_any
}

check_smatch() {
	command -v smatch >/dev/null || { echo "smatch, which Debian does not have"; return $skipped; }
	lab/objects.sh build/tree tree C=2 CHECK="smatch -p=kernel" mm/mremap.o mm/mremap_call.o | fail_if_any
}

lab/deps.sh base build test check
lab/base.sh
lab/tree.py
mkdir -p $out
take_lock $out.lock "the checks"

declare -A count=([passed]=0 [failed]=0 [skipped]=0)
for name in "${checks[@]}"; do
	declare -F "check_$name" >/dev/null || die "no check '$name'"
	start=$SECONDS status=0 reason=
	# Not as a condition, or set -e would have no effect in there.
	"check_$name" >"$out/$name.log" 2>&1 &
	wait $! || status=$?
	case $status in
	0) verdict=passed ;;
	"$skipped") verdict=skipped reason=", needs $(<"$out/$name.log")" ;;
	*) verdict=failed ;;
	esac
	((++count[$verdict]))
	echo "$name: $verdict ($((SECONDS - start)) s)$reason"
	[[ $verdict != failed ]] || head -n 40 "$out/$name.log"
done
echo "${count[passed]} passed, ${count[failed]} failed, ${count[skipped]} skipped"
((!count[failed]))
