#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Writes our changes as a patch series to build/series/, and checks each step.

usage: lab/series.py [--only-write | --only-apply | --quick [PATCH] | --boot [PATCH]]
       --only-write  checks nothing
       --only-apply  compiles nothing: whether each applies, what checkpatch.pl says, the end
       --quick       compiles of a patch's kernel files what is its own, and what includes
                     its headers only after the last patch; from PATCH on, the name of
                     a file in lab/series/
       --boot        also runs the tests that exist after each step, from PATCH on; takes
                     an hour
       FROM='Name <address>' in the environment is whom the mails come from

lab/series/ has a file for each patch, in the order of their names, and one for
the cover letter, "cover". A file is the commit message, a line "---", and what
of our files the patch brings, one to a line:

    PATH                 what no other patch takes of it
    PATH hunks REGEX     the hunks of PATH.patch of which a changed line matches
    PATH lines REGEX     the lines of which a part matches; until this patch they
                         are left out. What matches may span several lines
    PATH functions NAME...
                         the same for the definitions of C functions, and the
                         comments above them
    PATH part FILE       the diff lab/series/parts/FILE, which takes PATH from the
                         patch before to this one
    PATH from SOURCE REGEX
                         upstream's SOURCE from the line on that matches, below a
                         copy of its head, up to the last #include. PATH is new.
                         What is left of SOURCE is what it is after this patch

Our files are whole and as they are in the end. What a file is after a patch comes
of taking away what later patches bring, the last one first. Before the patch that
brings "what no other takes" it comes of upstream's file: by "from", by parts. What
only the steps in between have is in the parts. There a line "=== NAME ===" stands for
a function that is still what it was before that patch.

In the cover letter {version} is upstream's, {costs} comes from README.md and
{tests} from lab/README.md, and the name of a patch in braces is its number. In any
message {ratio CASE} is what README.md says of a case.

The mails are applied by git am to a copy of the base, build/series.tree/. After
each, what it touches is compiled and tested (warnings are errors), and
checkpatch.pl looks at it. The end must equal build/tree/. With --boot, a step that
changes the kernel makes an image of it, and all suites of mremap() run in a guest, and
the KUnit tests, as far as they exist by then. A step that adds a suite runs this one.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import checkpatch
import tree

ROOT = tree.ROOT
RECIPES = ROOT / "lab/series"
PARTS = RECIPES / "parts"
OUT = ROOT / "build/series"
APPLIED = ROOT / "build/series.tree"
LOGS = ROOT / "build/series.logs"

# All patches are made with a tool; which one is said here alone. Those who
# submit them add their Signed-off-by.
TRAILER = "Assisted-by: Claude:unspecified coccinelle sparse"
SENDER = os.environ.get("FROM") or "mremap series <mremap@localhost>"
TESTS = "tools/testing/selftests/mm"
SUITES = ROOT / "build/series.tests"
OBJECTS = ROOT / "build/obj/peer/lean"  # where lab/image.sh compiles what we boot


KINDS = ("rest", "hunks", "lines", "functions", "part", "from")
# What makes a file of our final one, or of the one of the patch before.
BACKWARDS = ("lines", "functions", "part")


class SeriesError(Exception):
    """What stops the run."""


@dataclass
class Pick:
    """What a patch takes of a file."""
    path: str
    kind: str  # one of KINDS
    what: str = ""


@dataclass
class Recipe:
    """A patch as lab/series/ describes it."""
    name: str
    message: str
    picks: list[Pick] = field(default_factory=list)


def read_recipe(file: pathlib.Path) -> Recipe:
    message, _, rest = file.read_text().partition("\n---\n")
    recipe = Recipe(file.name, message.strip())
    for line in rest.splitlines():
        path, kind, what = (line.split(None, 2) + ["", ""])[:3]
        if not path:
            continue
        if (kind or "rest") not in KINDS or bool(kind) != bool(what):
            raise SeriesError(f"{file.name}: what is '{line}'?")
        recipe.picks.append(Pick(path, kind or "rest", what))
    return recipe


