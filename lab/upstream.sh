#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# What has changed upstream since the version that bases/ records, in the files that
# we replace or patch, and around them: what is to be carried over.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

usage="usage: [OLD=SOURCE] [NEW=SOURCE] lab/upstream.sh
  OLD  the recorded version: a folder, a tar archive, or Debian's package (.deb);
       unless told, what lab/base.sh has kept when it unpacked a newer one
  NEW  another version; unless told, build/base/, or that of BASE
Fails if there is something to do. lab/upstream.sh keep is how lab/base.sh keeps it."

kept=$base.old
out=$work/upstream
# Where the neighbours are that mm/mremap*.c call, or are called by.
around=(mm include/linux include/asm-generic arch/x86/include/asm)

mapfile -t ours < <(awk '$1 != "#" { print $2 }' "$sums")
recorded=$(sed -n '1s/^# //p' "$sums")

is_recorded() {
	(cd "$1" && grep -v '^#' | sha256sum --check --status 2>/dev/null) <"$sums"
}

keep() {
	[[ -d $base ]] && is_recorded "$base" || return 0
	rm -rf "$kept" "$kept.tmp"
	mkdir "$kept.tmp"
	(cd "$base" && cp -al --parents Makefile "${around[@]}" "${ours[@]}" ../base.old.tmp)
	mv "$kept.tmp" "$kept"
}

# unpack_needed ARCHIVE FOLDER
unpack_needed() {
	local wanted
	mapfile -t wanted < <(printf '%s\n' "${ours[@]}" | grep -vE "^($(IFS='|'; echo "${around[*]}"))/")
	wanted+=(Makefile "${around[@]}")
	mkdir -p "$2"
	case $1 in
	*.deb) dpkg-deb --fsys-tarfile "$1" |
		tar --extract --to-stdout --wildcards './usr/src/linux-source-*.tar.xz' | xz -dc ;;
	*.xz) xz -dc "$1" ;;
	*.gz) gzip -dc "$1" ;;
	*) cat "$1" ;;
	esac | tar --extract --directory="$2" --strip-components=1 --anchored --wildcards \
		--no-wildcards-match-slash "${wanted[@]/#/*/}"
}

# tree_of GIVEN NAME: a folder with that source; made from an archive if need be
tree_of() {
	[[ -e $1 ]] || die "no $1, see lab/upstream.sh --help"
	if [[ -d $1 ]]; then
		realpath "$1"
		return
	fi
	rm -rf "${out:?}/$2"
	unpack_needed "$1" "$out/$2" || die "unpacking $1 failed"
	realpath "$out/$2"
}

version_of() {
	awk -F' = ' '/^(VERSION|PATCHLEVEL|SUBLEVEL) =/ { v = v sep $2; sep = "." }
		     END { print "Linux " v }' "$1/Makefile"
}

# changes PATH: lines that came and went, or nothing
changes() {
	diff --new-file "$old/$1" "$new/$1" | awk '
		/^>/ { came++ }
		/^</ { went++ }
		END { if (came + went) print "+" came + 0 " -" went + 0 }' || true
}

# changed_around: the files in which something changed
changed_around() {
	local folder
	for folder in "${around[@]}"; do
		diff --recursive --brief --new-file "$old/$folder" "$new/$folder" |
			sed -n "s,^Files .* and $new/\(.*\) differ$,\1,p" || true
	done | grep -vxFf <(printf '%s\n' "${ours[@]}") || true
}

# report PATH: what is to be done about a file of ours
report() {
	local path=$1 diff=$out/$1.diff lines applied
	lines=$(changes "$path")
	[[ $lines ]] || return 0
	mkdir -p "$(dirname "$diff")"
	diff --unified --show-c-function --new-file --label "a/$path" --label "b/$path" \
		"$old/$path" "$new/$path" >"$diff" || true
	if [[ ! -e $new/$path ]]; then
		echo "$path: gone"
	elif [[ $BASE != "$default_base" ]]; then
		echo "$path: $lines, see $diff and 'make fixes BASE=$BASE'"
		return
	elif [[ ! -e $path.patch ]]; then
		echo "$path: $lines, replaced by ours: carry over what matters of $diff"
	elif applied=$(patch --dry-run --force --output=/dev/null "$new/$path" <"$path.patch" 2>&1); then
		echo "$path: $lines, our patch still applies, see $diff"
		return
	else
		echo "$path: $lines, our patch does not apply: $(grep -c FAILED <<<"$applied" || true)" \
			"hunks failed, see $diff"
	fi
	todo=1
}

case ${1-} in
-h | --help)
	echo "$usage"
	exit
	;;
keep)
	keep
	exit
	;;
esac
((!$#)) || die "$usage"

[[ ${OLD-} && ${NEW-} ]] || lab/base.sh
if [[ ! ${OLD-}${NEW-} ]] && is_recorded "$base"; then
	echo "$base/ is $recorded, which our files are made against"
	exit
fi
rm -rf "$out"
mkdir -p "$out"
old=$(tree_of "${OLD:-$kept}" old)
new=$(tree_of "${NEW:-$base}" new)
is_recorded "$old" || die "${OLD:-$kept} is not $recorded as recorded in $sums"

echo "from $recorded to $(version_of "$new")"
todo=0 same=0
for path in "${ours[@]}"; do
	line=$(changes "$path")
	[[ $line ]] || ((++same))
	report "$path"
done
echo "as before: $same of the ${#ours[@]} files that we replace or patch"
echo "changed around them, in ${around[*]}:"
changed_around | while read -r path; do
	echo "  $path: $(changes "$path")"
done
((!todo)) || echo "when that is done: lab/base.sh record"
exit $todo
