#!/usr/bin/env python3
"""Are texts with drafts those without, on real weights, and how much faster? drafts.py [options]

200 prompts (to summarise, to edit and to go on with pieces of this repository's documents and code),
the likeliest tokens and three seeds, on one thread and on two: build/drafts compares the ids, all
that a listener sees, and sessions. Then the speed of ./run on three tasks with --draft off and
lookup in turn, the median of the pairs, and `cmp` of what they print. Models come from the package
index (packages.py).

    --model NAME     smollm2 or qwen2 (both)
    --prompts N      (200)          --steps N    tokens of each text (24)
    --pairs N        of timed runs (5), each of 128 tokens; 0: none
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from real import MODELS

ROOT = Path(__file__).resolve().parent.parent
TASKS = {
    "summarise": "Summarise this text; quote the sentences that matter word for word.\n\n{}",
    "edit": "Write this again with `name` in the place of every `path`, and nothing else changed:\n\n{}",
    "continue": "{}",
}


def pieces(size: int) -> list[str]:
    files = [ROOT / "README.md", *sorted((ROOT / "doc").glob("*.md")), *sorted((ROOT / "tests").glob("*.py"))]
    texts = [f.read_text(encoding="utf-8").replace("\f", "") for f in files]
    return [t[at:at + size] for t in texts for at in range(0, len(t) - size, 2 * size)]


def prompts(n: int, size: int) -> list[str]:
    """Tasks in turn; those of a chat in the form of ChatML, which both models have."""
    some, out = pieces(size), []
    for i in range(n):
        task = list(TASKS)[i % len(TASKS)]
        text = TASKS[task].format(some[i * len(some) // n])
        out.append(text if task == "continue" else f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    return out


def timed(model: Path, prompt: str, draft: str, seed: int) -> tuple[float, str, bytes]:
    command = [str(ROOT / "run"), str(model), "-i", prompt, "-n", "128", "-t", "0" if not seed else "0.8",
               "-s", str(seed), "--ignore-eos", "--draft", draft]
    p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    said = p.stderr.decode(errors="replace")
    speed = re.search(r"generated \d+ tokens, ([\d.]+) tok/s", said)
    drafts = re.search(r"(\d+ of \d+) drafts? stayed", said)
    return float(speed[1]), drafts[1] if drafts else "none", p.stdout


def main() -> int:
    a = argparse.ArgumentParser()
    a.add_argument("--model", choices=("smollm2", "qwen2"), action="append")
    a.add_argument("--prompts", type=int, default=200)
    a.add_argument("--steps", type=int, default=24)
    a.add_argument("--pairs", type=int, default=5)
    o = a.parse_args()
    bad = 0
    for name in o.model or ("smollm2", "qwen2"):
        model = MODELS[name].file()
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write("\f".join(prompts(o.prompts, 600)))
            f.flush()
            if o.prompts:
                print(f"{name}: {o.prompts} prompts", flush=True)
                p = subprocess.run([ROOT / "build" / "drafts", "-p", f.name, str(o.steps), model],
                                   stdout=subprocess.PIPE, text=True)
                lines = p.stdout.splitlines()
                print("\n".join([line for line in lines if line.startswith("FAILED")] + lines[-2:]), flush=True)
                bad += p.returncode != 0
        for task, prompt in zip(TASKS, prompts(3, 2400)) if o.pairs else ():
            for seed in (0, 1):
                off, lookup, same = [], [], True
                for pair in range(o.pairs):
                    got = {}
                    for draft in ("off", "lookup") if pair % 2 else ("lookup", "off"):
                        got[draft] = timed(model, prompt, draft, seed)
                    off.append(got["off"][0])
                    lookup.append(got["lookup"][0])
                    same &= got["off"][2] == got["lookup"][2]
                ratio = median(b / a for a, b in zip(off, lookup))
                print(f"{name} {task:10} {'seed 1' if seed else 'greedy'}: {median(off):6.1f} -> {median(lookup):6.1f} tok/s, x {ratio:.2f}, "
                      f"{got['lookup'][1]} drafts stayed, {'the same text' if same else 'ANOTHER TEXT'}", flush=True)
                bad += not same
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
