#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# What mremap() costs on the patched kernel and on the base: instructions and
# TLB flushes, which QEMU counts the same in every run; and, which it does not, how long
# moves take while other threads fault. With PEER=FOLDER in the environment a third
# kernel, built from the source in that folder. With PROGRAMS=1 or SURVEY=1 there, --programs
# or --survey.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/bench.sh [--quick | --programs | --survey] [--image KERNEL=BZIMAGE]... [--only TEXT]
  --quick     only what is in the table, fewer calls, no plots
  --programs  whole programs instead of single calls
  --survey    only count what programs of Debian's packages ask of the patched kernel
  --image     take this image for the kernel (base, patched or peer) as it is; then only
              kernels that are named in this way are measured
  --only      only cases, or programs, whose name has TEXT in it"

mode=calls quick=0 text=
[[ ! ${PROGRAMS-} ]] || mode=programs
[[ ! ${SURVEY-} ]] || mode=survey
kernels=()
declare -A images

while (($#)); do
	case $1 in
	--quick) quick=1 ;;
	--programs) mode=programs ;;
	--survey) mode=survey ;;
	--image)
		[[ ${2-} =~ ^(base|patched|peer)=(.+)$ ]] || die "--image needs KERNEL=BZIMAGE"
		[[ -e ${BASH_REMATCH[2]} ]] || die "no image ${BASH_REMATCH[2]}"
		kernels+=("${BASH_REMATCH[1]}")
		images[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
		shift
		;;
	--only)
		(($# > 1)) || die "--only needs a value"
		text=$2
		shift
		;;
	-h | --help)
		echo "$usage"
		exit
		;;
	*) die "unknown argument '$1', see lab/bench.sh --help" ;;
	esac
	shift
done

out=${BENCH_OUT:-build/bench}
programs=lab/bench/programs

build_images() {
	local kernel
	kernels=(base patched)
	[[ -z ${PEER-} ]] || kernels+=(peer)
	for kernel in "${kernels[@]}"; do
		images[$kernel]=$(lab/image.sh "$kernel" prod | tail -n 1)
		[[ -n ${images[$kernel]} ]] || die "no $kernel image"
	done
}

# What the guest prints are results and, for whoever waits, where it is.
# shellcheck disable=SC2317 # start_job calls it
measure() {
	local kernel=$1 what=$2 name=$1-$2 status=0 guest command
	# Addresses decide how much there is to do: they are not to be random.
	local kernel_arguments="nokaslr norandmaps"
	guest=(--mem 2048 --add "$out/bench" --add "$out/nop")
	command=(/bin/bench ${text:+--only "$text"})
	((!quick)) || [[ $what == flushes ]] || command+=(--quick)
	case $what in
	cost) guest+=(--icount) ;;
	flushes)
		guest+=(--smp 2)
		# Nothing but the busy thread is to run on the second one.
		kernel_arguments+=" isolcpus=1"
		command+=(--count)
		;;
	threads)
		guest+=(--icount --smp 2)
		command+=(--threads)
		;;
	programs)
		guest=(--mem 3584 --icount --root host)
		command=("$programs/measure.py" "$out" ${text:+"$text"})
		;;
	esac
	lab/guest.py --image "${images[$kernel]}" "${guest[@]}" --timeout 3600 \
		--append "$kernel_arguments" --log "$out/$name.log" \
		-- "${command[@]}" 2>"$out/$name.err" |
		tee "$out/$name.txt" | progress "$name" || status=$?
	((!status)) || {
		grep '^bench: ' "$out/$name.txt" >&2 || true
		cat "$out/$name.err" >&2
		echo "measuring $name failed, see $out/$name.log" >&2
	}
	return "$status"
}

# shellcheck disable=SC2317 # measure calls it
progress() {
	local line
	while read -r line; do
		[[ $line =~ ^(result|step|round)\  ]] || echo "$1: $line ($SECONDS s)" >&2
	done
}

# A guest keeps one processor busy.
measure_all() {
	local kernel what
	((${#kernels[@]})) || build_images
	for what; do
		for kernel in "${kernels[@]}"; do
			start_job measure "$kernel" "$what"
		done
	done
	wait_for_jobs || exit 1
}

bench_calls() {
	lab/programs.sh "$out" lab/bench/bench.c lab/bench/nop.c
	measure_all cost threads flushes
	lab/bench/report.py "$out" "${kernels[@]}"
	((!quick)) || return 0
	gnuplot -c lab/bench/sizes.gp "$out"
	gnuplot -c lab/bench/realloc.gp "$out" "${kernels[*]}"
	echo "plots: $out/*.png, $out/*.svg"
	[[ ${images[base]-} && ${images[patched]-} && -z $text ]] || return 0
	lab/bench/profile.py --work | tee "$out/work.txt"
}

# What runs on the machine's own root file system.
build_programs() {
	lab/deps.sh run programs
	lab/programs.sh "$out" lab/run/{realloc,moved}.c "$programs"/*.c{,pp}
	[[ $out/inputs/done -nt $programs/inputs.py ]] || {
		echo "making what the programs read, $out/inputs/" >&2
		python3 "$programs/inputs.py" "$out/inputs"
		touch "$out/inputs/done"
	}
}

bench_programs() {
	build_programs
	measure_all programs
	"$programs/table.py" "$out" "${kernels[@]}"
}

survey() {
	local image=${images[patched]-}
	# What cannot be had is listed.
	lab/deps.sh survey || true
	build_programs
	[[ $image ]] || image=$(lab/image.sh patched lean | tail -n 1)
	[[ $image ]] || die "no patched image"
	lab/guest.py --image "$image" --root host --mem 3072 --timeout 3600 \
		--log "$out/survey.log" -- "$programs/survey.py" "$out" ${text:+"$text"} |
		tee "$out/survey.txt"
}

lab/deps.sh guest bench
mkdir -p "$out"
case $mode in
calls) bench_calls ;;
programs) bench_programs ;;
survey) survey ;;
esac
