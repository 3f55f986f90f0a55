#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Random calls against a model of every page, for as long as one likes; or the same
# random calls on the unpatched and the patched kernel, compared call by call.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/soak.sh [-f prod|debug|rt|lean|kcsan] [SECONDS]
       lab/soak.sh --compare [FIRST-LAST]
  SECONDS    an hour unless told; the kernel is the debug one unless told
  --compare  the seeds from FIRST to LAST (1-20 unless told) on both lean kernels"

flavor=debug seconds=${SOAK:-3600} seeds=""
while (($#)); do
	case $1 in
	-h | --help)
		echo "$usage"
		exit
		;;
	-f) flavor=${2:?needs a value} && shift ;;
	--compare) seeds=1-20 ;;
	*-*) seeds=$1 ;;
	*) seconds=$1 ;;
	esac
	shift
done

lab/deps.sh build guest test
lab/base.sh >&2
lab/tree.py >&2
lab/selftests.sh build/tree build/selftests -static mremap_random
mkdir -p build/soak

# run TREE FLAVOR SECONDS COMMAND: in a guest, which has the suite.
run() {
	local image pass_over='$^'
	[[ $2 != kcsan ]] || pass_over="BUG: KCSAN: "
	image=$(lab/image.sh "$1" "$2" | tail -n 1)
	[[ -n $image ]] || die "no $1 $2 image"
	lab/guest.py --image "$image" --mem 2048 --timeout "$3" --log "build/soak/$1-$2.log" \
		--append oops=panic --pass-over "$pass_over" --add build/selftests/mremap_random \
		--add lab/test_setup.sh -- /bin/sh /bin/test_setup.sh sh -c "$4"
}

suite="mremap_random -f asked_for"
if [[ -z $seeds ]]; then
	# A seed that was begun is brought to its end, and one that fails is shortened.
	run patched "$flavor" $((seconds + 3600)) "MREMAP_SOAK=$seconds $suite"
	[[ $flavor != kcsan ]] || lab/kcsan.py build/obj/patched/kcsan build/soak/patched-kcsan.log
	exit
fi

# The log comes after the test's own output.
for tree in base patched; do
	run $tree lean 3600 "MREMAP_EXPECT=$tree MREMAP_LOG=/tmp/log MREMAP_SEEDS=$seeds $suite
		status=\$?; cat /tmp/log; exit \$status" >build/soak/$tree.calls ||
		{ grep -v '^call ' build/soak/$tree.calls >&2; die "the $tree kernel failed"; }
	grep '^call ' build/soak/$tree.calls >build/soak/$tree.compared
done

# Columns: number, call, why it may differ, outcome, digest of what was there after it.
paste build/soak/base.compared build/soak/patched.compared | awk -F '\t' '
	$2 ~ /^seed/ { seed = $2 }
	{ calls++ }
	$1 != $6 || $2 != $7 || $3 != $8 || $5 != $10 || ($4 != $9 && $3 == "") {
		bad++
		if (bad <= 10)
			printf "%s, %s\n  base:    %s: %s %s\n  patched: %s: %s %s\n",
				seed, $1, $2, $4, $5, $7, $9, $10
		next
	}
	$4 != $9 { kinds[$3 ": " $4 " on base, " $9 " on patched"]++ }
	END {
		for (kind in kinds)
			print kinds[kind], kind | "sort -rn"
		close("sort -rn")
		printf "%d calls, %d differ as they should not\n", calls, bad
		exit bad > 0
	}'
