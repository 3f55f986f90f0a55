#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Compile mm/mremap*.c and what we patch in many configurations.

Each row of the table is a configuration of one architecture. It is configured
from lab/config/matrix.config, then `make prepare` and the objects of our .c files
are made with W=1, out of tree in build/matrix/; nothing is linked. mm/mremap.o
and mm/mremap_call.o are made a second time without their KUnit tests, which call
what else might be unused.

No file of ours may give a warning. Where one of upstream's does, patched or not,
the unpatched base is compiled, too, and only what is new counts.
"""

import argparse
import concurrent.futures
import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "build/matrix"
FRAGMENT = ROOT / "lab/config/matrix.config"
TREES = {"base": ROOT / "build/base", "patched": ROOT / "build/tree"}

CROSS = {
    "arm": "arm-linux-gnueabihf-",
    "arm64": "aarch64-linux-gnu-",
    "powerpc": "powerpc64le-linux-gnu-",
    "riscv": "riscv64-linux-gnu-",
    "s390": "s390x-linux-gnu-",
}
KUNIT = "MREMAP_KUNIT_TEST"
TESTED = ["mm/mremap.o", "mm/mremap_call.o"]
NEIGHBOURS = ["mm/memory.o", "mm/nommu.o"]  # use prototypes that we change

MESSAGE = re.compile(r"(?P<path>[^\s:]+):\d+:(?:\d+:)? "
                     r"(?:fatal )?(?:warning|error): (?P<text>.*)")


@dataclasses.dataclass
class Row:
    """A configuration. Options are without CONFIG_, "X" is on, "!X" is off."""
    name: str
    arch: str
    options: str = ""
    undefine: str = ""  # options that Kconfig gives no choice about
    target: str = ""  # a configuration of the kernel's own to start from
    clang: bool = False
    all_of_mm: bool = False  # every object of mm/, not ours alone
    run: str = ""  # a command whose last line tells of passed and failed tests
    quick: bool = False

    @property
    def title(self) -> str:
        return f"{self.arch}, {self.name}"

    @property
    def folder(self) -> pathlib.Path:
        return OUT / re.sub(r"\W+", "-", f"{self.arch}-{self.name}")

    @property
    def compiler(self) -> str:
        return "clang" if self.clang else CROSS.get(self.arch, "") + "gcc"


ALL_OFF = ("!TRANSPARENT_HUGEPAGE !HUGETLBFS !USERFAULTFD !MEM_SOFT_DIRTY !KSM "
           "!NUMA !TEST_HMM !DEVICE_PRIVATE !MIGRATION !COMPACTION !SWAP !SHMEM !MEMCG "
           "!PROC_FS !AIO !FTRACE !ANON_VMA_NAME !DEBUG_VM !PAGE_TABLE_CHECK "
           "!PROVE_LOCKING !XEN !PARAVIRT !XEN_PV !HYPERVISOR_GUEST "
           "!CHECKPOINT_RESTORE")
MOVE = "HAVE_MOVE_PMD HAVE_MOVE_PUD"

ROWS = [
    Row("everything", "x86_64"),
    Row("no THP", "x86_64", "!TRANSPARENT_HUGEPAGE", quick=True),
    Row("no hugetlb", "x86_64", "!HUGETLBFS"),
    Row("no THP, no hugetlb", "x86_64", "!TRANSPARENT_HUGEPAGE !HUGETLBFS"),
    Row("no userfaultfd", "x86_64", "!USERFAULTFD"),
    Row("no soft-dirty", "x86_64", "!MEM_SOFT_DIRTY"),
    Row("no KSM", "x86_64", "!KSM"),
    Row("no NUMA", "x86_64", "!NUMA"),
    Row("no MMU notifiers", "x86_64", "!TEST_HMM"),
    Row("no swap, no migration", "x86_64",
        "!SWAP !MIGRATION !COMPACTION !NUMA !DEVICE_PRIVATE !TEST_HMM "
        "!TRANSPARENT_HUGEPAGE"),
    Row("HAVE_MOVE_PMD undefined", "x86_64", undefine="HAVE_MOVE_PMD"),
    Row("HAVE_MOVE_PUD undefined", "x86_64", undefine="HAVE_MOVE_PUD"),
    Row("both undefined", "x86_64", undefine=MOVE),
    Row("no paravirt, no Xen", "x86_64", "!XEN !PARAVIRT !XEN_PV !HYPERVISOR_GUEST"),
    Row("4 levels only", "x86_64", "!X86_5LEVEL"),
    Row("no SMP", "x86_64", "!SMP !NUMA !XEN !XEN_PV"),
    Row("all of it off", "x86_64", ALL_OFF, quick=True),
    Row("all of it off, no SMP", "x86_64", ALL_OFF + " !SMP", undefine=MOVE),
    Row("tinyconfig", "x86_64", "64BIT", target="tinyconfig"),
    Row("everything, all of mm/", "x86_64", all_of_mm=True),
    Row("everything, clang", "x86_64", clang=True),
    Row("all of it off, clang", "x86_64", ALL_OFF, clang=True),
    Row("2 levels", "i386", "!64BIT HIGHMEM4G", quick=True),
    Row("3 levels (PAE)", "i386", "!64BIT HIGHMEM64G X86_PAE"),
    Row("all of it off", "i386", ALL_OFF + " !64BIT"),
    Row("tinyconfig", "i386", "!64BIT", target="tinyconfig"),
    Row("64 bits", "um"),
    Row("all of it off", "um", ALL_OFF),
    Row("KUnit tests, run", "um", run="lab/kunit.sh um"),
    Row("4 levels", "arm64", "ARM64_VA_BITS_48 ARM64_PA_BITS_48"),
    Row("5 levels", "arm64", "ARM64_VA_BITS_52 ARM64_PA_BITS_52"),
    Row("3 levels", "arm64", "ARM64_VA_BITS_39"),
    Row("3 levels, 64K pages", "arm64", "ARM64_64K_PAGES ARM64_VA_BITS_48"),
    Row("2 levels, 16K pages", "arm64", "ARM64_16K_PAGES ARM64_VA_BITS_36"),
    Row("all of it off", "arm64", ALL_OFF),
    Row("everything", "riscv", "ARCH_RV64I RISCV_SBI"),
    Row("all of it off", "riscv", "ARCH_RV64I " + ALL_OFF),
    Row("no MMU", "riscv", "ARCH_RV64I NONPORTABLE !MMU"),
    Row("64K pages, hash and radix", "powerpc",
        "PPC64 PPC_BOOK3S_64 CPU_LITTLE_ENDIAN PPC_64K_PAGES PPC_RADIX_MMU "
        "PPC_64S_HASH_MMU PPC_PSERIES"),
    Row("4K pages, hash and radix", "powerpc",
        "PPC64 PPC_BOOK3S_64 CPU_LITTLE_ENDIAN PPC_4K_PAGES PPC_RADIX_MMU "
        "PPC_64S_HASH_MMU PPC_PSERIES"),
    Row("all of it off, radix alone", "powerpc",
        "PPC64 PPC_BOOK3S_64 CPU_LITTLE_ENDIAN POWER9_CPU PPC_RADIX_MMU PPC_PSERIES "
        "!PPC_64S_HASH_MMU " + ALL_OFF),
    Row("everything", "s390"),
    Row("all of it off", "s390", ALL_OFF),
    Row("2 levels", "arm", "!64BIT ARCH_MULTI_V7 ARCH_VIRT"),
    Row("3 levels (LPAE)", "arm", "!64BIT ARCH_MULTI_V7 ARCH_VIRT ARM_LPAE"),
]


# configuration, objects, warnings that the base gives as well, new ones, result
LINE = "{:<34} {:>7} {:>10} {:>4}  {}"


class BuildError(Exception):
    """What make said when there is nothing to compare."""


class Build:
    """One tree, base or patched, in one configuration."""

    def __init__(self, row: Row, tree: str):
        self.row = row
        self.tree = tree
        self.out = row.folder / tree
        self.log = row.folder / f"{tree}.log"
        self.config: set[str] = set()

    def make(self, *goals: str) -> tuple[bool, str]:
        row = self.row
        command = ["make", "-C", str(TREES[self.tree]), f"O={self.out}", f"ARCH={row.arch}",
                   "-k", f"CROSS_COMPILE={CROSS.get(row.arch, '')}",
                   f"CC=ccache {row.compiler}", f"HOSTCC=ccache {'clang' if row.clang else 'gcc'}"]
        if row.undefine:
            command.append(f"KCFLAGS=-include {self.out}/undefine.h")
        run = subprocess.run(command + list(goals), stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace", env=environment(), check=False)
        with open(self.log, "a") as log:
            log.write(run.stdout)
        return run.returncode == 0, run.stdout

    def must_make(self, *goals: str) -> None:
        good, output = self.make(*goals)
        if not good:
            told = [line for line in output.splitlines()
                    if re.search(r"error|\*\*\*", line, re.I)]
            raise BuildError(told[0] if told else f"make {' '.join(goals)} failed")

    def configure(self) -> None:
        row = self.row
        self.out.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        own = [f"# CONFIG_{option[1:]} is not set" if option[0] == "!" else f"CONFIG_{option}=y"
               for option in row.options.split()]
        undefined = "".join(f"#undef CONFIG_{option}\n" for option in row.undefine.split())
        (self.out / "undefine.h").write_text(undefined)
        wanted = self.out / "wanted.config"
        wanted.write_text("\n".join([] if row.target else [FRAGMENT.read_text()])
                          + "\n".join(own) + "\n")
        self.must_make(f"KCONFIG_ALLCONFIG={wanted}", row.target or "allnoconfig")
        self.read_config()

    def read_config(self) -> None:
        self.config = set(re.findall(r"^CONFIG_(\w+)=", (self.out / ".config").read_text(),
                                     re.M))

    def drop_option(self, option: str) -> None:
        config = self.out / ".config"
        config.write_text(config.read_text().replace(f"CONFIG_{option}=y",
                                                     f"# CONFIG_{option} is not set"))
        self.must_make("olddefconfig")
        self.read_config()

    def has(self, obj: str) -> bool:
        """Is the object part of a kernel of this configuration?"""
        folder, name = os.path.split(obj)
        makefile = (TREES[self.tree] / folder / "Makefile").read_text().replace("\\\n", " ")
        switch = re.search(rf"^\s*\w+-(y|\$\(CONFIG_(\w+)\))\s*[:+]?=.*\b{re.escape(name)}",
                           makefile, re.M)
        if not switch:
            raise BuildError(f"{folder}/Makefile does not know {name}")
        if name == "nommu.o":
            return "MMU" not in self.config
        return switch[1] == "y" or switch[2] in self.config

    def compile(self, objects: list[str]) -> tuple[set[str], int]:
        """The messages, without the lines that they are about; and how many objects."""
        made = [obj for obj in objects if self.has(obj)]
        self.must_make("prepare")
        messages = self.compile_now(made)
        count = len(made)
        if self.row.all_of_mm:
            messages |= self.compile_folder("mm")
            count = len(list((self.out / "mm").rglob("*.o")))
        if KUNIT in self.config:
            self.drop_option(KUNIT)
            messages |= self.compile_now(TESTED)
            count += len(TESTED)
        return messages, count

    def compile_folder(self, folder: str) -> set[str]:
        for obj in (self.out / folder).rglob("*.o"):
            obj.unlink()
        return self.messages_of(f"{folder}/")

    def compile_now(self, objects: list[str]) -> set[str]:
        for obj in objects:  # what is up to date would be silent
            (self.out / obj).unlink(missing_ok=True)
        messages = self.messages_of(*objects)
        missing = [obj for obj in objects if not (self.out / obj).exists()]
        if missing and not messages:
            raise BuildError(f"no {' '.join(missing)}, see {self.log.relative_to(ROOT)}")
        return messages

    def messages_of(self, *goals: str) -> set[str]:
        good, output = self.make("W=1", *goals)
        messages = {f"{relative(found['path'])}: {found['text']}"
                    for found in MESSAGE.finditer(output)}
        if not good and not messages:
            raise BuildError(f"make failed, see {self.log.relative_to(ROOT)}")
        return messages


def environment() -> dict[str, str]:
    """ccache is to serve one tree, and one clone, from another."""
    env = {key: value for key, value in os.environ.items()
           if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    env.update(CCACHE_BASEDIR=str(ROOT), CCACHE_NOHASHDIR="1", LC_ALL="C",
               KBUILD_BUILD_TIMESTAMP="Thu Jan  1 00:00:00 UTC 2026",
               KBUILD_BUILD_USER="lab", KBUILD_BUILD_HOST="matrix", LOCALVERSION="")
    return env


def relative(path: str) -> str:
    """The path in the tree, of which ccache makes a relative one."""
    trees = "|".join(tree.name for tree in TREES.values())
    return re.sub(rf"^(.*/)?build/({trees})/|^(\.\.?/)+(({trees})/)?", "", path)


def our_files() -> tuple[set[str], list[str]]:
    """Files that are ours as a whole; the objects of all that we change."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE,
                            text=True, check=True).stdout.split()
    whole = {path for path in listed if not path.endswith(".patch")}
    sources = {path.removesuffix(".patch") for path in listed}
    objects = sorted(path.removesuffix(".c") + ".o" for path in sources
                     if re.fullmatch(r"(mm|fs|kernel)/\w+\.c", path))
    return whole, objects + NEIGHBOURS