def without_lines(text: str, regex: str, path: str) -> str:
    """The text without whole lines that match, nor a second blank line there."""
    whole_lines = re.compile(rf"^.*(?:{regex}).*\n", re.MULTILINE)
    text, times = whole_lines.subn("\0", text)
    if not times:
        raise SeriesError(f"{path}: nothing matches '{regex}'")
    text = re.sub(r"(?<=\n\n)(?:\0+\n)+", "", text)
    text = re.sub(r"\n\n\0+\Z", "\n", text)
    return text.replace("\0", "")


def definition_of(name: str) -> re.Pattern[str]:
    return re.compile(r"(?:^/\*(?:(?!\*/)[\s\S])*\*/\n)?"  # the comment
                      rf"^\w[^;{{}}#]*?\b{name}\([^;{{}}]*\n\{{\n(?:.*\n)*?\}}\n",
                      re.MULTILINE)


def function_of(text: str, name: str, path: str) -> str:
    """The definition of a C function, and the comment above it."""
    found = list(definition_of(name).finditer(text))
    if len(found) != 1:
        raise SeriesError(f"{path}: {len(found)} definitions of {name}()")
    return found[0][0]


def without_functions(text: str, names: str, path: str) -> str:
    """The text without these definitions, and the blank lines below them."""
    for name in names.split():
        definition = function_of(text, name, path)
        text = text.replace(f"{definition}\n" if f"{definition}\n" in text else definition, "")
    return text


