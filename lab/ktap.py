#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Judge the output of tests in KTAP or TAP form.

Reads the files named (- or none: stdin), shows every failure with the
diagnostics before it, and ends with "N passed, N failed, N skipped". The exit
status is 1 if a test failed, a planned test did not report, or the output is
not a whole KTAP document.

The parser of tools/testing/kunit does not serve here: it lets a missing plan,
results beyond the plan and "Bail out!" pass, and does not know the
"ok 1 # SKIP reason" of selftests.
"""
import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

CONTEXT_LINES = 15

LOG_PREFIX = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")
VERSION = re.compile(r"K?TAP version \d+$")
PLAN = re.compile(r"1\.\.(\d+)(\s+# SKIP\b.*)?\s*$")
RESULT = re.compile(r"(not )?ok (\d+)\b(.*)$")
DIRECTIVE = re.compile(r"# (SKIP|XFAIL|XPASS)\b")


@dataclass
class Document:
    """One list of tests: the outermost one, or the subtests of a test."""
    indent: int
    planned: int | None = None
    numbers: set[int] = field(default_factory=set)
    failed: int = 0

    @property
    def missing(self) -> int:
        return max(0, (self.planned or 0) - len(self.numbers))


@dataclass
class Verdict:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failed and not self.problems

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Parser:
    """Only tests without subtests are counted; a planned one that is missing failed."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self.open: list[Document] = []
        self.diagnostics: list[str] = []
        self.seen = False

    def parse(self, lines: Iterable[str]) -> Verdict:
        for line in lines:
            self.line(LOG_PREFIX.sub("", line.rstrip()))
        self.close(-1)
        if not self.seen:
            self.problem("no KTAP output")
        return self.verdict

    def line(self, line: str) -> None:
        text = line.lstrip()
        indent = len(line) - len(text)
        if VERSION.match(text):
            self.seen = True
            self.close(indent - 1)
            self.open.append(Document(indent))
        elif match := PLAN.match(text):
            self.plan(line, indent, match)
        elif match := RESULT.match(text):
            self.result(line, indent, match)
        elif text.startswith("Bail out!"):
            self.problem(line)
        else:
            self.diagnostics.append(line)

    def plan(self, line: str, indent: int, match: re.Match[str]) -> None:
        document = self.document(line, indent)
        if document.planned is not None:
            self.problem(f"second plan: {line}")
        document.planned = int(match[1])
        if document.planned == 0 and match[2]:
            self.verdict.skipped += 1
        elif document.planned == 0:
            self.problem(f"no tests are planned: {line}")

    def result(self, line: str, indent: int, match: re.Match[str]) -> None:
        subtests = self.close(indent)
        document = self.document(line, indent)
        number = int(match[2])
        if number in document.numbers:
            self.problem(f"test number {number} comes twice: {line}")
        elif document.planned is not None and not 1 <= number <= document.planned:
            self.problem(f"test number outside the plan 1..{document.planned}: {line}")
        document.numbers.add(number)
        directive = DIRECTIVE.search(match[3])
        kind = directive[1] if directive else ""
        # A test marked as expected to fail that succeeds needs a look.
        failed = bool(match[1]) or kind == "XPASS"
        if failed:
            document.failed += 1
        if failed and not (subtests and subtests.failed):
            self.verdict.failed += 1
            self.problem(line)
        elif not failed and subtests and subtests.failed:
            self.problem(f"passed although a subtest failed: {line}")
        elif not subtests and kind:
            self.verdict.skipped += 1
        elif not subtests:
            self.verdict.passed += 1
        self.diagnostics.clear()

    def document(self, line: str, indent: int) -> Document:
        """The innermost open document, which must be the one of this indentation."""
        if not self.open or self.open[-1].indent != indent:
            self.problem(f"no version line before: {line}")
            self.seen = True
            self.open.append(Document(indent))
        return self.open[-1]

    def close(self, indent: int) -> Document | None:
        """End the documents deeper than indent; returns the outermost of them."""
        document = None
        while self.open and self.open[-1].indent > indent:
            document = self.open.pop()
            document.failed += document.missing
            self.verdict.failed += document.missing
            if document.missing:
                self.problem(f"{document.planned} tests planned, {len(document.numbers)} reported")
            # KUnit prints no plan for the values of a parameterised test.
            if document.planned is None and not self.open:
                self.problem("no plan (1..N)")
        return document

    def problem(self, text: str) -> None:
        self.verdict.problems.append("\n".join([*self.diagnostics[-CONTEXT_LINES:], text]))
        self.diagnostics.clear()


def judge(lines: Iterable[str]) -> Verdict:
    """Judge one KTAP text, such as a program's output or a kernel log."""
    return Parser().parse(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["-"], metavar="FILE")
    total = Verdict()
    for name in parser.parse_args().files:
        try:
            # Descriptor 0 is stdin; tests may print anything, also no UTF-8.
            with open(0 if name == "-" else name, errors="replace") as file:
                verdict = judge(file)
        except OSError as error:
            print(f"ktap: {name}: {error.strerror}", file=sys.stderr)
            return 1
        total.passed += verdict.passed
        total.failed += verdict.failed
        total.skipped += verdict.skipped
        total.problems += verdict.problems
    for problem in total.problems:
        print(problem)
    print(total)
    return 0 if total.good else 1


if __name__ == "__main__":
    sys.exit(main())
