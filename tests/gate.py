#!/usr/bin/env python3
"""Whether a change of run.c moves one bit of its results    (standard library only)

    gate.py --write HASHES [RUN_C]     what RUN_C (run.c) computes now, as hashes in a JSON file
    gate.py --check HASHES [RUN_C]     does it compute that still? Names what changed; exit 1
    gate.py OLD_RUN_C NEW_RUN_C        the shipped build of both: logits within 1e-6 of each other

The first two build with -ffp-contract=off, where the order of operations in the source is all
that there is, so a hash stays as long as the equations and their order do. The third builds with
-O3 alone, where the compiler chooses what to fuse.

Each model reads 150 ids with `-m logits`: all at once and in runs (-b), on one thread and on two
(-j), and with a session saved and loaded on the way. All of them must agree, bit for bit; that
needs no file of hashes. --fast, the types of --kv and the bytes of the saved session have
hashes of their own. Each kernel set (RUN_KERNEL) that this processor runs is tried; apart from
"scalar", hashes belong to one kind of processor and compiler.

--quick reads with the scalar kernels alone, on one thread, compiled in a few seconds. It is no part
of `make test` or CI: hashes belong to a machine, and that -b, -j and sessions change no bit is
checked there by tests/test.c, tests/cli.py and tests/parity.py.

Models: tests/fixtures/*.gguf, and those of --seeds (build/gate-seeds): the goldens and the
configurations of tests/parity.py, made by `make .venv/ready` and

    .venv/bin/python tests/gate.py --make-seeds [--seeds FOLDER]
"""
from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
N_IDS, HALF = 150, 73  # more than two steps of attention's 64 keys; not a multiple of any -b
WITHIN = 1e-6          # how far fused operations may move a logit
TYPES = "f32", "q8_0"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files are synced: slow on a disk
CC = os.environ.get("CC", "cc")
# Two threads have something to do in a small model, too.
COMMON = ["-std=gnu11", "-fopenmp", "-DTHREAD_WORK=0"]
QUICK = [*COMMON, "-O1", "-ffp-contract=off", "-DRUN_SCALAR"]
FULL = [*COMMON, "-O3", "-ffp-contract=off"]
SHIPPED = [*COMMON, "-O3"]


class Failed(Exception):
    """What ./run said when it did not make logits."""


def build(source: Path, flags: list[str], program: Path) -> Path:
    command = [CC, *flags, "-o", str(program), str(source), "-lm"]
    if subprocess.run(command).returncode:
        sys.exit(f"gate: {' '.join(command)} failed")
    return program


def kernel_sets(program: Path, model: Path) -> list[str]:
    """Those that run here: the answer to a name that is none ends with them."""
    p = subprocess.run([program, model, "-m", "info"], capture_output=True, text=True,
                       env={**os.environ, "RUN_KERNEL": "?"}, stdin=subprocess.DEVNULL)
    names = p.stderr.strip().rpartition("here run:")[2].split()
    return names or sys.exit(f"gate: no kernel sets in: {p.stderr}")


