#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds a small kernel with the KUnit tests of mremap(), boots it by the
# kernel's own tools/testing/kunit, and judges what it prints.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: lab/kunit.sh [x86_64|um] [SUITE.CASE]
  x86_64  in QEMU, with all that is tested; um: User Mode Linux, which cannot move tables
  SUITE.CASE may have wildcards: 'mremap_tables.huge*'
  KUNIT_SOURCE in the environment is another kernel source than build/tree/"

case ${1-} in
-h | --help) echo "$usage"; exit ;;
esac
(($# <= 2)) || die "$usage"
arch=${1:-x86_64}
filter=("${@:2}")

configs=(mm/tests)
case $arch in
x86_64)
	configs+=(mm/tests/x86.config "$PWD/lab/config/kunit.config")
	# Threads: see lab/guest.py. Two processors, so that there are TLBs to flush.
	# An oops ends the run: a test that died may hold locks that others wait for.
	options=(--arch=x86_64 "--qemu_args=-accel tcg,thread=single -smp 2"
		--kernel_args=oops=panic --kernel_args=panic=-1)
	;;
um) configs+=("$PWD/lab/config/kunit-um.config") options=() ;;
*) die "$usage" ;;
esac

source=${KUNIT_SOURCE:-build/tree}
out=build/kunit/$arch${KUNIT_SOURCE:+.other}
log=$out.log
kernel_log=$out/test.log

# What makes ccache serve one clone from another; see lab/image.sh.
kbuild_environment kunit
export CCACHE_BASEDIR=$PWD PYTHONDONTWRITEBYTECODE=1

kunit() {
	cd "$source" || return
	python3 tools/testing/kunit/kunit.py run "${options[@]}" "${configs[@]/#/--kunitconfig=}" \
		--build_dir="$OLDPWD/$out" --jobs="$(nproc)" --make_options="CC=$kernel_gcc" \
		--make_options="HOSTCC=ccache gcc" --timeout="${KUNIT_SECONDS:-600}" "${filter[@]}"
}

lab/deps.sh base build guest
lab/base.sh >&2
lab/tree.py >&2
take_lock "$out.lock" "KUnit's kernel for $arch"
[[ -e $out/.config ]] || need_space 1000 "KUnit's kernel for $arch"
mkdir -p "$out"
rm -f "$kernel_log"

# kunit.py says nothing while it builds, which takes minutes from nothing.
tell_progress() {
	local made
	while sleep 10; do
		[[ ! -e $kernel_log ]] || return 0
		# What the compiler puts there for a moment may be gone when find gets to it.
		made=$( (find "$out" -name '*.o' -newer "$out.lock" 2>/dev/null || true) | wc -l)
		echo "kunit $arch: $made objects of about 770, $SECONDS s" >&2
	done
}

good=1
touch "$out.lock"
tell_progress &
ticker=$!
# The ticker may have ended by itself, and a trap that fails would be the status.
trap 'kill $ticker 2>/dev/null || true' EXIT
(kunit) >"$log" 2>&1 || good=0
[[ -e $kernel_log ]] || { tail -n 20 "$log" >&2; die "no kernel for $arch came about, see $log"; }
# All that was not passed.
grep -vE '\[PASSED\]|^\[[0-9:]+\] =+$' "$log" || true

if grep -E "$splat" "$kernel_log" >&2; then
	good=0
	echo "the kernel complained, see $kernel_log" >&2
fi
verdict=$(lab/ktap.py "$kernel_log" | tail -n 1) || good=0
echo "kunit $arch: $verdict"
((good))
