#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds a kernel out of tree and prints the path of its bzImage. The flavors that begin with
# "deb-" are for lab/deb.sh: their packages are beside the folder that they are built in.

. "$(dirname "$0")/common.sh"

(($# == 2)) || die "usage: lab/image.sh base|patched|fixed|peer FLAVOR
FLAVOR is prod, debug, rt, fuzz, lean, cover, kcsan, deb-cloud or deb-generic.
fixed is the base with the patches of fixes/, see lab/fixes.py; peer is the kernel
source in the folder \$PEER"
tree=$1 flavor=$2

case $tree in
base) source=$base changed=$base.version ;;
fixed) source=$work/fixed changed=$work/fixed.changed ;;
patched)
	needs_port "a patched kernel"
	source=build/tree changed=build/tree.changed
	;;
peer)
	source=$(realpath -e "${PEER:?is to be the folder of a kernel source}")
	changed=build/peer.changed
	;;
*) die "no tree '$tree': base, patched, fixed or peer" ;;
esac

cloud_config=/usr/src/$(of_base config)/config.amd64_none_cloud-amd64.xz
[[ ! $(of_base suite) ]] || cloud_config=$base.config.xz

# seed: what the config starts from. completion: the goal of make that fills in
# the rest. objects: how many a whole build makes, for the progress lines only. space: the MB
# of disk that it takes.
goal=bzImage shadow=$work/obj/$tree space=3000
case $flavor in
prod)
	seed() {
		# Debian's modules are left out, not built in.
		xzcat "$cloud_config" |
			sed -E 's/^(CONFIG_\w+)=m$/# \1 is not set/'
	}
	completion=(olddefconfig)
	objects=2280
	fragments=(lab/config/prod.config)
	;;
debug | rt | fuzz | lean | cover | kcsan)
	seed() { :; }
	completion=(KCONFIG_ALLCONFIG=.config.wanted allnoconfig)
	objects=1300
	fragments=(lab/config/guest.config "lab/config/$flavor.config")
	;;
