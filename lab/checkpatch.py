#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs the kernel's checkpatch.pl --strict on our changes.

usage: lab/checkpatch.py          on build/tree/ against build/base/
       lab/checkpatch.py MAIL...  on mails

What lab/checkpatch.allow lists, with a reason, does not count. Prints the rest.
"""

import fnmatch
import pathlib
import re
import subprocess
import sys

import tree

ALLOW = tree.ROOT / "lab/checkpatch.allow"
SCRIPT = tree.BASE / "scripts/checkpatch.pl"
# It leaves a cache where it runs.
FOLDER = tree.ROOT / "build/checkpatch"


class CheckpatchError(Exception):
    """What stops the run."""


def allowed() -> list[tuple[str, str]]:
    """Type and path of what does not count."""
    rules = []
    for line in ALLOW.read_text().splitlines():
        if line and not line.startswith("#"):
            words = line.split(None, 2)
            if len(words) < 3:
                raise CheckpatchError(f"{ALLOW.name}: no reason in '{line}'")
            rules.append((words[0], words[1]))
    return rules


def look_at(arguments: list[str], given: str | None = None) -> list[str]:
    """The complaints that count about the mails, or about the given patch."""
    rules = allowed()
    FOLDER.mkdir(exist_ok=True)
    run = subprocess.run(
        ["perl", SCRIPT, f"--root={tree.BASE}", "--strict", "--terse", "--show-types",
         "--showfile", "--no-summary", *arguments],
        cwd=FOLDER, input=given, capture_output=True, text=True, check=False)
    complaints = []
    for line in run.stdout.splitlines():
        match = re.match(r"(.*?):\d+: (?:ERROR|WARNING|CHECK):(\w+): ", line)
        if not match:
            raise CheckpatchError(f"checkpatch.pl says '{line}'")
        path, kind = match.groups()
        if not any(kind == rule_kind and fnmatch.fnmatchcase(path, glob)
                   for rule_kind, glob in rules):
            complaints.append(line)
    if run.returncode not in (0, 1) or (run.returncode and not run.stdout):
        raise CheckpatchError(f"checkpatch.pl failed: {run.stderr}")
    return complaints


def whole_diff() -> str:
    """What we change in upstream's tree, as one patch."""
    parts = []
    for path in tree.overlays():
        base = f"base/{path}" if (tree.BASE / path).exists() else "/dev/null"
        run = subprocess.run(["git", "diff", "--no-index", "--src-prefix=a/", "--dst-prefix=b/",
                              base, f"tree/{path}"], cwd=tree.BASE.parent,
                             stdout=subprocess.PIPE, check=False)
        parts.append(run.stdout.decode().replace("a/base/", "a/").replace("b/tree/", "b/"))
    return "".join(parts)


def main(mails: list[str]) -> int:
    if mails:
        complaints = look_at([str(pathlib.Path(mail).resolve()) for mail in mails])
    else:
        complaints = look_at(["--no-signoff", "--ignore=COMMIT_MESSAGE", "-"], whole_diff())
    print("\n".join(complaints) or f"nothing but what {ALLOW.name} lists")
    return bool(complaints)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (CheckpatchError, tree.TreeError, OSError) as error:
        sys.exit(f"checkpatch.py: {error}")
