#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# What mremap() costs on the patched kernel and on the base: instructions and
# TLB flushes, which QEMU counts the same in every run; and, which it does not, how long
# moves take while other threads fault. With PEER=FOLDER in the environment a third
# kernel, built from the source in that folder.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/bench.sh [--quick] [--image KERNEL=BZIMAGE]... [--only TEXT]
  --quick  only what is in the table, fewer calls, no plots
  --image  take this image for the kernel (base, patched or peer) as it is; then only
           kernels that are named in this way are measured
  --only   only cases whose name has TEXT in it"

quick=0
only=()
kernels=()
declare -A images

while (($#)); do
	case $1 in
	--quick) quick=1 ;;
	--image)
		[[ ${2-} =~ ^(base|patched|peer)=(.+)$ ]] || die "--image needs KERNEL=BZIMAGE"
		[[ -e ${BASH_REMATCH[2]} ]] || die "no image ${BASH_REMATCH[2]}"
		kernels+=("${BASH_REMATCH[1]}")
		images[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
		shift
		;;
	--only)
		(($# > 1)) || die "--only needs a value"
		only=(--only "$2")
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
	local kernel=$1 what=$2 name=$1-$2 status=0 arguments=() guest=()
	# Addresses decide how much there is to do: they are not to be random.
	local kernel_arguments="nokaslr norandmaps"
	case $what in
	cost)
		guest=(--icount)
		((!quick)) || arguments+=(--quick)
		;;
	flushes)
		guest=(--smp 2)
		# Nothing but the busy thread is to run on the second one.
		kernel_arguments+=" isolcpus=1"
		arguments+=(--count)
		;;
	threads)
		guest=(--icount --smp 2)
		arguments+=(--threads)
		((!quick)) || arguments+=(--quick)
		;;
	esac
	lab/guest.py --image "${images[$kernel]}" "${guest[@]}" --mem 2048 --timeout 3600 \
		--append "$kernel_arguments" --log "$out/$name.log" --add "$out/bench" --add "$out/nop" \
		-- /bin/bench "${arguments[@]}" ${only[@]+"${only[@]}"} 2>"$out/$name.err" |
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

lab/deps.sh guest bench
mkdir -p "$out"
((${#kernels[@]})) || build_images
lab/programs.sh "$out" lab/bench/bench.c lab/bench/nop.c

# A guest keeps one processor busy.
for what in cost threads flushes; do
	for kernel in "${kernels[@]}"; do
		start_job measure "$kernel" "$what"
	done
done
wait_for_jobs || exit 1

lab/bench/report.py "$out" "${kernels[@]}"
((quick)) || {
	gnuplot -c lab/bench/sizes.gp "$out"
	gnuplot -c lab/bench/realloc.gp "$out" "${kernels[*]}"
	echo "plots: $out/*.png, $out/*.svg"
	[[ -n ${images[base]-} && -n ${images[patched]-} && -z ${only[*]-} ]] || exit 0
	lab/bench/profile.py --work | tee "$out/work.txt"
}
