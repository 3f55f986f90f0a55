#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Makes tables and CSV files of what lab/bench.sh has measured.

usage: report.py FOLDER KERNEL...
"""
import sys
from dataclasses import dataclass
from math import hypot, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Callable

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Reading:
    """The cheapest call of a case."""
    instructions: int
    local: int
    remote: int
    received: int
    own: int
    huge_before: int
    huge_after: int
    calls: int


@dataclass(frozen=True)
class Step:
    """One realloc() of a growing block."""
    number: int
    size: int
    instructions: int
    flushes: int
    moved: int


@dataclass(frozen=True)
class Round:
    """Moves by one thread while others fault: the time, and the faults served in it."""
    number: int
    moves: int
    nanoseconds: int
    faults: int


@dataclass(frozen=True)
class Case:
    """A row of the table. The ratio is to reach at least, and better beyond."""
    title: str
    name: str
    size: int
    least: float | None = None
    beyond: float | None = None
    flushes_most: int | None = None
    flushes_best: int | None = None


REALLOC_SIZE = 258280326
NO_DEARER = 0.98

CASES = (
    Case("grow 256 MB, blocked above", "grow", 256 * MB, 120, 180),
    Case("the same, not 2 MB-aligned", "grow-odd", 256 * MB),
    Case("the same, huge pages", "grow-huge", 256 * MB, 240, 380),
    Case("grow 64 MB, blocked above", "grow", 64 * MB, 50, 70),
    Case("grow 256 KB, first move", "grow-first", 256 * KB, 1.7, 2.2),
    Case("grow 512 KB, first move", "grow-first", 512 * KB, 1.7, 2.2),
    Case("grow 1 MB, first move", "grow-first", MB, 1.7, 2.2),
    Case("grow 2 MB, first move", "grow-first", 2 * MB, 1.7, 2.2),
    Case("grow 256 KB, second move", "grow-again", 256 * KB, 1.7, 2.2),
    Case("grow 512 KB, second move", "grow-again", 512 * KB, 1.7, 2.2),
    Case("grow 1 MB, second move", "grow-again", MB, 1.7, 2.2),
    Case("grow 2 MB, second move", "grow-again", 2 * MB, 1.7, 2.2),
    Case("grow 256 KB, second, page above", "grow-again-near", 256 * KB, 1.7, 2.2),
    Case("grow 512 KB, second, page above", "grow-again-near", 512 * KB, 1.7, 2.2),
    Case("grow 1 MB, second, page above", "grow-again-near", MB, 1.7, 2.2),
    Case("realloc 256 KB to 256 MB", "realloc", REALLOC_SIZE, 20, 25),
    Case("move 256 MB, aligned", "move", 256 * MB, 6, 10, 4, 1),
    Case("the same, same odd offset", "move-odd", 256 * MB, 6, 10),
    Case("the same, huge pages", "move-huge", 256 * MB, 6, 10),
    Case("move 256 MB, shared memory", "move-shared", 256 * MB, 6, 10),
    Case("move 256 MB, private, of a file", "move-cached", 256 * MB, 6, 10),
    Case("move 64 MB, off by a page", "move-pages", 64 * MB, 6, 8, 8, 2),
    Case("the same, DONTUNMAP", "move-keep", 64 * MB, 5, 7),
    Case("move 1 GB, aligned", "move", GB, 1.6, 2.2),
    Case("move a page", "move-page", 4 * KB, 1.7, 2.2),
    Case("the same, tables made and freed", "move", 4 * KB, 1.25, 1.5),
    Case("a page among 60,000 mappings", "move-page-among", 4 * KB, 1),
    Case("grow in place by a page", "grow-in-place-page", 64 * KB, 1, 1.1),
    Case("grow in place by 64 MB", "grow-in-place-64M", 64 * KB, 1, 1.1),
    Case("shrink by a page", "shrink-page", 64 * KB, 1, 1.1),
    Case("fork, exec, wait", "exec", 4 * KB, 1, 1.1),
    Case("move three mappings", "move-three", 6 * MB),
    Case("move 64 mappings, one call if able", "move-64", MB, 2, 3),
    Case("the same, 64 calls", "move-64-calls", MB, 1),
    Case("shift 64 KB by a page", "shift", 64 * KB, 1.7, 2.2),
    Case("the same, 2 MB", "shift", 2 * MB, 1.7, 2.2),
    Case("the same, 64 MB", "shift", 64 * MB, 6, 8),
    Case("shift 64 KB by a page, by hand", "shift-by-hand", 64 * KB, 1),
    Case("the same, 2 MB", "shift-by-hand", 2 * MB, 1),
    Case("the same, 64 MB", "shift-by-hand", 64 * MB, 1),
    Case("move 64 GB with 64 pages, aligned", "sparse", 64 * GB, NO_DEARER),
    Case("the same, off by 2 MB", "sparse-odd", 64 * GB, NO_DEARER),
    Case("the same, off by a page", "sparse-pages", 64 * GB, NO_DEARER),
)


class Results:
    """What was read of one kernel."""

    def __init__(self, cost: str, flushes: str, threads: str):
        self.cost: dict[tuple[str, int], Reading] = {}
        self.flushes: dict[tuple[str, int], Reading] = {}
        self.steps: list[Step] = []
        self.rounds = [Round(*map(int, line.split()[1:])) for line in threads.splitlines()
                       if line.startswith("round ")]
        for readings, text in ((self.cost, cost), (self.flushes, flushes)):
            for line in text.splitlines():
                kind, *fields = line.split() or [""]
                if kind == "result":
                    readings[fields[0], int(fields[1])] = Reading(*map(int, fields[2:]))
                elif kind == "step" and readings is self.cost:
                    self.steps.append(Step(*map(int, fields)))


def table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def ratio(value: float) -> str:
    return f"{value:.3f}" if value < 2 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def verdict(good: bool, beyond: bool | None) -> str:
    if not good:
        return "NO"
    return "beyond" if beyond else "yes"


def cost_table(results: dict[str, Results]) -> str:
    kernels = list(results)
    compared = "base" in kernels and "patched" in kernels
    head = ["instructions", *kernels]
    if compared:
        head += ["ratio", "target", "reached"]
    rows = [head]
    has_counters = any(reading.local for result in results.values()
                       for reading in result.cost.values())
    for case in CASES:
        readings = [results[kernel].cost.get((case.name, case.size)) for kernel in kernels]
        if not any(readings):
            continue
        row = [case.title, *(number(r.instructions if r else None) for r in readings)]
        if compared:
            row += judged(case, *(results[k].cost.get((case.name, case.size))
                                  for k in ("base", "patched")))
        if has_counters:
            row += [number(reading.local if reading else None) for reading in readings]
        rows.append(row)
    if has_counters:
        head += [f"flushes {kernel}" for kernel in kernels]
    return table(rows)


def judged(case: Case, base: Reading | None, patched: Reading | None) -> list[str]:
    if not base or not patched:
        return ["-", "", ""]
    value = base.instructions / patched.instructions
    if not case.least:
        return [ratio(value), "", ""]
    target = f"{case.least:g}" + (f" / {case.beyond:g}" if case.beyond else "")
    return [ratio(value), target,
            verdict(value >= case.least, case.beyond is not None and value >= case.beyond)]


def flush_table(results: dict[str, Results]) -> str:
    """Flushes on the calling processor, and those that it asks the other one for.

    A flush of several single pages is one here, but not in /proc/vmstat's local counts.
    """
    counts: dict[str, Callable[[Reading], int]] = {
        "own": lambda reading: reading.own,
        "asked": lambda reading: reading.remote,
        "received": lambda reading: reading.received}
    kernels = list(results)
    rows = [["flushes with 2 processors",
             *(f"{kernel}, {what}" for what in counts for kernel in kernels),
             "target", "reached"]]
    for case in CASES:
        found = [results[kernel].flushes.get((case.name, case.size)) for kernel in kernels]
        if not any(found):
            continue
        row = [case.title, *(number(count(reading) if reading else None)
                             for count in counts.values() for reading in found)]
        target = ["", ""]
        if case.flushes_most and "patched" in kernels:
            target = judged_flushes(case, results["patched"])
        rows.append(row + target)
    return table(rows) if len(rows) > 1 else ""


def judged_flushes(case: Case, patched: Results) -> list[str]:
    target = f"{case.flushes_most} / {case.flushes_best}"
    reading = patched.flushes.get((case.name, case.size))
    if not reading or case.flushes_most is None or case.flushes_best is None:
        return [target, ""]
    most = max(reading.own, reading.remote, reading.received)
    return [target, verdict(most <= case.flushes_most, most <= case.flushes_best)]


def huge_table(results: dict[str, Results]) -> str:
    rows = [["huge pages mapped as such", *(f"{kernel}, {when}" for kernel in results
                                            for when in ("before", "after"))]]
    for case in CASES:
        found = [result.cost.get((case.name, case.size)) for result in results.values()]
        if not any(reading and reading.huge_before for reading in found):
            continue
        row = [f"{case.name} {case.size // MB} MB"]
        for reading in found:
            row += [number(reading.huge_before if reading else None),
                    number(reading.huge_after if reading else None)]
        rows.append(row)
    return table(rows) if len(rows) > 1 else ""


# What is measured of threads: in each case, less is better.
THREADS: dict[str, Callable[[Round], float]] = {
    "us for a move of 16 MB": lambda r: r.nanoseconds / r.moves / 1000,
    "us for a fault": lambda r: r.nanoseconds / r.faults / 1000}


def threads_table(results: dict[str, Results]) -> str:
    """One thread that moves, 8 that fault, 2 processors.

    Who runs when is chance. So there is a noise: twice the standard error of the ratio,
    according to how much the rounds differ.
    """
    if any(len(result.rounds) < 2 for result in results.values()):
        return ""
    kernels = list(results)
    compared = "base" in kernels and "patched" in kernels
    rows = [["8 threads fault, 1 moves", *kernels]]
    if compared:
        rows[0] += ["ratio", "noise", "target", "reached"]
    for title, value in THREADS.items():
        found = {kernel: [value(r) for r in results[kernel].rounds] for kernel in kernels}
        row = [title, *(f"{mean(values):,.3f}" for values in found.values())]
        if compared:
            quotient = mean(found["base"]) / mean(found["patched"])
            noise = 2 * quotient * hypot(*(stdev(found[k]) / mean(found[k]) / sqrt(len(found[k]))
                                           for k in ("base", "patched")))
            row += [ratio(quotient), f"{noise:.3f}", "1 - noise",
                    verdict(quotient >= 1 - noise, quotient > 1 + noise)]
        rows.append(row)
    return table(rows)


def write_csv(path: Path, rows: list[list[object]]) -> None:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


def write_csvs(folder: Path, results: dict[str, Results]) -> None:
    kernels = list(results)
    for part in ("cost", "flushes"):
        rows: list[list[object]] = [["case", "size", "kernel", "instructions", "local flushes",
                                     "remote flushes", "received flushes", "own flushes",
                                     "huge before", "huge after", "calls"]]
        for kernel, result in results.items():
            rows += [[*key, kernel, *vars(reading).values()]
                     for key, reading in getattr(result, part).items()]
        write_csv(folder / f"{part}.csv", rows)
    keys = {key for result in results.values() for key in result.cost}
    for name in sorted({name for name, _ in keys}):
        rows = [["size", *kernels]]
        for size in sorted(size for other, size in keys if other == name):
            found = [results[kernel].cost.get((name, size)) for kernel in kernels]
            rows.append([size, *(reading.instructions if reading else "" for reading in found)])
        if len(rows) > 2:
            write_csv(folder / f"size-{name}.csv", rows)
    rows = [["step", "kernel", "size", "instructions", "flushes", "moved"]]
    for kernel, result in results.items():
        rows += [[step.number, kernel, step.size, step.instructions, step.flushes, step.moved]
                 for step in result.steps]
    write_csv(folder / "realloc.csv", rows)
    rows = [["round", "kernel", "moves", "nanoseconds", "faults"]]
    for kernel, result in results.items():
        rows += [[r.number, kernel, r.moves, r.nanoseconds, r.faults] for r in result.rounds]
    write_csv(folder / "threads.csv", rows)


def read(path: Path) -> str:
    """What there is; not everything can be measured everywhere."""
    return path.read_text() if path.exists() else ""


def main(folder: Path, kernels: list[str]) -> None:
    results = {kernel: Results(*(read(folder / f"{kernel}-{part}.txt")
                                 for part in ("cost", "flushes", "threads")))
               for kernel in kernels}
    write_csvs(folder, results)
    parts = [part for part in (cost_table(results), huge_table(results), flush_table(results),
                               threads_table(results)) if part]
    text = "\n\n".join(parts) + "\n"
    (folder / "table.txt").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
