# SPDX-License-Identifier: GPL-2.0
"""Make what the programs read, always the same.

usage: inputs.py FOLDER
"""
import base64
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

MB = 1 << 20
LINES = 240_000
RECORDS = 60_000
FUNCTIONS = 1_500
PACKAGES = 60_000
WORDS = ("page table entry move grow block map unmap flush lock list array string number "
         "buffer record value first last other").split()


class Record(TypedDict):
    id: int
    name: str
    score: float
    tags: list[str]
    text: str


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def log_lines(draw: random.Random) -> Iterator[str]:
    """As a server writes them: 16 MB."""
    for number in range(LINES):
        yield f"{draw.randrange(1 << 32):08x} {number:07d} {words(draw, 9)}\n"


def long_lines(draw: random.Random) -> Iterator[str]:
    """Most are short, some are of up to 16 MB."""
    for size in (1, 1, 2, 3, 4, 6, 8, 12, 16):
        yield from (f"{draw.randrange(1 << 32):08x} {words(draw, 3)}\n" for _ in range(5000))
        yield f"{draw.randrange(1 << 32):08x} {words(draw, 32) * (size * MB // 180)}\n"


def records(draw: random.Random) -> list[Record]:
    return [Record(id=number, name=words(draw, 2), score=draw.random(),
                   tags=draw.sample(WORDS, 3), text=words(draw, 20))
            for number in range(RECORDS)]


def xml(rows: list[Record]) -> Iterator[str]:
    yield "<records>\n"
    for row in rows:
        tags = "".join(f"<tag>{tag}</tag>" for tag in row["tags"])
        yield (f'<record id="{row["id"]}" score="{row["score"]}"><name>{row["name"]}</name>'
               f'{tags}<text>{row["text"]}</text></record>\n')
    yield "</records>\n"


def csv(rows: list[Record]) -> Iterator[str]:
    for row in rows:
        yield f'{row["id"]},{row["score"]},{row["name"]},{row["text"]}\n'


def source(draw: random.Random) -> Iterator[str]:
    """C, a function like any other again and again."""
    for number in range(FUNCTIONS):
        yield (f"int f{number}(const int *a, int n)\n{{\n\tint s = {draw.randrange(1000)};\n\n"
               f"\tfor (int i = 0; i < n; i++)\n\t\tif (a[i] % {draw.randrange(2, 99)})\n"
               f"\t\t\ts += a[i] * {draw.randrange(2, 99)};\n\treturn s;\n}}\n\n")


def packages(draw: random.Random) -> Iterator[str]:
    """What dpkg would know of that many packages, each of which needs others."""
    for number in range(PACKAGES):
        needs = ", ".join(f"package-{draw.randrange(PACKAGES)} (>= 1.{draw.randrange(99)})"
                          for _ in range(5))
        yield (f"Package: package-{number}\nStatus: install ok installed\nPriority: optional\n"
               f"Section: misc\nMaintainer: Nobody <nobody@localhost>\nArchitecture: amd64\n"
               f"Version: 1.{draw.randrange(99)}-{draw.randrange(9)}\nDepends: {needs}\n"
               f"Description: {words(draw, 6)}\n\n")


def main(folder: Path) -> None:
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = records(draw)
    blob = base64.b64encode(draw.randbytes(12 * MB)).decode()
    texts = {
        "text.txt": log_lines(draw), "long.txt": long_lines(draw), "data.xml": xml(rows),
        "data.csv": csv(rows), "source.c": source(draw), "status": packages(draw),
        "data.json": [json.dumps(rows)], "blob.json": [json.dumps({"data": blob})],
        "blob.xml": [f"<record><data>{blob}</data></record>\n"]}
    for name, parts in texts.items():
        with (folder / name).open("w") as file:
            file.writelines(parts)
    (folder / "random.bin").write_bytes(draw.randbytes(16 * MB))


main(Path(sys.argv[1]))
