#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""build/tree/ = build/base/ with our files laid over it.

usage: lab/tree.py            make build/tree/, or bring it up to date
       lab/tree.py check      only see whether every patch applies
       lab/tree.py replaced   list the upstream files that we replace or patch

Every file that git tracks, or would track, is ours and goes to the same path
in the tree, except what belongs to this repository and not to the kernel
(NOT_KERNEL). FILE.patch, a -p1 diff of FILE alone, is applied to upstream's
FILE. Only files whose content differs are written, so that a build redoes
only what depends on them. The tree shares no file with the base: whatever is
written there cannot harm the base.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = ROOT / "build/base"
TREE = ROOT / "build/tree"
VERSION = ROOT / "build/base.version"  # of the base, and of the one in TREE
TREE_VERSION = ROOT / "build/tree.version"
OVERLAID = ROOT / "build/tree.overlaid"  # the paths that are ours in TREE
CHANGED = ROOT / "build/tree.changed"  # its time says when TREE last changed
LOCK = ROOT / "build/tree.lock"
NOT_KERNEL = {"lab", "bases", "fixes", ".ci", "Makefile", "README.md", "COPYING", ".gitignore"}


class TreeError(Exception):
    """What stops the run, in one line (and the output of patch)."""


def our_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    return sorted({path for path in listed
                   if path and path.split("/")[0] not in NOT_KERNEL
                   and (ROOT / path).is_file()})


def patched(target: str, patch: str) -> bytes:
    """Upstream's file with a patch applied."""
    upstream = BASE / target
    if not upstream.is_file():
        raise TreeError(f"{target}.patch: the base has no {target}")
    heads = [line.split()[1] for line in patch.splitlines() if line.startswith("+++ ")]
    if heads != [f"b/{target}"]:
        raise TreeError(f"{target}.patch: not a -p1 diff of {target} alone")
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch, "out")
        run = subprocess.run(
            ["patch", "--reject-file=-", f"--output={out}", upstream],
            input=patch, capture_output=True, text=True, check=False)
        if run.returncode:
            failed = [line for line in run.stdout.splitlines() if "FAILED" in line]
            raise TreeError(f"{target}.patch does not apply: "
                            + ("; ".join(failed) or run.stdout + run.stderr))
        return out.read_bytes()


def overlays() -> dict[str, pathlib.Path | bytes]:
    """Path in the tree -> our file, or the content that a patch makes."""
    result: dict[str, pathlib.Path | bytes] = {}
    for path in our_files():
        if path.endswith(".patch"):
            target = path.removesuffix(".patch")
            if (ROOT / target).exists():
                raise TreeError(f"{path}: {target} is replaced as a whole, too")
            result[target] = patched(target, (ROOT / path).read_text())
        else:
            result[path] = ROOT / path
    return result


def put(path: str, content: bytes, mode_of: pathlib.Path) -> bool:
    """Writes a file of the tree if it differs; whole or not at all."""
    target = TREE / path
    if target.is_file() and target.read_bytes() == content:
        return False
    CHANGED.touch()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.new")
    scratch.write_bytes(content)
    scratch.chmod(mode_of.stat().st_mode)
    scratch.replace(target)
    return True


def drop(path: str) -> None:
    """Takes away a file that upstream does not have, and emptied folders."""
    CHANGED.touch()
    (TREE / path).unlink(missing_ok=True)
    for folder in (TREE / path).parents:
        if folder == TREE or any(folder.iterdir()):
            break
        folder.rmdir()


def copy_base() -> None:
    print("copying build/base/ to build/tree/", file=sys.stderr)
    for path in (OVERLAID, TREE_VERSION):
        path.unlink(missing_ok=True)
    scratch = TREE.with_name("tree.tmp")
    for folder in (TREE, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", BASE, scratch], check=True)
    scratch.rename(TREE)
    CHANGED.touch()
    TREE_VERSION.write_bytes(VERSION.read_bytes())


def edited_in_place() -> list[str]:
    """Upstream files that are not in the tree as the copy left them."""
    found = []
    for folder, _, names in os.walk(BASE):
        there = TREE / os.path.relpath(folder, BASE)
        for name in names:
            try:
                ours = os.lstat(there / name)
            except OSError:
                ours = None
            stock = os.lstat(os.path.join(folder, name))
            if ours is None or (ours.st_size, ours.st_mtime_ns) != (
                    stock.st_size, stock.st_mtime_ns):
                found.append(os.path.relpath(there / name, TREE))
    return found


def update(ours: dict[str, pathlib.Path | bytes]) -> None:
    if not TREE.is_dir() or not TREE_VERSION.exists() or (
            TREE_VERSION.read_bytes() != VERSION.read_bytes()):
        copy_base()
    before = set(OVERLAID.read_text().splitlines()) if OVERLAID.exists() else set()
    # Noted first: a run that is cut short must not lose track of a path.
    OVERLAID.write_text("".join(f"{path}\n" for path in sorted(before | ours.keys())))
    for path, source in ours.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        mode_of = BASE / path if isinstance(source, bytes) else source
        if put(path, content, mode_of):
            print(f"{path}: ours", file=sys.stderr)
    for path in sorted((before | set(edited_in_place())) - ours.keys()):
        stock = BASE / path
        if not stock.exists():
            drop(path)
            print(f"{path}: gone", file=sys.stderr)
        elif put(path, stock.read_bytes(), stock):
            print(f"{path}: upstream's again", file=sys.stderr)
    OVERLAID.write_text("".join(f"{path}\n" for path in sorted(ours)))


def main(args: list[str]) -> None:
    if args == ["replaced"]:
        targets = {path.removesuffix(".patch") for path in our_files()}
        print("".join(f"{path}\n" for path in sorted(targets)
                      if (BASE / path).is_file()), end="")
    elif args == ["check"]:
        overlays()
    elif not args:
        with open(LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            update(overlays())
    else:
        raise TreeError("usage: lab/tree.py [check | replaced]")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except TreeError as error:
        sys.exit(f"tree.py: {error}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"tree.py: {error}")
