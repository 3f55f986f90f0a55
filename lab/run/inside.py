#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Run the real programs, in the guest, and print what came of each.

usage: inside.py DIR [BUILD]
DIR is where realloc, hugetlb, args, moved and text were built. With BUILD, where a
kernel was built, the rows of "make run ALL=1" run, too.

The kernel's own tracing counts the mremap calls of each program and of all its
children, and the stack shifts of execve. A program that was to move memory
and did not has failed: its row would say nothing about mremap. One that this
machine does not have is skipped.
"""
import os
import signal
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tracing

HERE = Path(__file__).resolve().parent
TIME_LIMIT = 900
TAIL = 15
VERDICT = "verdict: "   # begins the last line of a program that knows why it failed


# Each with two workers; how much of it, and what else.
STRESS = {
    "mremap": "100 --mremap-bytes 16M",
    "mmapfixed": "40",
    "mmapaddr": "8000",
    "pagemove": "200 --pagemove-bytes 256K",
    "bigheap": "600 --bigheap-growth 1M",
    "malloc": "100000",
    "vm": "20000 --vm-bytes 16M --vm-method all",
    "mmap": "20 --mmap-bytes 16M",
    "mmapmany": "40000",
    "munmap": "3000",
    "mprotect": "200000",
    "madvise": "8",
    "pageswap": "5000",
    "msync": "20000 --msync-bytes 4M",
    "mlock": "10000",
    "remap": "40",
    "rmap": "8000",
    "memfd": "8",
    "shm-sysv": "200",
    "fork": "1000",
    "stack": "8",
    "userfaultfd": "60000 --userfaultfd-bytes 8M",
}
MOVING = {"mremap", "mmapfixed", "pagemove", "bigheap"}
PYTHON_TESTS = ["test_mmap", "test_bytes", "test_array", "test_list", "test_memoryview"]


@dataclass
class Program:
    name: str
    command: list[str]
    counted: str    # what the row is about, a field of tracing.Counts, ...
    least: int = 1  # ... and how often it must be seen
    needs: str = ""     # a command or a file that not every machine has


@dataclass
class Row:
    program: Program
    result: str
    counts: tracing.Counts
    seconds: float


def programs(built: Path) -> list[Program]:
    """The rows of the table."""
    python = "/usr/bin/python3"
    criu = [str(HERE / "criu.sh"), str(built / "moved")]
    return [
        Program("realloc to 1 GB", [str(built / "realloc")], "moved"),
        # Never copied: what does not move grows where it is.
        Program("realloc, a part advised", [str(built / "realloc"), "advised"], "moved",
                least=5),
        Program("perf, moved text", [str(HERE / "perf.sh"), str(built / "text")], "moved"),
        Program("realloc, hugetlb to 96 MB", [str(built / "hugetlb")], "moved"),
        Program("Python bytearray and list", [python, str(HERE / "grow.py")], "moved"),
        Program("execve, 5.6 MB of arguments", [str(built / "args")], "shifts",
                least=2),    # the first is its own start
        Program("sort, small buffer", [python, str(HERE / "sort.py")], "moved"),
        Program("CRIU dump and restore", [*criu, "moves", "0"], "moved"),
        Program("CRIU pre-dumps, moves", [*criu, "moves", "2"], "moved"),
        # Not after two: all would be back where the first had found it.
        Program("CRIU pre-dumps, swaps", [*criu, "swaps", "3"], "moved"),
    ]


def stress(name: str, options: str) -> Program:
    """One of stress-ng's stressors."""
    # As root it would poison memory, and fails when it finds that.
    user = ["setpriv", "--reuid", "nobody", "--clear-groups"] if name == "madvise" else []
    fixed = f"stress-ng --temp-path /tmp --verify --seed 1 --{name} 2 --{name}-ops"
    return Program(f"stress-ng {name}", [*user, *fixed.split(), *options.split()],
                   "moved", least=int(name in MOVING), needs="stress-ng")


