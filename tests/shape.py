#!/usr/bin/env python3
"""The shape of the source: how long, how wide, how many, how often    (standard library only)

    shape.py            the counts, and whether they are in LIMITS; ends with "N passed, M failed"
    shape.py -q         only what is wrong
    shape.py --list     every line, function and place behind a count
    shape.py --tree D   of the run.c and train_tiny.c in the folder D

What is counted, and how. Comments and texts are told from code by hand; nothing is preprocessed.

lines       as a page of 100 columns with one statement per line would have them, blank lines and
            comments with the rest: a wider line counts once more for each further line that its
            text needs, which starts at its own indentation and four columns; one with several
            statements (semicolons outside of parentheses) counts as many times, if that is more.
            A row of a table (inside the braces of an initializer, or of a macro of several lines)
            counts once, whatever its width.
members     of a struct: each name declared. A part, a struct held by value, is one member; its own
            are counted once, however many members have that type.
length      of a function: lines, as above, from the first of its signature to its closing brace.
arguments   of functions with a body, those inside macros too.
below       names that a section uses and only a later one defines. The compiler says so: it reads
            run.c up to the end of each section. What is declared early counts, too.
systems     lines outside of section 2 that ask which operating system this is, or use what not
            every system has.
repeats     pairs of places with 4 or more lines in a row that are the same when names, numbers
            and texts are set aside: longest runs, that do not overlap. Lines without a name or a
            number (braces alone, blanks), comments, tables, declarations of structs and lines for
            the preprocessor do not count and do not interrupt. In a row of lines of one form, each
            pair of places counts once.
"""
from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH, RUN, MANY = 100, 4, 8  # columns of a page; lines of a repeat; arguments that are too many

# What is allowed, and what is aimed at. A limit only goes down, and a commit that betters a count
# lowers it here; `shape.py` prints a hint where that was forgotten.
LIMITS = {
    "members of Layer":                 (25, 25),
    "members of Options":               (30, 30),
    "members of the largest part":      (16, 16),
    "longest function":                 (80, 80),
    "lines of forward":                 (150, 150),
    f"functions with {MANY} arguments": (0, 0),
    "names from below":                 (0, 0),
    "systems outside section 2":        (0, 0),
    "repeats":                          (5, 5),
}
PARTS_OF = "Layer", "Options"


# ---- reading C, as far as counting needs it ------------------------------------------------------

LEXEME = re.compile(r"""(?P<comment>/\*.*?\*/|//[^\n]*)
                        |(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.S | re.X)
TOKEN = re.compile(r"""[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.])*|"[^"]*"|'[^']*'|\S""")
KEYWORDS = set("""break case char const continue default do double else enum extern float for goto
                  if inline int long return short signed sizeof static struct switch typedef union
                  unsigned void volatile while""".split())
SECTION = re.compile(r"/\* ---- (\d+)\. (\w+)")
ATTRIBUTE = r"__attribute__\s*\(\(.*?\)\)\s*$"
DEFINE = re.compile(r"\s*#\s*define\s+\w+(\([^)]*\))?")


def blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def without_comments(text: str) -> str:
    """The same lines, comments as spaces, texts as "___"."""
    def instead(m: re.Match) -> str:
        if m["comment"]:
            return blank(m[0])
        return m[0][0] + "_" * (len(m[0]) - 2) + m[0][0]
    return LEXEME.sub(instead, text)


