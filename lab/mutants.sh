#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Would the tests notice? Builds kernels that are broken on purpose, each by one
# patch of lab/mutants/, and runs the suite that has to fail then. A mutant is
# caught if a test failed or the kernel complained; nothing else counts.
#
# The head of a patch has these fields, each on a line of its own:
#
#   Breaks:     what is no longer so
#   Condition:  the name that Documentation/mm/mremap.rst has for that
#   Suite:      what has to go red: kunit, or a selftest
#   Test:       only these: SUITE.CASE for kunit, a pattern; else all tests of a
#               name, or the one FIXTURE.VARIANT.NAME
#   Also:       a suite that has to go red as well, and its test, if not all of them;
#               there may be several such lines. --quick does without
#   Flavor:     the kernel, if that is not debug: see lab/image.sh
#   Quick: yes  is one of the few for --quick
#   Hangs: yes  the guest may come to a standstill, which counts as caught
#   Survives:   why no test can notice
#
# All is done in a copy, build/mutants/. While the guest of one mutant runs, the
# next one is built.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/mutants.sh [--list | --check] [--quick] [--table] [NAME...]
  NAME     a patch of lab/mutants/ without .patch; all of them unless told
  --list   what they break, and what is to notice
  --check  only whether their heads are whole and they apply, and which conditions have none
  --quick  one for each condition
  --table  writes what caught them to lab/mutants/RESULTS"

folder=lab/mutants
scratch=build/mutants
results=build/mutants.out
table=$folder/RESULTS
document=Documentation/mm/mremap.rst
seconds=900	# limit for a guest
mode=run quick=0 write_table=0
names=()

# head_of NAME FIELD: what the head of the patch says.
head_of() {
	sed -n "/^---/q; s/^$2: //p" "$folder/$1.patch"
}

# runs_of NAME: what has to go red, one to a line: SUITE TEST
runs_of() {
	echo "$(head_of "$1" Suite) $(head_of "$1" Test)"
	((quick)) || head_of "$1" Also
}

# Names that the document gives to conditions: terms of definition lists.
# shellcheck disable=SC2016 # these are no commands
conditions() {
	grep -oE '^[[:space:]]*``[A-Z][0-9]``' $document | tr -d '\t `'
}

while (($#)); do
	case $1 in
	-h | --help) echo "$usage"; exit ;;
	--list | --check) mode=${1#--} ;;
	--quick) quick=1 ;;
	--table) write_table=1 ;;
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
		name=${file##*/} name=${name%.patch}
		if ((!quick)) || [[ $(head_of "$name" Quick) ]]; then
			names+=("$name")
		fi
	done
fi

# apply NAME FOLDER: the broken files, there. Upstream's files that we patch are
# made whole first. A patch that fits only roughly would break something else.
apply() {
	local patch=$folder/$1.patch target
	while read -r target; do
		mkdir -p "$2/${target%/*}"
		if [[ -f $target.patch ]]; then
			patch -s -o "$2/$target" "build/base/$target" "$target.patch"
			rm -f "$2/$target.patch"
		elif [[ -f $target ]]; then
			cp "$target" "$2/$target"
		else
			cp "build/base/$target" "$2/$target"
		fi
	done < <(sed -n 's|^+++ b/||p' "$patch")
	patch -s -F0 -p1 --no-backup-if-mismatch -r - -d "$2" <"$patch"
}

check() {
	local name=$1 field trial=$scratch.trial good=1
	for field in Breaks Condition Suite; do
		[[ $(head_of "$name" $field) ]] || { echo "$name: has no $field"; good=0; }
	done
	if [[ $known ]] && ! grep -qx "$(head_of "$name" Condition)" <<<"$known"; then
		echo "$name: $document has no condition $(head_of "$name" Condition)"
		good=0
	fi
	apply "$name" $trial >/dev/null 2>&1 || { echo "$name: does not apply"; good=0; }
	rm -rf $trial
	((good))
}

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

# run_kunit NAME TEST, run_guest NAME SUITE TEST: leave in $results/ NAME.SUITE.tap, what
# the tests printed; .err, what the laboratory said of it, with the kernel's complaints;
# and .log, the kernel's log.
run_kunit() {
	local out=$results/$1.kunit log=$scratch/build/kunit/x86_64/test.log status=0
	rm -f $log
	KUNIT_SECONDS=150 $scratch/lab/kunit.sh x86_64 ${2:+"$2"} >"$out.out" 2>"$out.err" || status=$?
	echo $status >"$out.status"
	[[ ! -f $log ]] || cp $log "$out.tap"
}

run_guest() {
	local out=$results/$1.$2 suite=$2 test=$3 filter=-t arguments="oops=panic" status=0
	[[ $test != *.* ]] || filter=-r
	[[ $suite != mremap_r[ai][cv]* ]] || arguments+=" numa=fake=2"
	lab/guest.py --image $scratch/build/image --mem 2048 --timeout $seconds \
		--log "$out.log" --append "$arguments" \
		--add "build/selftests/$suite" --add lab/test_setup.sh -- \
		/bin/sh /bin/test_setup.sh env MREMAP_EXPECT=patched "/bin/$suite" \
		${test:+$filter "$test"} >"$out.tap" 2>"$out.err" || status=$?
	echo $status >"$out.status"
}

# The first test that failed: of KUnit's, whose results are nested and come after
# those of their parts, the suite, the case, and the parameter.
first_failed() {
	sed -E 's/^\[ *[0-9.]+\](\[[^]]*\])? //; s/ # .*//' "$1" | awk '
		match($0, /^ *not ok [0-9]+ /) {
			indent = index($0, "n")
			if (last && indent >= last) next
			name = substr($0, RLENGTH + 1) (last ? "." name : "")
			if ((last = indent) == 1) exit
		}
		END { print name }'
}

# The kernel's first complaint, without what differs from run to run.
first_splat() {
	grep -oE -m 1 '(WARNING|WARN at|BUG|Oops|UBSAN|INFO|DEBUG_LOCKS_WARN_ON|kernel BUG|Kernel panic|general protection fault|[a-z_]+ corruption|bad p[gmu4]d|Bad swap|unrecognized swap)[: (].*' "$1" |
		sed -E 's/ (CPU|PID): [0-9]+//g; s/(\+0x| in process|[ :,]+(mm|address|task):).*//; s/:[0-9]+//'
}

# judge NAME SUITE: sets killer to what caught it, more to what else there was of it;
# problem, if that cannot be told.
judge() {
	local out=$results/$1.$2 status verdict splat
	killer="" more="" problem=""
	[[ -f $out.tap ]] || { problem="does not build, see $results/$1*.err"; return; }
	status=$(<"$out.status")
	verdict=$(lab/ktap.py "$out.tap" | tail -n 1) || true
	splat=$(first_splat "$out.err") || true
	killer=$(first_failed "$out.tap") || true
	if [[ $killer ]]; then
		more="${verdict#*, }"
		more="${more%,*}${splat:+; $splat}"
	elif [[ $splat ]]; then
		killer=$splat
	elif ((status == 124)) && [[ $(head_of "$1" Hangs) ]]; then
		killer="hangs"
	elif ((status)) || [[ $verdict == "0 passed"* || $verdict != *" 0 failed"* ]]; then
		problem="no result: status $status, $verdict, see $out.err and $out.log"
	fi
}

# update_table NAME SUITE: a line for each mutant and suite; all others stay as they are.
update_table() {
	local file name suite condition
	touch $table
	for file in "$folder"/*.patch; do
		name=${file##*/} name=${name%.patch} condition=$(head_of "$name" Condition)
		while read -r suite _; do
			if [[ "$name $suite" != "$1 $2" ]]; then
				grep -m 1 "^$name  *$condition  *$suite " $table || true
			elif [[ $killer ]]; then
				printf '%-34s %-2s  %-18s %-72s %s\n' "$name" "$condition" "$suite" \
					"$killer" "$(head_of "$name" Breaks)"
			fi
		done < <(quick=0 runs_of "$name")
	done >$table.new
	mv $table.new $table
}

