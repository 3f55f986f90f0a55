#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Cross-builds arm64 kernels and boots them in QEMU, which emulates all of it.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/arm64.sh [SUITE | SUITE@cont]...
       lab/arm64.sh --bench
  Without --bench it runs the KUnit tests and these suites, or a part of every one of them
  (MREMAP_BRIEF), on a kernel with the checks of debug.
  @cont    the suite's anonymous memory is of folios whose entries arm64 makes contiguous
  --bench  what calls cost on the unpatched and the patched kernel, as lab/bench.sh has it
PAGES in the environment is 4k, 16k or 64k, the size of a page: 4k unless told"

pages=${PAGES:-4k}
[[ $pages =~ ^(4|16|64)k$ ]] || die "$usage"
bench=0
case ${1-} in
--bench) bench=1 ;;
-*) die "$usage" ;;
esac
out=build/arm64/$pages cross=aarch64-linux-gnu-
minutes=120

kbuild_environment arm64
export CCACHE_BASEDIR=$PWD PYTHONDONTWRITEBYTECODE=1

# What other fragments want besides may be x86's.
own_options() {
	cat lab/config/arm64.config
	echo "CONFIG_ARM64_${pages^^}_PAGES=y"
}

# build_kernel SOURCE FOLDER FRAGMENT...: with pages of the size that is wanted.
build_kernel() {
	local folder=$PWD/$out/$2 kbuild lost
	kbuild=(make -C "$1" O="$folder" ARCH=arm64 CROSS_COMPILE="$cross" -j"$(nproc)"
		CC="ccache ${cross}gcc" HOSTCC="ccache gcc")
	mkdir -p "$folder"
	{ cat "${@:3}"; own_options; } >"$folder.config"
	if ! cmp -s "$folder.config" "$folder/.config.wanted"; then
		rm -f "$folder/.config.wanted"
		"${kbuild[@]}" KCONFIG_ALLCONFIG="$folder.config" allnoconfig || return
		lost=$(own_options | lost_options "$folder/.config")
		[[ ! $lost ]] || { echo "error: Kconfig did not keep $lost"; return 1; }
		cp "$folder.config" "$folder/.config.wanted"
	fi
	"${kbuild[@]}" Image
}

# logged COMMAND...: what it says is worth reading only if it fails.
logged() {
	local log=$out/build.log
	echo "building for arm64, see $log" >&2
	"$@" >"$log" 2>&1 || { grep -E 'rror|\*\*\*' "$log" >&2; die "that failed, see $log"; }
}

# pack PROGRAM...: to build/arm64/initrd, in /bin there, and init.
pack() {
	python3 - "$out" "$@" <<-'END'
		import os, sys
		sys.path.insert(0, "lab")
		import initramfs
		out, *programs = sys.argv[1:]
		files = {f"/bin/{os.path.basename(path)}": initramfs.read_file(path)
		         for path in programs}
		files["/init"] = initramfs.read_file(f"{out}/init")
		with open(f"{out}/initrd", "wb") as initrd:
		    initrd.write(initramfs.archive(files))
	END
}

# boot KERNEL LOG APPEND OPTION... -- RUN...: what each run prints comes to $out/RUN.tap. What
# is behind a comma in it is the program's argument.
boot() {
	local kernel=$1 log=$2 append=$3 options=() i=0
	shift 3
	while [[ $1 != -- ]]; do
		options+=("$1")
		shift
	done
	shift
	local run
	for run; do
		options+=(-chardev "file,id=tap$i,path=$out/${run%,*}.tap"
			-device "virtserialport,chardev=tap$i,nr=$((++i))")
	done
	timeout "${minutes}m" qemu-system-aarch64 -nodefaults -no-user-config -display none \
		-no-reboot -machine virt -cpu max,pauth-impdef=on -m 2048 \
		-kernel "$out/$kernel/arch/arm64/boot/Image" -initrd "$out/initrd" \
		-append "console=ttyAMA0 ignore_loglevel panic=-1 $append -- $*" \
		-chardev "file,id=log,path=$log" -serial chardev:log \
		-device virtio-serial-device,max_ports=31 "${options[@]}" </dev/null >&2
}

# The log of a kernel that complained is a failure.
check_log() {
	# shellcheck disable=SC2154 # common.sh has it
	! grep -E "$splat" "$1" >&2 || { echo "the kernel complained, see $1" >&2; return 1; }
}

verdicts=()
report() {
	local name=$1 file=$2 verdict good=1
	lab/ktap.py "$file" >"$out/$name.report" || good=0
	verdict=$(tail -n 1 "$out/$name.report")
	sed '$d' "$out/$name.report"
	echo "arm64, pages of $pages, $name: $verdict"
	verdicts+=("$verdict")
	((good))
}

run_tests() {
	local runs=("$@") suites run good=1
	((${#runs[@]})) || runs=(mremap_{test,test@cont,errno,trace,features,hugetlb,multi,multi@cont}
		mremap_{merge,uffd,accounting,dontunmap,race,random})
	mapfile -t suites < <(printf '%s\n' "${runs[@]%@*}" | sort -u)
	logged build_kernel build/tree kernel lab/config/{guest,debug,patched-debug,patched-arm64}.config
	ARCH=arm64 CROSS_COMPILE=$cross lab/selftests.sh build/tree "$out/tests" -static "${suites[@]}"
	pack "${suites[@]/#/$out/tests/}"
	rm -f "$out"/*.tap
	# After these Committed_AS is too small to tell anything: not in one boot with others.
	boot kernel "$out/kunit.log" "kunit.enable=1" -smp 2 -accel tcg,thread=single -- ||
		{ echo "QEMU ended with $?" >&2; good=0; }
	report kunit "$out/kunit.log" || good=0
	boot kernel "$out/kernel.log" "MREMAP_BRIEF=1" -smp 2 \
		-accel tcg,thread=single -- "${runs[@]}" || { echo "QEMU ended with $?" >&2; good=0; }
	for run in "${runs[@]}"; do
		report "$run" "$out/$run.tap" || good=0
	done
	printf '%s\n' "${verdicts[@]}" | sum_up -
	check_log "$out/kunit.log" && check_log "$out/kernel.log" && ((good))
}

# Counts as lab/bench.sh does: only the flushes are not to be had.
run_bench() {
	local kernel source
	CROSS_COMPILE=$cross lab/programs.sh "$out" lab/bench/bench.c lab/bench/nop.c
	pack "$out"/{bench,nop}
	for kernel in base patched; do
		source=build/tree
		[[ $kernel == patched ]] || source=build/base
		logged build_kernel "$source" "bench-$kernel" lab/config/guest.config
		echo "measuring the $kernel kernel" >&2
		boot "bench-$kernel" "$out/bench-$kernel.log" "nokaslr norandmaps" -smp 1 \
			-icount shift=0,sleep=off -- bench,--quick || die "QEMU ended with $?"
		check_log "$out/bench-$kernel.log"
		mv "$out/bench.tap" "$out/$kernel-cost.txt"
	done
	lab/bench/report.py "$out" base patched
}

lab/deps.sh base build cross arm64
lab/base.sh >&2
lab/tree.py >&2
mkdir -p "$out"
take_lock "build/arm64.lock" "the arm64 guest"
CROSS_COMPILE=$cross lab/programs.sh "$out" lab/arm64/init.c
if ((bench)); then
	run_bench
else
	run_tests "$@"
fi
