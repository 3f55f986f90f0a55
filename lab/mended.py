#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Which of the bugs that our selftests catch does an unpatched kernel have?

usage: [BASE=7.3] lab/mended.py

Runs them on the base as if it were our kernel (MREMAP_EXPECT=patched) and prints a table of
the tests whose name ends in _mended: for each, in how many of its variants it fails.
Tests that are known to hang or crash that kernel are left out: make fixes has those.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = "6.12"
BASE = os.environ.get("BASE") or DEFAULT
RESULTS = ROOT / "build" / ("" if BASE == DEFAULT else BASE) / "test"
SUITES = ("mremap_errno", "mremap_features", "mremap_merge", "mremap_uffd", "mremap_accounting",
          "mremap_test", "mremap_multi", "mremap_hugetlb")
HANG_OR_CRASH = ("hugetlb_that_may_share_tables_mended", "growth_by_moving_mended",
                 "moves_mended")


def run(suite: str) -> str:
    left_out = [word for name in HANG_OR_CRASH for word in ("-T", name)]
    subprocess.run(["lab/test.sh", "--base", "-s", suite, "--", *left_out], cwd=ROOT, check=False,
                   env=os.environ | {"MREMAP_EXPECT": "patched"}, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return (RESULTS / f"base-lean-{suite}.tap").read_text(errors="replace")


def count(tap: str) -> dict[str, collections.Counter[str]]:
    """For each test, how many of its variants end how."""
    tests: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in tap.splitlines():
        match = re.match(r"(ok|not ok) \d+ (?:\S*\.)?(\w+_mended)\b(.*)", line)
        if not match:
            continue
        end = "skipped" if "# SKIP" in match[3] else match[1]
        tests[match[2]][end] += 1
    return tests


def verdict(ends: collections.Counter[str]) -> str:
    done = ends["ok"] + ends["not ok"]
    if not done:
        return "not run"
    if not ends["not ok"]:
        return "mended"
    return "has it" if not ends["ok"] else f"has it in {ends['not ok']} of {done} variants"


def main() -> int:
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 1
    print(f"| suite | test | {BASE} |\n|---|---|---|")
    for suite in SUITES:
        print(f"{suite} ...", file=sys.stderr)
        for name, ends in sorted(count(run(suite)).items()):
            print(f"| `{suite}` | `{name.removesuffix('_mended')}` | {verdict(ends)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
