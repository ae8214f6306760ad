#!/usr/bin/env python3
"""Multi-query associative recall, the table of the README: what each mixer's memory of a fixed size can hold.

    python3 tests/mqar.py [--jobs 2] [--only NAME]

Every row is ./train_tiny --task mqar with its defaults; rows differ in the mixer and its key width. Each is trained with every learning rate of
RATES on one seed, then with the best of them, by the mean accuracy, on two more seeds. Steps and batches are the same for all rows but the hybrid, which has
four layers instead of one, three times the steps, and one learning rate. The table has the median of the three seeds, and for the most pairs also
the lowest and the highest. Progress goes to standard error.
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RATES = (0.01, 0.03, 0.1)
HYBRID_RATES = (0.005,)  # the best of 0.003, 0.005, 0.01 after 1000 steps
HYBRID = ("--hybrid", "3:1", "--layers", "4", "--steps", "3000")
SEEDS = (0, 1, 2)
ROWS = (  # what the memory does, mixer, key width, options
    ("keeps every key", "softmax", 16, ()),
    ("adds", "linear-attention", 16, ()),
    ("fixed decay", "retnet", 16, ()),
    ("a decay per head, from the data", "simple-gla", 16, ()),
    ("", "mamba2", 16, ()),
    ("a decay per channel, from the data", "gla", 16, ()),
    ("", "hgrn2", 16, ()),
    ("erases before it writes", "deltanet", 16, ()),
    ("erases and decays", "gated-deltanet", 16, ()),
    ("", "kda", 16, ()),
    ("", "gdn2", 16, ()),
    ("adds, twice the state", "linear-attention", 32, ()),
    ("fixed decay, twice the state", "retnet", 32, ()),
    ("a decay per channel, twice the state", "gla", 32, ()),
    ("3 layers of it, 1 of softmax", "gla", 16, HYBRID),
)


def train(job):
    """(row, rate, seed): accuracies in percent by the number of pairs, and floats of state."""
    (_, mixer, key, options), rate, seed = job
    command = [str(ROOT / "train_tiny"), "--task", "mqar", "-j", "1", "--mixer", mixer, "--key-dim", str(key), *options, "--lr", str(rate), "--seed", str(seed)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    recall = {int(n): float(x) for n, x in re.findall(r"(\d+) pairs ([\d.]+) %", done.stdout)}
    print(f"# {' '.join(command[6:])}: {recall} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return recall, int(re.search(r"(\d+) floats of state", done.stdout)[1])


def rates(row):
    return HYBRID_RATES if row[3] else RATES


def mean(recall):
    return sum(recall.values()) / len(recall)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    args.add_argument("--only", help="rows of this mixer")
    o = args.parse_args()
    rows = [r for r in ROWS if o.only in (None, r[1])]
    start = time.perf_counter()
    with ThreadPoolExecutor(o.jobs) as pool:
        sweep = [(r, rate, SEEDS[0]) for r in rows for rate in rates(r)]
        tried = dict(zip(sweep, pool.map(train, sweep)))
        best = {r: max(rates(r), key=lambda rate: mean(tried[r, rate, SEEDS[0]][0])) for r in rows}
        again = [(r, best[r], seed) for r in rows for seed in SEEDS[1:]]
        tried |= zip(again, pool.map(train, again))
    for i, row in enumerate(rows):
        runs = [tried[row, best[row], seed] for seed in SEEDS]
        pairs = list(runs[0][0])
        if i == 0:
            print("| memory | mixer | floats of state | " + " | ".join(f"{n} pairs" for n in pairs) + " | lowest to highest | learning rate |")
            print("|---|---|---:|" + "---:|" * len(pairs) + "---|---:|")
        about, mixer, _, options = row
        values = [sorted(recall[n] for recall, _ in runs) for n in pairs]
        state = "grows" if mixer == "softmax" else f"{runs[0][1]} and keys" if options else str(runs[0][1])
        print(f"| {about} | {' '.join((mixer, *options[1:2]))} | {state} | " + " | ".join(f"{v[len(v) // 2]:.1f} %" for v in values) + f" | {values[-1][0]:.1f}-{values[-1][-1]:.1f} | {best[row]} |")
    print(f"# {len(tried)} runs in {(time.perf_counter() - start) / 60:.1f} minutes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
