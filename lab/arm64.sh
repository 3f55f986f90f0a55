#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Cross-builds an arm64 kernel, boots it in QEMU, and runs the KUnit tests of
# mremap() and the selftests on it: the way without detached tables, with
# contiguous PTEs. usage: lab/arm64.sh [SUITE | SUITE@64k]...
# @64k: the suite's anonymous memory is of folios of that size

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

runs=("$@")
((${#runs[@]})) || runs=(mremap_test mremap_test@64k mremap_errno mremap_trace mremap_features
	mremap_multi@64k)
mapfile -t suites < <(printf '%s\n' "${runs[@]%@*}" | sort -u)
out=build/arm64
image=$out/kernel/arch/arm64/boot/Image
cross=aarch64-linux-gnu-
minutes=40

kbuild_environment arm64
export CCACHE_BASEDIR=$PWD PYTHONDONTWRITEBYTECODE=1

kbuild=(make -C build/tree O="$PWD/$out/kernel" ARCH=arm64 CROSS_COMPILE="$cross" -j"$(nproc)"
	CC="ccache ${cross}gcc" HOSTCC="ccache gcc")

build() {
	mkdir -p "$out/kernel"
	cat lab/config/{guest,debug,arm64}.config >"$out/wanted.config"
	if ! cmp -s "$out/wanted.config" "$out/kernel/.config.wanted"; then
		"${kbuild[@]}" KCONFIG_ALLCONFIG="$PWD/$out/wanted.config" allnoconfig
		cp "$out/wanted.config" "$out/kernel/.config.wanted"
	fi
	"${kbuild[@]}" Image
	ARCH=arm64 CROSS_COMPILE=$cross lab/selftests.sh build/tree "$out/tests" -static "${suites[@]}"
	CROSS_COMPILE=$cross lab/programs.sh "$out" lab/arm64/init.c
}

# The suites' programs under their names in /bin, and init.
pack() {
	python3 - "$out" "${suites[@]}" <<-'END'
		import sys
		sys.path.insert(0, "lab")
		import initramfs
		out, *suites = sys.argv[1:]
		files = {f"/bin/{suite}": initramfs.read_file(f"{out}/tests/{suite}") for suite in suites}
		files["/init"] = initramfs.read_file(f"{out}/init")
		with open(f"{out}/initrd", "wb") as initrd:
		    initrd.write(initramfs.archive(files))
	END
}

boot() {
	local i ports=()
	for i in "${!runs[@]}"; do
		ports+=(-chardev "file,id=tap$i,path=$out/${runs[i]}.tap"
			-device "virtserialport,chardev=tap$i,nr=$((i + 1))")
	done
	timeout "${minutes}m" qemu-system-aarch64 -nodefaults -no-user-config -display none \
		-no-reboot -machine virt -cpu max,pauth-impdef=on -accel tcg,thread=single \
		-smp 2 -m 2048 -kernel "$image" -initrd "$out/initrd" \
		-append "console=ttyAMA0 ignore_loglevel panic=-1 kunit.enable=1 -- ${runs[*]}" \
		-chardev "file,id=log,path=$out/kernel.log" -serial chardev:log \
		-device virtio-serial-device "${ports[@]}" </dev/null >&2
}

lab/deps.sh base build cross arm64
lab/base.sh >&2
lab/tree.py >&2
take_lock "$out.lock" "the arm64 guest"
build >"$out.log" 2>&1 || { grep -E 'rror|\*\*\*' "$out.log" >&2; die "building failed, see $out.log"; }
pack
rm -f "$out"/*.tap
good=1
boot || { echo "QEMU ended with $?" >&2; good=0; }

verdicts=()
report() {
	local name=$1 file=$2 verdict
	lab/ktap.py "$file" >"$out/$name.report" || good=0
	verdict=$(tail -n 1 "$out/$name.report")
	sed '$d' "$out/$name.report"
	echo "arm64 $name: $verdict"
	verdicts+=("$verdict")
}

# The kernel's log has its own tests' output, and the suites' programs print elsewhere.
report kunit "$out/kernel.log"
for run in "${runs[@]}"; do
	report "$run" "$out/$run.tap"
done
printf '%s\n' "${verdicts[@]}" | sum_up -
if grep -E "$splat" "$out/kernel.log" >&2; then
	echo "the kernel complained, see $out/kernel.log" >&2
	good=0
fi
((good))
