#!/usr/bin/env python3
"""Multi-query associative recall, the tables of doc/recall.md: what each mixer's memory of a fixed size can hold.

    python3 tests/mqar.py [--jobs 2] [--only NAME] [--controls] [--steps N]

Every row is ./train_tiny with the same task, steps and batches, and with decays that begin with the same half-life; rows differ in the mixer and its
key width. Each is trained to recall (--task mqar) with every learning rate of RATES on one seed, then with the best of them, by the mean accuracy, on
two more; with that rate and the same seeds also where half of the keys get a second value (--task rebind). The hybrid alone, which has four
layers instead of one, gets one learning rate and half as many steps again. The table has the median of the seeds, and for the most pairs also the
lowest and the highest.

--controls prints another table, which takes single causes apart: one row with and without them, at one learning rate and half of
--steps, but where it says otherwise.
Progress, with the result of every run, goes to standard error.
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STEPS = 2000
SEEDS = (0, 1, 2)
RATES = (0.01, 0.03, 0.1)


class Row(NamedTuple):
    about: str                   # what the memory does, or what is taken apart
    mixer: str
    options: tuple[str, ...] = ()
    rates: tuple[float, ...] = RATES
    steps: float = 1             # times --steps


TWICE = ("--key-dim", "32")
ROWS = (
    Row("keeps every key", "softmax"),
    Row("adds", "linear-attention"),
    Row("fixed decay", "retnet"),
    Row("a decay per head, from the data", "simple-gla"),
    Row("", "mamba2"),
    Row("a decay per channel, from the data", "gla"),
    Row("", "hgrn2"),
    Row("", "rwkv6"),
    Row("slots with a decay each", "gsa"),
    Row("erases before it writes", "deltanet"),
    Row("erases and decays", "gated-deltanet"),
    Row("", "kda"),
    Row("", "gdn2"),
    Row("", "rwkv7"),
    Row("adds, twice the state", "linear-attention", TWICE),
    Row("a decay per channel, twice the state", "gla", TWICE),
    Row("3 layers of it, 1 of softmax", "gla", ("--hybrid", "3:1", "--layers", "4"), (0.005,), 1.5),
)
USUAL = ("--half-life", "0")


def without(*parts):
    return ("--without", ",".join(parts))


def control(about, mixer, options=(), rate=0.01, steps=1000):
    return Row(about, mixer, options, (rate,), steps / STEPS)


CONTROLS = (
    control("", "gla"),
    control("begins with 16 tokens", "gla", USUAL),
    control("no decay", "gla", without("decay")),
    control("no decay, no output gate", "gla", without("decay", "gate")),
    control("", "linear-attention"),
    control("no elu + 1", "linear-attention", without("map")),
    control("", "hgrn2"),
    control("begins with 1 token", "hgrn2", USUAL),
    control("", "gsa"),
    control("begins with 16 tokens", "gsa", USUAL),
    control("", "retnet"),
    control("a decay of 22 tokens", "retnet", USUAL),
    control("no decay", "retnet", without("decay")),
    control("no rotation", "retnet", without("rotation")),
    control("no output gate", "retnet", without("gate")),
    control("no rotation, no output gate", "retnet", without("rotation", "gate")),
    control("", "kda"),
    control("four times the steps", "kda", steps=4000),
    control("", "gdn2"),
    control("four times the steps", "gdn2", steps=4000),
    control("four layers, 3000 steps, to compare with 3:1", "gla", ("--layers", "4"), rate=0.005, steps=3000),
)


def train(job):
    """(row, task, rate, seed, steps): accuracies in percent by the number of pairs, and floats of state."""
    row, task, rate, seed, steps = job
    command = [str(ROOT / "train_tiny"), "--task", task, "-j", "1", "--mixer", row.mixer, *row.options, "--steps", str(max(1, int(steps * row.steps))), "--lr", str(rate), "--seed", str(seed)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    recall = {int(n): float(x) for n, x in re.findall(r"(\d+) pairs ([\d.]+) %", done.stdout)}
    print(f"# {task} {' '.join(command[5:])}: {recall} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return recall, int(re.search(r"(\d+) floats of state", done.stdout)[1])


def mean(recall):
    return sum(recall.values()) / len(recall)


def name(row):
    return " ".join((row.mixer, *(o for o in row.options if o.endswith(":1"))))


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    args.add_argument("--only", help="rows of this mixer")
    args.add_argument("--controls", action="store_true", help="the table of causes instead")
    args.add_argument("--steps", type=int, default=STEPS)
    o = args.parse_args()
    rows = [r for r in (CONTROLS if o.controls else ROWS) if o.only in (None, r.mixer)]
    if not rows:
        sys.exit(f"no rows of {o.only}; there are {', '.join(dict.fromkeys(r.mixer for r in (CONTROLS if o.controls else ROWS)))}")
    start = time.perf_counter()
    tried = {}

    def all_of(jobs):
        jobs = [j for j in jobs if j not in tried]
        tried.update(zip(jobs, pool.map(train, jobs)))

    with ThreadPoolExecutor(o.jobs) as pool:
        all_of([(r, "mqar", rate, SEEDS[0], o.steps) for r in rows for rate in r.rates])
        best = {r: max(r.rates, key=lambda rate: mean(tried[r, "mqar", rate, SEEDS[0], o.steps][0])) for r in rows}
        for task in ("mqar", "rebind"):
            all_of([(r, task, best[r], seed, o.steps) for r in rows for seed in SEEDS])
    for i, row in enumerate(rows):
        cells, spread = [], []
        for task in ("mqar", "rebind"):
            runs = [tried[row, task, best[row], seed, o.steps] for seed in SEEDS]
            pairs = list(runs[0][0])
            values = [sorted(recall[n] for recall, _ in runs) for n in pairs]
            few = 1 if task == "rebind" or o.controls else len(pairs)                 # columns
            cells += [(f"{n} pairs" if task == "mqar" else f"{n}, half re-bound", f"{v[len(v) // 2]:.1f} %") for n, v in list(zip(pairs, values))[-few:]]
            cells += [("lowest to highest", f"{values[-1][0]:.1f}-{values[-1][-1]:.1f}")]
        if i == 0:
            print(f"| {'cause' if o.controls else 'memory'} | mixer | floats of state | " + " | ".join(c for c, _ in cells) + " | learning rate |")
            print("|---|---|---:|" + "---:|" * len(cells) + "---:|")
        floats = runs[0][1]
        state = "grows" if not floats else f"{floats} and keys" if "--hybrid" in row.options else str(floats)
        print(f"| {row.about} | {name(row)} | {state} | " + " | ".join(x for _, x in cells) + f" | {best[row]} |")
    print(f"# {len(tried)} runs in {(time.perf_counter() - start) / 60:.1f} minutes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
