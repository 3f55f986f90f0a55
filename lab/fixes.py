#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Applies the fixes of fixes/BASE/ to the unpatched kernel, and tests each.

usage: lab/fixes.py [--only-apply | --quick | --debug] [--jobs N]
       --only-apply  compiles and boots nothing
       --quick       compiles nothing for each fix alone
       --debug       also the tests that need a debug kernel, for the faults it injects
       --jobs        guests at a time, as many as processors unless told
       BASE in the environment is one of bases/

fixes/BASE/ has mails for stock files, in the order of their names. Below the "---", where
git am does not look, a line for each test tells how the bug is seen:

    Test: SUITE TEST [alone] [debug]
    Test: tools/testing/vma
    Test: none, REASON

SUITE is one of our selftests, TEST what its option -r takes. It fails on the base, where
the bug is expected to be mended (MREMAP_EXPECT=fixed), and passes with the fix. What
hangs, or brings the kernel down, has a guest of its own: "alone". It has failed there if
the kernel complains, too. tools/testing/vma is upstream's own test of mm/vma.c.

Each mail is applied by git am to the base alone, and what it touches is compiled with
W=1; tools/testing/vma is compiled and run if it belongs to that, together with fixes of
nothing but these tests; checkpatch.pl looks at the mail. All of them, applied in sequence
the same way, make build/fixed/, of which one kernel is built. The last lines are a table of
what the tests say on the base and on that kernel.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import checkpatch
import tree

ROOT = tree.ROOT
DEFAULT = "6.12"
BASE = os.environ.get("BASE") or DEFAULT
WORK = ROOT / "build" / ("" if BASE == DEFAULT else BASE)
STOCK = WORK / "base"
FIXED = WORK / "fixed"
OUT = WORK / "fixes"
SUITES = ROOT / "build/selftests"
VMA_TESTS = "tools/testing/vma"
SECONDS = 120  # for a guest with one test, whether it ends or hangs
SECONDS_OF_ALL = 900


class FixesError(Exception):
    """What stops the run."""


# What shows that a kernel has the bug.
BROKEN = ("fails", "hangs", "crashes", "the kernel complains")


@dataclass
class Test:
    """How a bug is seen, and what came of it on the base and with the fixes."""
    suite: str
    name: str
    alone: bool
    debug: bool
    verdicts: dict[str, str] = field(default_factory=dict)

    def proven(self) -> bool:
        return self.verdicts.get("fixed") == "passes" and self.verdicts.get("base") in BROKEN


@dataclass
class Fix:
    """A mail of fixes/BASE/."""
    mail: pathlib.Path
    tests: list[Test]
    why_no_test: str
    files: dict[str, bytes] = field(default_factory=dict)  # with this fix alone
    tested: dict[str, bytes] = field(default_factory=dict)  # and those of tests alone
    complaint: str = ""

    @property
    def name(self) -> str:
        return self.mail.stem

    def verdict(self) -> str:
        if self.complaint:
            return self.complaint
        if not self.tests:
            return f"no test, {self.why_no_test}"
        tested = [test for test in self.tests if test.verdicts]
        if not tested:
            return "needs --debug" if all(test.debug for test in self.tests) else "applies"
        return "ok" if all(test.proven() for test in tested) else "NOT PROVEN"

    def good(self) -> bool:
        return not self.complaint and self.verdict() != "NOT PROVEN"


