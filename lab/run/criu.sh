#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Dump a process whose memory moves about, restore it, let it check its memory.
# usage: criu.sh MOVED MODE PRE_DUMPS
#   MOVED, MODE  the program built from moved.c, and its argument. With "lazy" it is
#                restored without its pages, which userfaultfd brings when they are
#                touched, or later: to where they have been moved meanwhile
#   PRE_DUMPS    dumps on the way, between which the process moves its memory:
#                each holds only what the kernel says has changed since the last
set -euo pipefail

# All that CRIU has to find again lives on one plain file system.
scratch=$(mktemp -d)
mount -t tmpfs none "$scratch"
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
      umount -l "$scratch"; rmdir "$scratch"' EXIT
cp "$1" "$scratch/moved"
mode=$2 last=$(($3 + 1))
cd "$scratch"

# fail WHY VERDICT: the verdict is for the table.
fail() {
	echo "$1"
	echo "verdict: $2"
	exit 1
}

# wait_for_move N: until the program has made it; fails if it ends before.
wait_for_move() {
	until grep -qx "moved $1" log; do
		kill -0 "$pid" 2>/dev/null || grep -qx "moved $1" log || {
			cat log
			if grep -q '^wrong contents' log; then
				fail "the program stopped before move $1" "wrong contents"
			fi
			fail "the program ended before move $1" "FAIL, ended"
		}
		sleep 0.1
	done
}

# criu_run ACTION N [OPTION...]: with the images of dump N.
criu_run() {
	criu "$1" --images-dir "$2" --log-file "$1.log" -v3 "${@:3}" || {
		tail -n 15 "$2/$1.log"
		fail "criu $1 failed, images $2 of $last" "CRIU failed"
	}
}

# dump N: a full dump if it is the only one.
dump() {
	local action=pre-dump options=(--tree "$pid")
	(($1 < last)) || action=dump
	((last == 1)) || options+=(--track-mem)
	(($1 == 1)) || options+=(--prev-images-dir "../$(($1 - 1))")
	mkdir "$1"
	criu_run $action "$1" "${options[@]}"
	# Else a dump that takes every page for changed would prove nothing.
	(($1 == 1)) || grep -q 'Pagemap generated: .* [1-9][0-9]* holes' "$1/$action.log" ||
		fail "dump $1 leaves nothing to the one before" "not tracked"
}

: > log
setsid ./moved "$mode" < /dev/null >> log 2>&1 &
pid=$!
disown	# else bash reports that the dump killed it
for ((n = 1; n <= last; n++)); do
	wait_for_move "$n"
	dump "$n"
	((n == last)) || kill -USR1 "$pid"
done
# Its process ID must be free again for the restore.
while kill -0 "$pid" 2>/dev/null; do
	sleep 0.1
done
restore=(--restore-detached) lazy_pages=
if [[ $mode == lazy ]]; then
	criu_run lazy-pages "$last" -v4 &
	lazy_pages=$!
	until [[ -S $last/lazy-pages.socket ]]; do
		kill -0 "$lazy_pages"
		sleep 0.1
	done
	restore+=(--lazy-pages)
fi
criu_run restore "$last" "${restore[@]}"
kill -USR1 "$pid"
wait_for_move "$n"
if [[ $lazy_pages ]]; then
	wait "$lazy_pages"	# until it has brought all pages
	grep -q '#PF' "$last/lazy-pages.log" || fail "no page was waited for" "not lazy"
fi
echo "$(du -sm . | cut -f1) MB dumped in $last parts and restored"
