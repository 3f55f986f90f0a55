#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Try the packages of "make deb" on an installed system that lab/system.sh has made.

usage: lab/trial.py FOLDER SHARE          go through the steps in that system
       lab/trial.py --table FOLDER...     print what came of them
       lab/trial.py --boot-loader FOLDER  finish making a system: GRUB needs it to run

SHARE has the packages and tests.tar, which the system fetches by HTTP. It is told what
to do by ssh. What it writes to its disk lasts for one trial. FOLDER/console.log has the
kernels' messages, FOLDER/commands.log all that was done.
"""
import functools
import hashlib
import http.server
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import guest
import ktap

LAB = Path(__file__).resolve().parent
KEY = LAB.parent / "build/trial/key"
README = LAB / "README.md"
HOST = "10.0.2.2"   # this machine, in QEMU's network
NO_CONNECTION = 255     # of ssh
NOT_RUN = "not run"

# Limits in seconds; emulated machines are slow.
BOOT, APT, COMMAND, SUITE = 1200, 3600, 600, 1800

DIRECT_BOOT = ("root=LABEL=debian console=ttyS0 no_timer_check systemd.run_success_action=poweroff "
               "systemd.run_failure_action=poweroff systemd.run=\"/bin/sh -c '{}'\"")
INSTALL_GRUB = "grub-install /dev/vda && update-grub && echo GRUB is there >/dev/console"


class Failed(Exception):
    """A step has failed; the text says why."""


class Lost(Failed):
    """So have all that come after it."""


# The machine.

def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quoted(path: Path) -> str:
    """As an option of QEMU has it."""
    return str(path).replace(",", ",,")


class Machine:
    """One with a disk, a network and a serial console."""

    def __init__(self, folder: Path, *options: str, drive: str = ""):
        self.console = folder / "console.log"
        self.commands = folder / "commands.log"
        self.console.write_text("")
        self.commands.write_text("")
        self.boots: list[tuple[str, int]] = []  # release, its first line on the console
        self.boot_id = "none yet"
        port = free_port()
        self.ssh = ["ssh", "-i", str(KEY), "-p", str(port), "-o", "BatchMode=yes",
                    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                    "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60",
                    "-o", "ServerAliveInterval=60", "-o", "ServerAliveCountMax=10",
                    "root@127.0.0.1"]
        disk = f"file={quoted(folder / 'disk.img')},format=raw,if=virtio,cache=unsafe{drive}"
        self.qemu = subprocess.Popen(
            [*guest.bare_machine(os.environ.get("GUEST_ACCEL", "tcg")),
             "-smp", "2", "-m", "2048", "-drive", disk, "-device", "virtio-rng-pci",
             "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22",
             "-device", "virtio-net-pci,netdev=net",
             "-serial", f"file:{quoted(self.console)}", *options],
            stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(folder)})

    def end(self) -> None:
        self.qemu.kill()
        self.qemu.wait()

    def log(self) -> list[str]:
        """The lines on the console until now."""
        return self.console.read_text(errors="replace").splitlines()

    def run(self, command: str, seconds: float = COMMAND) -> tuple[int, str]:
        """A command's exit status and output."""
        try:
            done = subprocess.run(
                [*self.ssh, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds)
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired:
            status, output = guest.TIMEOUT, f"not done after {seconds:g} seconds"
        with self.commands.open("a") as log:
            log.write(f"# {command}\n{output}\n# status {status}\n\n")
        return status, output.strip()

    def do(self, command: str, seconds: float = COMMAND) -> str:
        """The output of a command that has to succeed."""
        status, output = self.run(command, seconds)
        if status == NO_CONNECTION:
            raise Lost("no connection")
        if status:
            raise Failed(f"{(output or command).splitlines()[-1]} (status {status})")
        return output

    def wait_for_boot(self, since: int = 0) -> str:
        """The release of the kernel that comes up, whose messages begin at that line."""
        deadline = time.monotonic() + BOOT
        while time.monotonic() < deadline:
            status, output = self.run("cat /proc/sys/kernel/random/boot_id && uname -r", 120)
            if not status and self.boot_id not in output:
                self.boot_id, release = output.split()
                self.boots.append((release, since))
                return release
            if self.qemu.poll() is not None:
                raise Lost("QEMU has ended")
            if any("Kernel panic" in line for line in self.log()[since:]):
                raise Lost("the kernel panicked")
            time.sleep(2)
        raise Lost(f"not up after {BOOT} seconds")

    def reboot(self) -> str:
        since = len(self.log())
        self.run("systemctl reboot")
        return self.wait_for_boot(since)

    def splats(self) -> list[str]:
        """What kernels complained of, each with its release."""
        lines = self.log()
        ends = [since for _, since in self.boots[1:]] + [len(lines)]
        return [f"{release}: {line}" for (release, since), end in zip(self.boots, ends)
                for line in lines[since:end] if guest.SPLAT_LINE.search(line)]


def install_boot_loader(folder: Path) -> None:
    """By the system's own programs, in a first boot that QEMU is the boot loader of."""
    machine = Machine(folder, "-no-reboot", "-kernel", str(folder / "vmlinuz"),
                      "-initrd", str(folder / "initrd.img"),
                      "-append", DIRECT_BOOT.format(INSTALL_GRUB))
    try:
        machine.qemu.wait(BOOT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        machine.end()
    if not any("GRUB is there" in line for line in machine.log()):
        sys.exit(f"trial.py: installing GRUB failed, see {machine.console}")


# What is tried.

class Trial:
    """The steps, each of which returns what is worth telling."""

    def __init__(self, name: str, machine: Machine, share: Path, url: str):
        self.name = name
        self.machine = machine
        self.url = url
        self.packages = sorted(share.glob("*.deb"))
        self.tests = share / "tests.tar"
        image = next(share.glob("linux-image-*.deb"))
        self.ours = image.name.removeprefix("linux-image-").split("_")[0]
        # As a reader would type it.
        self.grows_two = re.findall(r"^    (perl -e .*)$", README.read_text(), re.M)[0]
        self.stock = ""
        self.first = ""     # of GRUB's menu

    # What several steps do.

    def reboot_into(self, release: str) -> str:
        """For one boot, unless it is what comes up anyway."""
        entry = ("Advanced options for Debian GNU/Linux>"
                 f"Debian GNU/Linux, with Linux {release}")
        if release != self.first:
            self.machine.do(f"grub-reboot {shlex.quote(entry)}")
        running = self.machine.reboot()
        if running != release:
            raise Lost(f"{running} has come up")
        return release

    def look_at_menu(self) -> str:
        entry = self.machine.do("grep -om1 'vmlinuz-[^ ]*' /boot/grub/grub.cfg")
        self.first = entry.removeprefix("vmlinuz-")
        return self.first

    def fetch(self, path: Path) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.machine.do(f"rm -f {path.name} && /usr/lib/apt/apt-helper download-file "
                        f"{self.url}/{path.name} /root/{path.name} SHA256:{digest}")

    def expect(self, command: str, expected: str) -> str:
        said = self.machine.do(command)
        if not said.startswith(expected):
            raise Failed(said)
        return said

    # The steps.

    def boots_stock(self) -> str:
        self.stock = self.machine.wait_for_boot()
        return f"{self.stock} of Debian {self.machine.do('cat /etc/debian_version')}"

    def lacks_feature(self) -> str:
        return self.expect(self.grows_two, "no")

    def has_feature(self) -> str:
        return self.expect(self.grows_two, "yes")

    def fetches(self) -> str:
        for path in [*self.packages, self.tests]:
            self.fetch(path)
        megabytes = sum(path.stat().st_size for path in self.packages) >> 20
        return f"{len(self.packages)}, {megabytes} MB"

    def installs(self) -> str:
        names = " ".join(f"./{path.name}" for path in self.packages)
        self.machine.do(f"DEBIAN_FRONTEND=noninteractive apt install -y {names}", APT)
        self.machine.do(f"ls /boot/vmlinuz-{self.ours} /boot/initrd.img-{self.ours}")
        return f"GRUB's first is {'ours' if self.look_at_menu() == self.ours else 'stock'}"

    def boots_ours(self) -> str:
        return self.reboot_into(self.ours)

    def has_devices(self) -> str:
        self.expect("basename $(readlink -f /sys/block/vda/device/driver)", "virtio_blk")
        self.expect("basename $(readlink -f /sys/class/net/e*/device/driver)", "virtio_net")
        self.machine.do(
            "cd /var/tmp && dd if=/dev/urandom of=data bs=1M count=32 conv=fsync && "
            "before=$(md5sum <data) && echo 3 >/proc/sys/vm/drop_caches && "
            "test \"$before\" = \"$(md5sum <data)\"")
        self.fetch(self.tests)
        self.machine.do("mkdir -p tests && tar -xf tests.tar -C tests")
        disk = self.machine.do("findmnt -no SOURCE,FSTYPE /")
        address = self.machine.do("ip -4 -brief address show scope global").split()[2]
        return f"{' '.join(disk.split())}, {address} by DHCP"

    def has_started(self) -> str:
        status, state = self.machine.run("systemctl is-system-running --wait")
        if status:
            failed = self.machine.do("systemctl --failed --plain --no-legend")
            raise Failed(f"{state}: {' '.join(re.findall(r'^[^ ]+', failed, re.M))}")
        return state

    def has_manual(self) -> str:
        self.expect("man -w 2 mremap", "/usr/share/man/man2/mremap.2.gz")
        self.expect("man -w 2mremap mremap", "/usr/share/man/man2/mremap.2mremap.gz")
        self.machine.do("man 2mremap mremap | grep -q 'with mremap series'")
        return "ours beside the distribution's"

    def builds_module(self) -> str:
        self.machine.do("make -C /lib/modules/$(uname -r)/build M=/root/tests/module modules && "
                        "insmod tests/module/trial.ko && rmmod trial", SUITE)
        self.machine.do(f"dmesg | grep -F 'trial: loaded on {self.ours}'")
        return f"built by gcc {self.machine.do('gcc -dumpfullversion')}, loaded"

    def criu(self, moves: str, dumps: int) -> str:
        said = self.machine.do(f"cd tests && bash criu.sh ./moved {moves} {dumps}", SUITE)
        return said.splitlines()[-1]

    def run_suite(self, suite: str, *arguments: str) -> tuple[ktap.Verdict, list[str]]:
        """What it says, and which of its tests fail."""
        status, output = self.machine.run(
            shlex.join(["tests/suite.sh", suite, *arguments]), SUITE)
        verdict = ktap.judge(output.splitlines())
        failed = re.findall(r"^not ok \d+ (\S+)", output, re.M)
        if (status or not verdict.good) and not failed:
            failed = [f"status {status}, {verdict}"]
        return verdict, failed

    def selftests(self) -> str:
        total = ktap.Verdict()
        bad = []
        again = 0
        suites = self.machine.do("cd tests/suites && ls -d mremap_*").split()
        for suite in suites:
            print(f"{self.name}: {suite}", file=sys.stderr, flush=True)
            verdict, failed = self.run_suite(suite)
            total.passed += verdict.passed
            total.skipped += verdict.skipped
            if 0 < len(failed) == verdict.failed == len(verdict.problems):  # nothing is missing
                # Others on the system commit memory, too, while a test compares how much
                # that was. They will hardly do so twice.
                print(f"{self.name}: once more: {' '.join(failed)}", file=sys.stderr, flush=True)
                names = [word for name in failed for word in ("-r", name)]
                verdict, failed = self.run_suite(suite, *names)
                total.passed += verdict.passed
                again += verdict.passed
            total.failed += verdict.failed
            bad += [f"{suite}: {name}" for name in failed]
        if bad:
            raise Failed("; ".join(bad))
        return f"{len(suites)} suites, {total}" + (f", {again} at the second try" if again else "")

    def back_to_stock(self) -> str:
        self.reboot_into(self.stock)
        return self.lacks_feature()

    def back_to_ours(self) -> str:
        self.reboot_into(self.ours)
        return self.has_feature()

    def removes(self) -> str:
        self.reboot_into(self.stock)
        self.machine.do("DEBIAN_FRONTEND=noninteractive apt purge -y '~i~nmremap'", APT)
        left = self.machine.do(
            "ls -d /boot/*-mremap-* /lib/modules/*-mremap-* /usr/src/*-mremap-* "
            "/usr/share/man/man2/mremap.2mremap* /var/lib/initramfs-tools/*-mremap-* 2>/dev/null; "
            "grep -h mremap /boot/grub/grub.cfg || true")
        if left:
            raise Failed(f"left: {' '.join(left.split())}")
        self.look_at_menu()
        return f"from {self.stock}"

    def boots_without(self) -> str:
        return self.reboot_into(self.stock)

    def log_is_clean(self) -> str:
        splats = self.machine.splats()
        if splats:
            raise Failed("; ".join(splats[:3]))
        return f"of {len(self.machine.boots)} boots"


STEPS: list[tuple[str, Callable[[Trial], str]]] = [
    ("the stock kernel boots", Trial.boots_stock),
    ("  grows two mappings as one", Trial.lacks_feature),
    ("packages come by HTTP", Trial.fetches),
    ("apt installs them", Trial.installs),
    ("our kernel boots", Trial.boots_ours),
    ("  grows two mappings as one", Trial.has_feature),
    ("  disk and network of virtio", Trial.has_devices),
    ("  systemd has started all", Trial.has_started),
    ("  manual page", Trial.has_manual),
    ("  a module for our headers", Trial.builds_module),
    ("  CRIU dump and restore", lambda trial: trial.criu("moves", 0)),
    ("  CRIU pre-dumps, moves", lambda trial: trial.criu("moves", 2)),
    ("  CRIU pre-dumps, swaps", lambda trial: trial.criu("swaps", 3)),
    ("  selftests", Trial.selftests),
    ("back in the stock kernel", Trial.back_to_stock),
    ("back in ours", Trial.back_to_ours),
    ("apt removes the packages", Trial.removes),
    ("the stock kernel boots", Trial.boots_without),
    ("kernel logs are clean", Trial.log_is_clean),
]


def go_through(trial: Trial) -> list[str]:
    """The steps' results, in their order."""
    results: list[str] = []
    lost = False
    for title, step in STEPS:
        if lost and step is not Trial.log_is_clean:
            results.append(NOT_RUN)
            continue
        started = time.monotonic()
        print(f"{trial.name}: {title.strip()}", file=sys.stderr, flush=True)
        try:
            results.append(f"ok, {step(trial)}")
        except Failed as error:
            results.append(f"FAIL, {error}")
            lost = isinstance(error, Lost)
        print(f"{trial.name}: {title.strip()}: {results[-1]} ({time.monotonic() - started:.0f} s)",
              file=sys.stderr, flush=True)
    return results


class Share(http.server.SimpleHTTPRequestHandler):
    """Serves the files without a word."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def try_packages(folder: Path, share: Path) -> bool:
    """Whether all went well; the report is left in the folder."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Share, directory=str(share)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    machine = Machine(folder, drive=",snapshot=on")
    try:
        trial = Trial(folder.name, machine, share, f"http://{HOST}:{server.server_port}")
        results = go_through(trial)
        (folder / "report").write_text("".join(f"{result}\n" for result in results))
    finally:
        machine.end()
    return all(result.startswith("ok") for result in results)


def read_report(report: Path) -> list[str]:
    return report.read_text().splitlines() if report.exists() else [NOT_RUN] * len(STEPS)


def print_table(folders: list[Path]) -> None:
    reports = [read_report(folder / "report") for folder in folders]
    rows = [["", *(folder.name for folder in folders)],
            *([title, *results] for (title, _), *results in zip(STEPS, *reports))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
    results = [result for report in reports for result in report]
    passed = sum(result.startswith("ok") for result in results)
    print(f"{passed} passed, {len(results) - passed} failed")


def main(arguments: list[str]) -> int:
    paths = [Path(argument).resolve() for argument in arguments[1:]]
    if arguments[:1] == ["--table"] and paths:
        print_table(paths)
    elif arguments[:1] == ["--boot-loader"] and len(paths) == 1:
        install_boot_loader(paths[0])
    elif len(arguments) == 2 and not arguments[0].startswith("-"):
        return 0 if try_packages(Path(arguments[0]).resolve(), paths[0]) else 1
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
