#!/usr/bin/env python3
"""Files: what is read, written, replaced and left alone.

    files.py [-v] [PROGRAM]    (./run; standard library only)
"""
from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chat
import cli
from cli import PROMPT, QWEN, TINY, check, ran, refused, run, write

CHAT = Path()  # tiny.gguf with a chat template
MASK = 2 ** 64 - 1
CACHED = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}-[1-9][0-9]*\.gla")


def folder(name: str) -> Path:
    path = cli.tmp / name
    path.mkdir()
    return path


def contents(path: Path) -> dict[str, object]:
    """Everything in a folder: what a name is, and what is in it."""
    def one(p: Path) -> object:
        mode = p.lstat().st_mode
        if stat.S_ISLNK(mode):
            return os.readlink(p)
        return p.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return {p.name: one(p) for p in path.iterdir()}


def sentence(p: subprocess.CompletedProcess, what: str, code: int = 1, message: str = "") -> None:
    """It failed with one sentence behind whatever else it said, and by itself."""
    begin = os.path.basename(cli.program) + ": "
    lines = p.stderr.decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(begin)]
    check(p.returncode == code and len(said) == 1 and message in said[0], what,
          (p.returncode, p.stderr[-400:]))


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True)


# ---- the prompt cache ----------------------------------------------------------------------------

TEXT = ["-i", PROMPT + " and then", "-n", 3, "-s", 1]


def cached(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if CACHED.fullmatch(name))


def test_cache_names() -> None:
    """Only names that the cache itself writes count and leave."""
    d = folder("foreign")
    ran(TINY, "-i", "A first conversation", "-n", 20, "-s", 1, "--save-state", d / "mychat.gla")
    f = "f" * 16
    others = ["thesis.gladly.txt", "model.gla.gguf", "chat.gla", ".gla", "x.gla.tmp",
              "two\nlines.gla", "0x1-0x2-3.gla", "-1--1--1.gla", " 1- 2-3.gla", "%n%n.gla", "\x1b[31m.gla",
              "9" * 200 + ".gla", f"{f}-{f}-99999999999999999999999.gla", f"{f.upper()}-{f}-5.gla",
              f"{f}-{f}-05.gla", f"{f}-{f}-0.gla", f"{f}-{f}-5.gla.bak", f"{f}-{f}-5.gla.1.tmp",
              "a" * 16 + "-" + "b" * 16 + "-5.gla"]
    for name in others:
        (d / name).write_bytes(b"precious" * 5000)
    (d / ("c" * 16 + "-" + "d" * 16 + "-5.gla")).write_bytes(b"")
    for name in os.listdir(d):
        os.utime(d / name, (0, 0))
    before = contents(d)
    sizes = []
    for i in range(4):
        p = run(TINY, "-i", f"Prompt number {i}", "-n", 1, "-s", 1, "--prompt-cache", d,
                "--cache-bytes", "90K")
        check(p.returncode == 0 and b"not cached" not in p.stderr, "files of others do not count",
              p.stderr)
        sizes.append(sum((d / name).stat().st_size for name in cached(d) if name not in before))
    check(max(sizes) <= 90 * 1024 and sizes[-1] > 20000, "the cache keeps its bound", sizes)
    after = contents(d)
    check(all(after.get(name) == was for name, was in before.items()), "files of others stay",
          [n for n in before if after.get(n) != before[n]])
    check(all((d / name).stat().st_mtime == 0 for name in before), "nor are they touched")
    check(all(CACHED.fullmatch(name) for name in set(after) - set(before)), "nothing else is left",
          sorted(set(after) - set(before)))


