# SPDX-License-Identifier: GPL-2.0
"""A database that is mapped and grows, and with it its mapping, which is an mremap."""
import hashlib
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STEPS = 24
ROWS = 400      # of each step, of 1 to 8 KB
MB = 1 << 20


def row(number: int) -> bytes:
    """What its number says."""
    word = hashlib.sha256(str(number).encode()).digest()
    return word * (32 + number * 7 % 225)


def wrong(database: sqlite3.Connection, count: int) -> Iterator[str]:
    """What differs from the rows that were written."""
    found = database.execute("select id, data from rows order by id").fetchall()
    if len(found) != count:
        yield f"{len(found)} rows, not {count}"
    yield from (f"row {number}" for number, data in found if data != row(number))
    verdict, = database.execute("pragma integrity_check").fetchone()
    if verdict != "ok":
        yield f"integrity_check: {verdict}"


def check(database: sqlite3.Connection, count: int, when: str) -> None:
    for what in wrong(database, count):
        sys.exit(f"{what}, {when}\nverdict: wrong contents")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "database")
        database = sqlite3.connect(path)
        database.execute("create table rows (id integer primary key, data blob)")
        for step in range(STEPS):
            database.execute(f"pragma mmap_size = {(step + 1) * 4 * MB}").fetchone()
            numbers = range(step * ROWS, (step + 1) * ROWS)
            with database:
                database.executemany("insert into rows values (?, ?)",
                                     ((number, row(number)) for number in numbers))
            check(database, numbers.stop, f"after step {step}")
        database.close()
        # Once more, as read() has it: without mmap_size nothing is mapped.
        check(sqlite3.connect(path), STEPS * ROWS, "not mapped")
        print(f"{STEPS * ROWS} rows, {path.stat().st_size // MB} MB")


main()
