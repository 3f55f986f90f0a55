#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Does on installed Debian systems what a user of our packages would do: installs them by
# apt, boots, tries the kernel, goes back to the stock one, and removes them.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

[[ ${1-} != -* ]] || die "usage: lab/trial.sh [SUITE...], bookworm and trixie unless told"
suites=("$@")
(($#)) || suites=(bookworm trixie)
out=build/trial
share=$out/share	# what the systems fetch

# share_files: the packages, and what is run on them
share_files() {
	local packages tests=$out/tests
	packages=$(lab/deb.sh)
	rm -rf "$share" "$tests"
	mkdir -p "$share" "$tests"
	xargs cp -lt "$share" <<<"$packages"
	lab/selftests.sh build/tree "$tests/suites" -static
	rm -f "$tests"/suites/mremap_32*	# a part of mremap_scale
	lab/programs.sh "$tests" lab/run/moved.c
	cp -r lab/test_setup.sh lab/run/criu.sh lab/trial/{suite.sh,module} "$tests/"
	tar -cf "$share/tests.tar" -C "$tests" .
}

lab/deps.sh build trial test
mkdir -p "$out"
take_lock "$out/lock" "the trial"
share_files
for suite in "${suites[@]}"; do
	lab/system.sh "$suite"
	rm -f "$out/$suite/report"
done
failed=0
for suite in "${suites[@]}"; do
	start_job lab/trial.py "$out/$suite" "$share"
done
wait_for_jobs || failed=1
lab/trial.py --table "${suites[@]/#/$out/}"
exit "$failed"