def with_part(text: str, name: str, path: str, *, reverse: bool) -> str:
    """The text with a part applied, or taken back. No line may differ."""
    part = PARTS / name
    with tempfile.TemporaryDirectory() as scratch:
        source, out = pathlib.Path(scratch, "source"), pathlib.Path(scratch, "out")
        source.write_text(text)
        run = subprocess.run(
            ["patch", "--fuzz=0", "--force", "--reject-file=-", "--no-backup-if-mismatch",
             f"--output={out}", *(["--reverse"] if reverse else []), source, part],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode:
            raise SeriesError(f"{path}: {part.relative_to(ROOT)} cannot be "
                              f"{'taken back' if reverse else 'applied'}:\n{run.stdout.strip()}")
        return out.read_text()


def without(text: str, pick: Pick) -> str:
    """The text of our file without what a patch brings."""
    if pick.kind == "lines":
        return without_lines(text, pick.what, pick.path)
    if pick.kind == "functions":
        return without_functions(text, pick.what, pick.path)
    return with_part(text, pick.what, pick.path, reverse=True)


def split_file(source: str, regex: str) -> tuple[str, str]:
    """Upstream's file without what another one takes of it, and that one."""
    text = (tree.BASE / source).read_text()
    found = re.search(rf"^{regex}", text, re.MULTILINE)
    if not found:
        raise SeriesError(f"{source}: nothing matches '{regex}'")
    head = text[:text.rindex("\n#include ", 0, found.start()) + 1]
    head += text[len(head):].partition("\n")[0]
    head = re.sub(rf"^ \*\s*{source}\n \*\n", "", head, flags=re.MULTILINE)
    return text[:found.start()].rstrip() + "\n", f"{head}\n\n{text[found.start():]}"


class History:
    """How one of our files comes about, patch by patch."""

    def __init__(self, path: str, final: pathlib.Path | bytes) -> None:
        self.path = path
        self.final = final if isinstance(final, bytes) else final.read_bytes()
        self.picks: list[tuple[str, Pick]] = []  # with the patch's name, in its order

    def after(self, name: str) -> bytes:
        """What the file is when that patch is applied."""
        kinds = [pick.kind for _, pick in self.picks]
        if kinds.count("rest") > 1 or {"hunks", "lines"} <= set(kinds):
            raise SeriesError(f"{self.path}: the rest can go to one patch only, and hunks "
                              "and lines exclude each other")
        becomes_ours = [patch for patch, pick in self.picks if pick.kind == "rest"]
        is_upstreams = any(patch > name for patch in becomes_ours)
        if "hunks" in kinds:
            text = self.with_hunks(name).decode()
        elif is_upstreams:
            text = self.of_upstream(name)
        else:
            text = self.final.decode()
        if is_upstreams:
            return text.encode()

        for patch, pick in reversed(self.picks):
            if patch > name and pick.kind in BACKWARDS:
                try:
                    text = without(text, pick)
                except SeriesError as error:
                    raise SeriesError(f"{patch}: {error}") from error
        before = [patch for patch, _ in self.picks if patch < "".join(becomes_ours)]
        text = re.sub(r"^=== (\w+) ===\n",
                      lambda found: function_of(self.of_upstream(before[-1]), found[1], self.path),
                      text, flags=re.MULTILINE)
        return text.encode()

    def of_upstream(self, name: str) -> str:
        """The same before the patch that brings our file."""
        text = ""
        upstream = tree.BASE / self.path
        if upstream.exists():
            text = upstream.read_text()
        for patch, pick in self.picks:
            if patch > name:
                break
            if pick.kind == "part":
                text = with_part(text, pick.what, self.path, reverse=False)
            elif pick.kind == "from":
                source, regex = pick.what.split(None, 1)
                stays, moves = split_file(source, regex)
                text = stays if source == self.path else moves
            else:
                raise SeriesError(f"{self.path}: {patch} comes before the patch that takes "
                                  "the rest")
        return text

    def with_hunks(self, name: str) -> bytes:
        """The same for hunks: upstream's file and those that are taken by then."""
        head, *hunks = re.split(r"^(?=@@ )", (ROOT / f"{self.path}.patch").read_text(),
                                flags=re.MULTILINE)
        free = set(range(len(hunks)))
        taken = set()
        for patch, pick in self.picks:
            if pick.kind != "hunks":
                continue
            changed = re.compile(rf"^[-+].*(?:{pick.what})", re.MULTILINE)
            found = {number for number in free if changed.search(hunks[number])}
            if not found:
                raise SeriesError(f"{patch}: no hunk of {self.path}.patch for '{pick.what}'")
            free -= found
            if patch <= name:
                taken |= found
        rest_goes_to = [patch for patch, pick in self.picks if pick.kind == "rest"]
        if bool(free) != bool(rest_goes_to):
            raise SeriesError(f"{self.path}: {len(free)} hunks for {len(rest_goes_to)} patches")
        if rest_goes_to and rest_goes_to[0] <= name:
            taken |= free
        return tree.patched(self.path, head + "".join(hunks[i] for i in sorted(taken)))


def read_series() -> tuple[Recipe, list[Recipe], dict[str, History]]:
    files = sorted(file for file in RECIPES.iterdir()
                   if file.is_file() and file.name != "cover")
    recipes = [read_recipe(file) for file in files]
    histories = {path: History(path, final) for path, final in tree.overlays().items()}
    for recipe in recipes:
        for pick in recipe.picks:
            if pick.path not in histories:
                raise SeriesError(f"{recipe.name}: {pick.path} is not one of our files")
            histories[pick.path].picks.append((recipe.name, pick))
    lost = [path for path, history in histories.items() if not history.picks]
    lost += {str(file.relative_to(ROOT)) for file in PARTS.iterdir()} - {
        f"lab/series/parts/{pick.what}" for recipe in recipes for pick in recipe.picks}
    if lost:
        raise SeriesError("no patch in lab/series/ takes " + ", ".join(sorted(lost)))
    return read_recipe(RECIPES / "cover"), recipes, histories


def git(folder: pathlib.Path, *arguments: str, given: str | None = None) -> str:
    name, _, address = SENDER.partition(" <")
    # Nobody's settings are to show in the mails, and the same tree gives the same mails.
    date = subprocess.run(["git", "log", "-1", "--format=%cI"], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, text=True).stdout.strip()
    environment = os.environ | {
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": address.rstrip(">"),
        "GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": address.rstrip(">"),
        "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    run = subprocess.run(["git", *arguments], cwd=folder, env=environment, input=given,
                         text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         check=False)
    if run.returncode:
        raise SeriesError(f"git {' '.join(arguments)}: {run.stdout.strip()}")
    return run.stdout


def start_history(folder: pathlib.Path, paths: list[str]) -> None:
    """A repository in the folder, with upstream's files among the paths."""
    shutil.rmtree(folder / ".git", ignore_errors=True)
    git(folder, "init", "--quiet", "--initial-branch=mremap")
    there = [path for path in paths if (tree.BASE / path).is_file()]
    for path in there:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).unlink(missing_ok=True)  # may be the base's own, linked
        shutil.copyfile(tree.BASE / path, folder / path)
        shutil.copymode(tree.BASE / path, folder / path)
    git(folder, "add", "--force", "--", *there)
    git(folder, "commit", "--quiet", "--message=" + upstream_version())
    git(folder, "tag", "base")


