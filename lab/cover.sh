#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Which lines of ours the tests reach: all suites and the KUnit tests run on a kernel
# that counts them, each in a guest of its own, and the counts are added up.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/cover.sh [SUITE|kunit]...
  runs these (all unless told), and reports on all that ever ran on this kernel"
[[ ${1-} != -* ]] || die "$usage"

lab/deps.sh build guest test
lab/base.sh >&2
lab/tree.py >&2
image=$(lab/image.sh patched cover | tail -n 1)
objects=build/obj/patched/cover
out=build/cover
# Counts of another kernel say nothing of this one.
[[ ! -e $out || $out -nt $objects.done ]] || rm -rf "$out"
mkdir -p "$out"

lab/selftests.sh build/tree build/selftests -static
# mremap_32 is a part of mremap_scale.
mapfile -t suites < <(cd build/selftests && printf '%s\n' mremap_* | grep -v '^mremap_32')
suites+=(kunit)
(($# == 0)) || suites=("$@")

# shellcheck disable=SC2317 # start_job calls it
run_suite() {
	local suite=$1 name=$out/$1 start=$SECONDS status=0 append="numa=fake=2"
	local add=(--add "build/selftests/$suite" --add lab/test_setup.sh)
	local command=(/bin/sh /bin/test_setup.sh "/bin/$suite")
	# These tests run at boot.
	[[ $suite != kunit ]] || add=() command=(true) append="kunit.enable=1"

	lab/guest.py --image "$image" --timeout 1800 --log "$name.log" --append "oops=panic $append" \
		--add lab/cover_inside.sh ${add[@]+"${add[@]}"} -- \
		/bin/sh /bin/cover_inside.sh "${command[@]}" >"$name.out" || status=$?
	sed '/^counts:$/,$d' "$name.out" >"$name.tap"
	mkdir -p "$name"
	sed '0,/^counts:$/d' "$name.out" | base64 -d | tar -xm -C "$name"
	echo "$suite: status $status ($((SECONDS - start)) s)" >&2
}

for suite in "${suites[@]}"; do
	start_job run_suite "$suite"
done
wait_for_jobs || die "a suite did not give its counts"
lab/cover.py "$objects" "$out"
