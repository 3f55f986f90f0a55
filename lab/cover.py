#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Add up which lines of ours the tests have reached, and name those that none has.

usage: lab/cover.py --objects      what lab/image.sh is to count lines in
       lab/cover.py OBJECTS COUNTS the folder of the build, and that with a folder of
                                   counts (*.gcda) for each suite

Ours are the files that replace upstream's, and in upstream's files the lines that our
patches add. The status is 1 if fewer than 97 of 100 lines were reached.
"""
import difflib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict

import tree

AT_LEAST = 0.97
TREE, BASE = tree.ROOT / "build/tree", tree.ROOT / "build/base"

Lines = dict[int, tuple[int, str]]  # of a file: how often each was reached, its function


def our_sources() -> list[str]:
    """The files of the kernel proper that are ours, or that a patch of ours changes."""
    paths = (path.removesuffix(".patch") for path in tree.our_files())
    return sorted(path for path in paths
                  if path.endswith((".c", ".h")) and not path.startswith(("tools/", "mm/tests/")))


def objects() -> list[str]:
    return [pathlib.Path(path).stem + ".o" for path in our_sources() if path.endswith(".c")]


def added_lines(path: str) -> set[int]:
    """Numbers of the lines that base does not have."""
    ours = (TREE / path).read_text().splitlines()
    upstream = BASE / path
    theirs = upstream.read_text().splitlines() if upstream.exists() else []
    if (tree.ROOT / path).exists():
        return set(range(1, len(ours) + 1))
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    return {number + 1 for kind, _, _, start, end in matcher.get_opcodes() if kind != "equal"
            for number in range(start, end)}


def merged(counts: pathlib.Path, into: pathlib.Path) -> None:
    """The sums of all suites' counts."""
    suites = [suite for suite in sorted(counts.iterdir()) if any(suite.rglob("*.gcda"))]
    if not suites:
        raise SystemExit(f"cover.py: no counts in {counts}")
    shutil.copytree(suites[0], into)
    for suite in suites[1:]:
        with tempfile.TemporaryDirectory() as sum_of_two:
            subprocess.run(["gcov-tool", "merge", suite, into, "-o", sum_of_two], check=True,
                           stdout=subprocess.DEVNULL)
            shutil.copytree(sum_of_two, into, dirs_exist_ok=True)


def reached(build: pathlib.Path, counts: pathlib.Path) -> dict[str, Lines]:
    """What gcov says of each source, over all objects that it is compiled into."""
    result: dict[str, dict[int, tuple[int, str]]] = defaultdict(dict)
    for path in filter(lambda path: path.endswith(".c"), our_sources()):
        data = counts / pathlib.Path(path).with_suffix(".gcda")
        if not data.exists():
            continue
        shutil.copy(build / pathlib.Path(path).with_suffix(".gcno"), data.parent)
        output = subprocess.run(["gcov", "--json-format", "--stdout", data.name],
                                cwd=data.parent, check=True, capture_output=True, text=True).stdout
        for source in json.loads(output)["files"]:
            lines = result[source["file"].removeprefix("../")]
            for line in source["lines"]:
                number = line["line_number"]
                before = lines.get(number, (0, ""))[0]
                lines[number] = (before + line["count"], line.get("function_name", ""))
    return result


def report(path: str, lines: Lines) -> tuple[int, int]:
    """One row, and the lines that were not reached, each function's under its name."""
    ours = added_lines(path)
    lines = {number: line for number, line in sorted(lines.items()) if number in ours}
    missed = {number: function for number, (count, function) in lines.items() if not count}
    text = (TREE / path).read_text().splitlines()
    if lines:
        share = 100 * (1 - len(missed) / len(lines))
        print(f"{path}: {len(lines) - len(missed)} of {len(lines)} lines, {share:.1f} %")
    last = ""
    for number, function in missed.items():
        if function != last:
            print(f"  {function}()")
        last = function
        print(f"    {number}: {text[number - 1].strip()}")
    return len(lines), len(missed)


def main(args: list[str]) -> int:
    if args == ["--objects"]:
        print(*objects(), sep="\n")
        return 0
    if len(args) != 2:
        raise SystemExit(__doc__)
    build, counts = map(pathlib.Path, args)
    with tempfile.TemporaryDirectory() as folder:
        sums = pathlib.Path(folder, "sums")
        merged(counts, sums)
        found = reached(build, sums)
    rows = [report(path, found.get(path, {})) for path in our_sources()]
    total, missed = sum(row[0] for row in rows), sum(row[1] for row in rows)
    share = 1 - missed / total
    print(f"all: {total - missed} of {total} lines, {100 * share:.1f} %")
    return int(share < AT_LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
