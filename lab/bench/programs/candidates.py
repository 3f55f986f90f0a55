# SPDX-License-Identifier: GPL-2.0
"""The commands of the file "candidates", and how to run a program."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
LAB = HERE.parents[1]
TAIL = 15
sys.path.insert(0, str(LAB / "run"))


def commands() -> dict[str, list[str]]:
    """By their names, of which the first word is what they need."""
    lines = [line for line in (HERE / "candidates").read_text().splitlines()
             if line and not line.startswith("#")]
    return {name: ["sh", "-c", command] for name, command in
            (line.split(": ", 1) for line in lines)}


def is_there(name: str) -> bool:
    return bool(shutil.which(name.split(",")[0]))


def environment(built: Path) -> dict[str, str]:
    """Where what the commands speak of is."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "lab": str(LAB), "built": str(built),
            "in": str(built / "inputs")}


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show_end(output: IO[bytes]) -> None:
    """For whoever wonders why it failed."""
    output.seek(0)
    for line in output.read().decode(errors="replace").splitlines()[-TAIL:]:
        print(f"      {line}", file=sys.stderr, flush=True)
