#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Makes tables and a CSV file of what lab/bench.sh --programs has measured.

usage: table.py FOLDER KERNEL...
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import report  # noqa: E402  (the tables of the benchmark)

MILLION = 1_000_000
MB = 1 << 10        # in KB


@dataclass(frozen=True)
class Result:
    """What measure.py tells of a program."""
    name: str
    status: int
    calls: int
    refused: int
    moved: int
    mremap: int
    instructions: int
    faults: int
    flushes: int
    memory: list[dict[str, int]]

    @property
    def share(self) -> str:
        return f"{self.mremap / self.instructions:.2%}"

    @property
    def ok(self) -> bool:
        return not self.status

    def huge(self, when: int) -> str:
        """How much of the memory is in huge pages; at first, and when it was read again."""
        if len(self.memory) <= when or not self.memory[when]["anonymous"]:
            return "-"
        return f"{self.memory[when]['huge'] / self.memory[when]['anonymous']:.0%}"

    @property
    def size(self) -> str:
        return report.number(self.memory[0]["anonymous"] // MB) if self.memory else "-"


def read(path: Path) -> dict[str, Result]:
    results = [Result(**json.loads(line.removeprefix("result ")))
               for line in path.read_text().splitlines() if line.startswith("result ")]
    return {result.name: result for result in results}


def both(values: list[str]) -> str:
    """Once if they are the same."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def short_row(found: list[Result]) -> list[str]:
    instructions = [result.instructions for result in found]
    return [found[0].name,
            *(report.number(round(value / MILLION)) for value in instructions),
            f"{instructions[0] / instructions[-1]:.3f}",
            both([result.share for result in found]),
            both([report.number(result.faults) for result in found]),
            both([report.number(result.flushes) for result in found]),
            both([result.huge(0) for result in found]),
            both([result.huge(1) for result in found])]


def short_table(kernels: list[str], rows: list[list[Result]]) -> str:
    """Where there is one number it is the same on all kernels."""
    head = [" / ".join(kernels), *(f"M {kernel}" for kernel in kernels), "ratio", "in mremap",
            "page faults", "TLB flushes", "huge pages", "read again"]
    return report.table([head, *map(short_row, rows)])


def calls_row(found: list[Result]) -> list[str]:
    return [found[0].name, found[0].size,
            both([report.number(result.calls) for result in found]),
            both([report.number(result.refused) for result in found]),
            both([report.number(result.moved) for result in found]),
            *(report.number(result.mremap) for result in found),
            f"{found[0].mremap / found[-1].mremap:.2f}" if found[-1].mremap else "-"]


def calls_table(kernels: list[str], rows: list[list[Result]]) -> str:
    head = ["instructions in mremap", "MB", "calls", "refused", "moved", *kernels, "ratio"]
    return report.table([head, *map(calls_row, rows)])


def write_csv(path: Path, kernels: list[str], rows: list[list[Result]]) -> None:
    head = ["program", "kernel", "calls", "refused", "moved", "instructions in mremap",
            "instructions", "page faults", "TLB flushes", "huge", "huge, read again"]
    lines: list[list[object]] = [list(head)]
    for found in rows:
        lines += [[f'"{r.name}"', kernel, r.calls, r.refused, r.moved, r.mremap, r.instructions,
                   r.faults, r.flushes, r.huge(0), r.huge(1)]
                  for kernel, r in zip(kernels, found, strict=True)]
    report.write_csv(path, lines)


def main(folder: Path, kernels: list[str]) -> int:
    results = [read(folder / f"{kernel}-programs.txt") for kernel in kernels]
    names = [name for name in results[0] if all(name in result for result in results)]
    rows = [[result[name] for result in results] for name in names]
    good = [found for found in rows if all(result.ok for result in found)]
    write_csv(folder / "programs.csv", kernels, good)
    text = f"{short_table(kernels, good)}\n\n{calls_table(kernels, good)}\n"
    (folder / "programs.txt").write_text(text)
    print(text, end="")
    for found in rows:
        if found not in good:
            print(f"{found[0].name}: failed, see {folder}/*-programs.err")
    return int(len(good) < len(rows))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