@dataclasses.dataclass
class Outcome:
    row: Row
    result: str  # ok, FAILED or skipped
    objects: int = 0
    old: int = 0
    new: tuple[str, ...] = ()
    why: str = ""

    def line(self) -> str:
        counts = [self.objects, self.old, len(self.new)]
        shown = [str(count) if self.objects else "-" for count in counts]
        detail = f": {self.why}" if self.why else ""
        return LINE.format(self.row.title, *shown, self.result + detail)


def check_options(build: Build) -> str:
    """A row that does not have what it is named after would pass for nothing."""
    for option in build.row.options.split():
        if option[0] == "!" and option[1:] in build.config:
            return f"Kconfig keeps {option[1:]}"
        if option[0] != "!" and option not in build.config:
            return f"Kconfig drops {option}"
    if build.row.name.startswith("everything") and build.row.arch == "x86_64":
        lost = [option for option in re.findall(r"^CONFIG_(\w+)=y", FRAGMENT.read_text(), re.M)
                if option not in build.config]
        return f"Kconfig drops {' '.join(lost)}" if lost else ""
    if build.row.name == "no MMU notifiers" and "MMU_NOTIFIER" in build.config:
        return "Kconfig keeps MMU_NOTIFIER"
    return ""


def run_command(row: Row) -> Outcome:
    run = subprocess.run(row.run.split(), cwd=ROOT, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, text=True, env=environment(), check=False)
    lines = run.stdout.splitlines() or ["no output"]
    return Outcome(row, "FAILED" if run.returncode else "ok", why=lines[-1])