class Reader:
    """One model and one kernel set: raw logits of the fixed ids."""

    def __init__(self, program: Path, model: Path, kernel: str, folder: Path):
        self.program, self.model, self.folder = program, model, folder
        self.env = {**os.environ, "RUN_KERNEL": kernel, "OMP_WAIT_POLICY": "passive"}
        info = self.call("-m", "info")
        if "vocabulary" not in info:
            raise Failed("-m info has no vocabulary")
        vocab, self.softmax = int(info["vocabulary"]), int(info["kv_bytes_per_token"]) > 0
        # Any valid ids, one of them again and again.
        self.ids = [(i * 7919 + i * i * 31) % vocab if i % 10 else 1 for i in range(N_IDS)]

    def call(self, *options: object) -> dict[str, str]:
        """Runs the program; standard output as keys and values."""
        p = subprocess.run([str(c) for c in (self.program, self.model, *options)], env=self.env,
                           capture_output=True, text=True, errors="replace",
                           stdin=subprocess.DEVNULL)
        if p.returncode:
            said = p.stderr.strip()[-300:].replace(str(self.model), self.model.name)
            raise Failed(f"exit {p.returncode}: {said}")
        return dict(line.partition(" ")[::2] for line in p.stdout.splitlines())

    def variants(self) -> list[str]:
        """Options that change results where the model has what they are about."""
        return [*(["kv q8_0", "kv f16"] if self.softmax else []),
                *(["fast"] if self.model.stem.endswith("q8_0") else [])]

    def logits(self, ids: list[int], *options: object) -> bytes:
        given, out = self.folder / "ids", self.folder / "out"
        given.write_text(" ".join(map(str, ids)))
        self.call("-m", "logits", "--quiet", "--ids", given, "--out", out, *options)
        return out.read_bytes()

    def parted(self, *options: object) -> tuple[bytes, bytes]:
        """Saved after HALF ids and loaded; the logits, and the session."""
        session = self.folder / "session"
        session.unlink(missing_ok=True)
        first = self.logits(self.ids[:HALF], "--save-state", session, *options)
        kept = session.read_bytes()
        return first + self.logits(self.ids[HALF:], "--load-state", session, *options), kept


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def measure(reader: Reader, quick: bool) -> tuple[dict[str, str], list[str]]:
    """Hashes by what was asked for, and the promises that were broken."""
    hashes: dict[str, str] = {}
    broken: list[str] = []

    def same(what: str, data: bytes, how: str) -> None:
        now = digest(data)
        if hashes.setdefault(what, now) != now:
            broken.append(f"{what}: {how} differs")

    batches, threads = ((64, 7), (1,)) if quick else ((64, 7, 1), (1, 2))
    ways = list(itertools.product(batches, threads))
    few = reader.model.name.startswith("case-")  # one of many that are much alike: in fewer ways
    for b, j in ways[few:1] if quick else ways:
        same("logits", reader.logits(reader.ids, "-b", b, "-j", j), f"-b {b} -j {j}")
    for b, j in ways[-1:] if few else ways[1:]:
        logits, session = reader.parted("-b", b, "-j", j)
        same("logits", logits, f"-b {b} -j {j} in two sessions")
        same("session", session, f"-b {b} -j {j}")
    # What changes results is tried in fewer ways: the rest of the way is the same code.
    some = ways[:1] if quick else ways[1:-1:2]
    for what in [] if few else reader.variants():
        for b, j in some:
            try:
                logits = reader.logits(reader.ids, *f"--{what}".split(), "-b", b, "-j", j)
            except Failed as error:  # some mixers keep keys and values as f32 only
                logits = str(error).encode()
            same(what, logits, f"-b {b} -j {j}")
    return hashes, broken


def models_of(seeds: Path) -> list[Path]:
    return [*sorted((ROOT / "tests/fixtures").glob("*.gguf")), *sorted(seeds.glob("*.gguf"))]


def over_models(program: Path, models: list[Path], kernels: list[str], work) -> list:
    """work(Reader) for each, in that order; or what went wrong, as a Failed."""
    def one(job: tuple[str, Path]) -> tuple:
        kernel, model = job
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            try:
                return kernel, model, work(Reader(program, model, kernel, Path(folder)))
            except Failed as error:
                return kernel, model, error
    with ThreadPoolExecutor(max(1, min(4, len(os.sched_getaffinity(0))))) as pool:
        return list(pool.map(one, itertools.product(kernels, models)))


def hash_all(source: Path, models: list[Path], quick: bool) -> tuple[dict[str, str], list[str]]:
    """Hashes by "kernels model what", and what is wrong with this program alone."""
    hashes, wrong = {}, []
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        program = build(source, QUICK if quick else FULL, Path(folder) / "run")
        kernels = ["scalar"] if quick else kernel_sets(program, models[0])
        every = over_models(program, models, kernels, lambda r: measure(r, quick))
        for kernel, model, got in every:
            if isinstance(got, Failed):
                hashes[f"{kernel} {model.stem} logits"] = f"failed: {got}"
                continue
            hashes.update({f"{kernel} {model.stem} {what}": h for what, h in got[0].items()})
            wrong += [f"{kernel} {model.stem}: {b}" for b in got[1]]
    return hashes, wrong


def compare(was: dict[str, str], now: dict[str, str]) -> list[str]:
    """A line for each kernel set and model that has changed."""
    known = {key.split()[1] for key in was}  # a model added since has nothing to change from
    changed: dict[str, list[str]] = {}
    for key in was.keys() | now.keys():
        if was.get(key) == now.get(key):
            continue
        where, _, what = key.partition(" ")
        model, _, what = what.partition(" ")
        if model not in known:
            continue
        if key not in now:
            what += " is gone"
        elif key not in was:
            what += " is new"
        elif now[key].startswith("failed"):
            what += " " + now[key]
        changed.setdefault(f"{model} ({where})", []).append(what)
    return [f"{where}: {', '.join(sorted(what))}" for where, what in sorted(changed.items())]


