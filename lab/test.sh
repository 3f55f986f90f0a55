#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# All tests of `make test`: builds what is missing, boots each kernel once for
# each suite and judges what the suite prints. The last line is the sum of all.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

suites=(mremap_test mremap_errno mremap_features mremap_hugetlb mremap_multi mremap_merge mremap_uffd mremap_trace
	mremap_accounting mremap_dontunmap mremap_race mremap_rivals mremap_random mremap_scale)
# Not in a guest of ours: the kernel's own kunit.py builds and boots a kernel.
kunit=1

usage="usage: lab/test.sh [--base] [-f prod|debug|rt|lean|kcsan] [-s SUITE] [-t TEST] [-- HARNESS_ARG...]
  --base  the unpatched kernel (lean unless told), whose own behaviour the tests then expect;
          MREMAP_EXPECT=patched shows where the two kernels differ. BASE in the environment
          is one of bases/
  -f, -s  only this flavor, only this suite: ${suites[*]}, or kunit
  -t      only tests of this name; what follows -- goes to the suite
Without -f the slowest of them, debug and rt, do only a part of what there is for many kinds
of memory: MREMAP_BRIEF, see mremap_util.h.
FLAVORS in the environment are those of a run of all: lean and debug unless told"

read -ra flavors <<<"${FLAVORS:-lean debug}"
tree=patched
expect=patched
arguments=()
flavor_given=0

declare -A seconds=([prod]=600 [lean]=600 [debug]=3600 [rt]=3600 [kcsan]=3600)	# limit for one suite
declare -A append=([mremap_race]="numa=fake=2" [mremap_rivals]="numa=fake=2")	# on the command line
declare -A brief=([debug]="MREMAP_BRIEF=1" [rt]="MREMAP_BRIEF=1")	# in the environment, without -f
declare -A pass_over=([kcsan]="BUG: KCSAN: ")	# that is judged by lab/kcsan.py

is_one_of() {
	local word=$1
	shift
	[[ " $* " == *" $word "* ]]
}

while (($#)); do
	case $1 in
	--base)
		tree=base expect=${MREMAP_EXPECT:-base} kunit=0
		((flavor_given)) || flavors=(lean)
		;;
	-h | --help)
		echo "$usage"
		exit
		;;
	--)
		shift
		arguments+=("$@")
		break
		;;
	-f | -s | -t)
		(($# > 1)) || die "$1 needs a value"
		case $1 in
		-f) is_one_of "$2" prod debug rt lean kcsan || die "no flavor '$2': prod, debug, rt, lean or kcsan"
			flavors=("$2") flavor_given=1 kunit=0 brief=() ;;
		-s) is_one_of "$2" "${suites[@]}" kunit || die "no suite '$2': ${suites[*]} kunit"
			[[ $2 == kunit ]] || kunit=0
			suites=("$2") ;;
		-t) arguments+=(-t "$2") ;;
		esac
		shift
		;;
	*) die "unknown argument '$1', see lab/test.sh --help" ;;
	esac
	shift
done

[[ $tree == base ]] || needs_port "a patched kernel"
lab/deps.sh build guest test

out=build/selftests results=$work/test
mkdir -p "$out" "$results"

# The suites are those of our tree, whichever kernel they run on.
build_suites() (
	export BASE=$default_base
	lab/base.sh >&2
	lab/tree.py >&2
	lab/selftests.sh build/tree "$out" -static "${suites[@]}"
)

# shellcheck disable=SC2317 # start_job calls it
run_suite() {
	local image=$1 flavor=$2 suite=$3 name=$tree-$2-$3 start=$SECONDS status=0 verdict good=1
	local tap=$results/$name.tap log=$results/$name.log report=$results/$name.report

	lab/guest.py --image "$image" --mem 2048 --timeout "${seconds[$flavor]}" --log "$log" \
		--append "oops=panic ${append[$suite]-}" --pass-over "${pass_over[$flavor]-$^}" \
		--add "$out/$suite" --add lab/test_setup.sh -- \
		/bin/sh /bin/test_setup.sh env MREMAP_EXPECT="$expect" \
		${brief[$flavor]+"${brief[$flavor]}"} "/bin/$suite" \
		${arguments[@]+"${arguments[@]}"} >"$tap" 2>"$report.guest" || status=$?
	lab/ktap.py "$tap" >"$report" || good=0
	verdict=$(tail -n 1 "$report")
	# The harness exits with 1 when a test failed: that is in the verdict.
	if ((status > 1)) || { ((status)) && ((good)); }; then
		good=0
		cat "$report.guest" >&2
		echo "$suite in the $tree $flavor guest: status $status, see $tap and $log" >&2
		[[ $verdict != *" 0 failed"* ]] || verdict=${verdict/ 0 failed/ 1 failed}
	fi
	((good)) || sed '$d' "$report" >&2
	echo "$tree $flavor $suite: $verdict ($((SECONDS - start)) s)"
	sed -n 's/.*# SKIP /  skipped: /p' "$tap" | sort | uniq -c | sed 's/^ */  /'
	echo "$verdict" >"$report.verdict"
	((good))
}

run_kunit() {
	local report=$results/kunit.report verdict good=1

	lab/kunit.sh x86_64 >"$report" || good=0
	verdict=$(tail -n 1 "$report")
	[[ $verdict == kunit*:* ]] || verdict="kunit: 0 passed, 1 failed, 0 skipped"
	((good)) || sed '$d' "$report" >&2
	echo "$verdict"
	echo "${verdict#*: }" >"$results/kunit.verdict"
	((good))
}

rm -f "$results"/*.verdict
broken=0
((!kunit)) || run_kunit || broken=1
if [[ ${suites[0]} == kunit ]]; then
	exit "$broken"
fi

build_suites
declare -A images
for flavor in "${flavors[@]}"; do
	images[$flavor]=$(lab/image.sh "$tree" "$flavor" | tail -n 1)
	[[ -n ${images[$flavor]} ]] || die "no $tree $flavor image"
done

# A guest keeps one processor busy. The slowest kernel comes last in the list of
# flavors and first to the guests.
for ((i = ${#flavors[@]} - 1; i >= 0; i--)); do
	for suite in "${suites[@]}"; do
		start_job run_suite "${images[${flavors[i]}]}" "${flavors[i]}" "$suite"
	done
done
wait_for_jobs || broken=1
if is_one_of kcsan "${flavors[@]}"; then
	logs=("${suites[@]/%/.log}")
	lab/kcsan.py "$work/obj/$tree/kcsan" "${logs[@]/#/$results/$tree-kcsan-}" || broken=1
fi
sum_up "$results"/*.verdict
exit "$broken"
