# SPDX-License-Identifier: GPL-2.0
"""SQLite with a database that is mapped: when the file grows, so does its mapping.

It stops itself twice to be looked at: when it has grown, and when all was read.
"""
import os
import signal
import sqlite3
import sys
import tempfile

STEPS, ROWS, LENGTH = 64, 512, 4000     # 2 MB in each step

GROW = f"""
    insert into rows(data)
    with recursive n(i) as (select 1 union all select i + 1 from n where i < {ROWS})
    select zeroblob({LENGTH}) from n
"""


def be_looked_at() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        database = sqlite3.connect(f"{scratch}/database")
        database.execute(f"pragma mmap_size = {1 << 30}").fetchone()
        database.execute("create table rows (id integer primary key, data blob)")
        for _ in range(STEPS):
            with database:
                database.execute(GROW)
        be_looked_at()
        found = database.execute("select count(*) from rows where hex(data) = ?",
                                 ("00" * LENGTH,)).fetchone()
        be_looked_at()
        if found != (STEPS * ROWS,):
            sys.exit("wrong contents")


main()
