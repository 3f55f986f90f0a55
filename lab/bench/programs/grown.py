# SPDX-License-Identifier: GPL-2.0
"""Grow a list, a bytearray or an array, and then read all of it.

usage: grown.py list|bytearray|array
It stops itself twice to be looked at: when it has grown, and when all was read.
"""
import os
import signal
import sys
from array import array
from collections.abc import Callable

ITEMS = 6_000_000
CHUNK = bytes(range(256)) * 256     # as much as a read of a socket may bring
CHUNKS = 4096


def read(data_are_right: Callable[[], bool]) -> None:
    """What has grown, between two stops, while it is still there."""
    os.kill(os.getpid(), signal.SIGSTOP)
    right = data_are_right()
    os.kill(os.getpid(), signal.SIGSTOP)
    if not right:
        sys.exit("wrong contents")


def grow_list() -> None:
    """Item by item; each is an object of its own."""
    data = []
    for number in range(ITEMS):
        data.append(number)
    read(lambda: sum(data) == ITEMS * (ITEMS - 1) // 2)


def grow_bytearray() -> None:
    data = bytearray()
    for _ in range(CHUNKS):
        data += CHUNK
    read(lambda: data.count(b"\n") == CHUNKS * CHUNK.count(b"\n"))


def grow_array() -> None:
    data = array("q")
    for number in range(ITEMS):
        data.append(number)
    read(lambda: sum(data) == ITEMS * (ITEMS - 1) // 2)


{"list": grow_list, "bytearray": grow_bytearray, "array": grow_array}[sys.argv[1]]()
