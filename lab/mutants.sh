#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Would the tests notice? Builds kernels that are broken on purpose, each by one
# patch of lab/mutants/, and runs the suite that has to fail then.
#
# The head of a patch says what it breaks. "Suite:" and "Test:" are what must go
# red; "Survives:" says why nothing does. All is done in a copy, build/mutants/.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/mutants.sh [--list] [NAME...]
  NAME  a patch of lab/mutants/ without .patch; all of them unless told"

folder=lab/mutants
scratch=build/mutants
list=0
names=()

while (($#)); do
	case $1 in
	-h | --help) echo "$usage"; exit ;;
	--list) list=1 ;;
	-*) die "$usage" ;;
	*)
		[[ -f $folder/$1.patch ]] || die "no mutant '$1' in $folder/"
		names+=("$1")
		;;
	esac
	shift
done
if ((!${#names[@]})); then
	for file in "$folder"/*.patch; do
		name=${file##*/}
		names+=("${name%.patch}")
	done
fi

# head_of NAME FIELD: what the head of the patch says.
head_of() {
	sed -n "/^---/q; s/^$2: //p" "$folder/$1.patch"
}

print_row() {
	printf '%-30s  %-34s  %s\n' "$@"
}

if ((list)); then
	for name in "${names[@]}"; do
		print_row "$name" "$(head_of "$name" Suite) $(head_of "$name" Test)" \
			"$(head_of "$name" Breaks)"
	done
	exit
fi

# A repository of its own, for lab/tree.py, with the files as they are here. The
# base is not written to, so it may share its files.
fresh_copy() {
	mkdir -p $scratch/build
	find $scratch -mindepth 1 -maxdepth 1 ! -name build ! -name .git -exec rm -rf {} +
	[[ -d $scratch/.git ]] || git init -q $scratch
	git ls-files -z --cached --others --exclude-standard |
		rsync -a --ignore-missing-args --from0 --files-from=- . $scratch/
	if ! cmp -s build/base.version $scratch/build/base.version; then
		rm -rf $scratch/build/base
		cp -al build/base $scratch/build/base
		cp build/base.version $scratch/build/
	fi
}

# Upstream's files that we patch become ours as a whole, then they can be broken.
apply() {
	local patch=$folder/$1.patch target
	target=$(sed -n 's|^+++ b/||p' "$patch")
	if [[ -f $scratch/$target.patch ]]; then
		patch -s -o "$scratch/$target" "build/base/$target" "$scratch/$target.patch"
		rm "$scratch/$target.patch"
	fi
	patch -s -p1 -r - -d $scratch <"$patch"
}

# run_tests NAME: 0 if all is well with the broken kernel.
run_tests() {
	local name=$1 suite test
	suite=$(head_of "$name" Suite)
	test=$(head_of "$name" Test)
	if [[ $suite == kunit ]]; then
		$scratch/lab/kunit.sh x86_64 ${test:+"$test"}
	else
		$scratch/lab/image.sh patched debug >&2 || return 99
		$scratch/lab/test.sh -f debug -s "$suite" ${test:+-t "$test"}
	fi
}

# What was seen of it: failed tests, or what the kernel said.
describe() {
	local out=$1 kernel
	kernel=$(cat $scratch/build/test/*.log $scratch/build/kunit/x86_64/test.log 2>/dev/null |
		grep -oE -m 1 '(BUG: |WARNING: |kernel BUG at |Kernel panic|Oops).*' | cut -c 1-60) || true
	kernel=${kernel//$'\r'/}
	echo "$(tail -n 1 "$out" | grep -oE '[0-9]+ failed')${kernel:+, $kernel}"
}

judge() {
	local name=$1 out=build/mutants.out/$1 status=0
	fresh_copy
	apply "$name" >"$out" 2>&1 || { echo "DOES NOT APPLY"; return 1; }
	rm -rf $scratch/build/test $scratch/build/kunit/x86_64/test.log
	run_tests "$name" >>"$out" 2>&1 || status=$?
	if ((status == 99)) || grep -q 'building .* failed' "$out"; then
		echo "DOES NOT BUILD, see $out"
		return 1
	fi
	if ((status)); then
		echo "caught: $(describe "$out")"
	elif [[ $(head_of "$name" Survives) ]]; then
		echo "survives, as it has to"
	else
		echo "SURVIVED"
		return 1
	fi
}

take_lock build/mutants.lock "broken kernels"
lab/base.sh >&2
mkdir -p build/mutants.out
broken=0
for name in "${names[@]}"; do
	verdict=$(judge "$name") || broken=1
	print_row "$name" "$(head_of "$name" Suite) $(head_of "$name" Test)" "$verdict"
	echo "    $(head_of "$name" Breaks)"
done
exit "$broken"