deb-cloud | deb-generic)
	[[ $tree == patched ]] || die "only of the patched kernel there are packages"
	seed() {
		# Debian's names of them: cloud-amd64, amd64
		local name=${flavor#deb-}-amd64
		name=${name#generic-}
		xzcat "${cloud_config/cloud-amd64/$name}"
		echo "CONFIG_LOCALVERSION=\"-mremap-$name\""
	}
	completion=(olddefconfig)
	goal=bindeb-pkg shadow=$work/obj/$flavor objects=6500 space=6000
	[[ $flavor == deb-cloud ]] || objects=16000 space=15000
	fragments=(lab/config/deb.config)
	;;
*) die "no flavor '$flavor', see lab/image.sh" ;;
esac

excluded='^$' options=$flavor instrumented=()
if [[ $flavor == rt ]]; then
	options=debug fragments=(lab/config/{guest,debug,rt}.config)
	excluded='^CONFIG_(PREEMPT|TRANSPARENT_HUGEPAGE.*|NUMA_BALANCING|TEST_HMM)='
elif [[ $flavor == fuzz ]]; then
	options=debug fragments=(lab/config/{guest,debug,fuzz}.config)
	# Kbuild's own variables: with KCOV and, to tell lines from addresses, -g1.
	for object in mremap mremap_call vma mmap userfaultfd hugetlb rmap ksm huge_memory \
		mlock mprotect madvise pgtable-generic; do
		instrumented+=("KCOV_INSTRUMENT_$object.o=y" "CFLAGS_$object.o=-g1")
	done
elif [[ $flavor == kcsan ]]; then
	options=debug
elif [[ $flavor == cover ]]; then
	# Lines are counted in the objects that we change. What is inlined before the
	# counters are put in would have lines that seem never to be reached.
	instrumented=(CFLAGS_mremap{,_call,_debug}.o=-fno-early-inlining)
	while read -r object; do
		instrumented+=("GCOV_PROFILE_$object=y")
	done < <(lab/cover.py --objects)
fi
# Options that only the patched source has.
extra=lab/config/patched-$options.config
[[ $tree != patched || ! -e $extra ]] || fragments+=("$extra")

# And those that only this base has.
extra=lab/config/base-$BASE.config
[[ ! -e $extra ]] || fragments+=("$extra")

# Kbuild sees the source as "..", whichever tree it is, so that the compiler's
# command lines are the same and ccache serves one tree from the other.
out=$shadow/$flavor
log=$out.log
image=$out/arch/x86/boot/bzImage

kbuild_environment "$tree-$flavor"
kbuild=(make -C "$shadow" O="$flavor" -j"$(nproc)" CC="$kernel_gcc" HOSTCC="ccache gcc"
	${instrumented[@]+"${instrumented[@]}"})

failed() {
	# What gcc, ld, make and a full disk have in common.
	grep -E '[Ee]rror|undefined reference|No space left|: not found' "$log" |
		head -n 20 >&2
	die "$1, see $log"
}

link_source() {
	mkdir -p "$out"
	if [[ $goal == bzImage ]]; then
		ln -sfnr "$source"/* "$shadow/"
		return
	fi
	# bindeb-pkg lists the headers by find, which would stop at a link to a folder.
	find "$shadow/" -mindepth 1 -maxdepth 1 ! -name "$flavor*" -exec rm -rf {} +
	cp -al "$source"/* "$shadow/"
}

check_config() {
	local lost
	lost=$(fragments | lost_options "$out/.config")
	[[ $lost ]] || return 0
	lost="$flavor: Kconfig did not keep $lost, see $out/.config"
	[[ $tree == peer || $BASE != "$default_base" ]] || die "$lost"
	echo "$lost" >&2	# options have other names in other versions
}

fragments() {
	grep -hvE "$excluded" "${fragments[@]}"
}

wanted_config() {
	seed
	fragments
}

# Make alone takes ten seconds to see that nothing is to be done. The file that
# tells of the last build is as old as that build's start.
up_to_date() {
	[[ $out.done -nt $changed && $out.done -nt lab/image.sh && -e $image ]] &&
		wanted_config | cmp -s - "$out/.config.wanted"
}

configure() {
	local wanted=$out/.config.wanted
	if [[ ! -e $out/.config ]] || ! wanted_config | cmp -s - "$wanted" ||
		[[ -n $(find "$source/" -name 'Kconfig*' -newer "$out/.config" -print -quit) ]]; then
		wanted_config | tee "$wanted" >"$out/.config"
		"${kbuild[@]}" "${completion[@]}" </dev/null >>"$log" 2>&1 ||
			{ rm -f "$wanted"; failed "configuring $tree $flavor failed"; }
	fi
	check_config
}

progress() {
	local count last
	count=$(grep -cE '^  (CC|AS) ' "$log") || true
	last=$(tail -n 1 "$log" | cut -c 1-50)
	printf '%s%s%s' "$1" "$tree $flavor: $count objects of about $objects, $SECONDS s:$last" "$2" >&2
}

build() {
	local tick=100 before="" after=$'\n' i
	[[ ! -t 2 ]] || tick=10 before=$'\r\e[K' after=""
	"${kbuild[@]}" "$goal" </dev/null >>"$log" 2>&1 &
	make=$!
	for ((i = 1; ; i++)); do
		sleep 0.1
		kill -0 $make 2>/dev/null || break
		((i % tick)) || progress "$before" "$after"
	done
	printf '%s' "$before" >&2
	wait $make || { make=; failed "building $tree $flavor failed"; }
	make=
}

# make removes what it was making if it is told to end, but not if it is killed.
# shellcheck disable=SC2317 # the trap calls it
finish() {
	if [[ -n $make ]]; then
		kill -TERM "$make" 2>/dev/null || true
		wait "$make" || true
	fi
	rm -f "$out.building"
}

# The folder is not ours: see by ourselves whether something in it has changed,
# or whether it is another one than last time.
look_at_peer() {
	local newer
	[[ -f $source/Kbuild ]] || die "no kernel source in $source"
	if [[ $(cat "$shadow.source" 2>/dev/null) != "$source" ]]; then
		find "$shadow/" -mindepth 1 -maxdepth 1 ! -name '*.lock' -exec rm -rf {} +
		echo "$source" >"$shadow.source"
	fi
	if [[ -e $changed ]]; then
		newer=$(find "$source/" -name .git -prune -o -newer "$changed" -print -quit)
		[[ $newer ]] || return 0
	fi
	touch "$changed"
}

# A function, so that a change of this file does not disturb a run.
main() {
	lab/deps.sh base build
	[[ $tree == peer || $tree == fixed ]] || lab/base.sh
	[[ $tree != patched ]] || lab/tree.py
	[[ -d $source ]] || die "no $source/, see lab/fixes.py"
	take_lock "$out.lock" "$tree $flavor"
	[[ $tree != peer ]] || look_at_peer
	if [[ -e $out.building ]]; then
		rm -rf "$out"
	elif up_to_date; then
		echo "$image"
		return
	fi
	[[ -e $out/vmlinux ]] || need_space "$space" "a build of $tree $flavor"
	link_source
	: >"$log"
	rm -f "$out.done"
	touch "$out.building"
	make=
	trap finish EXIT
	trap 'exit 130' INT TERM
	configure
	build
	mv "$out.building" "$out.done"
	echo "$image"
}

main
exit
