#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Restore a process of 1 GB with CRIU, and let it read all of its memory.
# usage: restore.sh dump HOLDER FOLDER    beforehand: the program built from holder.c
#        restore.sh restore FOLDER
# The latter stops itself twice to be looked at: when the process is there again, and
# when it has read its memory.
set -euo pipefail

action=$1 folder=${!#}

state() {
	sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null || true
}

# wait_until_stopped: fails if it ends instead.
wait_until_stopped() {
	until [[ $(state) == T ]]; do
		[[ $(state) == [^Z] ]] || { echo "the process has ended"; exit 1; }
		sleep 0.1
	done
}

criu_run() {
	criu "$1" --images-dir "$folder/images" --log-file "$1.log" "${@:2}" || {
		tail -n 15 "$folder/images/$1.log"
		exit 1
	}
}

case $action in
dump)
	# What CRIU has to find again lives on a plain file system.
	mkdir "$folder"
	mount -t tmpfs none "$folder"
	mkdir "$folder/images"
	cp "$2" "$folder/holder"
	cd "$folder"
	setsid ./holder </dev/null >/dev/null 2>&1 &
	pid=$!
	disown
	wait_until_stopped
	criu_run dump --tree "$pid"
	# Its process ID must be free again.
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.1
	done
	echo "$pid" >pid
	;;
restore)
	pid=$(<"$folder/pid")
	criu_run restore --restore-detached
	kill -STOP $$
	kill -CONT "$pid"
	wait_until_stopped
	kill -STOP $$
	kill -KILL "$pid"
	;;
esac
