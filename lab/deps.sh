#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Installs the Debian packages of the named groups, as far as they are missing.

. "$(dirname "$0")/common.sh"

default_sources=$(sed -En 's/^# (source|config) //p' "bases/$default_base" | xargs)

declare -A groups=(
	[base]="git $default_sources patch python3 tar xz-utils"
	[build]="bc bison ccache flex gcc libc6-dev libelf-dev libssl-dev lz4 make perl"
	[cross]="clang gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-powerpc64le-linux-gnu gcc-riscv64-linux-gnu gcc-s390x-linux-gnu"
	[arm64]="libc6-dev-arm64-cross qemu-system-arm"
	[docs]="make man-db mandoc python3-sphinx python3-sphinx-rtd-theme"
	[guest]="busybox-static cpio python3 qemu-system-x86"
	[test]="gcc libc6-dev libcap-dev make rsync"
	[bench]="gcc gnuplot-nox libc6-dev python3"
	[run]="criu gcc libc6-dev linux-perf python3"
	[run-all]="libpython3.11-testsuite perl postgresql redis-tools stress-ng valgrind"
	[programs]="apt g++ gcc jq libc6-dev libxml2-utils perl python3 sed"
	[survey]="bash bc binutils bsdextrautils bzip2 clang curl dc diffutils ed g++ gawk gdb gdbmtool gettext git gnuplot-nox graphicsmagick groff-base guile-3.0 jq libxml2-utils lua5.4 lz4 m4 man-db mawk nodejs openssl p7zip-full php-cli plocate postgresql redis-tools rsync ruby sqlite3 strace stress-ng tcl valgrind vim xz-utils zip zstd"
	[live]="bpftrace"
	[deb]="cpio debhelper dpkg-dev kmod openssl rsync"
	[trial]="e2fsprogs fakeroot fdisk mmdebstrap openssh-client python3 qemu-system-x86 uidmap"
	[series]="git liburcu-dev perl python3"
	[check]="clang codespell coccinelle lld llvm mypy ocaml-nox pyflakes3 shellcheck sparse"
)

wanted=()
(($#)) || die "usage: lab/deps.sh GROUP..., groups: ${!groups[*]}"
for group; do
	[[ -v groups[$group] ]] || die "no group '$group', groups: ${!groups[*]}"
	read -ra packages <<<"${groups[$group]}"
	wanted+=("${packages[@]}")
done

missing=()
for package in "${wanted[@]}"; do
	[[ $(dpkg-query -Wf '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
		missing+=("$package")
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || die "not a Debian machine; missing: ${missing[*]}"
sudo=()
if ((EUID)); then
	command -v sudo >/dev/null || die "not root and no sudo; missing: ${missing[*]}"
	sudo=(sudo)
fi

log=build/apt.log
take_lock build/apt.lock "an installation of packages"
echo "installing ${missing[*]}" >&2
# Without an update a fresh machine asks for versions that its mirror dropped.
if ! "${sudo[@]}" apt-get update >"$log" 2>&1 ||
	! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
	die "apt-get failed, see $log: $(grep -a -m1 '^E:' "$log")"
fi
