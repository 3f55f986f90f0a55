#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Redis under its own benchmark, saving in the background all the time: each save is
# of a forked child while its parent writes. A second server is started from the last
# dump and has to hold the same. Huge pages are left on, which it would turn off.
set -euo pipefail

scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -r "$scratch"' EXIT
cd "$scratch"

cli() {
	redis-cli -s socket "$@"
}

# Debian's redis-server is a link to this program, which looks at its name.
start() {
	(exec -a redis-server redis-check-rdb --port 0 --unixsocket "$scratch/socket" \
		--save "" --enable-debug-command local --disable-thp no >>log) &
	server=$!
	until [[ $(cli ping 2>/dev/null) == PONG ]]; do
		kill -0 "$server" 2>/dev/null || { cat log; exit 1; }
		sleep 0.1
	done
}

save() {
	cli bgsave >/dev/null
	while cli info persistence | grep -q '^rdb_bgsave_in_progress:1'; do
		sleep 0.1
	done
	cli info persistence | grep -q '^rdb_last_bgsave_status:ok'
	redis-check-rdb dump.rdb >check || { cat check; exit 1; }
}

start
redis-benchmark -s socket -q -c 10 -n 8000 -r 8000 -d 500 \
	-t set,incr,lpush,sadd,hset,zadd,mset >load &
load=$!
for ((saves = 1; ; saves++)); do
	save
	kill -0 "$load" 2>/dev/null || break
done
wait "$load"
save
had=$(cli debug digest)
keys=$(cli dbsize)
cli shutdown nosave
wait "$server"

start
has=$(cli debug digest)
echo "$keys keys, $saves saves, digest $had, restored $has"
((keys > 8000))
[[ $has == "$had" ]] || { echo "verdict: wrong contents"; exit 1; }
