# SPDX-License-Identifier: GPL-2.0
"""What the kernel's own tracing says of mremap: the calls of all other processes.

Its events are there on any kernel: those of the system call, and a probe for the stack
shifts of execve.
"""
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
EVENTS = ("syscalls/sys_enter_mremap", "syscalls/sys_exit_mremap", "exec/stack_shift")
BUFFER_KB = 16384   # of each CPU: room for some 200,000 events

LINE = re.compile(r"-(?P<task>\d+) +\[\d+\] \S+ +(?P<time>[\d.]+): "
                  r"(?:sys_mremap\(addr: (?P<old>\w+)|sys_mremap -> 0x(?P<new>\w+)"
                  r"|(?P<shift>stack_shift): )")
WRITTEN = re.compile(r"entries-in-buffer/entries-written: (\d+)/(\d+)")
ERRNO_MIN = 2**64 - 4095


@dataclass
class Counts:
    """What programs asked of mremap, and how long that took in units of the clock."""
    calls: int = 0
    refused: int = 0
    moved: int = 0
    shifts: int = 0
    time: float = 0


def start(events: Iterable[str] = EVENTS, clock: str = "local") -> None:
    """Enable the events for every task but this one."""
    if not (TRACING / "trace").exists():
        subprocess.run(["mount", "-t", "tracefs", "none", str(TRACING)], check=True)
    (TRACING / "kprobe_events").write_text("p:exec/stack_shift relocate_vma_down\n")
    (TRACING / "buffer_size_kb").write_text(str(BUFFER_KB))
    (TRACING / "trace_clock").write_text(clock)
    for event in events:
        directory = TRACING / "events" / event
        (directory / "filter").write_text(f"common_pid != {os.getpid()}")
        (directory / "enable").write_text("1")


def stop() -> None:
    """Nothing is traced any more, nor costs anything; it can be started again."""
    (TRACING / "events/enable").write_text("0")


def clear() -> None:
    (TRACING / "trace").write_text("")


def lines() -> Iterator[str]:
    """What the trace holds; one that lost events is an error."""
    with (TRACING / "trace").open(errors="replace") as trace:
        for line in trace:
            written = WRITTEN.search(line)
            if written and written[1] != written[2]:
                sys.exit(f"{Path(sys.argv[0]).name}: the trace buffer overflowed")
            yield line


def count() -> Counts:
    """The calls in the trace."""
    counts = Counts()
    entered: dict[str, tuple[int, float]] = {}
    for match in filter(None, map(LINE.search, lines())):
        time = float(match["time"])
        if match["shift"]:
            counts.shifts += 1
        elif match["old"]:
            counts.calls += 1
            entered[match["task"]] = int(match["old"], 16), time
        else:
            new = int(match["new"], 16)
            old, since = entered.pop(match["task"], (new, time))
            counts.time += time - since
            counts.refused += new >= ERRNO_MIN
            counts.moved += new < ERRNO_MIN and new != old
    return counts
