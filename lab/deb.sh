#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Debian packages of the patched kernel, made by the kernel's own bindeb-pkg, and one of its
# manual page. They are put to build/deb/, and their paths are printed.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

flavor=${1:-cloud}
[[ $# -le 1 && $flavor =~ ^(cloud|generic)$ ]] || die "usage: lab/deb.sh [cloud|generic]
The configuration is Debian's for cloud machines, or the one for all of them, with modules."

out=build/deb
built=build/obj/deb-$flavor	# by lab/image.sh
listed=$built/deb-$flavor/debian/files

# A version that says what of ours is in there. It is above that of Debian's own package of
# the same upstream version, and below that of the next.
package_environment() {
	local upstream
	lab/base.sh
	upstream=$(unset MAKEFLAGS MFLAGS; make -s --no-print-directory -C "$base" kernelversion)
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
	KDEB_PKGVERSION=$upstream+mremap$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M)-1
	export SOURCE_DATE_EPOCH KDEB_PKGVERSION
	export KDEB_SOURCENAME=linux-mremap KDEB_CHANGELOG_DIST=unstable
}

# linux-libc-dev would take the place of the distribution's.
kernel_packages() {
	sed -n "s,^\(linux-\(image\|headers\)[^ ]*\) .*,$1/\1,p" "$listed"
}

build_kernel_packages() {
	local name=$flavor-amd64 built_image
	# For lab/image.sh to go through make again.
	if [[ ! -e $listed ]] || ! kernel_packages "$out" | xargs ls >/dev/null 2>&1; then
		rm -f "$built/deb-$flavor.done"
	fi
	lab/image.sh patched "deb-$flavor" >/dev/null
	built_image=$(kernel_packages "$built" | head -n 1)
	[[ -e $built_image ]] || return 0
	rm -f "$out"/linux-*-mremap-"${name#generic-}"_*.deb
	kernel_packages "$built" | xargs mv -t "$out"
}

# The page gets a section of its own, as the distribution has one of that name, too:
# "man 2 mremap" still shows that, and "man 2mremap mremap" ours.
build_manual() {
	local image root=$out/manual doc
	image=$(kernel_packages "$out" | grep /linux-image-)
	doc=$root/usr/share/doc/mremap-man
	rm -rf "$root" "$out"/mremap-man_*.deb
	mkdir -p "$root/DEBIAN" "$root/usr/share/man/man2" "$doc"
	sed 's/^\.TH MREMAP 2 /.TH MREMAP 2mremap /' lab/man/mremap.2 |
		gzip -9n >"$root/usr/share/man/man2/mremap.2mremap.gz"
	cat >"$doc/copyright" <<-END
		Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

		Files: *
		Copyright: the authors of linux-mremap
		License: GPL-2
		 See /usr/share/common-licenses/GPL-2.
	END
	cat >"$root/DEBIAN/control" <<-END
		Package: mremap-man
		Source: linux-mremap
		Version: $(dpkg-deb -f "$image" Version)
		Architecture: all
		Maintainer: $(dpkg-deb -f "$image" Maintainer)
		Section: doc
		Priority: optional
		Description: manual page of the mremap system call, linux-mremap
		 What mremap does on a kernel of linux-mremap. "man 2mremap mremap" shows it,
		 "man 2 mremap" the page of manpages-dev.
	END
	chmod -R u=rwX,go=rX "$root"
	dpkg-deb --root-owner-group --build "$root" "$out" >&2
	rm -rf "$root"
}

lab/deps.sh base build deb
mkdir -p "$out"
take_lock "$out.lock" "packages"
package_environment
build_kernel_packages
build_manual
kernel_packages "$out"
ls "$out"/mremap-man_*.deb
