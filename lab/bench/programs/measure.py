#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Measure whole programs, in a guest where an instruction is a nanosecond.

usage: measure.py BUILT [TEXT]
BUILT is where lab/bench.sh has built what the programs need. With TEXT only those run
that have it in their names.

Each program runs twice. The first run, in which the tracing tells how long each call of
mremap takes, also brings all files into memory; nothing is traced in the second one, of
which the rest is told: the processor time of the program and all of its children, which is
their instructions; page faults; TLB flushes. And how much of the largest process was in
huge pages, at two moments: a program of ours stops itself for that. One of others that
writes what it has read is held up by the pipe it writes to, when its output begins and
when it ends.

Output, one line for each program, the rest is progress: result and a JSON object.
"""
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import candidates

import tracing      # after what tells where it is

PYTHON = "/usr/bin/python3"
FOLDER = "/run/restore"
PR_SET_CHILD_SUBREAPER = 36
CHUNK = 1 << 16     # what a pipe holds


@dataclass
class Program:
    """Which writes its output to a pipe, or else stops itself."""
    name: str
    command: list[str]
    pipe: bool = False
    prepare: list[str] = field(default_factory=list)


@dataclass
class Memory:
    """Of the largest process, in KB."""
    anonymous: int = 0
    huge: int = 0


@dataclass
class Run:
    status: int = 0
    written: int = 0
    instructions: int = 0
    faults: int = 0
    flushes: int = 0
    memory: list[Memory] = field(default_factory=list)


def programs(built: Path) -> list[Program]:
    ours = candidates.HERE
    restore = str(ours / "restore.sh")
    foreign = candidates.commands()
    return [
        Program("array, realloc", [str(built / "array")]),
        Program("C++ vector, realloc", [str(built / "vector"), "realloc"]),
        Program("C++ std::vector", [str(built / "vector"), "std"]),
        *(Program(f"Python {kind}", [PYTHON, str(ours / "grown.py"), kind])
          for kind in ("list", "bytearray", "array")),
        Program("Perl string", ["perl", str(ours / "grown.pl")]),
        Program("SQLite, mapped", [PYTHON, str(ours / "mapped.py")]),
        Program("collector, DONTUNMAP", [str(built / "collector")]),
        *(Program(name, foreign[name], pipe=True)
          for name in ("sort, long lines", "sort", "jq, a large string", "jq, records",
                       "xmllint, a large string", "xmllint, records",
                       "sed, all lines in one", "apt-cache, gencaches", "gcc")
          if candidates.is_there(name)),
        Program("CRIU restore, 1 GB", [restore, "restore", FOLDER],
                prepare=[restore, "dump", str(built / "holder"), FOLDER]),
    ]


def look() -> Memory:
    """At the largest process that is not this one."""
    largest = Memory()
    for path in Path("/proc").glob("[0-9]*/smaps_rollup"):
        if path.parent.name == str(os.getpid()):
            continue
        try:
            lines = [line.split() for line in path.read_text().splitlines()[1:]]
        except OSError:     # a kernel thread, or one that has just ended
            continue
        kb = {words[0]: int(words[1]) for words in lines}
        found = Memory(kb.get("Anonymous:", 0), kb.get("AnonHugePages:", 0))
        largest = max(largest, found, key=lambda memory: memory.anonymous)
    return largest


def flushes() -> int:
    """As lab/bench/bench.c has it, of the one processor."""
    words = [line.split() for line in Path("/proc/vmstat").read_text().splitlines()]
    return sum(int(value) for name, value in words if name.startswith("nr_tlb_local_flush_"))


def read_pipe(pipe: IO[bytes], expected: int, run: Run) -> None:
    """Read to the end; look when it begins, and while the last part has to wait."""
    while chunk := os.read(pipe.fileno(), CHUNK):
        run.written += len(chunk)
        if not run.memory or (len(run.memory) == 1
                              and 0 < expected - 2 * CHUNK <= run.written):
            run.memory.append(look())


def let_stop(process: subprocess.Popen[bytes], run: Run) -> None:
    """Look whenever it stops itself, and let it go on."""
    while True:
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if not state or state.si_code != os.CLD_STOPPED:
            return
        run.memory.append(look())
        os.kill(process.pid, signal.SIGCONT)


def reap() -> None:
    """Wait for the children of children, so that their time is counted."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def execute(program: Program, built: Path, errors: IO[bytes], expected: int) -> Run:
    run = Run()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as output:
        before, flushes_before = resource.getrusage(resource.RUSAGE_CHILDREN), flushes()
        process = subprocess.Popen(
            program.command, cwd=scratch, env=candidates.environment(built),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if program.pipe else output,
            stderr=errors, start_new_session=True)
        if process.stdout:
            with process.stdout as pipe:
                read_pipe(pipe, expected, run)
        else:
            let_stop(process, run)
        run.status = process.wait()
        reap()
        after, run.flushes = resource.getrusage(resource.RUSAGE_CHILDREN), flushes()
    run.flushes -= flushes_before
    run.faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    run.instructions = round(1e9 * (after.ru_utime + after.ru_stime
                                    - before.ru_utime - before.ru_stime))
    return run


@contextmanager
def traced() -> Iterator[None]:
    """One tick of this clock is one instruction."""
    tracing.start(clock="x86-tsc")
    tracing.clear()
    yield
    tracing.stop()


def measure(program: Program, built: Path, errors: IO[bytes]) -> dict[str, object]:
    if program.prepare:
        subprocess.run(program.prepare, check=True, stdin=subprocess.DEVNULL,
                       stdout=errors, stderr=errors)
    with traced():
        first = execute(program, built, errors, 0)
    counts = tracing.count()
    second = execute(program, built, errors, first.written)
    return {"name": program.name, "status": first.status or second.status,
            "calls": counts.calls, "refused": counts.refused, "moved": counts.moved,
            "mremap": round(counts.time), "instructions": second.instructions,
            "faults": second.faults, "flushes": second.flushes,
            "memory": [vars(memory) for memory in second.memory]}


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print("usage: measure.py BUILT [TEXT]", file=sys.stderr)
        return 2
    built, text = Path(sys.argv[1]).resolve(), "".join(sys.argv[2:])
    todo = [program for program in programs(built) if text in program.name]
    # What is left of a program that has ended becomes a child of this one.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    failed = 0
    for number, program in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {program.name}", flush=True)
        with tempfile.TemporaryFile() as errors:
            result = measure(program, built, errors)
            if result["status"]:
                failed += 1
                candidates.show_end(errors)
        print("result", json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
