#!/usr/bin/env python3
"""What sessions and chats cost:  sessions_bench.py [--lengths 1000 32000 1000000] [--turns 20] [-z VOCABULARY] MODEL ...    (make bench-sessions)

Two tables. Saving and loading a session of N tokens, with build/sessions (synced to the disk, which is most of it for large ones; a session that is
larger than --largest is worked out from the bytes per token instead). And a chat of 20 messages through ./run: what each turn evaluated against
what it said, how long until its first token, the memory in the end. A model without a vocabulary needs -z for the chat.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the a little big old red house garden cat dog boy girl sun rain tree bird river found lost saw took gave made sang ran came went and then but so with under near".split()


def call(args: list[object], stdin: str | None = None) -> subprocess.CompletedProcess:
    p = subprocess.run([str(a) for a in args], input=stdin, capture_output=True, text=True)
    if p.returncode:
        sys.exit(f"{Path(str(args[0])).name} {args[1]}: {p.stderr.strip().splitlines()[-1:] or p.returncode}")
    return p


def size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def sessions(args: argparse.Namespace, model: Path, folder: Path) -> list[list[str]]:
    info = dict(line.split(" ", 1) for line in call([ROOT / "run", model, "-m", "info"]).stdout.splitlines())
    per_token, rows = int(info["kv_bytes_per_token"]) + 4, []  # and its id
    small = [n for n in args.lengths if n * per_token <= args.largest]
    out = [line.split() for line in call([ROOT / "build" / "sessions", model, folder / "session", *small]).stdout.splitlines()]
    for n, n_bytes, save, load, _ in out:
        rows.append([model.name, info["mixers"], n, size(int(n_bytes)), f"{float(save) * 1e3:.1f} ms", f"{float(load) * 1e3:.1f} ms"])
    for n in args.lengths:
        if n not in small and out:
            rows.append([model.name, info["mixers"], str(n), size(int(out[-1][1]) + (n - int(out[-1][0])) * per_token) + " (worked out)", "-", "-"])
    return rows


def chat(args: argparse.Namespace, model: Path) -> list[list[str]]:
    none = "holds no vocabulary" in subprocess.run([ROOT / "run", model, "-i", "x", "-n", "1"], capture_output=True, text=True).stderr
    if none and not args.tokenizer:
        return []
    rng = random.Random(5)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(args.turns)]
    vocabulary = ["-z", args.tokenizer] if none else []
    p = call([ROOT / "run", model, "-m", "chat", "-s", 1, "-n", args.answer, "-c", 8192, "--ignore-eos", "--loop-guard", 0, "--json", *vocabulary], "\n".join(lines) + "\n/stats\n")
    turns = [json.loads(line) for line in p.stdout.splitlines()]
    evaluated, conversation = map(int, re.findall(r"evaluated (\d+) tokens?, the conversation has (\d+)", p.stderr)[-1])
    kept, resident = re.search(r"snapshots (.*) \| resident (.*)", p.stderr).groups()
    said = [t["prompt_tokens"] for t in turns]
    first = [t["timing"]["prompt_s"] * 1e3 for t in turns]
    return [[model.name, str(len(turns)), f"{evaluated} / {conversation}", f"{min(said)}-{max(said)} + {args.answer}", f"{first[0]:.1f}, {sorted(first[1:])[len(first[1:]) // 2]:.1f}, {first[-1]:.1f} ms",
             kept, resident]]


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1000, 32000, 1000000])
    parser.add_argument("--largest", type=float, default=1e9, help="bytes of a session that is really written")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("-z", "--tokenizer", help="vocabulary for the models that have none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        table(["model", "layers", "tokens", "session", "save", "load"], [row for model in args.models for row in sessions(args, model, Path(folder))])
    print()
    table(["model", "turns", "evaluated / in the conversation", "tokens of a turn", "first token: first turn, median of the others, last", "snapshots", "resident"],
          [row for model in args.models for row in chat(args, model)])


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
