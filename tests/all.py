#!/usr/bin/env python3
"""All checks of `make test`: all.py [MAKE]    (standard library only)

Builds with MAKE (make) what a part needs and runs the part as soon as that is there, as many at a
time as there are processors. A line for every part that ends: its name, its checks, seconds. What
a part prints about failures comes through. The last line is "N passed, M failed"; exit 1 if any
failed, or if a part did not build, crashed or never reached its own last line.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("*.gguf"))
PARTS = {  # name: what make builds first, the command. The long ones first
    "test.c": (["build/test"], ["build/test"]),
    "cli.py": (["run"], [PYTHON, "tests/cli.py"]),
    "test_train.c": (["build/test_train"], ["build/test_train"]),
    "bind.c": (["build/bind"], ["build/bind"]),
    "drafts.c": (["build/drafts"], ["build/drafts", "-q", *map(str, FIXTURES)]),
    "chat.py": (["run"], [PYTHON, "tests/chat.py"]),
    "files.py": (["run"], [PYTHON, "tests/files.py"]),
    "train_cli.py": (["run", "train_tiny"], [PYTHON, "tests/train_cli.py"]),
    "shape.py": ([], [PYTHON, "tests/shape.py", "-q"]),
}
LAST = re.compile(r"^(\d+) passed, (\d+) failed$", re.M)
make = sys.argv[1:] or ["make"]
lock = threading.Lock()
slots = threading.Semaphore(max(1, min(4, os.cpu_count() or 1)))
targets: dict[str, threading.Lock] = {}  # held while one is being built
built: dict[str, str | None] = {}        # None: well; else what the compiler said
doing: dict[str, float] = {}             # what runs now, since when
passed = failed = 0
begin = time.monotonic()


def say(line: str) -> None:
    """A line above the one that shows what runs."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(line, flush=True)


def run(what: str, command: list[str]) -> tuple[int, str, float]:
    """Exit status, output and seconds of a command, in a slot of its own."""
    with slots:
        start = time.monotonic()
        with lock:
            doing[what] = start
        p = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, errors="replace")
        with lock:
            del doing[what]
        return p.returncode, p.stdout, time.monotonic() - start


def build(target: str) -> str | None:
    """Builds a target once, whoever asks first; what went wrong, or None."""
    with targets[target]:
        if target not in built:
            code, out, seconds = run(f"make {target}", [*make, "-s", target])
            built[target] = f"make {target} failed:\n{out}" if code else None
            if out and not code:
                say(out.rstrip())  # warnings
            if not code and seconds > 0.5:
                say(f"{'make ' + target:24}{'':16}{seconds:6.1f} s")
        return built[target]


def part(name: str) -> None:
    global passed, failed
    needs, command = PARTS[name]
    trouble = next(filter(None, map(build, needs)), None)
    if trouble:
        with lock:
            failed += 1
        say(f"FAIL {name}: {trouble}")
        return
    code, out, seconds = run(name, command)
    ends = LAST.findall(out)
    ok, bad = (int(n) for n in ends[-1]) if ends else (0, 0)
    shown = [line for line in out.splitlines() if not LAST.match(line) and not line.startswith("ok ")]
    if code and not bad:  # crashed, or an error although nothing failed
        shown.append(f"FAIL {name}: exited with {code}")
        bad = 1
    elif not ends:
        shown.append(f"FAIL {name}: ended before its last line")
        bad = 1
    with lock:
        passed, failed = passed + ok, failed + bad
    say("\n".join([*shown, f"{name:24}{ok + bad:9} checks{seconds:6.1f} s"
                   + (f"   {bad} FAILED" if bad else "")]))


def main() -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the machine to others
    flags = os.environ.get("MAKEFLAGS", "")  # of `make -j test`: its job server does not reach here
    os.environ["MAKEFLAGS"] = re.sub(r"(^| )(-j\d*|--jobserver-\S+)", "", flags)
    targets.update((t, threading.Lock()) for needs, _ in PARTS.values() for t in needs)
    threads = [threading.Thread(target=part, args=(name,), daemon=True) for name in PARTS]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        time.sleep(0.2)
        if sys.stderr.isatty():
            now = time.monotonic()
            with lock:
                line = ", ".join(f"{what} {now - since:.0f} s" for what, since in doing.items())
            print(f"\r\033[K[{now - begin:.0f} s] {line[:90]}", end="", file=sys.stderr, flush=True)
    say(f"{time.monotonic() - begin:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
