#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Programs of random calls, guided by what they reach in the kernel (KCOV); what they
# do not reach of mm/mremap*.c; and which of them it was if the kernel went down.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/fuzz.sh [-f FLAVOR] [-s SEED] [-i IMAGE] [SECONDS]
       lab/fuzz.sh [-f FLAVOR] [-i IMAGE] --replay FILE | --shorten FILE
       lab/fuzz.sh --uncovered
  SECONDS      ten minutes unless told
  -f           the kernel, if not fuzz; without KCOV programs are chosen blindly
  -i           this image, nothing is built
  -s           where it begins; 1 unless told
  --replay     runs the programs in FILE, such as build/fuzz/last; one that leaves
               something behind is shortened
  --shorten    the same for one that brings the kernel down: boots for each attempt
  --uncovered  lines of mm/mremap*.c that no seed so far has reached"

flavor=fuzz seconds=${FUZZ:-600} seed=1 image="" mode=run file=""
while (($#)); do
	case $1 in
	-h | --help) echo "$usage"; exit ;;
	-f) flavor=${2:?needs a value} && shift ;;
	-s) seed=${2:?needs a value} && shift ;;
	-i) image=${2:?needs a value} && shift ;;
	--replay | --shorten) mode=${1#--} file=$(realpath -e "${2:?needs a file}") && shift ;;
	--uncovered) mode=uncovered ;;
	[0-9]*) seconds=$1 ;;
	*) die "$usage" ;;
	esac
	shift
done

out=build/fuzz
mkdir -p $out

# Where the instrumented code of ours reports what it has reached:
# ADDRESS FUNCTION FILE:LINE, sorted. The address is the one that KCOV has.
find_sites() {
	local vmlinux=${image%/arch/*}/vmlinux
	[[ ! $out/sites -nt $vmlinux ]] || return 0
	objdump -d --no-show-raw-insn "$vmlinux" |
		awk '/call.*<__sanitizer_cov_trace_pc>/ {
			call = $1; getline; print $1 call }' | tr ':' ' ' >$out/calls
	cut -d ' ' -f 1 $out/calls >$out/returns
	cut -d ' ' -f 2 $out/calls | addr2line -f -e "$vmlinux" |
		paste -d ' ' - - | paste -d ' ' $out/returns - |
		sed -nE 's|^(\S+) (\S+) .*/(mm/mremap[a-z_]*\.[ch]:[0-9]+).*|\1 \2 \3|p' |
		sort >$out/sites.new
	mv $out/sites.new $out/sites
}

# Functions with what is not reached of them: FILE FUNCTION: REACHED of ALL, LINES...
uncovered() {
	[[ -s $out/sites ]] || die "nothing has been run yet"
	sed -n 's/^at //p' $out/covered.* 2>/dev/null | sort -u >$out/covered
	awk '
		NR == FNR { reached[$1] = 1; next }
		{
			split($3, at, ":")
			name = at[1] " " $2
			sites++; all[name]++
			if ($1 in reached) { found++; some[name]++; next }
			if (index(missing[name] " ", " " at[2] " ")) next
			missing[name] = missing[name] " " at[2]
		}
		END {
			for (name in missing)
				printf "%s: %d of %d, not %s\n", name, some[name], all[name],
					substr(missing[name], 2) | "sort"
			close("sort")
			printf "%d of %d places reached\n", found, sites
		}' $out/covered $out/sites
}

boot() {
	lab/guest.py --image "$image" --mem 2048 --smp 1 --timeout "$1" --log $out/kernel.log \
		--append "oops=panic panic_on_warn=1" --add $out/fuzz --add $out/sites:/sites "${@:2}"
}

# What the guest prints: the last programs go to a file, places to another.
sort_output() {
	awk -v last=$out/last.new -v covered="$1" '
		/^run / { programs[n++ % 32] = $0; next }
		/^at / { print >covered; next }
		{ print; fflush() }
		END {
			for (i = n > 32 ? n - 32 : 0; i < n; i++)
				print programs[i % 32] >last
		}'
}

run() {
	local status=0
	: >$out/last.new
	boot $((seconds + 600)) --add lab/test_setup.sh -- /bin/sh /bin/test_setup.sh \
		fuzz --seed "$seed" --seconds "$seconds" --sites /sites |
		sort_output "$out/covered.$seed" || status=$?
	mv $out/last.new $out/last
	((status <= 1)) || echo "the last programs are in $out/last: lab/fuzz.sh --shorten $out/last" >&2
	return $status
}

# replay FILE TIMES: what was printed is in $out/replayed.
replay() {
	boot 600 --add "$1:/programs" --add lab/test_setup.sh -- /bin/sh /bin/test_setup.sh \
		fuzz --replay /programs --times "$2" >$out/replayed 2>$out/replayed.err
}

# Whether it is still the kernel that goes down.
goes_down() {
	local status=0
	echo "$1" >$out/trial
	replay $out/trial 3 || status=$?
	((status > 1))
}

shorten() {
	local program calls i trial status=0
	replay "$file" 3 || status=$?
	((status > 1)) || die "the kernel did not go down"
	program=$(sed -n 's/^run //p' $out/replayed | tail -n 1)
	goes_down "$program" || die "not by the last one alone: $program"
	mapfile -t calls <<<"${program//; /$'\n'}"
	for ((i = ${#calls[@]} - 1; i >= 0; i--)); do
		trial=("${calls[@]}")
		unset "trial[i]"
		printf -v program '%s; ' "${trial[@]}"
		if ((${#trial[@]})) && goes_down "$program"; then
			calls=("${trial[@]}")
			echo "without call $i: ${#calls[@]} left" >&2
		fi
	done
	printf -v program '%s; ' "${calls[@]}"
	goes_down "$program" || true
	cat $out/replayed.err >&2
	echo "SHORTENED $program"
}

if [[ $mode == uncovered ]]; then
	uncovered
	exit
fi
lab/deps.sh build guest test
[[ $image ]] || image=$(lab/image.sh patched "$flavor" | tail -n 1)
[[ -n $image ]] || die "no patched $flavor image"
lab/programs.sh $out lab/fuzz/fuzz.c
find_sites

case $mode in
run)
	run
	;;
replay)
	status=0
	replay "$file" 3 || status=$?
	cat $out/replayed
	cat $out/replayed.err >&2
	exit "$status"
	;;
shorten)
	shorten
	;;
esac