def upstream_version() -> str:
    return (ROOT / "bases/6.12").read_text().splitlines()[0].removeprefix("# ")


def readme_block(readme: str, first_words: str) -> list[str]:
    """The lines of the file's block that starts so."""
    blocks = re.finditer(r"^```\n(.*?)^```$", (ROOT / readme).read_text(),
                         re.MULTILINE | re.DOTALL)
    for block in blocks:
        if block[1].startswith(first_words):
            return str(block[1]).splitlines()
    raise SeriesError(f"{readme}: no block begins with '{first_words}'")


def cost_table() -> list[str]:
    """README's, up to the ratios."""
    costs = readme_block("README.md", "instructions ")
    if "ratio" not in costs[0]:
        raise SeriesError("README.md: no ratios among the costs")
    width = costs[0].index("ratio") + len("ratio")
    return [line[:width].rstrip() for line in costs]


def with_costs(message: str) -> str:
    """The message with what it cites of README."""
    def ratio(found: re.Match[str]) -> str:
        rows = [line for line in cost_table() if line.startswith(f"{found[1]} ")]
        if len(rows) != 1:
            raise SeriesError(f"README.md: {len(rows)} rows of costs begin with '{found[1]}'")
        return rows[0].split()[-1]

    return re.sub(r"\{ratio ([^}]*)\}", ratio, message)


def cover_letter(cover: Recipe, recipes: list[Recipe]) -> str:
    text = cover.message.replace("{version}", upstream_version())
    for number, recipe in enumerate(recipes, 1):
        text = text.replace(f"{{{recipe.name}}}", str(number))
    text = text.replace("{costs}", "\n".join(cost_table()))
    return text.replace("{tests}", readme_block("lab/README.md", "kunit ")[-1])


