# SPDX-License-Identifier: GPL-2.0
"""Grow a bytearray and a list to hundreds of MB each and check every byte and item."""
import sys

MB = 1 << 20
BYTES_MB = 384
LIST_MB = 256
ITEMS = MB // 8     # of one MB of list: a pointer each


def block(number: int) -> bytes:
    """One MB that names itself in every word."""
    return (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little") * (MB // 8)


def items(number: int) -> list[int]:
    """One MB worth of list items; small ints, as Python keeps one object of each."""
    return ([*range(number % 128, 256)] * ITEMS)[:ITEMS]


def grow_bytearray() -> None:
    """Append block by block; compare all blocks at the end."""
    data = bytearray()
    for number in range(BYTES_MB):
        data += block(number)
    view = memoryview(data)
    for number in range(BYTES_MB):
        if view[number * MB:(number + 1) * MB] != block(number):
            sys.exit(f"bytearray: MB {number} is wrong")
    print(f"bytearray of {len(data)} bytes")


def grow_list() -> None:
    """The same with a list, whose array of pointers grows by an eighth."""
    patterns = [items(number) for number in range(8)]
    data: list[int] = []
    for number in range(LIST_MB):
        data += patterns[number % 8]
    for number in range(LIST_MB):
        if data[number * ITEMS:(number + 1) * ITEMS] != patterns[number % 8]:
            sys.exit(f"list: items from {number * ITEMS} on are wrong")
    print(f"list of {len(data)} items")


grow_bytearray()
grow_list()
