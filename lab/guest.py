#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boot a kernel image in QEMU and run one command in it.

The command's output appears on stdout as it comes and its exit status becomes
ours, unless the kernel was found wanting: 124 the time ran out, 125 no status
came back (panic, QEMU failed), 126 there is a splat in the kernel log.

GUEST_ACCEL=kvm|tcg in the environment skips the probe for a working KVM.
"""
import argparse
import os
import re
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import initramfs

TIMEOUT, NO_STATUS, SPLAT = 124, 125, 126

LAB = Path(__file__).resolve().parent
STATE = LAB.parent / "build/guest"
BUSYBOX = "/bin/busybox"
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The tests of the crypto code are a good part of the boot and not our concern. On a
# busy machine the emulated timer is too late for the kernel's check of it.
KERNEL_ARGS = ("console=ttyS0 earlyprintk=ttyS0 ignore_loglevel panic=-1 reboot=t "
               "cryptomgr.notests no_timer_check")
PROBE_SECONDS = 8
SHUTDOWN_SECONDS = 30
TAIL_LINES = 40

# The timestamp is the kernel's own: what a program prints to the console does
# not count.
SPLAT_LINE = re.compile(
    r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? (?:"
    r"-+\[ cut here \]|WARNING: |WARN at |BUG: |(?:kernel )?BUG at |Oops\b|Kernel panic|UBSAN: "
    r"|general protection fault|INFO: task .* blocked for more than"
    r"|watchdog: (?:BUG|Watchdog detected hard)|rcu: INFO: .* detected .*stalls"
    r"|rcu: INFO: .* self-detected stall|INFO: trying to register non-static key"
    r"|DEBUG_LOCKS_WARN_ON|kmemleak: \d+ new suspected|list_(?:add|del) corruption"
    r"|.*: bad (?:pgd|p4d|pud|pmd) |\w+: Bad swap |unrecognized swap entry )")


class GuestError(Exception):
    """The guest could not be run; the text says why."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s --image BZIMAGE [OPTION]... -- COMMAND [ARG]...",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="bzImage to boot")
    parser.add_argument("--root", choices=("initramfs", "host"), default="initramfs",
                        help="static busybox (default), or the machine's own / below a tmpfs")
    parser.add_argument("--add", action="append", default=[], metavar="FILE[:GUESTPATH]",
                        help="put a file into the initramfs (default: /bin/<its name>)")
    parser.add_argument("--smp", type=int, help="processors (default 2, with --icount 1)")
    parser.add_argument("--mem", type=int, default=2048, help="memory in MB (default 2048)")
    parser.add_argument("--append", default="", help="more kernel arguments")
    parser.add_argument("--icount", action="store_true",
                        help="TCG: one instruction is one nanosecond; with --smp 1 deterministic")
    parser.add_argument("--gdb", action="store_true",
                        help="wait for gdb on port 1234 before the first instruction")
    parser.add_argument("--timeout", type=float, metavar="SEC",
                        help="for boot and command (default 600, with --interactive a week)")
    parser.add_argument("--pass-over", metavar="REGEX", default="$^",
                        help="lines of the log that are no splat, whatever they look like")
    parser.add_argument("--log", type=Path, help="kernel log (default build/guest/<time>-<pid>.log)")
    parser.add_argument("--interactive", action="store_true", help="command runs on this terminal")
    parser.add_argument("command", nargs="+", metavar="COMMAND [ARG...]", help="after --")
    options = parser.parse_args()
    if not options.image.is_file():
        parser.error(f"no image {options.image}")
    if options.root == "host" and options.add:
        parser.error("--add is for the initramfs: --root host sees every file")
    if options.interactive and not (sys.stdin and sys.stdin.isatty()):
        parser.error("--interactive needs a terminal")
    options.smp = options.smp or (1 if options.icount else 2)
    options.timeout = options.timeout or (7 * 86400 if options.interactive else 600)
    options.log = options.log or STATE / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    return options


# What the guest is given.

def resolve(command: str, root: str, added: dict[str, bytes]) -> str:
    """A path where the guest's busybox shell would run an applet of that name."""
    if root == "host":
        path = shutil.which(command, path=GUEST_PATH)
        if not path:
            raise GuestError(f"no such command: {command}")
        return path
    return f"/bin/{command}" if f"/bin/{command}" in added else command


