#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Compiles what our kernel files belong to, without linking a kernel.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

(($# >= 2)) || die "usage: lab/objects.sh SOURCE NAME [MAKE_ARGUMENT...]
The kernel source SOURCE is compiled to build/objects/NAME/obj/ with W=1. What is said
about it goes to build/objects/NAME.log, warnings also to the output. They are errors,
but not with C=2, where the objects are only looked at by another program. Goals among
the arguments replace the usual ones."
source=$(realpath -e "$1") name=$2
shift 2

# Ours, and what includes the headers that ours change, as far as the base has no
# warnings there.
objects=(mm/ fs/exec.o fs/hugetlbfs/ fs/proc/ fs/userfaultfd.o
	arch/x86/mm/fault.o arch/x86/mm/hugetlbpage.o arch/x86/mm/tlb.o)
goals=() variables=()
for argument; do
	case $argument in
	*=*) variables+=("$argument") ;;
	*) goals+=("$argument") ;;
	esac
done
((${#goals[@]})) || goals=("${objects[@]}")

fragments=(lab/config/{guest,debug,check}.config)
shadow=build/objects/$name
out=$shadow/obj
log=$shadow.log

# See lab/image.sh: the source is "..", whichever it is, for ccache's sake.
kbuild_environment objects
kbuild=(make -C "$shadow" O=obj -j"$(nproc)" CC="ccache gcc" HOSTCC="ccache gcc" W=1
	${variables[@]+"${variables[@]}"})

run() {
	"$@" </dev/null >>"$log" 2>&1 || {
		grep -E '[Ee]rror|\*\*\*|: not found' "$log" | head -n 20 >&2
		die "compiling $name failed, see $log"
	}
}

configure() {
	cat "${fragments[@]}" >"$out/.config.new"
	if [[ -e $out/.config ]] && cmp -s "$out/.config.new" "$out/.config.wanted" &&
		[[ -z $(find "$shadow/mm/Kconfig" "$shadow/mm/Kconfig.debug" -newer "$out/.config") ]]; then
		return
	fi
	rm -f "$out/.config"
	cp "$out/.config.new" "$out/.config.wanted"
	run "${kbuild[@]}" KCONFIG_ALLCONFIG=.config.wanted allnoconfig
}

mkdir -p "$out"
take_lock "$shadow.lock" "the objects of $name"
ln -sfn "$source"/* "$shadow/"
: >"$log"
configure
run "${kbuild[@]}" "${goals[@]}"
# Not of interest: that one fragment overrides the other.
warnings=$(grep -E "warning: |error: " "$log" | grep -v '^\.config') || exit 0
echo "$warnings"
[[ " ${variables[*]-} " != *" C=2 "* ]] || exit 0
# What is compiled is not warned of again: take it away, that the next run does so.
sed -n 's/^  CC  *//p' "$log" | (cd "$out" && xargs -r rm -f)
exit 1
