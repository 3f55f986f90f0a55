#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shows where the instructions of a case go: a tree of calls and a list of functions.

usage: profile.py [--image BZIMAGE] [--least PERCENT] CASE
       profile.py --work [CASE...]
       profile.py --locked [--image BZIMAGE] CASE

CASE is what `bench --only` takes, such as /move/256M; of several calls the one
with the fewest instructions is shown. Without --image the patched kernel is built.
With --work there is one line for each case and kernel, base and patched: what an
instruction count alone hides. With --locked there is a line for each place, of both
kernels, where instructions lock the bus: how many, the function, and what called it.
"""
import argparse
import bisect
import io
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

LAB = Path(__file__).resolve().parent.parent
OUT = LAB.parent / "build/bench/profile"
sys.path.insert(0, str(LAB))
import guest  # noqa: E402  (the guest's runner, which is not installed anywhere)

PLAIN_COMMAND = guest.qemu_command

# Nothing says where a function ends: the next symbol begins there.
KERNEL = 0xffff800000000000


class Symbols:
    """The kernel's functions by address."""

    def __init__(self, lines: list[str]):
        found: dict[int, str] = {}
        for line in lines:
            address, kind, name = line.split()[:3]
            if kind in "tTwW":
                found.setdefault(int(address, 16), name)
        self.addresses = sorted(found)
        self.names = [found[address] for address in self.addresses]

    def name(self, address: int) -> str:
        if address < KERNEL:
            return "(user)"
        at = bisect.bisect_right(self.addresses, address) - 1
        return self.names[at] if at >= 0 else hex(address)


@dataclass
class Frame:
    """A function as called from one place in the tree."""
    own: int = 0
    total: int = 0
    callees: dict[str, "Frame"] = field(default_factory=dict)

    def add(self, path: list[str], times: int) -> None:
        frame = self
        frame.total += times
        for name in path:
            frame = frame.callees.setdefault(name, Frame())
            frame.total += times
        frame.own += times


@dataclass
class Stretch:
    """One call of the case."""
    loads = stores = 0
    nodes: dict[int, tuple[int, int]] = field(default_factory=dict)
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    locked: list[tuple[int, int, int]] = field(default_factory=list)  # of these counts

    def total(self) -> int:
        return sum(times for _, _, times in self.counts)

    def total_locked(self) -> int:
        return sum(times for _, _, times in self.locked)

    def calls(self, symbols: Symbols, names: set[str]) -> int:
        """How often one of these functions was entered, at its first instruction."""
        entries = {address for address, name in zip(symbols.addresses, symbols.names)
                   if name in names}
        return sum(times for _, address, times in self.counts if address in entries)

    def paths(self, symbols: Symbols, locked: bool = False) -> Counter[tuple[str, ...]]:
        """Instructions by the functions that led to them; a jump is a call, too."""
        names: dict[int, tuple[str, ...]] = {0: ()}
        for node, (parent, address) in self.nodes.items():
            names[node] = (*names[parent], symbols.name(address))
        result: Counter[tuple[str, ...]] = Counter()
        for node, address, times in self.locked if locked else self.counts:
            name = symbols.name(address)
            path = names[node]
            result[path if path and path[-1] == name else (*path, name)] += times
        return result


def read_stretches(path: Path) -> list[Stretch]:
    stretches: list[Stretch] = []
    for line in path.read_text().splitlines():
        kind, *fields = line.split()
        if kind == "stretch":
            stretches.append(Stretch())
        elif kind == "node":
            stretches[-1].nodes[int(fields[0])] = int(fields[1]), int(fields[2], 16)
        elif kind == "memory":
            last = stretches[-1]
            last.loads, last.stores = map(int, fields)
        elif kind == "count":
            counted = int(fields[0]), int(fields[1], 16), int(fields[2])
            stretches[-1].counts.append(counted)
            if fields[3] != "0":
                stretches[-1].locked.append(counted)
    return stretches


def print_tree(frame: Frame, whole: int, least: float, depth: int = 0) -> None:
    for name, callee in sorted(frame.callees.items(), key=lambda item: -item[1].total):
        if callee.total * 100 < whole * least:
            continue
        print(f"{callee.total:>12,} {callee.own:>12,} {callee.total / whole:>7.1%}  "
              f"{'  ' * depth}{name}")
        print_tree(callee, whole, least, depth + 1)


def print_profile(label: str, stretch: Stretch, symbols: Symbols, least: float) -> None:
    paths = stretch.paths(symbols)
    whole = stretch.total()
    tree = Frame()
    own: Counter[str] = Counter()
    for path, times in paths.items():
        tree.add(list(path), times)
        own[path[-1]] += times
    print(f"\n{label}: {whole:,} instructions\n\n       total          own")
    print_tree(tree, whole, least)
    print("\n         own")
    for name, times in own.most_common():
        if times * 100 >= whole * least:
            print(f"{times:>12,} {times / whole:>7.1%}  {name}")
    with open(OUT / "folded.txt", "a") as folded:  # as flame graphs are made of
        for path, times in paths.items():
            folded.write(f"{';'.join((label, *path))} {times}\n")


