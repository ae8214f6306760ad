#!/usr/bin/env python3
"""How fast ./run is, beside what the machine can do at most and beside other programs: make bench MODEL="a.gguf ..." [PEER="llama-bench ..."]

Every round measures, for each file in turn, the ceilings (build/limits), ./run, each peer, and the ceilings again; a figure is the median over the rounds, a share or a
ratio the median of those formed within a round, so that a machine that changes its speed in between does not tilt them. Prints one Markdown
table. Python 3 and its standard library only.

    share of peak     2 x weights x tokens / s over the int8 peak (block types), the bf16 peak (BF16) or the f32 peak (F16, F32)
    share of read     bytes of weights x tokens / s over the fastest streaming read
    run / it          how many times as fast ./run is in the same round; of prefill, also with --fast
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
args: argparse.Namespace


def stop(message: str) -> None:
    sys.exit(f"bench: {message}")


def call(command: list[object], what: str) -> str | None:
    """Standard output of a program, or None with its complaint on stderr."""
    try:
        p = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:
        stop(f"{command[0]}: {error.strerror}")
    if p.returncode == 0:
        return p.stdout
    complaint = (p.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"bench: {what} failed, exit {p.returncode}: {complaint}", file=sys.stderr, flush=True)
    return None


def key_values(text: str) -> dict[str, float | str]:
    out: dict[str, float | str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        try:
            out[key] = float(value)
        except ValueError:
            out[key] = value
    return out


# ---- the three things that are measured -----------------------------------------------------------------------------------

def run(model: Path, *options: object) -> dict[str, float | str]:
    out = call([args.program, model, "-m", *options], f"{args.program} {model}")
    return key_values(out) if out is not None else sys.exit(1)


def ours(model: Path, prompt_len: int, steps: int, *options: object) -> dict[str, float | str]:
    return run(model, "bench", "--prompt-len", prompt_len, "-n", steps, "-j", args.threads, *options)


def limits() -> dict[str, float | str]:
    out = call([args.limits, "-j", args.threads], str(args.limits))
    return key_values(out) if out is not None else sys.exit(1)


def peer(program: Path, model: Path) -> dict[str, float | str] | None:
    """llama-bench of llama.cpp and its relatives; one prefill and one decode after its own warm-up."""
    out = call([program, "-m", model, "-p", args.prompt_len, "-n", args.steps, "-t", args.threads, "-r", 1, "-o", "json"], f"{program} on {model.name}")
    try:
        tests = json.loads(out[out.index("["):]) if out else []
        speed = {("prefill" if t["n_prompt"] else "decode"): float(t["avg_ts"]) for t in tests}
        return {"prefill": speed["prefill"], "decode": speed["decode"], "commit": tests[0].get("build_commit", "")}
    except (ValueError, KeyError, TypeError):
        if out is not None:
            print(f"bench: {program}: what it printed is not the JSON of llama-bench", file=sys.stderr)
        return None


# ---- names ----------------------------------------------------------------------------------------------------------------

def peer_name(program: Path) -> str:
    """The folder that tells one llama-bench from another: llama.cpp of .../llama.cpp/build/bin/llama-bench."""
    folders = [p for p in program.absolute().parts[1:-1] if p not in ("build", "bin", "..")]
    return folders[-1] if folders else program.name


def weight_type(model: Path) -> str:
    """The type of most tensors. Norms and biases are F32 everywhere, so F32 counts only when nothing else is there."""
    counts = {kind: int(n) for kind, n in re.findall(r"(\w+) x (\d+)", str(run(model, "info")["tensor_types"]))}
    return max((k for k in counts if k != "F32"), key=lambda k: counts[k], default="F32")


def peak_of(kind: str) -> str:
    return "bf16_Gop_s" if kind == "BF16" else "f32_Gop_s" if kind in ("F16", "F32") else "int8_Gop_s"


def cpu() -> str:
    try:
        name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return name[1].strip() if name else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def commit() -> str:
    try:
        return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def heading(records: list[dict], kernel: object, rounds: int) -> str:
    words = ["make bench", "MODEL=" + shlex.quote(" ".join(m.name for m in args.models))]
    if args.peer:
        words.append("PEER=" + shlex.quote(" ".join(f"{peer_name(p)}/{p.name}" for p in args.peer)))
    options = [f"{option} {value}" for option, value, default in (("--rounds", rounds, "rounds"), ("--prompt-len", args.prompt_len, "prompt_len"), ("-n", args.steps, "steps"))
               if value != parser.get_default(default)] + ([f"--{args.what}"] if args.what != "speed" else [])
    if options:
        words.append("BENCH=" + shlex.quote(" ".join(options)))
    commits = sorted({r["commit"] for r in records} - {""})
    return (f"`{' '.join(words)}`: {cpu()}, {os.cpu_count()} cores, {args.threads} threads, {kernel} kernels, load average {median(r['load'] for r in records):.2f}"
            + (f", commit {' '.join(commits)}" if commits else "") + f"; medians of {rounds} round{'s' * (rounds != 1)}.\n")


def table(rows: list[list[object]], numbers_from: int) -> str:
    lines = ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    lines.insert(1, "|" + "".join("---:|" if i >= numbers_from else "---|" for i in range(len(rows[0]))))
    return "\n".join(lines)


# ---- the tables -----------------------------------------------------------------------------------------------------------

def measure_speed(model: Path) -> dict:
    before = limits()
    record = {"run": ours(model, args.prompt_len, args.steps), "fast": ours(model, args.prompt_len, args.steps, "--fast"), "peers": {peer_name(p): peer(p, model) for p in args.peer}}
    after = limits()
    ceilings = {k: max(float(v), float(after[k])) for k, v in before.items() if k.endswith("_s")}  # a ceiling found too low would flatter
    return {"model": model.name, "limits": ceilings, **record}


def speed(records: list[dict]) -> list[list[object]]:
    def of(model: str, f) -> float | None:
        values = [f(r) for r in records if r["model"] == model or not model]
        values = [v for v in values if v is not None]
        return median(values) if values else None

    def text(v: float | None, digits: int) -> str:
        return "-" if v is None else f"{v:.{digits}f}"

    lim = {k: of("", lambda r: r["limits"][k]) for k in ("read_GB_s", "int8_Gop_s", "bf16_Gop_s", "f32_Gop_s")}
    rows: list[list[object]] = [["file", "program", f"prefill of {args.prompt_len}, tokens/s", "share of peak", "run / it", "decode, tokens/s", "share of read", "run / it"],
                                ["ceilings", "", f"int8 {lim['int8_Gop_s']:.0f}, bf16 {lim['bf16_Gop_s']:.0f}, f32 {lim['f32_Gop_s']:.0f} Gop/s", "1", "",
                                 f"{lim['read_GB_s']:.1f} GB/s", "1", ""]]
    for model in args.models:
        kind, name = weight_type(model), model.name
        gop = lambda r: r["run"]["prefill_Gop_s"] / r["run"]["prefill_tok_s"] / r["limits"][peak_of(kind)]  # noqa: E731  of the peak, per token/s
        gb = lambda r: r["run"]["decode_GB_s"] / r["run"]["decode_tok_s"] / r["limits"]["read_GB_s"]  # noqa: E731
        prefill, decode = (lambda r: r["run"]["prefill_tok_s"]), (lambda r: r["run"]["decode_tok_s"])
        rows.append([f"{name} ({kind}, {model.stat().st_size / 1e6:.0f} MB)", "run", text(of(name, prefill), 1), text(of(name, lambda r: prefill(r) * gop(r)), 2), "",
                     text(of(name, decode), 2), text(of(name, lambda r: decode(r) * gb(r)), 2), ""])
        fast = lambda r: r["fast"]["prefill_tok_s"]  # noqa: E731
        rows.append([name, "run --fast", text(of(name, fast), 1), text(of(name, lambda r: fast(r) * gop(r)), 2), "",
                     text(of(name, lambda r: r["fast"]["decode_tok_s"]), 2), text(of(name, lambda r: r["fast"]["decode_tok_s"] * gb(r)), 2), ""])
        for p in map(peer_name, args.peer):
            it = lambda r, what: (r["peers"].get(p) or {}).get(what)  # noqa: E731, B023
            versions = {it(r, "commit") for r in records} - {None, "", "unknown"}
            rows.append([name, " ".join([p, *sorted(versions)]),
                         text(of(name, lambda r: it(r, "prefill")), 1), text(of(name, lambda r: it(r, "prefill") and it(r, "prefill") * gop(r)), 2),
                         text(of(name, lambda r: it(r, "prefill") and prefill(r) / it(r, "prefill")), 2) + (" / " + text(of(name, lambda r: it(r, "prefill") and fast(r) / it(r, "prefill")), 2)) * any(it(r, "prefill") for r in records if r["model"] == name),  # noqa: B023
                         text(of(name, lambda r: it(r, "decode")), 2), text(of(name, lambda r: it(r, "decode") and it(r, "decode") * gb(r)), 2),
                         text(of(name, lambda r: it(r, "decode") and decode(r) / it(r, "decode")), 2)])
    return rows


def measure_first_token(model: Path) -> dict:
    """From opening the file, already in the page cache, to the logits after 16 tokens; beside the same work in a program that has been running."""
    r = ours(model, 16, 16)
    return {"model": model.name, "first": r["first_token_s"], "warm": 16 / r["prefill_tok_s"] + 1 / r["decode_tok_s"]}


def first_token(records: list[dict]) -> list[list[object]]:
    return [["file", "load to first token, ms", "prefill of 16 + one step, ms", "ratio"],
            *([m.name, *(f"{1e3 * middle(records, m, k):.1f}" for k in ("first", "warm")), f"{middle(records, m, 'first', 'warm'):.2f}"] for m in args.models)]


def middle(records: list[dict], model: Path, key: object, over: object = None) -> float:
    return median(r[str(key)] / (r[str(over)] if over else 1) for r in records if r["model"] == model.name)


RUNS = (1, 2, 4, 8, 16)


def measure_runs(model: Path) -> dict:
    """Seconds of a run of T tokens, the middle of a prompt cut into such runs: no logits, which only the last run has."""
    return {"model": model.name, **{str(t): t / ours(model, 128, 1, "-b", t)["prefill_tok_s"] for t in RUNS}}


def runs(records: list[dict]) -> list[list[object]]:
    return [["file", "a run of 1 token, ms", *(f"of {t}, times as long" for t in RUNS[1:])],
            *([m.name, f"{1e3 * middle(records, m, 1):.2f}", *(f"{middle(records, m, t, 1):.2f}" for t in RUNS[1:])] for m in args.models)]


def measure_long(model: Path) -> dict:
    return {"model": model.name, **{str(n): 1e6 / ours(model, n, 1)["prefill_tok_s"] for n in (512, 8192)},
            **{key: ours(model, n, 32)["decode_tok_s"] for key, n in (("0", 1), ("32k", 32768))}}


def long(records: list[dict]) -> list[list[object]]:
    return [["file", "prefill of 512, us/token", "of 8192", "times as long", "decode behind 1 token, tokens/s", "behind 32768", "times as fast"],
            *([m.name, *(f"{middle(records, m, k):.0f}" for k in ("512", "8192")), f"{middle(records, m, '8192', '512'):.2f}",
               *(f"{middle(records, m, k):.2f}" for k in ("0", "32k")), f"{middle(records, m, '32k', '0'):.2f}"] for m in args.models)]


MILLION = 1000000


def measure_million(model: Path) -> dict:
    """Decode speed and resident memory behind 512 tokens (one full run, whose scratch memory counts) and behind a million, in two programs."""
    if ours(model, 1, 1)["kv_bytes_per_token"]:
        stop(f"{model}: has softmax layers, whose memory grows with the text; --million is for models without them")
    begin, far = ours(model, 512, args.steps), ours(model, MILLION, args.steps)
    return {"model": model.name, "begin": begin["decode_tok_s"], "far": far["decode_tok_s"], "begin_rss": begin["rss_bytes"], "far_rss": far["rss_bytes"],
            "s": MILLION / far["prefill_tok_s"]}


def million(records: list[dict]) -> list[list[object]]:
    return [["file", "a million tokens read in, s", "decode behind 512 tokens, tokens/s", "behind 1,000,000", "times as fast", "resident behind 512, MB", "behind 1,000,000"],
            *([m.name, f"{middle(records, m, 's'):.0f}", *(f"{middle(records, m, k):.2f}" for k in ("begin", "far")), f"{middle(records, m, 'far', 'begin'):.3f}",
               *(f"{middle(records, m, k) / 1e6:.1f}" for k in ("begin_rss", "far_rss"))] for m in args.models)]


TABLES = {"speed": (measure_speed, speed, 2), "first-token": (measure_first_token, first_token, 1), "runs": (measure_runs, runs, 1), "long": (measure_long, long, 1),
          "million": (measure_million, million, 1)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
parser.add_argument("--peer", action="append", default=[], type=Path, help="another program's llama-bench; may be repeated")
parser.add_argument("--rounds", type=int, default=3, help="(3)")
parser.add_argument("--prompt-len", type=int, default=512, metavar="N", help="tokens of the prompt (512)")
parser.add_argument("-n", "--steps", type=int, default=64, metavar="N", help="tokens of the decode (64)")
parser.add_argument("-j", "--threads", type=int, metavar="N", help="for all programs (what ./run takes by itself)")
parser.add_argument("--keep", type=Path, metavar="FILE", help="go on from the rounds in FILE and leave these behind, too; with --rounds 0 only print them")
parser.add_argument("--program", type=Path, default=ROOT / "run")
parser.add_argument("--limits", type=Path, default=ROOT / "build" / "limits")
other = parser.add_mutually_exclusive_group()
for option, text in (("first-token", "instead: load to first token, 16-token prompt"), ("runs", "instead: cost of runs of 2 to 16 tokens in runs of one"),
                     ("long", "instead: prompts of 8192 tokens, decode behind 32768 (41,000 tokens of prefill per round and file)"),
                     ("million", "instead: decode and memory behind a million tokens, for models without softmax layers (as many seconds as a million tokens of prefill take)")):
    other.add_argument(f"--{option}", dest="what", action="store_const", const=option, default="speed", help=text)


def main() -> None:
    global args
    args = parser.parse_args()
    args.program, args.limits = args.program.absolute(), args.limits.absolute()  # a bare name would be looked for on PATH
    for path, what in [(args.program, "program; make builds it"), *([(args.limits, "program; make build/limits builds it")] if args.what == "speed" else []),
                       *((m, "model") for m in args.models), *((p, "peer") for p in args.peer)]:
        if not path.is_file():
            stop(f"{path}: no such {what}")
        if "model" not in what and not os.access(path, os.X_OK):
            stop(f"{path}: not a program")
    if len({peer_name(p) for p in args.peer}) < len(args.peer) or len({m.name for m in args.models}) < len(args.models):
        stop("two models or two peers have the same name")
    if args.rounds < (args.keep is None) or args.prompt_len < 1 or args.steps < 1:
        stop("--rounds, --prompt-len and -n are at least 1")
    start = {"what": args.what, "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, "commit": commit()}
    first = run(args.models[0], "bench", "--prompt-len", 1, "-n", 1, *([] if args.threads is None else ["-j", args.threads]))
    args.threads = int(first["threads"])  # all programs take what ./run takes
    measure, rows, numbers_from = TABLES[args.what]
    settings = [args.prompt_len, args.steps, args.threads]
    records: list[dict] = []
    if args.keep and args.keep.exists():
        records = [r for r in map(json.loads, args.keep.read_text().splitlines()) if r.get("what") == args.what]
        if any(r["settings"] != settings for r in records):
            stop(f"{args.keep}: has rounds with other settings")
    for _ in range(args.rounds):
        for model in args.models:
            record = {**start, "settings": settings, **measure(model)}
            records.append(record)
            if args.keep:
                with args.keep.open("a") as f:
                    f.write(json.dumps(record) + "\n")
    counts = [sum(r["model"] == m.name for r in records) for m in args.models]
    if not min(counts):
        stop(f"{args.keep}: no rounds of {args.models[counts.index(0)].name}")
    print(heading([r for r in records if r["model"] in {m.name for m in args.models}], first["kernel"], min(counts)))
    print(table(rows(records), numbers_from))


if __name__ == "__main__":
    main()