def places(path: Path) -> dict[str, tuple[int, ...]]:
    """What is in a folder, and whether anybody wrote there."""
    found = {p.name: p.lstat() for p in path.iterdir()}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def test_cache_in_the_way() -> None:
    """A link, a pipe, a folder, a socket or a stranger's file that has the name of a snapshot."""
    plain = run(TINY, *TEXT)
    d = folder("names")
    ran(TINY, *TEXT, "--prompt-cache", d)
    names = cached(d)
    check(len(names) == 2, "two snapshots", names)
    victim = write("victim", "victim content")

    def linked(p: Path) -> None: p.symlink_to(victim)
    def dangling(p: Path) -> None: p.symlink_to(cli.tmp / "not there")
    def pipe(p: Path) -> None: os.mkfifo(p)
    def stranger(p: Path) -> None: p.write_bytes(b"my own text")
    def sparse(p: Path) -> None: p.touch(), os.truncate(p, 1 << 34)
    def device(p: Path) -> None: p.symlink_to("/dev/zero")
    def bound(p: Path) -> None:
        here = os.getcwd()
        os.chdir(p.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(p.name)
        os.chdir(here)

    for k, make in enumerate((linked, dangling, pipe, Path.mkdir, stranger, sparse, device, bound)):
        d = folder(f"way{k}")
        for name in names:
            make(d / name)
        before = places(d)
        p = run(TINY, *TEXT, "--prompt-cache", d)
        check(p.stdout == plain.stdout, f"{make.__name__}: the text comes all the same", p.stderr)
        sentence(p, f"{make.__name__}: one message, exit 1", message="not cached")
        check(places(d) == before, f"{make.__name__}: nothing is written or removed", os.listdir(d))
    check(victim.read_text() == "victim content" and not (cli.tmp / "not there").exists(),
          "nothing is followed")
    # names of temporary files
    d = folder("temporaries")
    name = lambda i: f"{names[0]}.{i:016x}.tmp"  # noqa: E731
    (d / name(1)).symlink_to(victim)
    os.mkfifo(d / name(2))
    (d / name(3)).write_bytes(b"my own text")
    (d / f"{names[0]}.tmp").write_bytes(b"my own text")
    (d / f"{names[0]}.7.tmp").write_bytes(b"GLASTATE")
    stays = contents(d)
    (d / name(4)).write_bytes(b"GLASTATE, cut short")  # of programs that were killed
    (d / name(5)).write_bytes(b"")
    (d / name(6)).write_bytes(b"GLASTATE, being written")
    import fcntl
    with open(d / name(6), "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        ran(TINY, *TEXT, "--prompt-cache", d)
        check((d / name(6)).exists(), "a temporary file that is being written stays")
    after = contents(d)
    check(all(after.get(n) == was for n, was in stays.items()),
          "what only looks like a temporary file stays", after.keys())
    check(name(4) not in after and name(5) not in after and len(cached(d)) == 2,
          "what killed programs left is removed", after.keys())


def test_cache_together() -> None:
    """Several programs on one folder, which has room for two snapshots: nobody's save is broken."""
    d = folder("together")
    text = "once upon the time " * 8
    bound = 200 * 1024
    want: dict[int, bytes] = {}
    for _ in range(3):
        jobs = [subprocess.Popen([cli.program, TINY, "-i", text + "x" * i, "-n", "4", "-s", "2",
                                  "--prompt-cache", d, "--cache-bytes", str(bound)],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(8)]
        for i, job in enumerate(jobs):
            out, err = job.communicate(timeout=60)
            well = job.returncode == 0 and b"not cached" not in err
            check(well and want.setdefault(i, out) == out, f"program {i}",
                  (job.returncode, err[-300:]))
        check(sum((d / name).stat().st_size for name in os.listdir(d)) <= bound,
              "the bound is kept", os.listdir(d))
        check(len(cached(d)) == len(os.listdir(d)), "no temporary file is left", os.listdir(d))


# ---- files that are written ----------------------------------------------------------------------

def test_temporary_files() -> None:
    d = folder("out")
    ids = write("ids", "1 2 3")
    kinds = [("a session", ["-i", "x", "-n", 2, "-s", 0, "--save-state"]),
             ("logits", ["-m", "logits", "--ids", ids, "--out"])]
    for what, args in kinds:
        (d / "s.tmp").write_bytes(b"mine")
        (d / "victim").write_bytes(b"mine")
        ran(TINY, *args, d / "s")
        check((d / "s.tmp").read_bytes() == b"mine", f"{what}: a file called s.tmp stays")
        (d / "s.tmp").unlink()
        (d / "s.tmp").symlink_to(d / "victim")
        ran(TINY, *args, d / "s")
        check((d / "s.tmp").is_symlink() and (d / "victim").read_bytes() == b"mine",
              f"{what}: nor is a link followed")
        check({p.name for p in d.iterdir()} == {"s", "s.tmp", "victim"},
              f"{what}: nothing else is left", list(d.iterdir()))
        (d / "s").chmod(0o600)
        ran(TINY, *args, d / "s")
        check(stat.S_IMODE((d / "s").stat().st_mode) == 0o600,
              f"{what}: a private file stays private")
        for path in d.iterdir():
            path.unlink()
        for name in ("n" * 255, "\u00e4" * 127, "-n", " ", "a\nb", "\udcff\udc80"):
            target = d / name
            try:
                target.touch()
            except OSError:
                continue  # not on this file system
            target.unlink()
            ran(TINY, *args, target)
            check(target.exists() and len(list(d.iterdir())) == 1, f"{what}: the name {name[:9]!r}",
                  list(d.iterdir()))
            target.unlink()
        for name in ("n" * 256, "x/" + "n" * 3000, "n" * 5000, "no/folder", "", "new/", "."):
            p = run(TINY, *args, f"{d}/{name}" if name else "")
            sentence(p, f"{what}: the name {name[:9]!r} is refused before the work", message="n")
            check(not p.stdout and not list(d.iterdir()), f"{what}: and nothing is left",
                  list(d.iterdir()))
        os.mkfifo(d / "pipe")
        sentence(run(TINY, *args, d / "pipe"), f"{what} to a pipe", message="regular")
        sentence(run(TINY, *args, "/dev/null"), f"{what} to a device", message="regular")
        (d / "pipe").unlink()
    if os.geteuid():
        locked = d / "locked"
        locked.write_bytes(b"mine"), locked.chmod(0o400)
        sentence(run(TINY, *kinds[0][1], locked), "a write-protected file is not replaced",
                 message="cannot write")
        check(locked.read_bytes() == b"mine", "and stays")


def test_killed() -> None:
    """kill -9 while logits are written: the old file is whole, one stray file at most."""
    d, rng = folder("killed"), random.Random(1)
    ids = write("many", " ".join(["5"] * 1000))
    args = [cli.program, TINY, "-m", "logits", "--ids", ids, "--out", d / "logits", "-c", "2000",
            "-b", "16"]
    subprocess.run(args, capture_output=True, check=True)
    old = (d / "logits").read_bytes()
    for k in range(8):
        before = set(d.iterdir())
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and len(set(d.iterdir()) - before) < 1:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.02)
        p.kill(), p.wait()
        check((d / "logits").read_bytes() == old and len(set(d.iterdir()) - before) <= 1,
              f"killed, run {k}", list(d.iterdir()))


def test_second_interrupt() -> None:
    """The second Ctrl-C ends at once, and leaves no file."""
    d = folder("interrupted")
    ids = write("many", " ".join(["5"] * 60000))
    for k in range(6):
        p = subprocess.Popen([cli.program, TINY, "-m", "logits", "--ids", ids, "--out",
                              d / "logits", "-c", "70000", "-b", "4096"], stderr=subprocess.PIPE)
        while p.poll() is None and not list(d.iterdir()):
            time.sleep(0.0005)
        for _ in range(2 + k % 2):
            p.send_signal(signal.SIGINT)
            time.sleep(0.0003 * k)
        p.communicate(timeout=60)
        check(p.returncode in (-signal.SIGINT, 128 + signal.SIGINT) and not list(d.iterdir()),
              f"Ctrl-C twice, run {k}", (p.returncode, list(d.iterdir())))


def test_strangers() -> None:
    """A session replaces a session or an empty file. Whatever else has that name stays."""
    d = folder("strangers")
    text, empty, cut = d / "thesis.txt", d / "empty", d / "cut"
    text.write_text("mine")
    empty.write_bytes(b"")
    cut.write_bytes(b"GLAST")
    for mode in (["-i", "x"], ["-m", "chat", "-i", "x"]):
        for path in (text, cut):
            before = path.read_bytes()
            refused(1, f"a stranger {path.name}", TINY, *mode, "-n", 2, "--save-state", path,
                    message="is no session and would be replaced")
            check(path.read_bytes() == before, f"{path.name} stays")
        for _ in range(2):
            ran(TINY, *mode, "-n", 2, "--save-state", empty)
    p = run(TINY, "-m", "chat", "-n", 2, stdin=f"hi\n/save {text}\n".encode())
    check(b"is no session" in p.stderr and text.read_text() == "mine", "/save onto a stranger", p.stderr)
    check(sorted(f.name for f in d.iterdir()) == ["cut", "empty", "thesis.txt"], "nothing is left")


def test_in_use() -> None:
    """An output that is an input, under its name, another spelling, a hard or a symbolic link."""
    d = folder("used")
    files = {"model": d / "m.gguf", "vocabulary": d / "v.gguf", "ids": d / "ids",
             "text": d / "text", "session": d / "old", "messages": d / "told"}
    (d / "sub").mkdir()
    for name in ("model", "vocabulary"):
        files[name].write_bytes(TINY.read_bytes())
    files["ids"].write_text("1 2 3")
    files["text"].write_text(PROMPT)
    files["messages"].write_text('[{"role": "user", "content": "x"}]')
    m, v, ids, text, old, told = files.values()
    ran(m, "-i", "x", "-n", 2, "--save-state", old)
    talk, logits = [m, "-z", v, "-n", 2], [m, "-z", v, "-m", "logits", "--ids", ids]
    cases = [("model", [*talk, "-i", "x", "--save-state"]),
             ("vocabulary", [*talk, "-i", "x", "--save-state"]),
             ("text", [*talk, "-f", text, "--save-state"]),
             ("messages", [*talk, "-m", "chat", "--messages", told, "--save-state"]),
             ("model", [*logits, "--out"]),
             ("vocabulary", [*logits, "--out"]),
             ("ids", [*logits, "--out"]),
             ("session", [*logits, "--load-state", old, "--out"]),
             ("ids", [*logits, "--out", d / "new", "--save-state"])]
    before = contents_of_files(d)
    for name, args in cases:
        path = files[name]
        os.link(path, d / "hard"), (d / "soft").symlink_to(path.name)
        for spelling in (path, d / "hard", d / "soft", f"{d}/sub/../{path.name}",
                         f"{d}//./{path.name}"):
            refused(2, f"{args[-1]} {os.path.basename(str(spelling))} over the {name}", *args,
                    spelling, message="in use")
        refused(2, "a relative name", *args, path.name, message="in use", cwd=d)
        (d / "hard").unlink(), (d / "soft").unlink()
    refused(2, "--save-state over --out", *logits, "--out", d / "new", "--save-state",
            f"{d}/sub/../new", message="both")
    refused(2, "--save-state over the cache", *talk, "-i", "x", "--prompt-cache", d / "new",
            "--save-state", d / "new", message="both")
    with open(text, "rb") as f:
        p = subprocess.run([cli.program, m, "-i", "-", "-n", "2", "--save-state", text], stdin=f,
                           capture_output=True)
        check(p.returncode == 2 and b"in use" in p.stderr, "--save-state over standard input",
              p.stderr)
    with open(d / "log", "wb") as f:
        p = subprocess.run([cli.program, m, "-i", "x", "-n", "2", "--save-state", d / "log"],
                           stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.PIPE)
        check(p.returncode == 2 and b"in use" in p.stderr, "--save-state over standard output",
              p.stderr)
    with open(m, "ab") as f:
        p = subprocess.run([cli.program, m, "-i", "x", "-n", "2"], stdin=subprocess.DEVNULL,
                           stdout=f, stderr=subprocess.PIPE)
        check(p.returncode == 2 and b"standard output" in p.stderr,
              "standard output over the model", p.stderr)
    (d / "log").unlink()
    model = d / "c.gguf"
    model.write_bytes(CHAT.read_bytes())
    script = f"hi\n/save {model}\n/save {d}/sub/../c.gguf\n/save {v}\n".encode()
    p = run(model, "-z", v, "-m", "chat", "-n", 2, "-s", 1, stdin=script)
    check(p.returncode == 1 and p.stderr.count(b"in use") == 3, "/save over what is read", p.stderr)
    check(model.read_bytes() == CHAT.read_bytes(), "and it is as it was")
    (d / "tokenizer.bin").write_bytes(b"a vocabulary")
    refused(2, "--save-state over ./tokenizer.bin", m, "-i", "x", "--save-state", "tokenizer.bin",
            message="in use", cwd=d)
    (d / "tokenizer.bin").unlink(), model.unlink()
    check(contents_of_files(d) == before, "all files are as they were", contents_of_files(d).keys())
    ran(m, "-i", "x", "-n", 2, "--load-state", old, "--save-state", old)
    check(old.read_bytes() != before["old"], "a session may replace the one that was loaded")
    ran(m, "-n", 2, "--load-state", old)
    p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1,
            stdin=f"hi\n/save {d}/talk\n/load {d}/talk\nho\n/save {d}/talk\n".encode())
    check(p.returncode == 0, "and in a chat", p.stderr)


def contents_of_files(d: Path) -> dict[str, object]:
    return {name: what for name, what in contents(d).items() if isinstance(what, bytes)}


# ---- files that are read -------------------------------------------------------------------------

def test_irregular() -> None:
    """A model, a vocabulary and a session are files; anything else is refused at once."""
    d = folder("irregular")
    os.mkfifo(d / "pipe")
    here = os.getcwd()
    os.chdir(d)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    os.chdir(here)
    (d / "link").symlink_to("pipe")
    (d / "loop").symlink_to("loop")
    for path in (d / "pipe", d / "link", d / "socket", d, d / "loop", "/dev/zero", "/dev/null",
                 "/dev/full"):
        begin = time.monotonic()
        refused(1, f"a model that is {path}", path, "-i", "x")
        refused(1, f"a vocabulary that is {path}", TINY, "-z", path, "-i", "x")
        sentence(run(TINY, "-n", 1, "--load-state", path), f"a session that is {path}")
        p = run(CHAT, "-m", "chat", "-n", 1, "-s", 1, stdin=f"/load {path}\n".encode())
        check(p.returncode == 1 and str(path).encode() in p.stderr, f"/load {path}", p.stderr)
        check(time.monotonic() - begin < 5, f"{path}: at once")
    link = d / "model"
    link.symlink_to(TINY)
    ran(link, "-i", "x", "-n", 1)  # a link to a file is a file
    p = shell(f'"{cli.program}" <(cat "{TINY}") -i x')
    check(p.returncode == 1 and b"a pipe" in p.stderr, "a model from a pipe", p.stderr)


def test_text() -> None:
    """Text may come from a pipe; one without an end is not followed for ever."""
    want = ran(TINY, "-i", PROMPT, "-n", 3, "-s", 1)
    p = shell(f'"{cli.program}" "{TINY}" -n 3 -s 1 -f <(printf %s "{PROMPT}")')
    check(p.returncode == 0 and p.stdout == want, "-f <(...)", p.stderr)
    check(ran(TINY, "-n", 3, "-s", 1, "-i", "-", stdin=PROMPT.encode()) == want, "-i -")
    p = shell(f'"{cli.program}" "{TINY}" -m tokenize --ids <(echo 1 2 3)')
    check(p.returncode == 0, "--ids <(...)", p.stderr)
    sentence(run(TINY, "-f", cli.tmp), "a folder as text")
    os.mkfifo(cli.tmp / "nobody")
    sentence(run(TINY, "-f", cli.tmp / "nobody"), "a pipe to which nobody writes",
             message="nothing writes")
    args = f'"{cli.program}" "{TINY}" -n 3 -s 1 -f "{cli.tmp}/nobody"'
    p = shell(f'(sleep 0.3; printf "%s" "{PROMPT}" >"{cli.tmp}/nobody") & {args}')
    check(p.returncode == 0 and p.stdout == want, "a pipe whose writer comes a little later",
          p.stderr)
    sentence(run(TINY, "-f", "/dev/zero"), "-f /dev/zero", message="64 MB")
    sentence(run(TINY, "-m", "tokenize", "--ids", "/dev/zero"), "--ids /dev/zero", message="64 MB")
    with open("/dev/zero", "rb") as zero:
        read, end = os.pipe()
        cat = subprocess.Popen(["cat"], stdin=zero, stdout=end, stderr=subprocess.DEVNULL)
        os.close(end)
        p = subprocess.Popen([cli.program, CHAT, "-m", "chat", "-n", "1"], stdin=read,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(read)
        out, err = p.communicate(timeout=60)
        cat.kill(), cat.wait()
    sentence(subprocess.CompletedProcess([], p.returncode, out, err), "a message without an end",
             message="64 MB")


def test_shrinks() -> None:
    """A model becomes shorter while it is used: a sentence, exit 1, all as before."""
    d = folder("shrinks")
    model, big = d / "model.gguf", TINY.read_bytes()

    def shrink(p: subprocess.Popen, out: int, ready: bytes) -> bytes:
        seen = b""
        while ready not in seen and (data := os.read(out, 4096)):
            seen += data
        os.truncate(model, 4096)
        return seen

    model.write_bytes(CHAT.read_bytes())
    p = subprocess.Popen([cli.program, model, "-m", "chat", "-n", "3", "-s", "1"],
                         stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    shrink(p, p.stderr.fileno(), b"template")
    out, err = p.communicate(b"hello\n", timeout=60)
    check(p.returncode == 1 and err.count(b"shorter") == 1 and err.endswith(b"\n"),
          "a model shrinks under a chat", (p.returncode, err))
    model.write_bytes(big)
    ids = write("many", " ".join(["5"] * 6000))
    p = subprocess.Popen([cli.program, model, "-m", "logits", "--ids", ids, "--out", d / "logits",
                          "-c", "8000", "-b", "1", "-j", "2"], stderr=subprocess.PIPE)
    while p.poll() is None and not list(d.glob("logits*")):
        time.sleep(0.0005)
    os.truncate(model, 4096)
    out, err = p.communicate(timeout=60)
    check(p.returncode == 1 and err.count(b"shorter") == 1, "a model shrinks under logits",
          (p.returncode, err))
    check(os.listdir(d) == ["model.gguf"], "and no file is left", os.listdir(d))
    import pty
    import termios
    master, slave = pty.openpty()
    before = termios.tcgetattr(master)
    model.write_bytes(CHAT.read_bytes())
    p = subprocess.Popen([cli.program, model, "-m", "chat", "-n", "3", "-s", "1"], stdin=slave,
                         stdout=slave, stderr=slave, start_new_session=True)
    shrink(p, master, b"> ")
    os.write(master, b"hello\r")
    seen = read_terminal(p, master)
    check(p.returncode == 1 and seen.count(b"shorter") == 1, "and on a terminal",
          (p.returncode, seen))
    check(termios.tcgetattr(master)[:4] == before[:4], "which is as it was")
    os.close(master), os.close(slave)


def read_terminal(p: subprocess.Popen, master: int) -> bytes:
    """All that a program writes until it ends."""
    seen, end = b"", time.monotonic() + 30
    while time.monotonic() < end:
        ended = p.poll() is not None
        if select.select([master], [], [], 0 if ended else 0.02)[0]:
            seen += os.read(master, 65536)
        elif ended:
            break
    p.kill(), p.wait()
    return seen


# ---- what is shown -------------------------------------------------------------------------------

def edited(path: Path, key: bytes = b"", value: bytes = b"", weight: float | None = None) -> Path:
    """tiny.gguf with another text under a key, and another first weight of the last norm."""
    data = TINY.read_bytes()
    string = lambda s: struct.pack("<Q", len(s)) + s  # noqa: E731
    n_tensors, = struct.unpack_from("<Q", data, 8)
    end = data.index(string(b"token_embd.weight"))  # the first of the tensors' records
    norm = 0
    for _ in range(n_tensors):
        length, = struct.unpack_from("<Q", data, end)
        n_dims, = struct.unpack_from("<I", data, end + 8 + length)
        if data[end + 8:end + 8 + length] == b"output_norm.weight":
            norm, = struct.unpack_from("<Q", data, end + 8 + length + 4 + 8 * n_dims + 4)
        end += 8 + length + 4 + 8 * n_dims + 4 + 8
    head, weights = data[:end], bytearray(data[-(-end // 32) * 32:])
    if weight is not None:
        weights[norm:norm + 4] = struct.pack("<f", weight)
    if key:
        at = head.index(string(key)) + 8 + len(key) + 4
        n, = struct.unpack_from("<Q", head, at)
        head = head[:at] + string(value) + head[at + 8 + n:]
    path.write_bytes(head + bytes(-len(head) % 32) + weights)
    return path


def on_terminal(*args: object, stdin: bytes = b"") -> tuple[int, bytes]:
    """What a run shows whose standard output and error are a terminal; its line ends as written."""
    import pty
    import termios
    master, slave = pty.openpty()
    how = termios.tcgetattr(slave)
    how[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, how)
    p = subprocess.Popen([cli.program, *map(str, args)], stdin=subprocess.PIPE, stdout=slave,
                         stderr=slave)
    p.stdin.write(stdin), p.stdin.close()
    seen = read_terminal(p, master)
    os.close(master), os.close(slave)
    return p.returncode, seen


def commands(text: bytes) -> list[str]:
    """Control characters in it, but for ends of lines and tabs."""
    codes = [ord(c) for c in text.decode("utf-8", "surrogateescape") if c not in "\n\t"]
    return [f"U+{c:04X}" for c in codes if c < 32 or 127 <= c < 160 or 0xdc80 <= c <= 0xdcff]


NASTY = (b"x\x1b]0;pwned\x07\x1b[31m\nparameters 7\r\x9b31m\xc2\x9b31m\xff\x7f\x0b"
         b"\xe2\x80\xa8\xc3\xa4")
SHOWN = "x^[]0;pwned^G^[[31m^Jparameters 7^M<9B>31m<U+009B>31m<FF>^?^K<U+2028>\u00e4"


def test_info() -> None:
    model = edited(cli.tmp / "name.gguf", b"general.name", NASTY)
    plain = ran(TINY, "-m", "info").decode().splitlines()
    shown = ran(model, "-m", "info")
    lines = shown.decode().splitlines()
    check(not commands(shown) and len(lines) == len(plain), "-m info: a line for each key", shown)
    others = lambda them: [w for w in them if not w.startswith(("name", "file_bytes"))]
    check(others(lines) == others(plain), "and they are the model's", lines)
    check("name " + SHOWN in lines, "what commands a terminal is shown", lines)
    check(not commands(on_terminal(model, "-m", "info")[1]), "on a terminal, too")
    for key in (b"general.architecture", b"tokenizer.ggml.pre", b"tokenizer.ggml.model",
                b"gla.mixer.output_gate"):
        p = run(edited(cli.tmp / "name.gguf", key, NASTY), "-i", "x")
        check(p.returncode == 1 and p.stderr.count(b"\n") == 1 and not commands(p.stderr),
              f"a message about {key.decode()}", p.stderr)
    name = "\u00e9t\u00e9 \u2603"
    p = run(cli.tmp / name, "-i", "x")
    check(name.encode() in p.stderr, "a message keeps the letters of a name", p.stderr)
    for args in (["-m", NASTY], ["-i", "x", "--" + "\x1b[31m\nx"], ["-i", "x", "-f", NASTY]):
        p = run(TINY, *[a.decode(errors="surrogateescape") if isinstance(a, bytes) else a for a in args])
        clean = p.stderr.count(b"\n") == 1 and not commands(p.stderr)
        check(p.returncode == 2 and clean, "misuse: one clean line", p.stderr)
    p = run(cli.tmp / ("n" * 900), "-i", "x")
    check(b"such file" in p.stderr or b"too long" in p.stderr,
          "a long name does not hide what is wrong", p.stderr)


def test_terminal() -> None:
    """Text of a model on a terminal, and in a pipe."""
    for raw in (b"\x1b", b"\x07", b"\x9b", b"\x90", b"\x7f", b"\xc2\x9b", b"\xff", b"\r"):
        ids = [int(i) for i in ran(TINY, "-m", "tokenize", "-i", "-", stdin=b"a" + raw).split()][1:]
        if len(ids) != len(raw):
            check(False, f"{raw!r} is {len(raw)} tokens", ids)
            continue
        wish = [w for i, id in enumerate(ids) for w in ("--logit-bias", f"{id}={1000 - i}")]
        args = [TINY, "-i", PROMPT, "-n", len(raw), "-t", 0, "--presence-penalty", 100, *wish]
        check(ran(*args) == raw + b"\n", f"{raw!r} in a pipe is as it is", ran(*args))
        code, seen = on_terminal(*args)
        check(code == 0 and not commands(seen.replace(b"\r\x1b[K", b"")), f"{raw!r} on a terminal",
              seen)
        code, seen = on_terminal(CHAT, *args[1:], "-m", "chat")
        check(code == 0 and not commands(seen.replace(b"\x1b[2m", b"").replace(b"\x1b[0m", b"")),
              f"{raw!r} in a chat", seen)
        numbers = write("numbers", " ".join(map(str, [72, *ids])))
        code, seen = on_terminal(TINY, "-m", "tokenize", "--ids", numbers)
        check(code == 0 and not commands(seen), f"{raw!r} as text of ids", seen)
        check(raw in ran(TINY, "-m", "tokenize", "--ids", numbers),
              f"{raw!r} as text of ids, in a pipe")
        code, seen = on_terminal(TINY, "-i", "-", "-n", 1, "-s", 1, "--echo", stdin=b"a" + raw)
        check(code == 0 and not commands(seen), f"{raw!r} as an echo", seen)
        code, seen = on_terminal(*args, "--json", "--logprobs", 2)
        check(code == 0 and not commands(seen), f"{raw!r} in JSON", seen)
    code, seen = on_terminal(TINY, "-i", "-", "-n", 1, "-s", 1, "--echo",
                             stdin="a\n\tb \u00e4\u2603\U0001f600".encode())
    check("a\n\tb \u00e4\u2603\U0001f600".encode() in seen, "other text is as it is", seen)


def test_json() -> None:
    """JSON is JSON, whatever the model computes."""
    for weight in (float("nan"), float("inf"), -float("inf")):
        model = edited(cli.tmp / "nan.gguf", weight=weight)
        sentence(run(model, "-i", PROMPT, "-n", 3, "-s", 1), f"a weight of {weight}",
                 message="not a number")
        p = run(model, "-i", PROMPT, "-n", 3, "-s", 1, "--json", "--logprobs", 2)
        sentence(p, f"a weight of {weight}, JSON", message="not a number")
        check(not p.stdout or strict(p.stdout), "JSON or nothing", p.stdout)
        sentence(run(model, "-m", "perplexity", "-i", PROMPT), f"a weight of {weight}, perplexity",
                 message="not a number")
    chat.chat_model(cli.tmp / "chat.gguf")
    for args in (["--logprobs", 5], ["--logprobs", 5, "--logit-bias", "65=-inf"],
                 ["--logprobs", 3, "--logit-bias", "65=1000", "-t", 0]):
        check(strict(ran(TINY, "-i", PROMPT, "-n", 5, "-s", 1, "--json", *args)),
              f"JSON with {args}")


def strict(text: bytes) -> bool:
    def no(constant: str) -> None:
        raise ValueError(constant)
    try:
        return isinstance(json.loads(text, parse_constant=no), dict)
    except ValueError:
        return False


# ---- sessions that are not what they say ---------------------------------------------------------

def checksum(data: bytes, h: int = 0xcbf29ce484222325) -> int:
    whole = len(data) // 8 * 8
    for w, in struct.iter_unpack("<Q", data[:whole]):
        h = (h ^ w) * 0x100000001b3 & MASK
        h ^= h >> 29
    for b in data[whole:]:
        h = (h ^ b) * 0x100000001b3 & MASK
    return h ^ h >> 32


class Session:
    """The parts of a session of tiny.gguf: head, ids, logits, fixed part, keys and values."""
    IDS, POS = 56, 24  # places in the head

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.pos, = struct.unpack_from("<q", data, self.POS)
        body = 271 * 4 + 3200
        kv = (self.pos + 63) // 64 * 64 * 256  # blocks of 64 positions, 256 bytes for each
        rest = len(data) - 8 - 4 * self.pos - body
        self.head_size = rest - kv
        n = 4 * self.pos
        self.head, behind = bytearray(data[:self.head_size]), data[self.head_size:-8]
        self.ids, self.logits, self.rest = behind[:n], behind[n:][:271 * 4], behind[n + 271 * 4:]

    def write(self, path: Path) -> Path:
        """With a checksum that is right: parts are hashed as the program writes them."""
        h = checksum(bytes(self.head))
        for at in range(0, len(self.ids), 4096):
            h = checksum(self.ids[at:at + 4096], h)
        fixed, kv = self.rest[:3200], self.rest[3200:]
        for part in (self.logits, fixed, b"", kv):  # the first layer keeps no keys
            h = checksum(part, h)
        body = bytes(self.head) + self.ids + self.logits + self.rest
        path.write_bytes(body + struct.pack("<Q", h))
        return path


def test_forged_sessions() -> None:
    """Wrong contents under a right checksum: a sentence or an answer, never a crash."""
    made, forged = cli.tmp / "made", cli.tmp / "forged"
    ran(TINY, "-i", PROMPT, "-n", 5, "-s", 1, "--save-state", made)
    s = Session(made)
    s.write(forged)
    check(forged.read_bytes() == made.read_bytes(), "the checksum is understood",
          (s.pos, s.head_size))
    want = ran(TINY, "-n", 4, "-s", 1, "--load-state", made)
    # without its ids, and a prompt cache
    s.head[s.IDS:s.IDS + 8], s.ids = bytes(8), b""
    s.write(forged)
    check(ran(TINY, "-n", 4, "-s", 1, "--load-state", forged) == want, "a session without ids")
    for extra in ([], ["-i", " and more"]):
        d = cli.tmp / f"cache of none{len(extra)}"
        p = run(TINY, "-n", 4, "-s", 1, "--load-state", forged, "--prompt-cache", d, *extra)
        sentence(p, "a session without ids, with a prompt cache", message="no ids")
        check(not d.exists() or not list(d.iterdir()), "nothing is cached under a wrong name")
    p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1, stdin=f"/load {forged}\n".encode())
    check(p.returncode == 1, "a chat wants ids", p.stderr)
    again = cli.tmp / "again"
    ran(TINY, "-n", 2, "-s", 1, "--load-state", forged, "--save-state", again)
    check(run(TINY, "-n", 2, "-s", 1, "--load-state", again).returncode == 0,
          "and may be saved again")
    # Ctrl-C within the first run: none of the ids of this prompt are the session's
    long = write("long", "once upon the time and " * 20000)
    p = subprocess.Popen([cli.program, TINY, *map(str, ["-f", long, "-b", 1 << 18, "-c", 1 << 19,
                         "-s", 1, "--load-state", forged, "--save-state", again])],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    kept = struct.unpack_from("<q", again.read_bytes(), Session.POS)
    ids = struct.unpack_from("<q", again.read_bytes(), Session.IDS)
    check((p.returncode, kept, ids) == (130, (s.pos,), (0,)), "interrupted, without ids",
          (p.returncode, kept, ids))
    # fields, ids, lengths
    rng, ends = random.Random(4), []
    extremes = [0, 1, 2, 255, 271, 272, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 53, 2 ** 62,
                2 ** 63 - 1, 2 ** 63, MASK]
    for k in range(60):
        s = Session(made)
        kind = k % 6
        if kind == 0:
            struct.pack_into("<Q", s.head, rng.choice([24, 32, 40, 48, 56, 64]),
                             rng.choice(extremes))
        elif kind == 1:
            struct.pack_into("<Q", s.head, s.POS,
                             v := rng.choice(extremes)), struct.pack_into("<Q", s.head, s.IDS, v)
        elif kind == 2:
            at = 4 * rng.randrange(s.pos)
            id = struct.pack("<I", rng.choice([271, 2 ** 31, 2 ** 32 - 1]))
            s.ids = s.ids[:at] + id + s.ids[at + 4:]
        elif kind == 3:
            at = rng.randrange(72, s.head_size - 4)
            s.head[at:at + 4] = rng.choice([b"\xff" * 4, b"\0\0\xc0\x7f", b"\xff\xff\xff\x7f"])
        elif kind == 4:
            s.rest = rng.choice([s.rest[:-4], s.rest + b"more", s.rest[:3200],
                                 struct.pack("<f", float("nan")) * (len(s.rest) // 4),
                                 rng.randbytes(len(s.rest))])
        else:
            s.logits = struct.pack("<f", float(rng.choice(["nan", "inf", "-inf", "3e38"]))) * 271
        s.write(forged)
        args = [["-i", "x"], ["--json", "--logprobs", 2], ["--save-state", again],
                ["--prompt-cache", cli.tmp / "forged cache"]][k // 6 % 4]
        p = run(TINY, "-n", 3, "-s", 1, "--load-state", forged, *args)
        ends.append(p.returncode)
        check(p.returncode in (0, 1), f"forged session {k}", (p.returncode, p.stderr[-300:]))
        if p.returncode:
            sentence(p, f"forged session {k}: a sentence")
        if kind == 2:
            check(p.returncode == 1 and b"damaged" in p.stderr, "an id that is none", p.stderr)
        p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1,
                stdin=f"hi\n/load {forged}\nhi\n/save {again}\n".encode())
        check(p.returncode in (0, 1), f"forged session {k} in a chat",
              (p.returncode, p.stderr[-300:]))
    check(0 in ends and 1 in ends, "some load, some do not", ends)


def test_commands() -> None:
    """/save and /system in a chat."""
    d = folder("commands")
    p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1, stdin=b"hi\n/ save notes\n/save  my notes \n",
            cwd=d)
    check(p.returncode == 1 and os.listdir(d) == ["my notes"], "/ save is no command",
          (os.listdir(d), p.stderr))
    p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1,
            stdin=b"hi\n/save " + b"x/" * 4000 + b"y\n/save " + b"z" * 4200 + b"\n", cwd=d)
    check(p.returncode == 1 and p.stderr.count(b"too long") == 2 and len(os.listdir(d)) == 1,
          "a name that is too long is not cut", p.stderr[-300:])
    p = run(CHAT, "-m", "chat", "-n", 2, "-s", 1, "-c", 9000,
            stdin=b"/system " + b"a" * 4500 + b"end\n/system\n")
    check(b"aaaend]" in p.stderr, "nor is a system prompt", p.stderr[-100:])
    args = [CHAT, "-m", "chat", "-n", 2, "-s", 1, "-y", "You are", "-i", "hi"]
    p = run(*args, "--prompt-cache", folder("small"), "--cache-bytes", 100)
    sentence(p, "a chat without room in the cache: one message, exit 1", message="not cached")
    check(p.stdout == ran(*args), "and an answer", p.stdout)


def main() -> int:
    global CHAT
    with tempfile.TemporaryDirectory() as where:
        cli.tmp = Path(where)
        CHAT = cli.tmp / "a chat.gguf"
        chat.chat_model(CHAT)
        return cli.run_tests([test for name, test in globals().items()
                              if name.startswith("test_")])


if __name__ == "__main__":
    sys.exit(main())