ALLOCATORS = {"kmem_cache_alloc_noprof", "kmem_cache_alloc_bulk_noprof",
              "kmem_cache_alloc_node_noprof", "__kmalloc_noprof", "__kmalloc_cache_noprof",
              "__alloc_pages_noprof"}
WORK_CASES = ["/move-page/", "/move/4K/", "/move/256M/", "/move-pages/64M/", "/grow/64M/",
              "/grow-in-place-page/", "/shrink-page/"]


def print_work(cases: list[str]) -> None:
    print(f"{'case':<24}{'kernel':>8}{'instructions':>14}{'loads':>10}{'stores':>10}"
          f"{'locked':>8}{'allocations':>13}")
    for kernel in ("base", "patched"):
        image = image_of(kernel)
        for case in cases:
            for label, (stretch, symbols) in measure(image, case).items():
                print(f"{label:<24}{kernel:>8}{stretch.total():>14,}{stretch.loads:>10,}"
                      f"{stretch.stores:>10,}{stretch.total_locked():>8,}"
                      f"{stretch.calls(symbols, ALLOCATORS):>13,}", flush=True)


def print_locked(kernel: str, label: str, stretch: Stretch, symbols: Symbols) -> None:
    print(f"\n{kernel}, {label}: {stretch.total_locked()} locked instructions", flush=True)
    places: Counter[tuple[str, ...]] = Counter()
    for path, times in stretch.paths(symbols, locked=True).items():
        places[path[::-1][:3]] += times
    for place, times in places.most_common():
        print(f"{times:>8,}  {' < '.join(place)}")


def build() -> None:
    sources = [LAB / "bench" / name for name in ("bench.c", "nop.c", "profile.c")]
    subprocess.run([LAB / "programs.sh", OUT, *sources], check=True)


def run_guest(image: str, case: str) -> str:
    """What the guest prints: its symbols and the cases, as they were called."""
    def with_plugin(options: argparse.Namespace, accel: str, initrd: int, output: int,
                    status: int) -> list[str]:
        return PLAIN_COMMAND(options, accel, initrd, output, status) + [
            "-plugin", f"{OUT}/profile.so,out={OUT}/counts"]

    guest.qemu_command = with_plugin
    sys.argv = ["guest.py", "--image", image, "--icount", "--mem", "2048", "--timeout", "3000",
                # Of lock prefixes none is taken away for want of a second processor.
                "--append", "nokaslr norandmaps noreplace-smp", "--log", str(OUT / "kernel.log"),
                "--add", str(OUT / "bench"), "--add", str(OUT / "nop"),
                "--", "sh", "-c", f"cat /proc/kallsyms; exec /bin/bench --mark --only '{case}'"]
    raw = io.BytesIO()
    printed = io.TextIOWrapper(raw, write_through=True)
    with redirect_stdout(printed):
        status = guest.main()
    text = raw.getvalue().decode()
    if status:
        sys.exit(f"profile.py: the guest ended with {status}: {text[-300:]}")
    return text


def image_of(kernel: str) -> str:
    return subprocess.run([LAB / "image.sh", kernel, "prod"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def measure(image: str, case: str) -> dict[str, tuple[Stretch, Symbols]]:
    """The cheapest call of each case, by its label."""
    lines, labels = [], []
    for line in run_guest(image, case).splitlines():
        if line.startswith("marked "):
            labels.append(line.split(" ", 1)[1].rsplit(" ", 1)[0])
        elif line[:1] in "0123456789abcdef" and len(line.split()) >= 3:
            lines.append(line)
    symbols = Symbols(lines)
    calls: dict[str, list[Stretch]] = defaultdict(list)
    for label, stretch in zip(labels, read_stretches(OUT / "counts"), strict=True):
        calls[label].append(stretch)
    return {label: (min(stretches, key=Stretch.total), symbols)
            for label, stretches in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image")
    parser.add_argument("--least", type=float, default=1.0, help="per cent, to be shown")
    parser.add_argument("--work", action="store_true")
    parser.add_argument("--locked", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    if not options.work and len(options.cases) != 1:
        parser.error("one case, or --work")
    build()
    print("booting, with a look at every instruction: a minute or two", file=sys.stderr)
    if options.work:
        print_work(options.cases or WORK_CASES)
        return
    if options.locked:
        for kernel in [""] if options.image else ["base", "patched"]:
            found = measure(options.image or image_of(kernel), options.cases[0])
            for label, (stretch, symbols) in found.items():
                print_locked(kernel or options.image, label, stretch, symbols)
        return
    (OUT / "folded.txt").unlink(missing_ok=True)
    found = measure(options.image or image_of("patched"), options.cases[0])
    for label, (stretch, symbols) in found.items():
        print_profile(label, stretch, symbols, options.least)


if __name__ == "__main__":
    main()
