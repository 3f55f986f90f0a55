#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Judge the data races that KCSAN reported in kernel logs.

usage: lab/kcsan.py OBJECTS LOG...

OBJECTS is the folder of the build. A race counts as ours if a function of our files
takes part in it: the status is then 1 and the report is shown. Others are counted.
So it is if nothing was watched, see lab/test_setup.sh.
"""
import pathlib
import re
import subprocess
import sys
from collections import Counter

import tree

STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ", re.MULTILINE)
WATCHED = re.compile(r"^kcsan: setup_watchpoints: (\d+)$", re.MULTILINE)
REPORT = re.compile(r"^BUG: KCSAN: (.*)\n(?:.*\n)*?=+$", re.MULTILINE)


def our_functions(build: pathlib.Path) -> set[str]:
    files = [str(build / path).replace(".c", ".o") for path in tree.our_files()
             if path.startswith("mm/mremap") and path.endswith(".c")]
    symbols = subprocess.run(["nm", *files], check=True, capture_output=True, text=True).stdout
    return {words[2].split(".")[0] for words in map(str.split, symbols.splitlines())
            if len(words) == 3 and words[1] in "tT"}


def main(args: list[str]) -> int:
    if len(args) < 2:
        raise SystemExit(__doc__)
    ours = our_functions(pathlib.Path(args[0]))
    counted: Counter[str] = Counter()
    bad = watched = 0
    for log in args[1:]:
        text = STAMP.sub("", pathlib.Path(log).read_text(errors="replace").replace("\r", ""))
        watched += sum(map(int, WATCHED.findall(text)))
        for report in REPORT.finditer(text):
            functions = {name.split(".")[0] for name in re.findall(r"[\w.]+", report[1])}
            if functions & ours:
                bad += 1
                print(report[0])
            else:
                counted[report[1]] += 1
    for race, count in counted.most_common():
        print(f"{count:5} {race}")
    print(f"{bad} races in our functions, {sum(counted.values())} in others, "
          f"{watched} accesses watched")
    return bad > 0 or not watched


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
