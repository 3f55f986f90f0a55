# SPDX-License-Identifier: GPL-2.0
"""sort(1) on a file that does not fit its first buffer.

The buffer starts at 1 MB. A file of many lines makes sort spill and merge runs;
a line longer than the buffer makes sort realloc() it, which is an mremap.
"""
import random
import subprocess
import sys
import tempfile
from pathlib import Path

LINES = 200_000
LONGEST = 24 << 20


def ordered_lines() -> list[bytes]:
    """Lines in their sorted order; a few are up to 24 MB long."""
    lines = [b"%07d\n" % number for number in range(LINES)]
    length = 1 << 20
    while length <= LONGEST:
        number = length // 4096 * 31 % LINES
        lines[number] = b"%07d" % number + b"x" * length + b"\n"
        length += length // 2
    return lines


def main() -> None:
    lines = ordered_lines()
    shuffled = lines.copy()
    random.Random(1).shuffle(shuffled)
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "in"), Path(scratch, "out")
        with source.open("wb") as file:
            file.writelines(shuffled)
        subprocess.run(["sort", "-S", "1M", "-T", scratch, "-o", target, source],
                       env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}, check=True)
        with target.open("rb") as file:
            for number, want in enumerate(lines):
                if file.readline() != want:
                    sys.exit(f"line {number} of the sorted file is wrong")
            if file.read(1):
                sys.exit("the sorted file has lines too many")
        print(f"{LINES} lines, {source.stat().st_size} bytes")


main()
