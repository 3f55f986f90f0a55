#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# build/base/: the pristine source of Debian's linux-source-6.12.
# "lab/base.sh record" notes in lab/base.sums what the series is made against:
# upstream's version and the checksums of the files that it replaces or patches.

. "$(dirname "$0")/common.sh"

package=linux-source-6.12
archive=/usr/src/$package.tar.xz
base=build/base
sums=lab/base.sums

unpack() {
	local version=$1
	need_space 4000 "$base/ and build/tree/"
	echo "unpacking $package $version to $base/" >&2
	lab/upstream.sh keep
	rm -rf $base.tmp $base.version $base
	mkdir $base.tmp
	# Files of a new base must be newer than the objects made from the old one.
	tar --extract --touch --strip-components=1 --file=$archive --directory=$base.tmp \
		2>$base.log || die "unpacking $archive failed: $(tail -n 1 $base.log)"
	mv $base.tmp $base
	echo "$version" >$base.version
}

upstream_version() {
	awk -F' = ' '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v sep $2; sep = "." }
		     END { print v }' $base/Makefile
}

sums_now() {
	echo "# Linux $(upstream_version)"
	lab/tree.py replaced | (cd $base && xargs -r -d '\n' sha256sum)
}

compare() {
	local now recorded changed new
	now=$(sums_now)
	[[ $now != "$(<$sums)" ]] || return 0
	recorded=$(head -n 1 $sums)
	changed=$(awk '{ if (NR == FNR) sum[$2] = $1
			 else if ($2 in sum && sum[$2] != $1) print $2 }' $sums - <<<"$now" | xargs)
	new=$(awk '{ if (NR == FNR) sum[$2] = $1
		     else if (!($2 in sum) && $1 != "#") print $2 }' $sums - <<<"$now" | xargs)
	[[ -z $new ]] || echo "not in $sums: $new; 'lab/base.sh record' adds them" >&2
	if [[ $changed || ${now%%$'\n'*} != "$recorded" ]]; then
		echo "the base is Linux $(upstream_version), the series was made against ${recorded#\# }" >&2
		echo "changed there: ${changed:-none of the files that it replaces or patches}" >&2
		echo "see 'make upstream'" >&2
		lab/tree.py check
	fi
}

case "$#:${1-}" in
0: | 1:record) ;;
*) die "usage: lab/base.sh [record]" ;;
esac

lab/deps.sh base
take_lock build/base.lock $base/
installed=$(dpkg-query -Wf '${Version}' $package)
[[ -d $base && $installed == "$(cat $base.version 2>/dev/null)" ]] || unpack "$installed"
if [[ ${1-} == record ]]; then
	sums_now >$sums
else
	compare
fi
