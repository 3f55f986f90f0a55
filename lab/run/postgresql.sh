#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# PostgreSQL under its own benchmark: what the transactions moved about has to add up,
# also after a crash, as has what a query gathers in growing memory.
set -euo pipefail

transactions=250 clients=4 rows=200000
programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
scratch=$(mktemp -d)
mount -t tmpfs -o mode=700,uid=postgres none "$scratch"
cd "$scratch"

# It refuses to be run by root.
as_user() {
	local program=$1
	shift
	setpriv --reuid postgres --regid postgres --clear-groups "$programs/$program" "$@"
}

server() {
	as_user pg_ctl --pgdata data --log log --wait --timeout 300 "$@" >>output ||
		{ cat output log; exit 1; }
}

finish() {
	[[ ! -e data/postmaster.pid ]] || server stop --mode immediate
	cd /
	umount -l "$scratch"
	rmdir "$scratch"
}
trap finish EXIT

start() {
	server start --options "-k '$scratch' -c listen_addresses= -c work_mem=256MB"
}

query() {
	as_user psql --host "$scratch" --no-psqlrc --tuples-only --no-align --dbname postgres \
		--command "$1"
}

# same WHAT WANTED FOUND
same() {
	echo "$1: $3"
	[[ $2 == "$3" ]] || { echo "wanted: $2"; echo "verdict: wrong contents"; exit 1; }
}

balances() {
	query "select (select sum(abalance) from pgbench_accounts),
		      (select sum(bbalance) from pgbench_branches),
		      (select sum(tbalance) from pgbench_tellers),
		      (select sum(delta) from pgbench_history),
		      (select count(*) from pgbench_history)"
}

# The same numbers in the same order, by other means.
numbers() {
	awk -v rows=$rows 'BEGIN {
		for (rest = 0; rest < 1000; rest++)
			for (n = rest ? rest : 1000; n <= rows; n += 1000) {
				printf "%s%d", comma, n
				comma = ","
			}
	}'
}

as_user initdb --pgdata data --auth trust --no-sync >output
start
as_user pgbench --host "$scratch" --initialize --quiet postgres >>output 2>&1
as_user pgbench --host "$scratch" --client $clients --jobs 2 --transactions $transactions \
	--random-seed 1 postgres >>output 2>&1
sums=$(balances)
same balances "$(IFS='|'; read -r sum _ <<<"$sums"
	echo "$sum|$sum|$sum|$sum|$((clients * transactions))")" "$sums"
same "sorted and joined" "$(numbers | md5sum | cut -d ' ' -f 1)" "$(query "
	select md5(string_agg(n::text, ',' order by n % 1000, n))
	from generate_series(1, $rows) n")"
server stop --mode immediate
start
same "balances after a crash" "$sums" "$(balances)"