def clean_environment() -> dict[str, str]:
    """Without what is meant for somebody else's git, or for another make."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith("GIT_") and name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
            } | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def run_git(folder: pathlib.Path,
            *arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-c", "user.name=fixes", "-c", "user.email=fixes@localhost", *arguments],
        cwd=folder, capture_output=True, text=True, env=clean_environment(), check=False)


def git(folder: pathlib.Path, *arguments: str | pathlib.Path) -> None:
    run = run_git(folder, *arguments)
    if run.returncode:
        said = (run.stderr or run.stdout).strip() or f"git {arguments[0]}: {run.returncode}"
        raise FixesError(said.splitlines()[0])


def am(folder: pathlib.Path, mail: pathlib.Path) -> None:
    """All of the mail, or nothing of it."""
    try:
        git(folder, "am", "--quiet", mail)
    except FixesError:
        run_git(folder, "am", "--abort")
        raise


def read_fix(mail: pathlib.Path) -> Fix:
    notes = mail.read_text().partition("\n---\n")[2].partition("\ndiff --git ")[0]
    tests, why = [], ""
    for line in re.findall(r"^Test: (.*)$", notes, re.MULTILINE):
        if line.startswith("none, "):
            why = line.removeprefix("none, ")
            continue
        if line == VMA_TESTS:
            tests.append(Test(VMA_TESTS, "", False, False))
            continue
        suite, name, *how = line.split()
        if set(how) - {"alone", "debug"}:
            raise FixesError(f"{mail.name}: what is '{line}'?")
        tests.append(Test(suite, name, "alone" in how, "debug" in how))
    if not tests and not why:
        raise FixesError(f"{mail.name}: has no line 'Test:'")
    return Fix(mail, tests, why)


def touched(mail: pathlib.Path) -> list[str]:
    return re.findall(r"^--- a/(.*)$", mail.read_text(), re.MULTILINE)


def content(folder: pathlib.Path, paths: list[str]) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in paths}


def is_of_tests(fix: Fix) -> bool:
    return all(path.startswith(f"{VMA_TESTS}/") for path in touched(fix.mail))


def belongs_to_tests(fix: Fix) -> bool:
    """Is what it touches compiled by tools/testing/vma?"""
    return any(path.startswith(("mm/vma", f"{VMA_TESTS}/")) for path in touched(fix.mail))


def make_repository(folder: pathlib.Path, paths: list[str]) -> None:
    git(folder, "init", "--quiet")
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(STOCK / path, folder / path)
    git(folder, "add", "--force", "--", *paths)
    git(folder, "commit", "--quiet", "--message=base")
    git(folder, "tag", "base")


def apply_alone(fix: Fix, of_tests: list[Fix], folder: pathlib.Path) -> None:
    git(folder, "checkout", "--quiet", "base")
    am(folder, fix.mail)
    fix.files = content(folder, touched(fix.mail))
    if belongs_to_tests(fix):
        for other in of_tests:
            if other is not fix:
                am(folder, other.mail)
        paths = {path for one in (fix, *of_tests) for path in touched(one.mail)}
        fix.tested = content(folder, sorted(paths))


def apply(fixes: list[Fix], folder: pathlib.Path) -> dict[str, bytes]:
    """Each alone, then in sequence: what the files are in the end."""
    paths = sorted({path for fix in fixes for path in touched(fix.mail)})
    make_repository(folder, paths)
    of_tests = [fix for fix in fixes if is_of_tests(fix)]
    for fix in fixes:
        try:
            apply_alone(fix, of_tests, folder)
        except FixesError as error:
            fix.complaint = f"does not apply: {error}"
    git(folder, "checkout", "--quiet", "base")
    for fix in fixes:
        try:
            am(folder, fix.mail)
        except FixesError as error:
            fix.complaint = fix.complaint or f"does not apply after the others: {error}"
    return content(folder, paths)


class Copy:
    """A copy of the base that shares its files with it, but for some."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.changed = pathlib.Path(f"{folder}.changed")
        version = pathlib.Path(f"{folder}.version")
        stock = pathlib.Path(f"{STOCK}.version").read_text()
        if not version.exists() or version.read_text() != stock or not folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run(["cp", "-al", STOCK, folder], check=True)
            version.write_text(stock)
            self.changed.write_text("")

    def put(self, files: dict[str, bytes]) -> None:
        """Is now the base with these files. Those that stay as they are keep their time."""
        before = set(self.changed.read_text().splitlines())
        wanted = {path: (STOCK / path).read_bytes() for path in before - set(files)} | files
        new = {path: text for path, text in wanted.items()
               if (self.folder / path).read_bytes() != text}
        if not new and before == set(files):
            return
        # Noted first: a run that is cut short must not lose track of a path.
        self.note(before | set(files))
        for path, text in new.items():
            scratch = self.folder / f"{path}.new"
            scratch.write_bytes(text)
            scratch.replace(self.folder / path)
        self.note(set(files))

    def note(self, paths: set[str]) -> None:
        self.changed.write_text("".join(f"{path}\n" for path in sorted(paths)))