def write(cover: Recipe, recipes: list[Recipe], histories: dict[str, History]) -> list[pathlib.Path]:
    """The mails in build/series/; the list is without the cover letter."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        folder = pathlib.Path(scratch)
        start_history(folder, list(histories))
        for recipe in recipes:
            for pick in recipe.picks:
                file = folder / pick.path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(histories[pick.path].after(recipe.name))
                if (ROOT / pick.path).exists():
                    shutil.copymode(ROOT / pick.path, file)
                git(folder, "add", "--force", "--", pick.path)
            git(folder, "commit", "--quiet", "--file=-",
                given=f"{with_costs(recipe.message)}\n\n{TRAILER}\n")
        git(folder, "config", "branch.mremap.description", cover_letter(cover, recipes))
        shutil.rmtree(OUT, ignore_errors=True)
        git(folder, "format-patch", "--quiet", "--cover-letter", "--cover-from-description=subject",
            "--subject-prefix=PATCH 6.12", "--break-rewrites", "--zero-commit", "--signature=",
            f"--output-directory={OUT}", "base")
    return sorted(OUT.glob("*.patch"))[1:]


class Step:
    """A patch that has been applied to build/series.tree/, and what is done with it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.changed = git(APPLIED, "diff", "--name-only", "HEAD~").splitlines()
        self.done: list[str] = []

    def run(self, what: str, *command: str | pathlib.Path, **variables: str) -> str:
        """Returns the last line of what the command says."""
        log = LOGS / f"{self.number:02}-{what.replace(' ', '-')}.log"
        with open(log, "wb") as out:
            status = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out,
                                    env=os.environ | variables, check=False).returncode
        lines = log.read_text(errors="replace").splitlines() or [""]
        if status:
            raise SeriesError(f"patch {self.number}, not {what}, see {log}:\n"
                              + "\n".join(lines[-20:]))
        return lines[-1]

    def changes(self, *beginnings: str) -> bool:
        return any(path.startswith(beginnings) for path in self.changed)

    def changes_kernel(self) -> bool:
        return any(path.split("/")[0] not in ("Documentation", "tools", "MAINTAINERS")
                   for path in self.changed)

    def own_objects(self) -> list[str]:
        """Those of the changed sources; KUnit tests belong to the file that they test."""
        sources = {re.sub(r"^mm/tests/(\w+)_kunit\.c$", r"mm/\1.c", path)
                   for path in self.changed} | {"mm/mremap.c"}
        return sorted(path.removesuffix(".c") + ".o" for path in sources
                      if re.match(r"(mm|fs|kernel|arch)/.*\.c$", path))

    def check(self, own_only: bool) -> None:
        """Compiles and tests what the changed files belong to."""
        if self.changes_kernel():
            goals = self.own_objects() if own_only else []
            self.run("compiled", "lab/objects.sh", APPLIED, "series", *goals)
            self.done.append("compiled")
        if self.changes(f"{TESTS}/"):
            self.compile_suites()
            self.done.append("tests compiled")
        if self.changes("mm/vma", "tools/testing/vma/"):
            folder = APPLIED / "tools/testing/vma"
            self.run("vma tests compiled", "make", "-C", folder, "CC=ccache gcc")
            self.run("vma tests passed", folder / "vma")
            self.done.append("vma tests passed")

    def compile_suites(self) -> None:
        # Upstream's mremap_test has warnings.
        self.run("tests compiled", "lab/selftests.sh", APPLIED, SUITES,
                 "-static" if self.is_ours("mremap_test") else "-static -w")

    @staticmethod
    def is_ours(suite: str) -> bool:
        """Upstream's own do not use the harness."""
        return "kselftest_harness.h" in (APPLIED / TESTS / f"{suite}.c").read_text()

    def suites(self) -> list[str]:
        makefile = (APPLIED / TESTS / "Makefile").read_text()
        return re.findall(r"^TEST_GEN_FILES \+= (mremap_\w+)$", makefile, re.MULTILINE)

    def boot(self) -> None:
        """Runs all suites on the kernel if that has changed, else only those that have."""
        has_kunit = (APPLIED / "mm/tests").is_dir()
        only_kunit = self.changes("mm/tests/")
        suites = self.suites()
        if not self.changes_kernel() or only_kunit:
            suites = [suite for suite in suites if f"{TESTS}/{suite}.c" in self.changed]
        if suites:
            image = self.build_image()
            self.compile_suites()
            for suite in suites:
                self.run_suite(image, suite)
        if has_kunit and self.changes_kernel():
            verdict = self.run("KUnit tests passed", "lab/kunit.sh", "x86_64",
                               KUNIT_SOURCE=str(APPLIED))
            self.done.append(verdict)

    def build_image(self) -> str:
        """
        What we change in headers concerns mm/ and a few others, which check() has
        compiled: let make take them for old, and make these anew, in a minute, not
        all that includes them.
        """
        headers = [path for path in self.changed if re.match(r"(include|arch)/.*\.h$", path)]
        for path in headers:
            os.utime(APPLIED / path, (0, 0))
        if headers:
            for pattern in ("mm/**/*.o", "fs/*.o", "fs/hugetlbfs/*.o", "fs/proc/*.o",
                            "arch/x86/mm/*.o"):
                for file in OBJECTS.glob(pattern):
                    file.unlink()
            (ROOT / "build/peer.changed").touch()
        return self.run("image built", "lab/image.sh", "peer", "lean", PEER=str(APPLIED))

    def run_suite(self, image: str, suite: str) -> None:
        # As lab/test.sh does it.
        output = LOGS / f"{self.number:02}-{suite}.tap"
        append = "oops=panic" + (" numa=fake=2" if suite == "mremap_race" else "")
        if not self.is_ours(suite):
            # Upstream's mremap_test fails if the heap of its process is where it maps.
            append += " norandmaps"
        self.run(f"{suite} ended", "sh", "-c", 'output=$1; shift; exec "$@" >"$output"', "sh",
                 output, "lab/guest.py", "--image", image, "--timeout", "600",
                 "--log", output.with_suffix(".kernel.log"), "--append", append,
                 "--add", SUITES / suite, "--add", "lab/test_setup.sh", "--",
                 "/bin/sh", "/bin/test_setup.sh", "env", "MREMAP_EXPECT=patched",
                 f"/bin/{suite}")
        if self.is_ours(suite):
            verdict = self.run(f"{suite} passed", "lab/ktap.py", output)
        else:
            # Not quite TAP. It says by its status whether a test has failed.
            verdict = output.read_text().splitlines()[-1].removeprefix("# Totals: ")
        self.done.append(f"{suite} {verdict}")