def written_by(source: Path) -> dict[str, str]:
    """Of what, and where hashes were made: they hold there."""
    p = subprocess.run([CC, "--version"], capture_output=True, text=True)
    cpu = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {"source": digest(source.read_bytes()), "compiler": p.stdout.splitlines()[0], "cpu": cpu}


def floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)


def apart(a: bytes, b: bytes) -> float:
    """The largest difference; infinity where only one is a number."""
    if a == b:
        return 0.0
    if len(a) != len(b):
        return float("inf")
    most = 0.0
    for x, y in zip(floats(a), floats(b)):
        d = 0.0 if x == y or (x != x and y != y) else abs(x - y)
        most = max(most, d if d == d else float("inf"))
    return most


def shipped(old: Path, new: Path, models: list[Path]) -> int:
    """Logits of the two within WITHIN, and the promises of the new one."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        before = build(old, SHIPPED, Path(folder) / "old")
        after = build(new, SHIPPED, Path(folder) / "new")
        kernels = kernel_sets(after, models[0])

        def whole(r: Reader) -> bytes:
            return r.logits(r.ids, "-b", 64, "-j", 1)
        was = over_models(before, models, kernels, whole)
        now = over_models(after, models, kernels, lambda r: (whole(r), measure(r, False)[1]))
    wrong, most, same = [], 0.0, 0
    for (kernel, model, old_logits), (_, _, got) in zip(was, now):
        if isinstance(old_logits, Failed) or isinstance(got, Failed):
            if str(old_logits) != str(got):
                said = got if isinstance(got, Failed) else f"before: {old_logits}"
                wrong.append(f"{kernel} {model.stem}: {said}")
            continue
        d = apart(old_logits, got[0])
        most, same = max(most, d), same + (d == 0)
        if d >= WITHIN:
            wrong.append(f"{kernel} {model.stem}: logits moved by {d:.1e}")
        wrong += [f"{kernel} {model.stem}: {b}" for b in got[1]]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"gate: {len(now)} pairs of model and kernels, {same} with the same bits;"
          f" the largest difference is {most:.1e}")
    return len(wrong) > 0


def make_seeds(seeds: Path) -> None:
    """The goldens as each of TYPES, and the configurations of tests/parity.py as f32."""
    import make_mixers as mixers
    import make_models as models
    seeds.mkdir(parents=True, exist_ok=True)

    def export(folder: Path, out: Path, kind: str) -> None:
        subprocess.run([sys.executable, ROOT / "export.py", folder, out, "--type", kind],
                       check=True, stdout=subprocess.DEVNULL)
    for folder, kind in itertools.product(sorted((ROOT / "tests/golden").iterdir()), TYPES):
        out = seeds / f"{folder.name}.{kind}.gguf"
        if not out.exists():
            export(folder, out, kind)
    for prefix, names, make in (("", mixers.CASES, mixers.mixer_case),
                                ("", models.GLA_CASES, models.gla_case),
                                ("hf ", models.TRANSFORMERS_CASES, models.transformers_case)):
        for seed, name in enumerate(names):
            out = seeds / f"case-{(prefix + name).replace(', ', '-').replace(' ', '-')}.gguf"
            if out.exists():
                continue
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                make(Path(folder) / "model", name, seed=seed)
                export(Path(folder) / "model", out, "f32")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="HASHES")
    parser.add_argument("--check", type=Path, metavar="HASHES")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=Path, metavar="FOLDER", default=ROOT / "build/gate-seeds")
    parser.add_argument("--make-seeds", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="models with it in their names")
    parser.add_argument("run_c", nargs="*", type=Path)
    args = parser.parse_args()
    if args.make_seeds:
        make_seeds(args.seeds)
        if not (args.write or args.check or args.run_c):
            return 0
    models = [m for m in models_of(args.seeds) if args.only in m.name]
    begin = time.monotonic()
    if not (args.write or args.check):
        if len(args.run_c) != 2:
            parser.error("OLD_RUN_C and NEW_RUN_C, or --write, or --check")
        return shipped(*args.run_c, models)
    source = args.run_c[0] if args.run_c else ROOT / "run.c"
    hashes, wrong = hash_all(source, models, args.quick)
    if args.write:
        text = json.dumps({**written_by(source), "hashes": hashes}, indent=0, sort_keys=True)
        args.write.write_text(text + "\n")
    else:
        was = json.loads(args.check.read_text())
        wrong += compare({k: h for k, h in was["hashes"].items() if args.only in k}, hashes)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"gate: {len(hashes)} hashes of {len(models)} models, {len(wrong)} wrong,"
          f" {time.monotonic() - begin:.0f} s")
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