def look_at_mails(fixes: list[Fix]) -> None:
    for fix in fixes:
        # There is no history here to look up commits in. A file that git tracks would
        # be taken for a source.
        complaints = checkpatch.look_at(["--ignore=UNKNOWN_COMMIT_ID", "-"],
                                        fix.mail.read_text())
        if complaints and not fix.complaint:
            print("\n".join(complaints), file=sys.stderr)
            fix.complaint = f"checkpatch.pl: {complaints[0]}"


def test_vma(copy: Copy, files: dict[str, bytes], log: str) -> str:
    """What tools/testing/vma says of the base with these files."""
    copy.put(files)
    folder = str(copy.folder / VMA_TESTS)
    OUT.mkdir(exist_ok=True)
    with open(OUT / f"vma-{log}.log", "w", encoding="utf-8") as out:
        for command in (["make", "-C", folder, "CC=ccache gcc"], [f"{folder}/vma"]):
            if subprocess.run(command, cwd=ROOT, stdout=out, stderr=out,
                              env=clean_environment(), check=False).returncode:
                return "fails"
    return "passes"


def test_vma_of_all(fixes: list[Fix], files: dict[str, bytes], copy: Copy, alone: bool) -> None:
    involved = [fix for fix in fixes if belongs_to_tests(fix) and not fix.complaint]
    verdicts = {"base": test_vma(copy, {}, "base"), "fixed": test_vma(copy, files, "fixed")}
    for fix in involved:
        for test in fix.tests:
            if test.suite == VMA_TESTS:
                test.verdicts = verdicts
        if verdicts["fixed"] != "passes":
            fix.complaint = f"{VMA_TESTS} fails with all of them, see {OUT}/"
        elif alone and test_vma(copy, fix.tested, fix.name) != "passes":
            fix.complaint = f"{VMA_TESTS} fails, see {OUT}/"
        print(f"{fix.name}: {VMA_TESTS}: {fix.complaint or 'passes'}", file=sys.stderr)