def subject_of(mail: pathlib.Path) -> str:
    return git(ROOT, "mailinfo", os.devnull, os.devnull,
               given=mail.read_text()).partition("Subject: ")[2].splitlines()[0]


def is_about_moved_code(complaint: str, histories: dict[str, History]) -> bool:
    """Upstream's own code, which "from" has taken to another file."""
    path, number = re.split(r"[: ]+", complaint)[:2]
    picks = histories[path].picks if path in histories else []
    line = (APPLIED / path).read_text().splitlines()[int(number) - 1] if picks else ""
    return any(line in (tree.BASE / pick.what.split()[0]).read_text().splitlines()
               for _, pick in picks if pick.kind == "from")


def apply_and_check(mails: list[pathlib.Path], histories: dict[str, History],
                    first: int, boot_from: int, compiled: str) -> None:
    """Compiled, or booted, from the patches of these numbers on. Compiled are "all", or "own"."""
    shutil.rmtree(APPLIED, ignore_errors=True)
    subprocess.run(["cp", "-al", tree.BASE, APPLIED], check=True)
    LOGS.mkdir(exist_ok=True)
    start_history(APPLIED, list(histories))
    complaints = []
    last_of_kernel = max(number for number, mail in enumerate(mails, 1)
                         if re.search(r"^diff --git a/(mm|fs)/", mail.read_text(), re.MULTILINE))
    for number, mail in enumerate(mails, 1):
        start = time.monotonic()
        git(APPLIED, "am", "--quiet", str(mail))
        step = Step(number)
        if number >= first:
            step.check(own_only=compiled == "own" and number < last_of_kernel)
        if number >= boot_from:
            step.boot()
        found = [line for line in checkpatch.look_at([str(mail)])
                 if not is_about_moved_code(line, histories)]
        complaints += [f"patch {number}: {line}" for line in found]
        step.done.append(f"checkpatch {'complains' if found else 'clean'}")
        print(f"{number}/{len(mails)} {subject_of(mail)}: {', '.join(step.done)} "
              f"({time.monotonic() - start:.0f} s)", flush=True)
    if complaints:
        raise SeriesError("not in lab/checkpatch.allow:\n" + "\n".join(complaints))


def differences(paths: list[str]) -> list[str]:
    """Files that are not in the end as they are in build/tree/."""
    return [path for path in paths
            if (APPLIED / path).read_bytes() != (tree.TREE / path).read_bytes()
            or (APPLIED / path).stat().st_mode != (tree.TREE / path).stat().st_mode]


def main(arguments: list[str]) -> None:
    cover, recipes, histories = read_series()
    names = [recipe.name for recipe in recipes]
    never = len(recipes) + 1
    first, boot_from, compiled = 1, never, "all"
    match arguments:
        case [] | ["--only-write"]:
            pass
        case ["--only-apply"]:
            first = never
        case ["--quick"]:
            compiled = "own"
        case ["--quick", patch] if patch in names:
            first, compiled = names.index(patch) + 1, "own"
        case ["--boot"]:
            boot_from = 1
        case ["--boot", patch] if patch in names:
            boot_from = names.index(patch) + 1
        case _:
            raise SeriesError("usage: lab/series.py [--only-write | --only-apply | "
                              "--quick [PATCH] | --boot [PATCH]]")
    mails = write(cover, recipes, histories)
    checked = arguments != ["--only-write"]
    if checked:
        apply_and_check(mails, histories, first, boot_from, compiled)
        wrong = differences(list(histories))
        if wrong:
            raise SeriesError("not as in build/tree/: " + ", ".join(wrong))
    print(f"{OUT.relative_to(ROOT)}/: a cover letter and {len(mails)} patches"
          + (", which make build/tree/ of build/base/" if checked else ""))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SeriesError, tree.TreeError, checkpatch.CheckpatchError, OSError) as error:
        sys.exit(f"series.py: {error}")
