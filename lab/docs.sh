#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds Documentation/mm with the kernel's own Sphinx run and checks the manual
# page. Fails on a warning that the unpatched documentation does not give, and on
# a test named in mremap.rst that does not exist.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

page=Documentation/mm/mremap.rst
manual=lab/man/mremap.2
unset MAKEFLAGS MFLAGS MAKELEVEL
export PYTHONDONTWRITEBYTECODE=1

# The warnings of a tree without where they are from, in lines that differ.
build() {
	local tree=$1 out=$PWD/build/docs/$1
	# Sphinx warns of what it reads, and it does not read twice.
	rm -rf "$out"
	mkdir -p "$out"
	make -C "build/$tree" O="$out" SPHINXDIRS=mm htmldocs >"$out.log" 2>&1 ||
		{ tail -n 5 "$out.log" >&2; die "htmldocs failed, see $out.log"; }
	sed -nE "s|^$PWD/build/$tree/([^:]+):([0-9]+:)? ?(.*)|\1: \3|p" "$out.log" |
		sort -u >"$out.warnings"
}

# SUITE.FIXTURE.VARIANT.TEST: each part is declared in the suite's source.
check_name() {
	local suite=${1%%.*} part source parts
	source=tools/testing/selftests/mm/$suite.c
	[[ -e $source ]] || source=$(grep -lE "\.name = \"$suite\"" mm/tests/mremap*_kunit.c) || return
	grep -qE "\.name = \"$suite\"" "$source" || [[ $source == *"/$suite.c" ]] || return
	IFS=. read -ra parts <<<"${1#*.}"
	for part in "${parts[@]}"; do
		grep -qE "^\s*[A-Z_]+\((\w+, )?${part}[,)]" "$source" || return
	done
}

lab/deps.sh base build docs
lab/base.sh >&2
lab/tree.py >&2
good=1

build base
build tree
comm -13 build/docs/base.warnings build/docs/tree.warnings >build/docs/new.warnings
if [[ -s build/docs/new.warnings ]]; then
	cat build/docs/new.warnings >&2
	good=0
fi

names=$(grep -oE '\bmremap_[a-z]+\.[a-z0-9_.]+\b' "$page" | grep -v '\.c$' | sort -u)
for name in $names; do
	check_name "$name" || { echo "$page: no test $name" >&2; good=0; }
done

mandoc -T lint "$manual" >&2 || good=0
told=$(MANWIDTH=80 man --warnings=all -l "$manual" 2>&1 >build/docs/mremap.2.txt)
[[ -z $told ]] || { echo "$told" >&2; good=0; }

echo "build/docs/tree/Documentation/output/mm/mremap.html"
echo "build/docs/mremap.2.txt"
echo "docs: $(wc -l <build/docs/new.warnings) new warnings, $(wc -w <<<"$names") tests named"
((good))