report() {
	local name=$1 suite=$2 survives verdict
	survives=$(head_of "$name" Survives)
	judge "$name" "$suite"
	if [[ $problem ]]; then
		verdict=$problem broken=1
	elif [[ $killer && $survives ]]; then
		verdict="CAUGHT, against what its head says, by $killer${more:+ ($more)}" broken=1
	elif [[ $killer ]]; then
		verdict="caught by $killer${more:+ ($more)}"
	elif [[ $survives ]]; then
		verdict="survives, as it has to" killer="nothing: see its head"
	else
		verdict=SURVIVED broken=1
	fi
	echo "$name, $suite: $verdict"
	if ((write_table)); then
		update_table "$name" "$suite"
	fi
}

known=$(conditions) || echo "$document names no conditions yet" >&2
bad=0
for name in "${names[@]}"; do
	if [[ $mode == list ]]; then
		while read -r run; do
			printf '%-34s %-2s  %-60s %s\n' "$name" "$(head_of "$name" Condition)" "$run" \
				"$(head_of "$name" Breaks)"
		done < <(runs_of "$name")
	else
		check "$name" || bad=1
	fi
done
if [[ $mode == check ]]; then
	for condition in $known; do
		grep -qx "Condition: $condition" $folder/*.patch || echo "no mutant for $condition"
	done
fi
[[ $mode == run ]] && ((!bad)) || exit "$bad"

take_lock build/mutants.lock "broken kernels"
lab/deps.sh build guest test
lab/base.sh >&2
mkdir -p $results
suites=()
for name in "${names[@]}"; do
	while read -r suite _; do
		[[ $suite == kunit || " ${suites[*]} " == *" $suite "* ]] || suites+=("$suite")
	done < <(runs_of "$name")
done
if ((${#suites[@]})); then
	lab/tree.py >&2
	lab/selftests.sh build/tree build/selftests -static "${suites[@]}"
fi

broken=0 in_guest=()

# There is one guest at a time.
finish_guest() {
	((${#in_guest[@]})) || return 0
	wait
	report "${in_guest[@]}"
	in_guest=()
}

# build_image NAME: in $scratch/build/image, once the guest that has the last one is done.
build_image() {
	local flavor image
	flavor=$(head_of "$1" Flavor)
	image=$($scratch/lab/image.sh patched "${flavor:-debug}" 2>"$results/$1.err" |
		tail -n 1) && [[ $image ]] || return 1
	finish_guest
	cp "$scratch/$image" $scratch/build/image
}

for name in "${names[@]}"; do
	rm -f "$results/$name".*
	fresh_copy
	apply "$name" $scratch
	built=""
	mapfile -t runs < <(runs_of "$name")
	for run in "${runs[@]}"; do
		read -r suite test <<<"$run"
		if [[ $suite == kunit ]]; then
			run_kunit "$name" "$test"
			report "$name" kunit
		elif [[ $built ]] || build_image "$name"; then
			built=1
			finish_guest
			run_guest "$name" "$suite" "$test" &
			in_guest=("$name" "$suite")
		else
			report "$name" "$suite"
		fi
	done
done
finish_guest
exit "$broken"