def build_initrd(options: argparse.Namespace, end_mark: str) -> bytes:
    files = initramfs.added_files(options.add)
    tty = ""
    if options.interactive:
        size = os.get_terminal_size(sys.stdin.fileno())
        tty = f"rows {size.lines} cols {size.columns}"
    settings = {"root": options.root, "end_mark": end_mark, "tty": tty,
                "cwd": os.getcwd() if options.root == "host" else "/"}
    command = [resolve(options.command[0], options.root, files), *options.command[1:]]
    request = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    request += f"export PATH={GUEST_PATH} TERM={shlex.quote(os.environ.get('TERM', 'dumb'))}\n"
    request += f"set -- {shlex.join(command)}\n"
    return initramfs.archive({**files, "/guest/busybox": initramfs.read_file(BUSYBOX),
                              "/init": initramfs.read_file(LAB / "guest_init.sh"),
                              "/guest/request": os.fsencode(request)})


# The virtual machine.

def accelerator(options: argparse.Namespace) -> str:
    """KVM only if a guest comes up under it: a /dev/kvm may be there and crawl."""
    if options.icount:
        return "tcg"
    chosen = os.environ.get("GUEST_ACCEL")
    if chosen:
        if chosen not in ("kvm", "tcg"):
            raise GuestError(f"GUEST_ACCEL is kvm or tcg, not {chosen}")
        return chosen
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = STATE / "accel"  # holds for this boot of the machine
    if known.exists() and known.read_text().startswith(boot):
        return known.read_text().split()[1]
    probe = subprocess.run(
        [sys.executable, __file__, "--image", options.image, "--timeout", str(PROBE_SECONDS),
         "--log", STATE / "kvm-probe.log", "--", "true"],
        env={**os.environ, "GUEST_ACCEL": "kvm"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = "kvm" if probe.returncode == 0 else "tcg"
    if probe.returncode in (0, TIMEOUT):
        known.write_text(f"{boot} {found}\n")
    return found


def bare_machine(accel: str) -> list[str]:
    """The start of a command: a machine without any device."""
    if accel == "kvm":
        engine, cpu = "kvm", "host"
    else:
        # With a thread per CPU, QEMU 7.2 now and then runs code that the kernel
        # has just patched in its old form: an int3 Oops out of nowhere.
        # Fast string instructions would hide page-by-page work from --icount.
        engine, cpu = "tcg,thread=single", "max,erms=off,fsrm=off"
    return [
        # QEMU must not outlive us, however we end.
        "setpriv", "--pdeathsig", "KILL", "--",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-accel", engine, "-cpu", cpu]


def qemu_command(options: argparse.Namespace, accel: str, initrd: int,
                 output: int, status: int) -> list[str]:
    command = [
        *bare_machine(accel), "-no-reboot", "-smp", str(options.smp), "-m", str(options.mem),
        "-kernel", str(options.image), "-initrd", f"/proc/self/fd/{initrd}",
        "-append", f"{KERNEL_ARGS} {options.append}",
        "-chardev", f"file,id=log,path={str(options.log).replace(',', ',,')}",
        "-serial", "chardev:log",
        # The first virtio device, so that its ports are /dev/vport0p*.
        "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
        "-chardev", f"socket,id=status,fd={status}",
        "-device", "virtserialport,nr=2,chardev=status"]
    if options.icount:
        command += ["-icount", "shift=0,sleep=off"]
    if options.gdb:
        command += ["-gdb", "tcp:127.0.0.1:1234", "-S"]
    if options.root == "host":
        command += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
                    "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
    if options.interactive:
        command += ["-chardev", "stdio,id=terminal,signal=off",
                    "-device", "virtconsole,nr=0,chardev=terminal"]
    else:
        command += ["-chardev", f"socket,id=output,fd={output}",
                    "-device", "virtserialport,nr=1,chardev=output"]
    return command


class Output:
    """Passes the guest's output on, up to the mark that ends it."""

    def __init__(self, end_mark: str, complete: bool):
        self.mark = b"\0" + end_mark.encode()
        self.held = b""
        self.complete = complete

    def feed(self, data: bytes) -> None:
        if self.complete:
            return
        data = self.held + data
        self.held = b""
        start = data.find(self.mark)
        if start >= 0:
            self.complete = True
        else:
            # The mark may have come in part: all from its first byte on waits.
            start = data.find(b"\0", max(0, len(data) - len(self.mark)))
            if start >= 0:
                self.held = data[start:]
        sys.stdout.buffer.write(data[:start] if start >= 0 else data)
        sys.stdout.buffer.flush()


def follow(output_end: socket.socket, status_end: socket.socket, output: Output,
           deadline: float) -> int | None:
    """Relay the output until it and the status are complete, or QEMU has gone."""
    report = b""
    selector = selectors.DefaultSelector()
    selector.register(output_end, selectors.EVENT_READ)
    selector.register(status_end, selectors.EVENT_READ)
    while selector.get_map() and not (output.complete and report.endswith(b"\n")):
        ready = selector.select(max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        for key, _ in ready:
            end = output_end if key.fileobj is output_end else status_end
            data = end.recv(1 << 16)
            if not data:
                selector.unregister(end)
            elif end is output_end:
                output.feed(data)
            else:
                report += data
    if not report.endswith(b"\n"):
        return None
    status_end.send(b"\n")
    return int(report)


def boot(options: argparse.Namespace) -> int | None:
    """Run the guest to its end and return the command's status, if one came."""
    end_mark = secrets.token_hex(16)
    accel = accelerator(options)
    initrd = os.memfd_create("initrd")
    with open(initrd, "wb", closefd=False) as file:
        file.write(build_initrd(options, end_mark))
    output_end, qemu_output = socket.socketpair()
    status_end, qemu_status = socket.socketpair()
    deadline = time.monotonic() + options.timeout
    command = qemu_command(options, accel, initrd, qemu_output.fileno(), qemu_status.fileno())
    qemu = subprocess.Popen(
        command, pass_fds=(initrd, qemu_output.fileno(), qemu_status.fileno()),
        stdin=None if options.interactive else subprocess.DEVNULL)
    try:
        qemu_output.close()
        qemu_status.close()
        status = follow(output_end, status_end, Output(end_mark, options.interactive), deadline)
        qemu.wait(SHUTDOWN_SECONDS)
        return status
    finally:
        qemu.kill()
        qemu.wait()


# The verdict.

def log_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def complain(message: str, log: Path) -> None:
    print(f"guest: {message}; the end of {log}:", *log_lines(log)[-TAIL_LINES:],
          sep="\n", file=sys.stderr)


def judge(status: int | None, log: Path, pass_over: str) -> int:
    splats = [line for line in log_lines(log)
              if SPLAT_LINE.search(line) and not re.search(pass_over, line)]
    for line in splats[:10]:
        print(f"guest: splat: {line}", file=sys.stderr)
    if status is None:
        complain("no exit status came back", log)
        return NO_STATUS
    if splats:
        complain(f"{len(splats)} splat lines in the kernel log", log)
        return SPLAT
    if status:
        print(f"guest: the command's status is {status}; kernel log: {log}", file=sys.stderr)
    return status


def run(options: argparse.Namespace) -> int:
    options.log.parent.mkdir(parents=True, exist_ok=True)
    options.log.write_bytes(b"")  # an older log there is not this guest's
    STATE.mkdir(parents=True, exist_ok=True)
    try:
        return judge(boot(options), options.log, options.pass_over)
    except (TimeoutError, subprocess.TimeoutExpired):
        judge(0, options.log, options.pass_over)
        complain(f"not done after {options.timeout:g} seconds", options.log)
        return TIMEOUT


def main() -> int:
    options = parse_arguments()
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # else descriptor 0 would be given to the initrd
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(NO_STATUS))
    terminal = termios.tcgetattr(sys.stdin) if options.interactive else None
    try:
        return run(options)
    except (GuestError, initramfs.InitramfsError, OSError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return NO_STATUS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        if terminal:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, terminal)


if __name__ == "__main__":
    sys.exit(main())