def top_level(text: str, of: str) -> list[str]:
    """text, split at each `of` outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == of and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


@dataclass
class Function:
    name: str
    first: int          # lines, from 0
    last: int
    arguments: int
    length: int = 0


@dataclass
class Source:
    """A file in lines; what each line is; functions and structs."""
    path: Path
    lines: list[str] = field(default_factory=list)
    # Without comments and directives, but with what macros stand for.
    code: list[str] = field(default_factory=list)
    section: list[int] = field(default_factory=list)
    table: list[bool] = field(default_factory=list)     # a row of one
    statements: list[int] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    structs: dict[str, str] = field(default_factory=dict)   # by name: what is between the braces

    def __post_init__(self) -> None:
        text = self.path.read_text()
        self.lines = text.rstrip("\n").split("\n")
        n = len(self.lines)
        self.table, self.statements = [False] * n, [0] * n
        section = 0
        for line in self.lines:
            m = SECTION.match(line)
            section = int(m[1]) if m else section
            self.section.append(section)
        plain, macros = self.directives(without_comments(text.rstrip("\n")).split("\n"))
        self.code = list(plain)
        self.scan("\n".join(plain), 0)
        for first, body in macros:
            for i, line in enumerate(body):
                self.code[first + i] = line
            self.scan("\n".join(body), first)
        self.functions.sort(key=lambda f: f.first)
        for f in self.functions:
            f.length = sum(self.height(i) for i in range(f.first, f.last + 1))

    @staticmethod
    def directives(lines: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The lines without those for the preprocessor; first line and body of each macro."""
        plain, macros, i, foreign = [], [], 0, False
        while i < len(lines):
            first = i
            if not lines[i].lstrip().startswith("#"):
                plain.append("" if foreign else lines[i])
                i += 1
                continue
            while lines[i].rstrip().endswith("\\"):
                i += 1
            i += 1
            body = [re.sub(r"\\\s*$", "", line) for line in lines[first:i]]
            if DEFINE.match(body[0]):
                body[0] = DEFINE.sub("", body[0], count=1)
                macros.append((first, body))
            word = body[0].strip()
            if re.match(r"#\s*if", word):
                foreign = word.endswith("__cplusplus")
            elif "endif" in word:
                foreign = False
            plain += [""] * (i - first)
        return plain, macros

    def scan(self, text: str, first: int) -> None:
        """Functions, structs, tables and statements in it, from line `first` on."""
        line, start, parens = first, 0, 0
        # open braces: kind, place, line, what is before
        stack: list[tuple[str, int, int, str]] = []
        for i, c in enumerate(text):
            if c == "\n":
                line += 1
            elif c == "(":
                parens += 1
            elif c == ")":
                parens -= 1
            elif c == ";":
                if parens == 0 and stack and stack[-1][0] in ("function", "block"):
                    self.statements[line] += 1
                if not stack:
                    start = i + 1
            elif c == "{":
                head = text[start:i] if not stack else ""
                stack.append((self.kind(text, i, stack, head), i, line, head))
            elif c == "}" and stack:
                kind, at, opened, head = stack.pop()
                if kind == "table":
                    for row in range(opened, line + 1):
                        self.table[row] |= opened < line
                elif kind == "struct":
                    self.struct(head, text[at + 1:i], text[i + 1:text.find(";", i)])
                elif kind == "function":
                    self.function(head, opened, line)
                if not stack and kind != "struct":
                    start = i + 1
        if first == 0 and stack:
            sys.exit(f"shape: {self.path}:{stack[-1][2] + 1}: this brace is not closed")
        for row, words in enumerate(text.split("\n"), first):  # a list of X(...), in a macro
            self.table[row] |= bool(first and re.match(r"\s*(X|ROW)\(", words))

    @staticmethod
    def kind(text: str, at: int, stack: list, head: str) -> str:
        before = text[max(0, at - 200):at].rstrip()
        if before.endswith(("=", ",", "(", "{")) or stack and stack[-1][0] == "table":
            return "table"
        if stack:
            return "block" if stack[-1][0] in ("function", "block") else stack[-1][0] + " inside"
        head = re.sub(ATTRIBUTE, "", head.strip()).strip()
        if head.endswith(")"):
            return "function"
        return "enum" if re.search(r"\benum\b[^()]*$", head) else "struct"

    def struct(self, head: str, body: str, behind: str) -> None:
        tag = re.search(r"\b(?:struct|union)\s+(\w+)\s*$", head)
        alias = re.match(r"\s*(\w+)\s*$", behind) if "typedef" in head else None
        for m in (tag, alias):
            if m:
                self.structs[m[1]] = body

    def function(self, whole: str, opened: int, last: int) -> None:
        head = re.sub(ATTRIBUTE, "", whole.rstrip()).rstrip()
        depth, i = 0, len(head) - 1
        while i >= 0:  # to the parenthesis that opens the arguments
            depth += (head[i] == ")") - (head[i] == "(")
            if depth == 0:
                break
            i -= 1
        name = re.search(r"([\w#]+)\s*$", head[:i])
        if not name or name[1] in KEYWORDS:  # a macro that is a loop or an expression
            return
        # A call of a macro, without a semicolon, may stand before the signature.
        begin = max(head.rfind(")", 0, i), 0)
        begin += re.match(r"\)?\s*", head[begin:]).end()
        inner = head[i + 1:-1].strip()
        arguments = 0 if inner in ("", "void") else len(top_level(inner, ","))
        self.functions.append(Function(name[1], opened - whole.count("\n", begin), last, arguments))

    def width(self, i: int) -> int:
        return len(re.sub(r"\s*\\?$", "", self.lines[i]))

    def height(self, i: int) -> int:
        """Lines that line i takes on the page."""
        width = self.width(i)
        if width <= WIDTH or self.table[i]:
            return 1 if self.table[i] else max(1, self.statements[i])
        indent = len(self.lines[i]) - len(self.lines[i].lstrip())
        room = max(40, WIDTH - indent - 4)
        return max(1 + -(-(width - WIDTH) // room), self.statements[i])


# ---- structs ------------------------------------------------------------------------------------

QUALIFIERS = set("const volatile static unsigned signed struct union enum".split())


def members_of(body: str) -> list[tuple[str, str]]:
    """The names declared in a struct, and the type of those held by value, or ""."""
    found = []
    for statement in top_level(body, ";"):
        statement = " ".join(statement.split())
        if not statement:
            continue
        inner = ""
        if "{" in statement:  # a struct, union or enum declared right here
            open_, close = statement.index("{"), statement.rindex("}")
            inner, names = statement[open_ + 1:close], statement[close + 1:].strip()
            if not names:  # an unnamed union: its members are those of the struct
                found += [] if statement.startswith("enum") else members_of(inner)
                continue
            statement = "inner " + names
        words = [w for w in re.findall(r"[A-Za-z_]\w*", statement) if w not in QUALIFIERS]
        kind = words[0] if words else ""
        for declared in top_level(statement, ","):
            declared = re.sub(r"\[.*?\]", "", declared)
            pointer = re.search(r"\(\s*\*\s*(\w+)", declared)
            name = pointer[1] if pointer else (re.findall(r"[A-Za-z_]\w*", declared) or ["?"])[-1]
            by_value = "*" not in declared
            found.append((name, ("{" + inner if inner else kind) if by_value else ""))
    return found


def parts_of(source: Source, name: str) -> dict[str, int]:
    """Members of each part of a struct, and of the parts of these; each type once."""
    parts: dict[str, int] = {}

    def walk(body: str) -> None:
        for member, kind in members_of(body):
            inner = kind[1:] if kind.startswith("{") else source.structs.get(kind)
            label = member if kind.startswith("{") else kind
            if inner is None or not kind or label in parts:
                continue
            parts[label] = len(members_of(inner))
            walk(inner)
    walk(source.structs.get(name, ""))
    return parts


# ---- repeats ------------------------------------------------------------------------------------

def form(line: str) -> str:
    """A line without what it is about; "" when it is no code."""
    words = []
    for token in TOKEN.findall(line):
        if token[0].isalpha() or token[0] == "_":
            words.append(token if token in KEYWORDS else "I")
        elif token[0].isdigit() or token[0] == "." and len(token) > 1:
            words.append("N")
        else:
            words.append("S" if token[0] in "\"'" else token)
    text = " ".join(words)
    return text if re.search(r"\w", text) else ""


def repeats(source: Source) -> list[tuple[int, int, int, int]]:
    """Pairs of places: the first and last line of each."""
    rows: list[tuple[int, str, int]] = []  # line, form, function
    for number, f in enumerate(source.functions):
        rows += [(i, form(source.code[i]), number) for i in range(f.first, f.last + 1)
                 if not source.table[i] and form(source.code[i])]
    at: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(rows) - RUN + 1):
        if rows[i][2] == rows[i + RUN - 1][2]:
            at.setdefault(tuple(r[1] for r in rows[i:i + RUN]), []).append(i)

    def alike(i: int, j: int, by: int) -> bool:
        return (rows[i + by][1] == rows[j + by][1] and rows[i + by][2] == rows[i][2]
                and rows[j + by][2] == rows[j][2])

    found = []
    for places in at.values():
        for a, i in enumerate(places):
            for j in places[a + 1:]:
                if j - i < RUN or (i > 0 and alike(i, j, -1)):
                    continue
                n = RUN
                while j + n < len(rows) and n < j - i and alike(i, j, n):
                    n += 1
                found.append((n, i, j))
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    kept: list[tuple[int, int, int]] = []
    for n, i, j in found:
        if not any(a - n < i < a + m and b - n < j < b + m for m, a, b in kept):
            kept.append((n, i, j))
    return sorted((rows[i][0] + 1, rows[i + n - 1][0] + 1, rows[j][0] + 1, rows[j + n - 1][0] + 1)
                  for n, i, j in kept)


# ---- sections: only those above, and one for the system ------------------------------------------

NOT_DEFINED = re.compile(r":\d+:\d+: .*?[‘'](\w+)[’'].*(?:used but never defined|is not defined)"
                         r"|:\d+:\d+: error: (.*)")
SYSTEMS = "unix|unix__|linux__|APPLE__|WIN32|WIN64|MSC_VER|FreeBSD__|OpenBSD__|ANDROID__|HAVE_POSIX"
HEADERS = "dirent fcntl poll pthread spawn termios unistd windows io direct".split()
NOT_C = """access alarm chdir chmod close closedir dup dup2 execv execve execvp fchmod fcntl fdatasync
    fdopen fileno flock fork fseeko fstat fsync ftello ftruncate futimens getcwd getline getpid
    getrusage gettimeofday getuid gmtime_r ioctl isatty kill localtime_r lseek lstat madvise mkdir
    mkstemp mmap mprotect munmap nanosleep open opendir pclose pipe poll popen posix_madvise
    posix_memalign pread pwrite read readdir readlink realpath rmdir select setenv setitimer
    sigaction sigemptyset sigprocmask sleep stat statvfs strcasecmp strdup strncasecmp strndup
    symlink sysconf tcgetattr tcsetattr ttyname umask uname unlink unsetenv usleep utimes wait
    waitpid write""".split()
OF_A_SYSTEM = re.compile(rf"\b_*(?:{SYSTEMS})\b|# *include *<(?:sys/|(?:{'|'.join(HEADERS)})\.h)"
                         rf"|(?<![.>\w])(?:{'|'.join(NOT_C)})\s*\("
                         r"|\bstruct (?:stat|termios|dirent|pollfd|winsize|sigaction)\b"
                         r"|\b(?:O_RDONLY|O_CREAT|SIGHUP|SIGPIPE|SIGALRM|SIGWINCH|SIGBUS|ssize_t|off_t|mode_t)\b")


def names_from_below(run: Source) -> list[str]:
    """What each section uses of those below it: run.c is read up to where the next one begins."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = "-x c -std=gnu11 -fsyntax-only -DRUN_STATIC -DRUN_SCALAR -Wno-unused-function -".split()
    found: dict[str, int] = {}
    for i, section in enumerate(run.section):
        if section < 3 or section == run.section[i - 1]:
            continue
        text = "\n".join([*run.lines[:i], "#endif", "#endif", ""])
        said = subprocess.run(compiler + flags, input=text, text=True, capture_output=True).stderr
        for m in NOT_DEFINED.finditer(said):
            found.setdefault(m[1] or m[2], section - 1)
    return [f"section {section} uses {name}" for name, section in found.items()]


def systems(run: Source) -> list[str]:
    plain = without_comments("\n".join(run.lines)).split("\n")
    return [f"run.c:{i + 1}: {run.lines[i].strip()}" for i, line in enumerate(plain)
            if run.section[i] not in (0, 2) and OF_A_SYSTEM.search(line)]


# ---- the counts ---------------------------------------------------------------------------------

class Report:
    def __init__(self, quiet: bool, every: bool):
        self.quiet, self.every, self.passed, self.wrong, self.hints = quiet, every, 0, [], []

    def info(self, text: str) -> None:
        if not self.quiet:
            print(text)

    def offenders(self, texts: list[str]) -> None:
        if self.every:
            print(*(f"       {t}" for t in texts), sep="\n", end="\n" if texts else "")

    def check(self, what: str, count: int, detail: str, listed: list[str]) -> None:
        limit, goal = LIMITS[what]
        text = f"{what:32}{count:5}   limit {limit}" + (f", goal {goal}" if goal < limit else "")
        text += f"   {detail}" if detail else ""
        if count > limit:
            self.wrong.append(f"FAIL   {text}")
            self.wrong += [] if self.every else [f"       {t}" for t in listed[:30]]
        else:
            self.passed += 1
            if count < limit and limit > goal:
                self.hints.append(f"hint   {what}: lower its limit in tests/shape.py"
                                  f" to {max(count, goal)}")
        self.info(f"{'FAIL' if count > limit else 'ok':7}{text}")
        self.offenders(listed)

    def end(self) -> int:
        """What is wrong once more, where it is seen."""
        failed = sum(line.startswith("FAIL") for line in self.wrong)
        print(*self.hints, *self.wrong, f"{self.passed} passed, {failed} failed", sep="\n")
        return failed > 0


def pages(report: Report, name: str, source: Source, lines: list[int]) -> None:
    wide = sum(source.width(i) > WIDTH for i in lines)
    tall = sum(source.height(i) for i in lines)
    several = sum(source.statements[i] > 1 for i in lines)
    report.info(f"       {name:26}{tall:6} lines at {WIDTH} columns"
                f" ({len(lines)} in the file, {wide} wider, {several} with several statements)")
    report.offenders([f"{source.path.name}:{i + 1}: {source.width(i)} columns,"
                      f" {source.statements[i]} statements" for i in lines if source.height(i) > 1])


def structs(report: Report, run: Source) -> None:
    largest = (0, "none")
    for name in PARTS_OF:
        parts, own = parts_of(run, name), members_of(run.structs.get(name, ""))
        largest = max([largest, *((n, part) for part, n in parts.items())])
        nested = ", ".join(f"{part} {n}" for part, n in parts.items())
        report.check(f"members of {name}", len(own) if own else 999,
                     f"with parts {len(own) + sum(parts.values())}: {nested or 'none'}",
                     [f"{name}.{member}" for member, _ in own])
    report.check("members of the largest part", largest[0], largest[1], [])
    others = sorted(((len(members_of(body)), s) for s, body in run.structs.items()
                     if s not in PARTS_OF), reverse=True)
    large = ", ".join(f"{s} {n}" for n, s in others if n > 16)
    report.info(f"       other large structs        {large}")
    report.offenders([f"{s} {n}" for n, s in others])


def option_table(report: Report, run: Source) -> None:
    rows = [(i, m[1]) for i, line in enumerate(run.code)
            if (m := re.match(r"\s*X\((O_.*)\)\s*$", line))]
    if rows:
        columns = len(top_level(rows[0][1], ","))
        report.info(f"       table of options           {len(rows)} rows of {columns} columns,"
                    f" up to {max(run.width(i) for i, _ in rows)} characters wide")


def functions(report: Report, run: Source) -> None:
    tall = sorted((f for f in run.functions if run.section[f.first] != 5), key=lambda f: -f.length)
    longest = next(f for f in tall if f.name != "forward")
    report.check("longest function", longest.length, f"{longest.name}, line {longest.first + 1}",
                 [f"run.c:{f.first + 1}: {f.name}, {f.length} lines" for f in tall
                  if f.length > 60])
    forward = max((f.length for f in tall if f.name == "forward"), default=999)
    report.check("lines of forward", forward, "", [])
    many = [f for f in run.functions if f.arguments >= MANY]
    outside = [f.name for f in many if run.section[f.first] != 5]
    report.check(f"functions with {MANY} arguments", len(many),
                 f"outside section 5: {', '.join(outside) or 'none'}",
                 [f"run.c:{f.first + 1}: {f.name}, {f.arguments} arguments" for f in many])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tree", type=Path, default=ROOT)
    args = parser.parse_args()
    report = Report(args.quiet, args.list)
    run, train = Source(args.tree / "run.c"), Source(args.tree / "train_tiny.c")
    pages(report, "run.c without section 5", run, [i for i, s in enumerate(run.section) if s != 5])
    pages(report, "section 5 of run.c", run, [i for i, s in enumerate(run.section) if s == 5])
    pages(report, "train_tiny.c", train, list(range(len(train.lines))))
    structs(report, run)
    option_table(report, run)
    functions(report, run)
    below = names_from_below(run)
    report.check("names from below", len(below), "", below)
    outside = systems(run)
    report.check("systems outside section 2", len(outside), "", outside)
    pairs = repeats(run)
    report.check("repeats", len(pairs), "",
                 [f"run.c: lines {a}-{b} and {c}-{d}" for a, b, c, d in pairs])
    more = repeats(train)
    report.info(f"       repeats in train_tiny.c    {len(more):5}")
    report.offenders([f"train_tiny.c: lines {a}-{b} and {c}-{d}" for a, b, c, d in more])
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