def compile_alone(fixes: list[Fix], copy: Copy) -> None:
    """What each touches, or if it touches a header, what any of them does."""

    def objects(paths: list[str]) -> set[str]:
        return {path.removesuffix(".c") + ".o" for path in paths
                if path.endswith(".c") and not path.startswith("tools/")}

    everything = objects([path for fix in fixes for path in fix.files])
    for fix in fixes:
        if fix.complaint or is_of_tests(fix):
            continue
        copy.put(fix.files)
        headers = any(path.endswith(".h") and not path.startswith("tools/") for path in fix.files)
        goals = everything if headers else objects(list(fix.files))
        run = subprocess.run(["lab/objects.sh", copy.folder, f"fixes-{BASE}", *sorted(goals)],
                             cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            print(run.stdout + run.stderr, file=sys.stderr)
            fix.complaint = "does not compile alone"
        print(f"{fix.name}: compiled {len(goals)} objects", file=sys.stderr)


def image(kernel: str, flavor: str) -> str:
    run = subprocess.run(["lab/image.sh", kernel, flavor], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, check=False)
    if run.returncode:
        raise FixesError(f"no {kernel} {flavor} image")
    return run.stdout.splitlines()[-1]


def guest(name: str, kernel_image: str, suites: set[str], seconds: int,
          script: str) -> tuple[int, str]:
    """Runs the script in a guest: its status, see lab/guest.py, and what it printed."""
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.sh"
    file.write_text(script)
    command = ["lab/guest.py", "--image", kernel_image, "--timeout", str(seconds),
               "--log", str(OUT / f"{name}.log"), "--add", f"{file}:/bin/script",
               "--add", "lab/test_setup.sh"]
    for suite in sorted(suites):
        command += ["--add", str(SUITES / suite)]
    run = subprocess.run([*command, "--", "/bin/sh", "/bin/test_setup.sh", "/bin/sh", "/bin/script"],
                         cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    (OUT / f"{name}.out").write_text(run.stdout + run.stderr)
    return run.returncode, run.stdout


def line_of(test: Test) -> str:
    return f"MREMAP_EXPECT=fixed /bin/{test.suite} -r {shlex.quote(test.name)}"


def verdict(status: int, output: str) -> str:
    if re.search(r"^1\.\.0\b|^# 0 / 0 tests", output, re.MULTILINE) or "TAP version" not in output:
        return "not there"
    if "# SKIP" in output:
        return "skipped"
    if "Test terminated by timeout" in output:
        return "hangs"
    return "fails" if status else "passes"


def run_together(kernel: str, kernel_image: str, tests: list[Test]) -> None:
    lines = []
    for number, test in enumerate(tests):
        lines += [f"echo '=== {number}'", f"status=0; {line_of(test)} || status=$?",
                  "echo \"=== status $status\""]
    status, output = guest(f"{kernel}-together", kernel_image, {test.suite for test in tests},
                           SECONDS_OF_ALL, "\n".join(lines) + "\n")
    if kernel == "fixed" and status in (124, 125, 126):
        raise FixesError(f"the fixed kernel ended with {status}, see {OUT}/{kernel}-together.log")
    for number, test in enumerate(tests):
        part = output.partition(f"=== {number}\n")[2]
        text, _, rest = part.partition("=== status ")
        test.verdicts[kernel] = (verdict(int(rest.split("\n")[0]), text) if rest[:1].isdigit()
                                 else "no result")


def run_alone(kernel: str, kernel_image: str, test: Test) -> None:
    status, output = guest(f"{kernel}-{test.name}", kernel_image, {test.suite}, SECONDS,
                           line_of(test) + "\n")
    special = {124: "hangs", 125: "crashes", 126: "the kernel complains"}
    test.verdicts[kernel] = special.get(status) or verdict(status, output)


def run_tests(fixes: list[Fix], flavor: str, jobs: int) -> None:
    tests = [test for fix in fixes if not fix.complaint for test in fix.tests
             if test.suite != VMA_TESTS and test.debug == (flavor == "debug")]
    images = {kernel: image(kernel, flavor) for kernel in ("base", "fixed")}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = []
        for kernel, kernel_image in images.items():
            for test in tests:
                if test.alone:
                    running.append(pool.submit(run_alone, kernel, kernel_image, test))
            together = [test for test in tests if not test.alone]
            if together:
                running.append(pool.submit(run_together, kernel, kernel_image, together))
        for one in running:
            one.result()


def prepare(fixes: list[Fix]) -> None:
    """The packages, the default base for its scripts, and the selftests."""
    suites = sorted({test.suite for fix in fixes for test in fix.tests} - {VMA_TESTS})
    of_default = os.environ | {"BASE": DEFAULT}
    for command in (["lab/deps.sh", "build", "guest", "test", "series"], ["lab/base.sh"], ["lab/tree.py"],
                    ["lab/selftests.sh", "build/tree", str(SUITES), "-static", *suites]):
        if subprocess.run(command, cwd=ROOT, env=of_default, check=False).returncode:
            raise FixesError("the tests cannot be compiled")


def table(fixes: list[Fix]) -> list[str]:
    rows = [("patch", "test", f"{BASE} before", "after")]
    for fix in fixes:
        if fix.complaint or not any(test.verdicts for test in fix.tests):
            rows.append((fix.name, fix.verdict(), "", ""))
            continue
        for test in fix.tests:
            if test.verdicts:
                rows.append((fix.name, f"{test.suite} {test.name}".strip(), test.verdicts["base"],
                             test.verdicts["fixed"] + ("" if test.proven() else " (NOT PROVEN)")))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip()
            for row in rows]


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """The sources and the logs are one run's at a time."""
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "fixes.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run that tests the fixes for {BASE}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_all(fixes: list[Fix], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        files = apply(fixes, pathlib.Path(scratch))
    Copy(FIXED).put(files)
    if options.only_apply:
        return
    prepare(fixes)
    look_at_mails(fixes)
    copy = Copy(WORK / "fixes.alone")
    if not options.quick:
        compile_alone(fixes, copy)
    test_vma_of_all(fixes, files, copy, not options.quick)
    run_tests(fixes, "lean", options.jobs)
    if options.debug:
        run_tests(fixes, "debug", options.jobs)


def main() -> int:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("--only-apply", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    # It knows what to say of an odd BASE as well.
    if subprocess.run(["lab/base.sh"], cwd=ROOT, check=False).returncode:
        return 1
    try:
        fixes = [read_fix(mail) for mail in sorted((ROOT / "fixes" / BASE).glob("*.patch"))]
        with only_one():
            run_all(fixes, options)
    except FixesError as error:
        print(f"fixes.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(fixes)))
    good = sum(fix.good() for fix in fixes)
    print(f"{good} passed, {len(fixes) - good} failed")
    return 0 if good == len(fixes) else 1


if __name__ == "__main__":
    sys.exit(main())
