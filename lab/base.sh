#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# build/base/: the pristine source of Debian's linux-source-6.12. With another BASE in
# the environment the same in build/BASE/, beside its configuration; what is not in
# the machine's own suites is downloaded, and unpacked without being installed.
# "lab/base.sh record" notes in bases/BASE what our changes are made against:
# upstream's version, the package's, and the checksums of the files that they replace
# or patch.

. "$(dirname "$0")/common.sh"

package=$(of_base source)
suite=$(of_base suite)
downloads=$work/packages

# unpack VERSION COMMAND...: the command prints the archive
unpack() {
	local version=$1
	shift
	need_space 4000 "$base/ and what is made of it"
	echo "unpacking $package $version to $base/" >&2
	lab/upstream.sh keep
	rm -rf "$base.tmp" "$base.version" "$base"
	mkdir -p "$base.tmp"
	# Files of a new base must be newer than the objects made from the old one.
	"$@" | tar --extract --touch --strip-components=1 --xz --directory="$base.tmp" \
		2>"$base.log" || die "unpacking $package failed: $(tail -n 1 "$base.log")"
	mv "$base.tmp" "$base"
	echo "$version" >"$base.version"
}

installed() {
	local version
	version=$(dpkg-query -Wf '${Version}' "$package")
	[[ -d $base && $version == "$(cat "$base.version" 2>/dev/null)" ]] ||
		unpack "$version" cat "/usr/src/$package.tar.xz"
}

# out_of PACKAGE FILE...: prints files of a downloaded package
out_of() {
	local name=$1
	shift
	dpkg-deb --fsys-tarfile "$downloads/$name"_*.deb |
		tar --extract --to-stdout --wildcards "$@"
}

# What is there is taken as it is. A newer version is asked for by removing it.
downloaded() {
	local config
	config=$(of_base config)
	[[ ! -e $base.version ]] || return 0
	lab/download.sh "$suite" "$downloads" "$package" "$config"
	out_of "$config" './usr/src/*/config.amd64_none_cloud-amd64.xz' >"$base.config.xz"
	unpack "$(dpkg-deb --field "$downloads/$package"_*.deb Version)" \
		out_of "$package" './usr/src/linux-source-*.tar.xz'
	rm -r "$downloads"
}

upstream_version() {
	awk -F' = ' '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v sep $2; sep = "." }
		     END { print v }' "$base/Makefile"
}

# What is made against it: the port, or no more than fixes.
files() {
	if [[ $BASE == "$default_base" ]]; then
		lab/tree.py replaced
	else
		find "fixes/$BASE" -name '*.patch' -exec sed -n 's,^--- a/,,p' {} + | sort -u |
			while read -r path; do
				[[ ! -e $base/$path ]] || echo "$path"
			done
	fi
}

sums_now() {
	echo "# Linux $(upstream_version)"
	sed -n '/^# \(Linux\|version\) /!s/^#/&/p' "$sums"
	echo "# version $(<"$base.version")"
	files | (cd "$base" && xargs -r -d '\n' sha256sum)
}

# files_where SUMS OTHER CONDITION: files of OTHER for which that holds. It knows the
# checksums in SUMS as sum[file].
files_where() {
	awk '$1 == "#" { next }
	     NR == FNR { sum[$2] = $1; next }
	     '"$3"' { print $2 }' "$1" "$2" | xargs
}

# shellcheck disable=SC2016 # awk expands it
compare() {
	local now recorded changed new gone
	now=$(sums_now)
	[[ $now != "$(<"$sums")" ]] || return 0
	recorded=$(head -n 1 "$sums")
	changed=$(files_where "$sums" <(echo "$now") '($2 in sum) && sum[$2] != $1')
	new=$(files_where "$sums" <(echo "$now") '!($2 in sum)')
	gone=$(files_where <(echo "$now") "$sums" '!($2 in sum)')
	[[ -z $new ]] || echo "not in $sums: $new; 'lab/base.sh record' adds them" >&2
	[[ -z $gone ]] || echo "gone there, or not ours any more: $gone; see 'lab/base.sh record'" >&2
	if [[ $changed || ${now%%$'\n'*} != "$recorded" ]]; then
		echo "the base is Linux $(upstream_version), our changes were made against ${recorded#\# }" >&2
		echo "changed there: ${changed:-none of the files that they replace or patch}" >&2
		echo "see 'make upstream'" >&2
		[[ $BASE != "$default_base" ]] || lab/tree.py check
	fi
}

case "$#:${1-}" in
0: | 1:record) ;;
*) die "usage: lab/base.sh [record]" ;;
esac

lab/deps.sh base
take_lock "$base.lock" "$base/"
if [[ $suite ]]; then
	downloaded
else
	installed
fi
if [[ ${1-} == record ]]; then
	now=$(sums_now)
	echo "$now" >"$sums"
else
	compare
fi
