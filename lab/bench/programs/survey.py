#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Count what programs of Debian's packages ask of mremap, in the guest, and print a table.

usage: survey.py BUILT [TEXT]
BUILT is where lab/bench.sh has built what the commands need. With TEXT only those run
that have it in their names.

The counts are from the tracepoint of the patched kernel; what a program's children do is
counted, too. MB moved are those of the mappings, whether in use or not; largest is the
largest size, in KB, that any call has asked for.
"""
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import candidates

import tracing      # after what tells where it is

TIME_LIMIT = 300
MB, KB = 1 << 20, 1 << 10
EVENT = re.compile(r": mremap: (addr=.*)")
FIELD = re.compile(r"(\w+)=(-?\w+)")
COUNTED = ("calls", "refused", "moved", "grown", "shrunk", "MB moved", "largest", "tables",
           "huge", "entries", "flushes")


@dataclass
class Row:
    name: str
    result: str
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)


def add(counts: Counter[str], call: dict[str, int]) -> None:
    """What one call did, as Documentation/mm/mremap.rst explains it."""
    moved = not call["error"] and call["result"] != call["addr"]
    counts["calls"] += 1
    counts["refused"] += call["error"] != 0
    counts["moved"] += moved
    if not call["error"] and not moved:
        counts["grown"] += call["new_len"] > call["old_len"]
        counts["shrunk"] += call["new_len"] < call["old_len"]
    counts["bytes moved"] += moved * call["old_len"]
    counts["tables"] += call["puds"] + call["pmds"]
    counts["huge"] += call["huge"]
    counts["entries"] += call["ptes"]
    counts["flushes"] += call["flushes"]
    counts["largest"] = max(counts["largest"], call["new_len"] // KB)


def count() -> Counter[str]:
    counts: Counter[str] = Counter()
    for match in filter(None, map(EVENT.search, tracing.lines())):
        fields = FIELD.findall(match[1])
        add(counts, {name: int(value, 0) for name, value in fields if name != "flags"})
    counts["MB moved"] = round(counts["bytes moved"] / MB)
    return counts


def run(name: str, command: list[str], built: Path) -> Row:
    tracing.clear()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=scratch, env=candidates.environment(built),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=errors, start_new_session=True)
        try:
            status = process.wait(TIME_LIMIT)
            result = f"exit {status}" if status else "ok"
        except subprocess.TimeoutExpired:
            candidates.kill(process)
            result = "timeout"
        seconds = time.monotonic() - started
        if result != "ok":
            candidates.show_end(errors)
    return Row(name, result, seconds, count())


def print_table(rows: list[Row]) -> None:
    form = "{:<28}" + " {:>8}" * len(COUNTED)
    print(form.format("program", *COUNTED))
    for row in sorted(rows, key=lambda row: -row.counts["bytes moved"]):
        if row.counts["calls"]:
            print(form.format(row.name, *(f"{row.counts[name]:,}" for name in COUNTED)))


def print_names(what: str, names: list[str]) -> None:
    if names:
        print(f"\n{what} ({len(names)}): {'; '.join(names)}")


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print("usage: survey.py BUILT [TEXT]", file=sys.stderr)
        return 2
    built, text = Path(sys.argv[1]).resolve(), "".join(sys.argv[2:])
    todo = {name: command for name, command in candidates.commands().items() if text in name}
    missing = [name for name in todo if not candidates.is_there(name)]
    tracing.start(["mremap/mremap"])
    rows = []
    for number, (name, command) in enumerate(todo.items(), 1):
        if name in missing:
            continue
        print(f"survey [{number}/{len(todo)}] {name}", file=sys.stderr, flush=True)
        rows.append(run(name, command, built))
        print(f"      {rows[-1].seconds:.1f} s, {rows[-1].counts['calls']} calls",
              file=sys.stderr, flush=True)
    failed = [f"{row.name}, {row.result}" for row in rows if row.result != "ok"]
    print_table(rows)
    print_names("do not call it", [row.name for row in rows if not row.counts["calls"]])
    print_names("not on this machine", missing)
    print_names("failed", failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