def more_programs(built: Path, kernel: Path) -> list[Program]:
    """What ALL=1 adds. Some do not call mremap: they are about memory all the same."""
    python = "/usr/bin/python3"
    tests = Path(sysconfig.get_path("stdlib"), "test")
    return [
        *(stress(name, options) for name, options in STRESS.items()),
        Program("Redis, saves", [str(HERE / "redis.sh")], "calls", least=0,
                needs="redis-check-rdb"),
        Program("PostgreSQL, pgbench", [str(HERE / "postgresql.sh")], "calls",
                needs="pg_lsclusters"),
        Program("SQLite, mapped", [python, str(HERE / "sqlite.py")], "calls"),
        Program("Python's own tests", [python, "-m", "test", *PYTHON_TESTS], "calls",
                needs=str(tests / "test_mmap.py")),
        Program("Perl string and array", ["perl", str(HERE / "grow.pl")], "moved"),
        Program("gcc, a kernel object",
                [str(HERE / "compile.sh"), str(kernel), "mm/mmap.o"], "calls", least=0),
        Program("CRIU restore, lazy pages",
                [str(HERE / "criu.sh"), str(built / "moved"), "lazy", "0"], "moved"),
        # Of a static program it does not replace realloc(). There, libc reads beyond
        # what is initialised, so only addresses are checked, not values.
        Program("valgrind, realloc to 64 MB",
                ["valgrind", "--error-exitcode=1", "--undef-value-errors=no",
                 str(built / "realloc"), "64"], "calls", needs="valgrind"),
        Program("execve, 200 times", [str(built / "args"), "200"], "shifts", least=2),
    ]


def is_there(program: Program) -> bool:
    """Whether this machine has what a program needs."""
    needs = program.needs
    return not needs or bool(shutil.which(needs)) or Path(needs).exists()


def run_to_end(command: list[str], output: IO[bytes]) -> str:
    """Run a command and say what came of it; nothing of it is left running."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                               stderr=output, start_new_session=True)
    try:
        status = process.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "FAIL, timeout"
    return f"FAIL, exit {status}" if status else "ok"


def run(program: Program) -> Row:
    """Run one program; show the end of its output if it failed."""
    tracing.clear()
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        result = run_to_end(program.command, output)
        seconds = time.monotonic() - started
        counts = tracing.count()
        seen = getattr(counts, program.counted)
        if result == "ok" and seen < program.least:
            result = f"FAIL, {seen} {program.counted}"
        output.seek(0)
        tail = output.read().decode(errors="replace").splitlines()[-TAIL:]
    if result != "ok" and tail and tail[-1].startswith(VERDICT):
        result = tail.pop().removeprefix(VERDICT)
    for line in tail:
        print(f"      {line}", file=sys.stderr, flush=True)
    return Row(program, result, counts, seconds)


def print_table(rows: list[Row]) -> None:
    """One line a program."""
    form = "{:<28} {:<14} {:>7} {:>8} {:>7} {:>13} {:>8}"
    print(form.format("program", "result", "mremap", "refused", "moved", "stack shifts",
                      "seconds"))
    for row in rows:
        print(form.format(row.program.name, row.result, row.counts.calls,
                          row.counts.refused, row.counts.moved, row.counts.shifts,
                          f"{row.seconds:.1f}"))


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print("usage: inside.py DIR [BUILD]", file=sys.stderr)
        return 2
    todo = programs(Path(sys.argv[1]))
    if len(sys.argv) == 3:
        todo += more_programs(Path(sys.argv[1]), Path(sys.argv[2]))
    tracing.start()
    rows = []
    skipped = 0
    for number, program in enumerate(todo, 1):
        print(f"run [{number}/{len(todo)}] {program.name}", file=sys.stderr, flush=True)
        if is_there(program):
            rows.append(run(program))
        else:
            print(f"      skipped: there is no {program.needs}", file=sys.stderr, flush=True)
            skipped += 1
    print_table(rows)
    failed = sum(row.result != "ok" for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed"
          + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