def run_row(row: Row, whole: set[str], objects: list[str]) -> Outcome:
    if row.run:
        return run_command(row)
    if not shutil.which(row.compiler):
        return Outcome(row, "skipped", why=f"no {row.compiler}")
    build = Build(row, "patched")
    try:
        build.configure()
        why = check_options(build)
        if why:
            return Outcome(row, "FAILED", why=why)
        messages, count = build.compile(objects)
        ours = {message for message in messages if message.split(":")[0] in whole}
        old: set[str] = set()
        if messages - ours:
            base = Build(row, "base")
            base.configure()
            old, _ = base.compile(objects)
        new = ours | (messages - old)
    except BuildError as error:
        return Outcome(row, "FAILED", why=str(error))
    return Outcome(row, "FAILED" if new else "ok", count, len(messages - new),
                   tuple(sorted(new)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a few rows that differ most")
    parser.add_argument("--only", metavar="WORD", help="rows with WORD in architecture or name")
    parser.add_argument("--list", action="store_true", help="name the rows, compile nothing")
    args = parser.parse_args()
    rows = [row for row in ROWS if (row.quick or not args.quick)
            and (args.only or "") in row.title]
    if args.list:
        print("\n".join(row.title for row in rows))
        return 0

    for script in ("deps.sh base build cross", "base.sh", "tree.py"):
        if subprocess.run(f"lab/{script}", shell=True, cwd=ROOT, check=False,
                          stdout=sys.stderr).returncode:
            return 1
    OUT.mkdir(parents=True, exist_ok=True)
    lock = open(OUT / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    whole, objects = our_files()
    print(LINE.format("configuration", "objects", "upstream's", "new", "result"), flush=True)
    counts = dict.fromkeys(("ok", "FAILED", "skipped"), 0)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(lambda row: run_row(row, whole, objects), rows):
            print(outcome.line(), *(f"  {message}" for message in outcome.new), sep="\n",
                  flush=True)
            counts[outcome.result] += 1
    print(f"{counts['ok']} passed, {counts['FAILED']} failed, {counts['skipped']} skipped")
    return 1 if counts["FAILED"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
