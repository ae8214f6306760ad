#!/usr/bin/env python3
"""Multi-query associative recall, the table of the README: what each mixer's memory of a fixed size can hold.

    python3 tests/mqar.py [--jobs 2] [--only NAME]

Trains ./train_tiny --task mqar for each row, `jobs` of them at a time on one thread each, and prints accuracies on sequences that were
not trained on, as a Markdown table. Everything but the mixer, its key width and the number of layers is the same in all rows.
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["--task", "mqar", "-j", "1", "--dim", "64", "--heads", "1", "--value-dim", "64", "--conv", "4", "--batch", "64"]
# Steps until the curve is flat: fixed decays and one decay per head find the way to recall late, softmax early.
STEPS = {"retnet": 1500, "simple-gla": 1500, "softmax": 500}


def rows():
    """(mixer, key width, layers, hybrid): small memories, then softmax and a hybrid, then larger memories."""
    for m in ("linear-attention", "retnet", "simple-gla", "gla", "mamba2", "kda", "gated-deltanet", "gdn2", "deltanet"):
        yield m, 16, 2, ""
    yield from (("retnet", 16, 4, "3:1"), ("softmax", 32, 2, ""))
    for m in ("retnet", "gla", "deltanet"):
        yield m, 32, 2, ""


def run(row):
    mixer, key, layers, hybrid = row
    command = [str(ROOT / "train_tiny"), *COMMON, "--mixer", mixer, "--key-dim", str(key), "--layers", str(layers),
               "--steps", str(STEPS.get(mixer, 1000)), "--lr", "0.005" if layers > 2 else "0.01"]
    if hybrid:
        command += ["--hybrid", hybrid]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        return row, None, done.stderr.strip().splitlines()[-1], 0.0
    state = int(re.search(r"(\d+) floats of state", done.stdout)[1])
    recall = {int(n): float(x) for n, x in re.findall(r"(\d+) pairs ([\d.]+) %", done.stdout)}
    return row, recall, state, time.perf_counter() - start


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--jobs", type=int, default=2)
    args.add_argument("--only", help="rows of this mixer")
    o = args.parse_args()
    start, failed, header = time.perf_counter(), 0, False
    with ThreadPoolExecutor(o.jobs) as pool:
        for (mixer, _, layers, hybrid), recall, state, seconds in pool.map(run, [r for r in rows() if o.only in (None, r[0])]):
            if recall is None:
                failed += 1
                print(f"# {mixer}: {state}", file=sys.stderr)
                continue
            if not header:
                print("| mixer | layers | floats of state | " + " | ".join(f"{n} pairs" for n in recall) + " |\n|---|---|---|" + "---|" * len(recall))
                header = True
            name = f"{mixer}, {hybrid} with softmax" if hybrid else mixer
            grows = "grows" if mixer == "softmax" else f"{state}{' and keys' if hybrid else ''}"
            print(f"| {name} | {layers} | {grows} | " + " | ".join(f"{x:.0f} %" for x in recall.values()) + " |", flush=True)
            print(f"# {name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    print(f"# {(time.perf_counter() - start) / 60:.1f} minutes", file=sys.stderr)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
