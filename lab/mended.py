#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tell which tests named *_mended fail on unpatched kernels.

usage: lab/mended.py BASE=FOLDER...

A FOLDER has the results of "MREMAP_EXPECT=patched lab/test.sh --base" for one of bases/:
build/test, or build/BASE/test. A line of the table is a test with all of its variants: how
many of them fail on each base, of how many that were run.
"""
import pathlib
import re
import sys
from collections import defaultdict

RESULT = re.compile(r"^(not )?ok \d+ (?:- )?(\S+)(.*)$", re.MULTILINE)
# How often tests of a suite and a name have passed, and failed.
Counts = dict[tuple[str, str], list[int]]


def read(folder: pathlib.Path) -> Counts:
    counts: Counts = defaultdict(lambda: [0, 0])
    for tap in sorted(folder.glob("base-lean-*.tap")):
        suite = tap.stem.removeprefix("base-lean-")
        for bad, name, rest in RESULT.findall(tap.read_text(errors="replace")):
            test = name.rsplit(".", 1)[-1] if "_mended" in name.rsplit(".", 1)[-1] else name
            if "_mended" in name and "# SKIP" not in rest:
                counts[suite, re.sub(r"^\w+\.(.*_mended\w*)\..*", r"\1", test)][bool(bad)] += 1
    return counts


def cell(passed: int, failed: int) -> str:
    if not passed + failed:
        return "not run"
    return f"{failed} of {passed + failed} fail" if failed else "passes"


def main(args: list[str]) -> int:
    bases = dict(arg.partition("=")[::2] for arg in args)
    if not all(bases.values()) or not bases:
        raise SystemExit(__doc__)
    results = [read(pathlib.Path(folder)) for folder in bases.values()]
    rows = [("suite", "test", *bases)]
    for suite, test in sorted(set().union(*results)):
        rows.append((suite, test, *(cell(*result[suite, test]) for result in results)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
