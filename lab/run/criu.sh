#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Dump a process whose memory was moved by mremap, restore it, let it verify.
# usage: criu.sh MOVED    (the program built from moved.c)
set -euo pipefail

# All that CRIU has to find again lives on one plain file system.
scratch=$(mktemp -d)
mount -t tmpfs none "$scratch"
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
      umount -l "$scratch"; rmdir "$scratch"' EXIT
cp "$1" "$scratch/moved"
mkdir "$scratch/images"
cd "$scratch"

# wait_for LINE PID: until the program has printed it; fails if it ends before.
wait_for() {
	until grep -qx "$1" log; do
		kill -0 "$2" 2>/dev/null || grep -qx "$1" log || {
			cat log
			echo "the program ended without saying '$1'"
			return 1
		}
		sleep 0.1
	done
}

# criu_run ACTION [OPTION...]: its messages only if it fails.
criu_run() {
	criu "$1" --images-dir images --log-file "$1.log" -v3 "${@:2}" || {
		tail -n 15 "images/$1.log"
		echo "criu $1 failed"
		return 1
	}
}

: > log
setsid ./moved < /dev/null >> log 2>&1 &
pid=$!
disown	# else bash reports that the dump killed it
wait_for ready "$pid"
criu_run dump --tree "$pid"
# Its process ID must be free again for the restore.
while kill -0 "$pid" 2>/dev/null; do
	sleep 0.1
done
criu_run restore --restore-detached
kill -USR1 "$pid"
wait_for verified "$pid"
echo "$(du -sm images | cut -f1) MB dumped and restored"
