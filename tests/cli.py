#!/usr/bin/env python3
"""The command line of ./run, and the ways to embed it: cli.py [-v] [PROGRAM]    (./run; standard library only)

The embedding checks compile with $CC (cc), gcc and clang, where there are such. They, tests/bench.py and make install are looked at when PROGRAM is
./run, not again for every other build of it.
"""
from __future__ import annotations

import array
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
TINY, TINY_MTP, GLA, QWEN = FIXTURES / "tiny.gguf", FIXTURES / "tiny-mtp.gguf", FIXTURES / "gla.gguf", FIXTURES / "qwen35.gguf"  # only the first two have a vocabulary
VOCAB = 271
PROMPT = "once upon the time"
verbose = "-v" in sys.argv
program = os.path.abspath([ROOT / "run", *(a for a in sys.argv[1:] if a != "-v")][-1])
passed = failed = 0
tmp = Path()


def check(ok: object, what: str, detail: object = "") -> None:
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {Path(sys.argv[0]).stem}: {what}" + (f": {detail}" if detail != "" else ""), flush=True)


def run(*args: object, stdin: bytes | None = None, **how) -> subprocess.CompletedProcess:
    if stdin is None:
        how.setdefault("stdin", subprocess.DEVNULL)
    else:
        how["input"] = stdin
    how.setdefault("stdout", subprocess.PIPE)
    try:
        return subprocess.run([program, *map(str, args)], stderr=subprocess.PIPE, timeout=60, **how)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(args, "timeout", b"", b"")


def ran(*args: object, **how) -> bytes:
    """Standard output of a run that has to succeed."""
    p = run(*args, **how)
    check(p.returncode == 0, " ".join(map(str, args)), f"exit {p.returncode}, {p.stderr.decode(errors='replace')}")
    return p.stdout


def refused(code: int, what: str, *args: object, message: str = "", **how) -> None:
    """Ends with this code, with one line on stderr that holds the message, and nothing on stdout."""
    p = run(*args, **how)
    lines = p.stderr.decode(errors="replace").splitlines()
    ok = p.returncode == code and not p.stdout and len(lines) == 1 and lines[0].startswith(os.path.basename(program) + ": ") and message in lines[0]
    check(ok, what, f"exit {p.returncode}, {len(p.stdout or b'')} bytes out, {lines}")
    if verbose:
        print(f"     {what}: {lines}")


def write(name: str, data: bytes | str) -> Path:
    path = tmp / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def key_values(out: bytes) -> dict[str, str]:
    return dict((line.split(" ", 1) + [""])[:2] for line in out.decode().splitlines())


def floats(path: Path) -> array.array:
    a = array.array("f")
    a.frombytes(path.read_bytes())
    return a


# ---- options ---------------------------------------------------------------------------------------------------------

def test_misuse() -> None:
    cases = [
        [], ["-i", "x"], [TINY, "--nope"], [TINY, "-q"], [TINY, "--=x"], [TINY, "--steps"], [TINY, "-n"], [TINY, TINY],
        *([TINY, "-n", v] for v in ("x", "", "1.5", "-2", "5x", "99999999999999999999", "1e3")),
        *([TINY, "-t", v] for v in ("x", "-0.1", "nan", "inf", "1e9", "")),
        *([TINY, "-p", v] for v in ("1.1", "-1", "nan")), [TINY, "--top-p", "half"], *([TINY, "-k", v] for v in ("-1", "x", "3000000000")),
        *([TINY, "-s", v] for v in ("-1", "x", "18446744073709551616", "1.5", "")),
        *([TINY, "-j", v] for v in ("0", "2000")), *([TINY, "-c", v] for v in ("0", "3000000000")), [TINY, "-b", "0"],
        [TINY, "--min-p", "2"], [TINY, "--repeat-penalty", "0"], [TINY, "--prompt-len", "0"], [TINY, "--echo=1"], [TINY, "--stop="],
        [TINY, *["--stop", "x"] * 17], [TINY, "-m", "nope"], [TINY, "-m", "logits"], [TINY, "-m", "logits", "--ids", "x"],
        [TINY, "-m", "logits", "--out", "x"], [TINY, "-f", TINY, "-i", "x"], [TINY, "-m", "tokenize", "--ids", "x", "-i", "x"], [TINY, "--cache-bytes", "1M"],
        [TINY, "-m", "chat", "--no-think", "--think-budget", "5"],
        *([TINY, "-m", mode, *option] for mode, option in (("generate", ["--ids", "x"]), ("generate", ["--depth", "1"]), ("chat", ["--echo"]), ("logits", ["-i", "x"]), ("logits", ["-s", "1"]),
            ("perplexity", ["-n", "1"]), ("perplexity", ["--save-state", "x"]), ("tokenize", ["--stop", "x"]), ("tokenize", ["--out", "x"]), ("bench", ["-i", "x"]), ("bench", ["-t", "0"]), ("tokenize", ["--json"]))),
    ]
    for args in cases:
        refused(2, f"misuse {[str(a) if a != TINY else 'MODEL' for a in args]}", *args, message="--help")


def test_help() -> None:
    p = run("--help")
    lines = p.stdout.decode().splitlines()
    check(p.returncode == 0 and not p.stderr, "--help", p.returncode)
    check(len(lines) <= 60 and max(map(len, lines)) <= 100, "--help fits a page", f"{len(lines)} lines, {max(map(len, lines))} columns")
    names = """prompt file steps temperature top-p top-k min-p repeat-penalty presence-penalty seed logit-bias stop ignore-eos echo json json-only
               logprobs tokenizer mode system think no-think think-budget hide-thinking loop-guard snapshot-bytes forget threads ctx batch load-state
               save-state prompt-cache cache-bytes ids out prompt-len help version""".split()
    missing = [n for n in names if f"--{n}" not in p.stdout.decode()]
    check(not missing, "--help names every option", missing)
    check(run("-h").stdout == p.stdout, "-h is --help")
    named = tmp / "another name"
    named.symlink_to(program)
    p = subprocess.run([named, "--help"], capture_output=True)
    check(p.stdout.startswith(f"usage: {named} MODEL".encode()), "--help under another name", p.stdout[:200])
    p = subprocess.run([named, "--nope"], capture_output=True)
    check(p.returncode == 2 and p.stderr == f"another name: unknown option --nope (see {named} --help)\n".encode(), "misuse under another name", p.stderr)
    p = run(TINY, "-m", "info", "-y", "x")
    check(p.returncode == 2 and b"--system goes with -m chat (see" in p.stderr, "an option that the mode has no use for", p.stderr)
    p = run("--version")
    check(p.returncode == 0 and p.stdout.count(b"\n") == 1 and re.match(rb"gla\.c \d+\.\d+\.\d+, ", p.stdout), "--version", p.stdout)


def test_spellings() -> None:
    want = ran(TINY, "-i", PROMPT, "-n", 5, "-s", 0)
    for args in ([TINY, "-i", PROMPT, "-n5", "-s0"], [TINY, f"--prompt={PROMPT}", "--steps=5", "--seed=0"], ["-s", 0, "-n", 5, TINY, "-i", PROMPT],
                 ["--seed", 0, "--steps", 5, "--prompt", PROMPT, "--", TINY], [TINY, "-i", "other", "-n", 9, "-n", 5, "-i", PROMPT, "-s", 0]):
        check(ran(*args) == want, f"spelled {args}")
    shutil.copy(TINY, tmp / "-model")
    check(run("-n", 5, "-s", 0, "-i", PROMPT, "--", "-model", cwd=tmp).stdout == want, "-- ends the options")


def test_other_programs() -> None:
    """What people type who come from other programs works, or is answered with what it is here."""
    plain = [TINY, "-i", PROMPT, "-n", 12, "-s", 0]
    want = ran(*plain)
    for args in (["-m", TINY, "-p", PROMPT, "-n", 12, "-s", 0], ["--model", TINY, "--prompt", PROMPT, "--n-predict", 12, "--seed", 0], [*plain, "--temp", 1, "--top_p", "0.9", "-p=0.9"],
                 [TINY, "-p", PROMPT, "--predict=12", "-s0", "--ctx-size", 200, "--batch-size", 3, "--threads", 1], [TINY, "-i", PROMPT, "--max_new_tokens", 12, "-s", 0, "-ub", 7],
                 [*plain, "-ctk", "f32", "--cache-type-v", "f32", "-no-cnv"], [*plain, "-r", "\1"], [*plain, "-l", "1-0.0"], ["-mmodel.gguf", "-p", PROMPT, "-n", "12", "-s", "0"]):
        if args[0] == "-mmodel.gguf":
            shutil.copy(TINY, tmp / "model.gguf")
        p = run(*args, cwd=tmp)
        check(p.returncode == 0 and p.stdout == want and p.stderr.count(b"\n") == 2, f"as other programs spell it {args}", (p.returncode, p.stderr))
    endless = [ran(TINY, "-i", PROMPT, *n, "-c", 40, "-s", 3, "--ignore-eos") for n in (["-n", 0], ["-n", -1], ["--n-predict", -1], ["--predict=-1"])]
    check(len(set(endless)) == 1, "-n -1 is without limit")
    chats = [ran(TINY, *how, "-i", "hello", "-n", 5, "-s", 1) for how in (["-m", "chat", "-y", "kind"], ["-cnv", "-sys", "kind"], ["--conversation", "--system-prompt", "kind"])]
    check(len(set(chats)) == 1, "conversations as other programs call them", chats)
    idle = ["-ngl", 99, "--gpu-layers=9", "-fa", "--flash-attn", "on", "--color", "--mlock", "--no-mmap", "--no-warmup", "--simple-io", "--log-disable", "--no-display-prompt", "--verbose", "--numa", "distribute", "-tb", 4]
    p = run(*plain, *idle)
    lines = [line for line in p.stderr.decode().splitlines() if "without effect" in line]
    check(p.returncode == 0 and p.stdout == want and len(lines) == sum(str(a).startswith("-") for a in idle), "what is of no use is said, and goes on", p.stderr)
    p = run(*plain, *idle, "--quiet")
    check(p.returncode == 0 and p.stdout == want and p.stderr == b"", "--quiet", p.stderr)
    for args, last in ((["-v"], b"no model was named"), ([TINY, "-v", "-i", PROMPT, "-n", 1], b"seed")):
        told = run(*args).stderr.splitlines()
        check(b"--version tells the version" in told[0] and last in told[-1], f"-v is answered {args}", told)
    (tmp / "serve").mkdir()
    shutil.copy(TINY, tmp / "my model")
    for message, *args in (("-j 8", TINY, "-t", 8), ("-j 3", TINY, "-t3"), ("did you mean --temperature?", TINY, "--temprature", 1), ("did you mean --temperature?", TINY, "--tmep", 1),
                           ("did you mean --seed?", TINY, "-seed", 5), ("did you mean --json-only?", TINY, "--jsononly"), ("did you mean --steps?", TINY, "--n_predct", 5), ("did you mean --top-k?", TINY, "--topk=4"),
                           ("did you mean chat?", TINY, "-m", "caht"), ("did you mean perplexity?", TINY, "--mode", "perpelxity"), ("none of the modes", TINY, "-m", "llama3"),
                           (f'{TINY} -i "once upon a time"', TINY, "once", "upon", "a", "time"), (f'{TINY} -i "once upon a time"', "-m", TINY, "-p", "once", "upon", "a", "time"),
                           (f'{TINY} -i "once upon"', TINY, "-i", "once", "upon", "-n", 5), ('MODEL -i "once upon a time"', "once", "upon", "a", "time"), ('MODEL -i "once upon a time"', "once upon a time"),
                           (f"{program} {TINY} -m chat", "run", TINY), ("no command", "run", "llama3"), ("no command", "pull"), (f'{TINY} -i "Hello you"', "run", TINY, "Hello you"), (f'{TINY} -i "Hello"', "run", TINY, "-i", "Hello"), ('my model -i "x y"', "run", tmp / "my model", "x", "y"),
                           ('llama3 -i "x"', "run", "llama3", "x"), (f'{TINY} -m chat -i "Hello"', "chat", TINY, "Hello"), (f"{program} {TINY} -m chat", "chat", TINY), ("-m bench", "bench"),
                           (f"{TINY} -m chat", TINY, "chat"), ("-m info", TINY, "--info"), ("0 or more", TINY, "-n", "abc"), ("to 9000000000000000", TINY, "-n", "9" * 20), ("K, M, G or T", TINY, "-m", "chat", "--snapshot-bytes", "1X"),
                           ("two models", TINY, GLA), ("download the GGUF file", "-hf", "org/name", "-p", "x"), ("conversation", TINY, "-i", "-p", "x"), ("conversation", "-m", TINY, "-i", "--color"), ("--json-only", TINY, "--grammar-file", "x"),
                           ("from the clock", TINY, "-s", -1), ("-i is always the prompt", TINY, "-p", 42), ("without -c", TINY, "-c", 0), ("--json-only", TINY, "-j", '{"type": "object"}'), ("look back 64", TINY, "--repeat-last-n", 32), ("--min-p", TINY, "--mirostat", 2), ("$'one", TINY, "-e"), ("f32 f16 q8_0", TINY, "-ctk", "q4_0"), ("no server", TINY, "--port", 80)):
        refused(2, f"{args}", *args, message=message)
    check(ran(TINY, "-f", "-", *plain[3:], stdin=PROMPT.encode()) == want, "-f - is standard input")
    check(ran(TINY, "-m", "tokenize", "--ids", "-", stdin=b"5 6") == ran(TINY, "-m", "tokenize", "--ids", write("56", "5 6")), "--ids - is standard input")
    refused(1, "a model that is not there", "llama3.2:1b", "-i", "x", message="on this computer")
    refused(1, "a model that is not there", "-m", "models/x.gguf", "-p", "x", message="models/x.gguf")


# ---- failures --------------------------------------------------------------------------------------------------------

def hostile_models() -> list[tuple[str, bytes]]:
    good = TINY.read_bytes()

    def patched(anchor: bytes | None, offset: int, value: bytes) -> bytes:
        at = (good.index(anchor) + len(anchor) if anchor else 0) + offset
        return good[:at] + value + good[at + len(value):]

    u32, u64 = (lambda v: struct.pack("<I", v)), (lambda v: struct.pack("<Q", v))
    cut = [(f"cut to {n} bytes", good[:n]) for n in (0, 3, 23, 24, 25, 100, 1000, 5000, len(good) // 2, len(good) - 1000)]
    return cut + [
        ("magic", patched(None, 0, b"GGML")), ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("web page", b"<!DOCTYPE html>" * 10), ("zeros", bytes(5000)), ("ones", b"\xff" * 5000),
        ("version", patched(None, 4, u32(9))), ("tensors", patched(None, 8, u64(1 << 60))), ("keys", patched(None, 16, u64(2 ** 64 - 1))),
        ("string length", patched(b"general.architecture", 4, u64(2 ** 63))), ("array length", patched(b"tokenizer.ggml.merges", 8, u64(1 << 40))),
        ("escape characters in a name", patched(b"general.architecture", 12, b"\x1b[2")),
        ("escape characters in the vocabulary", patched(b"tokenizer.ggml.model", 12, b"\x1b[2J")),
        ("escape characters in the pre-tokenizer", patched(b"tokenizer.ggml.pre", 12, b"\x1b[2J")),
        ("layers", patched(b"gla.block_count", 4, u32(2 ** 31))), ("width", patched(b"gla.embedding_length", 4, u32(1 << 24))),
        ("dimension", patched(b"blk.0.attn_q.weight", 4, u64(1 << 58))), ("type", patched(b"blk.0.attn_q.weight", 20, u32(200))),
        ("offset", patched(b"blk.0.attn_q.weight", 24, u64(2 ** 64 - 32))), ("missing tensor", patched(b"blk.0.attn_q", -1, b"x")),
    ]


def test_failures() -> None:
    for what, data in hostile_models():
        path = write("hostile.gguf", data)
        refused(1, f"model with a bad {what}", path, "-i", "x")
        if not what.startswith(("layers", "width", "dim", "type", "offset", "missing", "cut", "escape characters in a name")):
            refused(1, f"vocabulary with a bad {what}", TINY, "-z", path, "-i", "x")
        p = run(path, "-i", "x")
        check(not re.search(rb"[^\n\x20-\x7e]", p.stderr), f"the message about a bad {what} is printable", p.stderr)
    refused(1, "no such model", tmp / "none.gguf", "-i", "x", message="none.gguf")
    refused(1, "a folder", tmp, "-i", "x", message=str(tmp))
    good = TINY.read_bytes()  # a vocabulary that is not understood
    at = good.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 12
    other = write("other.gguf", good[:at] + b"nosuc" + good[at + 5:])
    for args in (["-m", "info"], ["-m", "bench", "-n", 1, "--prompt-len", 3],
                 ["-m", "logits", "--ids", write("ids", b"1 2"), "--out", tmp / "other.out"], ["-z", TINY, "-m", "tokenize", "-i", "x"]):
        check(run(other, *args).returncode == 0, f"{args[:2]} needs no vocabulary of the file's")
    for args in (["-i", "x"], ["-m", "chat", "-i", "x"], ["-m", "tokenize", "-i", "x"], ["-m", "perplexity", "-i", "x"]):
        refused(1, "a vocabulary that is not understood", other, *args, message="nosuc")
    refused(1, "a long name of no pre-tokenizer", TINY, "--pre", "x" * 99, "-i", "x", message="is not known")
    check(ran(other, "--pre", "gpt-2", "-m", "tokenize", "-i", PROMPT) == ran(TINY, "-m", "tokenize", "-i", PROMPT), "--pre takes another")
    check(ran(GLA, "--pre", "gpt-2", "-z", other, "-m", "tokenize", "-i", "x") == ran(TINY, "-m", "tokenize", "-i", "x"), "--pre and -z")
    refused(1, "a pre-tokenizer that is not known", TINY, "--pre", "gpt", "-i", "x", message="qwen2")
    refused(1, "a vocabulary as a model", FIXTURES / "tokenizer" / "gpt-2.gguf", message="-z")
    refused(1, "a model without a vocabulary", GLA, "-i", "x", message="-z")
    refused(1, "no such vocabulary", TINY, "-z", tmp / "none", "-i", "x")
    refused(1, "no such prompt file", TINY, "-f", tmp / "none")
    refused(1, "no such kernel", TINY, "-i", "x", env={**os.environ, "RUN_KERNEL": "abacus"}, message="abacus: no such kernels; here run: scalar")
    p = run(TINY, "-c", 20, "-i", "x" * 50)
    last = (p.stderr.decode().splitlines() or [""])[-1]  # the size of the state stands before it
    check(p.returncode == 1 and not p.stdout and "50 tokens" in last and "20" in last, "a prompt longer than the context names both numbers", p.stderr)
    refused(1, "ids longer than the context", TINY, "-m", "logits", "-c", 20, "-b", 8, "--ids", write("ids", "1 " * 50), "--out", tmp / "out", message="50 tokens do not fit in a context of 20")
    refused(1, "a context of next to nothing", TINY, "-m", "perplexity", "-c", 4, "--quiet", "-i", "x" * 50, message="at least 8")
    for ids in ("abc", "-1", str(VOCAB), "1 2 x", "1,2", "99999999999999999999", "1.5", "0x10", "+1", "1 2\0 3", "\0", "\xff\xfe"):
        path = write("ids", ids)
        refused(1, f"ids {ids!r}", TINY, "-m", "logits", "--ids", path, "--out", tmp / "out")
        refused(1, f"ids {ids!r} as text", TINY, "-m", "tokenize", "--ids", path)
        check(not (tmp / "out").exists() and not (tmp / "out.tmp").exists(), f"ids {ids!r}: no output is left")
    refused(1, "no such ids", TINY, "-m", "logits", "--ids", tmp / "none", "--out", tmp / "out")
    refused(1, "output in no folder", TINY, "-m", "logits", "--ids", write("ids", "1 2"), "--out", tmp / "no" / "out")
    refused(1, "one token is no text to measure", TINY, "-m", "perplexity", "-i", "")
    refused(1, "ids beyond the context", QWEN, "-c", 2, "-m", "logits", "--ids", write("ids", "1 2 3"), "--out", tmp / "out")
    for mode in ("generate", "logits"):
        extra = ["--ids", write("ids", "1 2"), "--out", tmp / "out"] if mode == "logits" else ["-i", "x"]
        refused(1, f"{mode}: no such session", TINY, "-m", mode, *extra, "--load-state", tmp / "none")
        refused(1, f"{mode}: not a session", TINY, "-m", mode, *extra, "--load-state", TINY)


def test_full_disk() -> None:
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            for args in (["-i", "x", "-s", 0], ["-m", "info"], ["-m", "tokenize", "-i", "x"], ["-m", "perplexity", "-i", PROMPT], ["--help"]):
                p = run(TINY, *args, stdout=full)
                check(p.returncode == 1 and b"standard output" in p.stderr, f"a full disk: {args}", (p.returncode, p.stderr))
    read, write_end = os.pipe()
    os.close(read)
    p = run(TINY, "-i", "x", "-s", 0, stdout=write_end)
    os.close(write_end)
    check(p.returncode == 1 and b"cannot write" not in p.stderr, "a closed pipe", (p.returncode, p.stderr))
    for args in ([TINY, "-m", "info"], ["--help"], [TINY, "-m", "tokenize", "-i", "x"], [TINY, "-i", "x", "--json", "--quiet"], [TINY, "-m", "chat", "-i", "x", "--quiet"]):
        read, write_end = os.pipe()
        os.close(read)
        p = run(*args, stdout=write_end)
        os.close(write_end)
        check(p.returncode == 1 and b"cannot write" not in p.stderr and (p.stderr == b"" or "chat" in args), f"a reader that has gone away: {args}", (p.returncode, p.stderr))
    try:
        import resource
    except ImportError:
        return
    # Python ignores SIGXFSZ and its children would inherit that; here the program has to do it itself.
    limit = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_DFL), resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))  # noqa: E731
    for what, args in (("logits", ["-m", "logits", "--ids", write("ids", "1 2 3 4"), "--out"]), ("a session", ["-i", "x", "-s", 0, "-n", 4, "--save-state"])):
        old = write("kept", "the old file")
        p = run(TINY, *args, old, preexec_fn=limit)
        check(p.returncode == 1 and old.read_text() == "the old file" and not (tmp / "kept.tmp").exists(), f"{what}: a failed write keeps the old file", (p.returncode, p.stderr))


# ---- generation ------------------------------------------------------------------------------------------------------

STATUS = re.compile(r"prompt (\d+) tokens?, [\d.]+ tok/s \| generated (\d+) tokens?, [\d.]+ tok/s, [\d.]+ GB/s \| state \d+ [KMGT]?B \| seed (\d+)( \| .*)?")


def test_generate() -> None:
    p = run(TINY, "-i", PROMPT, "-n", 12, "-s", 0)
    status = STATUS.fullmatch(p.stderr.decode().splitlines()[-1])
    check(p.returncode == 0 and status and status[2] == "12" and status[3] == "0", "the status line", p.stderr)
    check(all(b"\x1b" not in s for s in (p.stdout, p.stderr)) and p.stdout.endswith(b"\n"), "plain output")
    text = p.stdout
    check(ran(TINY, "-i", PROMPT, "-n", 12, "-s", 0) == text, "seed 0 repeats itself")
    check(len({ran(TINY, "-i", PROMPT, "-n", 12, "-s", s) for s in range(4)}) == 4, "seeds differ")
    check(ran(TINY, "-i", PROMPT, "-n", 12, "-s", 0, "--echo") == PROMPT.encode() + text, "--echo puts the prompt before the text")
    prompt_file = write("prompt", PROMPT)
    check(ran(TINY, "-i", "-", "-n", 12, "-s", 0, stdin=PROMPT.encode()) == text, "-i - reads standard input")
    check(ran(TINY, "-n", 12, "-s", 0, stdin=PROMPT.encode()) == text, "a pipe is the prompt")
    check(ran(TINY, "-f", prompt_file, "-n", 12, "-s", 0) == text, "-f reads a file")
    with prompt_file.open("rb") as f:
        check(subprocess.run([program, TINY, "-n", "12", "-s", "0"], stdin=f, capture_output=True).stdout == text, "a redirected file is the prompt")
    p = run(TINY, "-i", PROMPT, "-n", 12)
    seed = STATUS.fullmatch(p.stderr.decode().splitlines()[-1])
    check(seed and ran(TINY, "-i", PROMPT, "-n", 12, "-s", seed[3]) == p.stdout, "the printed seed repeats the run")
    for args in (["-j", 1], ["-j", 5], ["-b", 1], ["-b", 3], ["-c", 30], ["-z", TINY]):
        check(ran(TINY, "-i", PROMPT, "-n", 12, "-s", 0, *args) == text, f"{args} changes nothing")
    greedy = ran(TINY, "-i", PROMPT, "-n", 12, "-t", 0)
    for args in (["-s", 7], ["-k", 1, "-t", 1], ["-p", 0, "-t", 1], ["--min-p", 1, "-t", 1]):
        check(ran(TINY, "-i", PROMPT, "-n", 12, "-t", 0, *args) == greedy, f"greedy, and {args}")
    check(ran(TINY, "-i", PROMPT, "-n", 30, "-t", 0, "--repeat-penalty", 3) != ran(TINY, "-i", PROMPT, "-n", 30, "-t", 0), "--repeat-penalty does something")
    check(ran(TINY, "-i", PROMPT, "-n", 30, "-t", 0, "--presence-penalty", 20) != ran(TINY, "-i", PROMPT, "-n", 30, "-t", 0), "--presence-penalty does something")
    whole = ran(TINY, "-i", PROMPT, "-n", 40, "-s", 3)[:-1]
    stop = whole[len(whole) // 2:][:2]
    check(ran(TINY, "-i", PROMPT, "-n", 40, "-s", 3, "--stop", os.fsdecode(stop)) == whole[:whole.index(stop)] + b"\n", "--stop", stop)
    p = run(TINY, "-i", PROMPT, "-n", 0, "-c", 40, "-s", 3, "--ignore-eos")
    made = STATUS.fullmatch(p.stderr.decode().splitlines()[-1])
    check(p.returncode == 0 and made and int(made[1]) + int(made[2]) == 40 and "context" in (made[4] or ""), "-n 0 goes on until the context is full", p.stderr)
    p = run(TINY, "-n", 3, "-s", 0)
    check(p.returncode == 0 and b"prompt 1 token," in p.stderr, "without a prompt a text begins", p.stderr)


def test_sessions() -> None:
    a, b = tmp / "a", tmp / "b"
    for how in (["-t", 0], ["-s", 5], ["-s", 5, "--repeat-penalty", 1.3]):
        straight = ran(TINY, "-i", PROMPT, "-n", 20, *how)[:-1]
        first = ran(TINY, "-i", PROMPT, "-n", 8, *how, "--save-state", a)[:-1]
        second = ran(TINY, "-n", 12, *(x for x in how if x not in ("-s", 5)), "--load-state", a, "--save-state", b)[:-1]
        check(first + second == straight, f"8 tokens, saved, loaded, 12 tokens {how}", (first, second, straight))
    ids = [(i * 37 + 11) % VOCAB for i in range(60)]
    for model in (TINY, QWEN, GLA):
        numbers = [i % 256 for i in ids]
        ran(model, "-m", "logits", "--ids", write("all", " ".join(map(str, numbers))), "--out", tmp / "whole")
        whole = (tmp / "whole").read_bytes()
        for cut in (1, 23, 59):
            ran(model, "-m", "logits", "--ids", write("1", "\n".join(map(str, numbers[:cut]))), "--out", tmp / "out1", "--save-state", a)
            ran(model, "-m", "logits", "--ids", write("2", "\t".join(map(str, numbers[cut:])) + "\n"), "--out", tmp / "out2", "--load-state", a)
            check((tmp / "out1").read_bytes() + (tmp / "out2").read_bytes() == whole, f"{model.name}: logits in two pieces, {cut} ids first")
        for how in (["-b", 1], ["-b", 7], ["-j", 3], ["-c", 64]):
            ran(model, "-m", "logits", "--ids", tmp / "all", "--out", tmp / "other", *how)
            check((tmp / "other").read_bytes() == whole, f"{model.name}: logits with {how}")
    ids = write("all", " ".join(map(str, range(3, 80))))
    ran(QWEN, "-m", "logits", "--ids", ids, "--out", tmp / "out", "--kv", "f16", "--save-state", tmp / "f16")
    ran(QWEN, "-m", "logits", "--ids", ids, "--out", tmp / "other")
    check((tmp / "out").read_bytes() != (tmp / "other").read_bytes(), "--kv f16 changes nothing")
    outs = [tmp / "exact", tmp / "fast", tmp / "fast1"]
    for out, how in zip(outs, ([], ["--fast"], ["--fast", "-b", 1])):
        ran(ROOT / "model.bin", "-m", "logits", "--ids", ids, "--out", out, *how)
    exact, fast, fast1 = (array.array("f", out.read_bytes()) for out in outs)
    largest = max(abs(x - y) for x, y in zip(exact, fast))
    check(0 < largest < 3 and fast == fast1, "--fast: other logits, not far away, and the same in any run", largest)
    mine = write("mine.gguf", TINY.read_bytes())
    for what, args in (("a session over the model", [mine, "-i", "x", "-n", 1, "--save-state", mine]), ("logits over the ids", [mine, "-m", "logits", "--ids", ids, "--out", ids])):
        before = [f.read_bytes() for f in (mine, ids)]
        refused(2, what, *args, message="would be replaced")
        check(before == [f.read_bytes() for f in (mine, ids)], f"{what}: nothing changed")
    refused(1, "a session with keys and values of another type", QWEN, "-m", "logits", "--ids", tmp / "1", "--out", tmp / "out", "--load-state", tmp / "f16", message="--kv f16")
    ran(QWEN, "-m", "logits", "--ids", tmp / "1", "--out", tmp / "out", "--load-state", tmp / "f16", "--kv=f16")
    refused(1, "a session of another model", QWEN, "-m", "logits", "--ids", tmp / "1", "--out", tmp / "out", "--load-state", b, message="another model")


def test_drafts() -> None:
    """Drafts change nothing but the time; and what is no source of them is said in a line."""
    long = " ".join([PROMPT] * 12)
    for sampling in (["-t", 0], ["-t", 0.7, "-s", 5], ["-t", 0.9, "-s", 6, "--json"], ["-t", 0.9, "-s", 7, "--json-only"]):
        got = []
        for source in ("off", "lookup", None):
            p = run(TINY, "-i", long, "-n", 60, *sampling, "--save-state", tmp / "drafted", *(["--draft", source] if source else []))
            got.append((p.returncode, re.sub(rb'"timing":{.*?}', b"", p.stdout), (tmp / "drafted").read_bytes() if "-s" in sampling else b""))
        check(got[0] == got[1] == got[2] and got[0][1], f"--draft changes the text, {sampling}")
    for model in (TINY, TINY_MTP):
        sources = ["off", "lookup"] + ["mtp"] * (model == TINY_MTP)
        talk = {ran(model, "-m", "chat", "-t", 0.5, "-s", 3, "-n", 40, "--draft", source, stdin=b"once\nonce upon\n/undo\nonce\n") for source in sources}
        check(len(talk) == 1 and talk != {b""}, f"--draft changes a conversation, {model.name}")
    for sampling in (["-t", 0], ["-t", 0.3, "-c", 70], ["-t", 0.9], ["-t", 0, "--kv", "q8_0", "-b", 3], ["-t", 0, "-b", 1]):
        saved = {}
        for source in ("off", "lookup", "mtp"):
            texts = [ran(TINY_MTP, "-i", PROMPT, "-n", 40, "-s", 6, *sampling, "--draft", source, "--save-state", tmp / "drafted")]
            texts += [ran(TINY_MTP, "-i", PROMPT, "-n", 20, "-s", 6, *sampling, "--draft", source, "--load-state", tmp / "drafted")]
            saved[source] = texts, (tmp / "drafted").read_bytes()
        check(saved["off"] == saved["lookup"] == saved["mtp"] and all(saved["off"][0]), f"drafts from the block change the text, {sampling}")
    p = run(TINY_MTP, "-i", PROMPT, "-n", 100, "-t", 0, "--draft", "mtp")
    check(re.search(rb" \d+ of \d+ drafts? stayed", p.stderr), "drafts are counted", p.stderr[-200:])
    refused(1, "--draft mtp of a model without the block", TINY, "-i", PROMPT, "--draft", "mtp", message="no block for multi-token prediction")
    for bad in ("", "of", "off lookup", "OFF", "16", "-1", "lookup ", "\xff", "a" * 5000, "%s%n"):
        refused(2, f"--draft {bad[:20]!r}", TINY, "-i", PROMPT, "--draft", bad, message="lookup")
    refused(2, "--draft without a source", TINY, "-i", PROMPT, "--draft")
    for mode in ("logits", "perplexity", "tokenize", "bench", "info"):
        refused(2, f"--draft in mode {mode}", TINY, "-m", mode, "--draft", "off", message="--draft")
    refused(2, "a draft model", TINY, "-i", PROMPT, "--draft-max", 8, message="--draft lookup")


def test_modes() -> None:
    info = key_values(ran(TINY, "-m", "info"))
    check(set("architecture parameters file_bytes layers mixers state_bytes kv_bytes_per_token context tensor_types".split()) <= set(info), "info", info)
    check(info["architecture"] == "gla" and info["file_bytes"] == str(TINY.stat().st_size) and info["layers"] == "2" and info["context"] == "512", "values of info", info)
    check("softmax x 1" in info["mixers"] and "gla x 1" in info["mixers"] and info["tensor_types"] == "F32 x 10, F16 x 19", "mixers and types", info)
    check(key_values(ran(GLA, "-m", "info"))["kv_bytes_per_token"] == "0", "a model without softmax layers keeps nothing per token")
    bench = key_values(ran(TINY, "-m", "bench", "--prompt-len", 20, "-n", 5, "-j", 1))
    names = "load_s first_token_s prefill_tok_s decode_tok_s decode_GB_s prefill_Gop_s state_bytes kv_bytes_per_token rss_bytes threads kernel kv fast".split()
    check(list(bench) == names and all(float(bench[n]) >= 0 for n in names if n not in ("kernel", "kv")) and float(bench["decode_tok_s"]) > 0 and bench["threads"] == "1", "bench", bench)
    for kv, least, most in (("f32", 4, 4), ("f16", 2, 2), ("q8_0", 1.06, 1.25)):  # bytes of a number
        numbers = int(info["kv_bytes_per_token"]) / 4
        deep = key_values(ran(TINY, "-m", "bench", "--prompt-len", 20, "-n", 5, "-j", 1, "--depth", 600, "--kv", kv))
        check(least <= int(deep["kv_bytes_per_token"]) / numbers <= most and float(deep["decode_tok_s"]) > 0, f"bench --depth --kv {kv}", deep)
        check(deep["kv"] == kv and deep["fast"] == "0", f"bench names --kv {kv}", deep)
        check(key_values(ran(TINY, "-m", "info", "--kv", kv))["kv_bytes_per_token"] == deep["kv_bytes_per_token"], f"info --kv {kv}")
    refused(2, "a type of keys and values that does not exist", TINY, "-m", "bench", "--kv", "f64", message="f16")
    refused(1, "a depth beyond the context", TINY, "-m", "bench", "--depth", 100, "-c", 50, message="context")
    check(key_values(ran(TINY, "-m", "bench", "--prompt-len", 5, "-n", 1, env={**os.environ, "RUN_KERNEL": "scalar"}))["kernel"] == "scalar", "RUN_KERNEL=scalar")
    bench = key_values(ran(TINY, "-m", "bench", "--prompt-len", 5, "-n", 1, "--fast"))
    check(bench["kv"] == "f32" and bench["fast"] == "1", "bench names --fast", bench)

    text = PROMPT + " \u20ac<|im_end|>\n"
    ids = ran(TINY, "-m", "tokenize", "-i", text).split()
    check(len(ids) > 5 and all(i.isdigit() and int(i) < VOCAB for i in ids) and str(VOCAB - 1).encode() in ids, "tokenize", ids)
    check(ran(TINY, "-m", "tokenize", "--ids", write("ids", b" ".join(ids))) == text.encode() + b"\n", "the text of the ids")
    longer = ran(ROOT / "model.bin", "-m", "tokenize", "-i", "\u0958" * 300).split()  # NFC makes six bytes of three
    check(len(longer) > 1500, "a text with more ids than bytes", len(longer))
    check(ran(GLA, "-z", TINY, "-m", "tokenize", "-i", "xyz") == ran(TINY, "-m", "tokenize", "-i", "xyz"), "-z names another vocabulary")
    for vocabulary in (FIXTURES / "tokenizer" / "gpt-2.gguf", GLA):
        refused(1, "a vocabulary smaller than the model", ROOT / "model.bin", "-z", vocabulary, "-i", "x", message="it is another model's")
    refused(1, "a vocabulary larger than the model", GLA, "-z", TINY, "-m", "tokenize", "-i", text, message="-z")

    lines = lines0 = key_values(ran(TINY, "-m", "perplexity", "-i", PROMPT))
    ids = [int(i) for i in ran(TINY, "-m", "tokenize", "-i", PROMPT).split()]
    ran(TINY, "-m", "logits", "--ids", write("ids", " ".join(map(str, ids))), "--out", tmp / "out")
    rows, nll = floats(tmp / "out"), 0.0
    check(len(rows) == len(ids) * VOCAB, "a row of logits per id", len(rows))
    for t, target in enumerate(ids[1:]):
        row = rows[t * VOCAB:(t + 1) * VOCAB]
        nll += math.log(sum(math.exp(v - row[target]) for v in row)) / (len(ids) - 1)
    check(list(lines) == ["tokens", "nll", "perplexity", "window", "stride"] and lines["tokens"] == str(len(ids) - 1), "perplexity", lines)
    check(lines["window"] == lines["stride"] == str(len(ids)), "a text that fits is one window", lines)
    # a longer text: windows of the context, each half of one behind the last, every token scored once
    text = " ".join([PROMPT] * 5)
    ids, window = ran(TINY, "-m", "tokenize", "-i", text).split(), 30
    for how, head in ((["-c", window], 0), (["-c", window, "-b", 7], 0)):
        p = run(TINY, "-m", "perplexity", "-i", text, *how)
        cut, total, scored, at = key_values(p.stdout), 0.0, 1, 0
        while scored < len(ids):
            part = ids[at:at + window]
            ran(TINY, "-m", "logits", "--ids", write("ids", b" ".join(part)), "--out", tmp / "out")
            rows = floats(tmp / "out")
            for k in range(scored - at, len(part)):
                row = rows[(k - 1) * VOCAB:k * VOCAB]
                total += math.log(sum(math.exp(v - row[int(part[k])]) for v in row))
            scored, at = at + len(part), at + window // 2
        check(p.returncode == 0 and b"windows of 30 tokens, each 15 behind" in p.stderr and (cut["window"], cut["stride"], cut["tokens"]) == ("30", "15", str(len(ids) - 1)), "perplexity says how the text is cut", (cut, p.stderr))
        check(abs(float(cut["nll"]) - total / (len(ids) - 1)) < 2e-6, "and is that of the windows", (cut, total))
    p = run(GLA, "-z", TINY, "-m", "perplexity", "-i", "xyz " * 20, "-c", 30)
    check(key_values(p.stdout).get("window") == "80", "without softmax layers there is one window", p.stderr)
    for mode, *args in (("info",), ("bench", "--prompt-len", 5, "-n", 1), ("perplexity", "-i", text)):
        lines, o = key_values(ran(TINY, "-m", mode, *args)), json.loads(ran(TINY, "-m", mode, *args, "--json"))
        check(list(lines) == list(o) and all(isinstance(o[k], (int, float)) == bool(re.fullmatch(r"[\d.]+", v)) for k, v in lines.items()), f"-m {mode} --json has the same keys, and numbers as numbers", o)
        check(mode == "bench" or all(str(o[k]) == v or float(o[k]) == float(v) for k, v in lines.items()), f"-m {mode} --json has the same values", (o, lines))
    check(abs(float(lines0["nll"]) - nll) < 2e-6 and abs(float(lines0["perplexity"]) / math.exp(nll) - 1) < 1e-4, "perplexity is that of the logits", (lines0, nll))


def test_interrupt() -> None:
    if os.name != "posix":
        return
    for what, args, data in (("while generating", ["-i", PROMPT, "-n", "0", "--ignore-eos", "-c", "1000000"], None),
                             ("while reading the prompt", ["-n", "1", "-c", "1000000", "-b", "1"], b"once " * 100000)):
        session = tmp / "interrupted"
        session.unlink(missing_ok=True)
        source = write("long", data or b"")
        with source.open("rb") as f:
            p = subprocess.Popen([program, TINY, "-s", "1", "--save-state", session, *args], stdin=f if data else subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            p.stderr.readline()  # "state ...": from here on it listens
            if not data:
                p.stdout.read(20)
            p.send_signal(signal.SIGINT)
            try:
                _, err = p.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                p.kill()
                _, err = p.communicate()
        last = (err.decode().splitlines() or [""])[-1]
        check(p.returncode == 128 + signal.SIGINT and STATUS.fullmatch(last) and "interrupted" in last, f"Ctrl-C {what}", (p.returncode, err))
        check(session.exists() and run(TINY, "-n", 1, "-c", 1000000, "--load-state", session).returncode == 0, f"Ctrl-C {what}: the session is saved")

    for ignored in (True, False):  # nohup: a terminal that goes away ends nothing
        p = subprocess.Popen([program, TINY, "-i", PROMPT, "-s", "1", "-n", "3000", "--ignore-eos", "-c", "4000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL))
        p.stdout.read(20)
        p.send_signal(signal.SIGHUP)
        _, err = p.communicate(timeout=60)
        check(p.returncode == (0 if ignored else 128 + signal.SIGHUP), "nohup" if ignored else "SIGHUP", (p.returncode, err[-200:]))


def test_interrupt_at_once() -> None:
    """Ctrl-C within a run of many tokens ends at once, and the session is that of the text before that run."""
    if os.name != "posix":
        return
    model, session, long = ROOT / "model.bin", tmp / "within", write("long", "Once upon a time there was a girl. " * 8000)
    whole = [int(i) for i in ran(model, "-m", "tokenize", "-f", long).split()]
    for what, args in (("generate", ["-n", 1]), ("chat", ["-m", "chat", "-n", 1]), ("perplexity", ["-m", "perplexity"]), ("logits", ["-m", "logits", "--ids", write("ids", " ".join(map(str, whole))), "--out", tmp / "out"])):
        source = [] if what == "logits" else ["-f", long]
        keep = ["--save-state", session] if what in ("generate", "logits") else []
        session.unlink(missing_ok=True)
        seed = ["-s", 1] if what in ("generate", "chat") else []
        p = subprocess.Popen([program, model, *map(str, [*args, *source, *keep, *seed, "-b", 8192, "-c", 200000])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.5)  # within the first run: on any machine it takes longer
        begin = time.monotonic()
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
        took = time.monotonic() - begin
        check(p.returncode == 128 + signal.SIGINT and (b"interrupted" in err or b"stopped" in err), f"{what}: Ctrl-C within a run", (p.returncode, err))
        check(took < 1, f"{what}: Ctrl-C within a run is answered at once", f"{took:.2f} s")
        if verbose:
            print(f"     {what}: Ctrl-C within a run: {took:.3f} s")
        if what == "generate":
            check(session.exists() and run(model, "-n", 1, "-c", 200000, "--load-state", session).returncode == 0, "and the session is saved")


def test_watched() -> None:
    """Within a debugger, strace or valgrind the program does not restart itself, which would be lost or told."""
    if b"__asan_" in Path(program).read_bytes():  # it refuses to be watched
        return
    quiet = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    for watcher, *how in (("gdb", "-nx", "-batch", "-ex", "run", "--args"), ("strace", "-f", "-e", "trace=execve"), ("valgrind", "-q", "--log-fd=1")):
        if not shutil.which(watcher) or subprocess.run([watcher, *how, "true"], capture_output=True).returncode:
            continue  # it is not there, or may not watch here
        p = subprocess.run([watcher, *how, program, "--version"], env=quiet, capture_output=True, text=True)
        said = p.stdout + p.stderr
        check(p.returncode == 0 and "gla.c " in said and "executing new program" not in said and said.count("execve(") <= 1, f"{watcher} watches one program", said[-400:])


# ---- embedding -------------------------------------------------------------------------------------------------------

def test_embedding() -> None:
    source = (ROOT / "run.c").read_text()
    comment = re.search(r"/\* A complete program:\n(.*?)\*/", source, re.S)
    shown = [line.removeprefix(" *").removeprefix("   ").rstrip() for line in comment[1].splitlines()] if comment else []
    kept = [line.rstrip() for line in (ROOT / "tests" / "embed.c").read_text().splitlines()][1:]
    check([line for line in shown if line] == kept, "tests/embed.c is the program in run.c")

    header = write("header.c", '#define RUN_HEADER_ONLY\n#include "run.c"\nint version(GlaModel *m);\n'
                   'int version(GlaModel *m) { GlaInfo i; gla_info(m, &i); return i.n_layers; }\n')
    body = write("body.c", '#define RUN_NO_MAIN\n#include "run.c"\nint version(GlaModel *m);\n'
                 'int main(int n, char **a) { GlaModel *m; return n < 2 || gla_open(&m, a[1], NULL) || version(m) != 2 ? 1 : (gla_close(m), 0); }\n')
    static = write("static.c", '#define RUN_STATIC\n#define RUN_NO_MAIN\n#include "run.c"\nint main(void) { return 0; }\n')
    twice = write("twice.c", '#define RUN_HEADER_ONLY\n#include "run.c"\n#undef RUN_HEADER_ONLY\n#define RUN_NO_MAIN\n#include "run.c"\nint main(void) { return GLA_OK; }\n')
    plain = write("plain.c", '#undef __unix__\n#undef __linux__\n#undef __APPLE__\n#define RUN_SCALAR\n#include "run.c"\n')
    want = run(TINY, "-i", PROMPT, "-s", 42, "-n", 100).stdout[:-1]
    compilers = [c for c in dict.fromkeys([*os.environ.get("CC", "cc").split()[:1], "gcc", "clang"]) if shutil.which(c)]
    for i, cc in enumerate(dict.fromkeys(os.path.realpath(shutil.which(c)) for c in compilers)):
        name = os.path.basename(cc)
        for what, files in (("the program in the comment", [ROOT / "tests" / "embed.c"]), ("RUN_HEADER_ONLY", [header, body]), ("RUN_STATIC", [static]), ("the header first", [twice]), ("a system without POSIX", [plain])):
            out = tmp / f"embed{i}"
            # gcc sees what is not used only when it compiles, clang when it reads, which takes no time
            how = ["-fsyntax-only"] if what in ("the header first", "a system without POSIX") or (what == "RUN_STATIC" and "clang" in name) else ["-O1", "-o", out, "-lm"]
            p = subprocess.run([cc, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}", *files, *how], capture_output=True, text=True)
            check(p.returncode == 0, f"{what} with {name}", p.stderr[:400])
            if p.returncode == 0 and what.startswith("the program"):
                check(subprocess.run([out, TINY, PROMPT], capture_output=True).stdout == want, f"{what} with {name} says what ./run says")
            elif p.returncode == 0 and what == "RUN_HEADER_ONLY":
                check(subprocess.run([out, TINY]).returncode == 0, f"{what} with {name}, two files")


# ---- tests/bench.py --------------------------------------------------------------------------------------------------

PEER = """import json, sys
if "-h" in sys.argv or "broken" in __file__: sys.exit("cannot load this file")
if "chatty" in __file__: print("[not JSON")
else: print("a line", json.dumps([{"n_prompt": 9, "n_gen": 0, "avg_ts": 50.0, "build_commit": "abc"}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 4.0, "build_commit": "abc"}]), sep="\\n")
"""


def test_bench() -> None:
    limits = tmp / "limits"
    p = subprocess.run([*os.environ.get("CC", "cc").split(), "-O2", "-o", limits, ROOT / "tests" / "limits.c"], capture_output=True, text=True)
    check(p.returncode == 0, "limits.c compiles", p.stderr)
    found = key_values(subprocess.run([limits, "-m", "16"], capture_output=True).stdout)
    check(list(found) == "threads instructions read_GB_s int8_Gop_s bf16_Gop_s f32_Gop_s".split() and all(float(found[k]) > 0 for k in list(found)[2:]), "limits", found)
    check(subprocess.run([limits, "-m", "x"], capture_output=True).returncode == 2, "limits: misuse")
    peers = {}
    for name in ("other", "broken", "chatty"):
        (tmp / "peers" / name / "bin").mkdir(parents=True)
        peers[name] = write(f"peers/{name}/bin/llama-bench", f"#!{sys.executable}\n{PEER}")
        peers[name].chmod(0o755)

    def bench(*args: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / "tests" / "bench.py"), "--program", program, "--limits", limits, *map(str, args)], capture_output=True, text=True, timeout=60)

    short, kept, model = ["--rounds", 1, "--prompt-len", 9, "-n", 4, "-j", 1], tmp / "rounds", ROOT / "model.bin"
    p = bench(*short, "--keep", kept, *(a for peer in peers.values() for a in ("--peer", peer)), model, GLA)
    lines = p.stdout.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]
    check(p.returncode == 0 and len(cells) == 13 and {len(row) for row in cells} == {8}, "bench: one table", (p.stdout, p.stderr))
    check(lines and "MODEL='model.bin gla.gguf'" in lines[0] and "1 threads" in lines[0] and "load average" in lines[0], "bench: the command and the machine", lines[:1])
    check([row[1] for row in cells[3:]] == ["run", "run --fast", "other abc", "broken", "chatty"] * 2, "bench: a row per program", cells)
    if len(cells) == 13:
        mine, fast, other, broken, chatty = cells[3:8]
        ratios = [float(x) * 50 for x in other[4].split(" / ")]
        check(mine[0].startswith("model.bin (Q8_0, 1 MB)") and all(float(mine[i]) > 0 for i in (2, 5)), "bench: our speed", mine)
        check(other[2] == "50.0" and other[5] == "4.00" and len(ratios) == 2 and all(abs(r / float(our[2]) - 1) < 0.01 for r, our in zip(ratios, (mine, fast))) and abs(float(other[7]) * 4 / float(mine[5]) - 1) < 0.01,
              "bench: a peer's speed and the ratio", (mine, other))
        check(set(broken[2:] + chatty[2:]) == {"-"} and "cannot load this file" in p.stderr and "not the JSON" in p.stderr, "bench: peers that fail", (broken, p.stderr))
    again = bench(*short, "--rounds", 0, "--keep", kept, "--peer", peers["other"], model)
    check(again.returncode == 0 and again.stdout.splitlines()[4:] == lines[4:8], "bench: the rounds that were kept", (again.stdout, again.stderr))
    for what, args, message in (("no such model", [*short, tmp / "none.gguf"], "none.gguf: no such model"), ("no such peer", [*short, "--peer", tmp / "none", model], "none: no such peer"),
                                ("no such program", [*short, "--program", tmp / "none", model], "none: no such program"), ("a bad model", [*short, kept], "rounds"),
                                ("kept with other settings", ["-n", 5, "--keep", kept, model], "other settings"), ("softmax layers", [*short, "--million", model], "softmax")):
        p = bench(*args)
        check(p.returncode == 1 and not p.stdout and message in p.stderr and "Traceback" not in p.stderr, f"bench: {what}", (p.returncode, p.stderr))
    for option in ("--first-token", "--runs"):
        p = bench(*short, option, model)
        check(p.returncode == 0 and p.stdout.count("\n| model.bin |") == 1, f"bench: {option}", (p.stdout, p.stderr))


def test_pages_printed() -> None:
    """What the program prints from its rows is what the repository holds (make pages)."""
    page = (ROOT / "doc" / "gla.1").read_text()
    check(ran("--man").decode() in page and page.count(".SH OPTIONS") == 1, "doc/gla.1 has the lists of --man: make pages")
    for shell in ("bash", "zsh"):
        check(ran("--completion", shell) == (ROOT / "doc" / f"completion.{shell}").read_bytes(), f"doc/completion.{shell}: make pages")
    options = re.findall(r"^  (?:-\w,|   ) --([a-z-]+)", ran("--help").decode(), re.M)
    commands = re.findall(r"^/(\w+) ", run(TINY, "-m", "chat", stdin=b"/help\n").stderr.decode(), re.M)
    plain = page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    check(len(options) > 40 and len(commands) > 10, "options and commands", (options, commands))
    missing = [n for n in [f"--{n}" for n in options] + [f"/{n}" for n in commands] if not re.search(rf"^.*{n}\b.*$", plain, re.M)]
    check(not missing, "doc/gla.1 names them all", missing)
    completion = (ROOT / "doc" / "completion.zsh").read_text()
    check(not [n for n in options if f"--{n}" not in completion], "so does doc/completion.zsh")
    for words, want in ((["--prompt-"], {"--prompt-cache", "--prompt-len"}), (["-m", "p"], {"perplexity"}), (["--kv", ""], {"f32", "f16", "q8_0"}), (["-n", ""], set())):
        p = subprocess.run(["bash", "-c", f'source doc/completion.bash; COMP_WORDS=(gla {" ".join(w or chr(34) * 2 for w in words)}) COMP_CWORD={len(words)}; _gla; echo "${{COMPREPLY[*]}}"'],
                           cwd=ROOT, capture_output=True, text=True)
        check(set(p.stdout.split()) == want, f"bash completion of {words}", (p.stdout, p.stderr))


def test_install() -> None:
    """make install, and the examples built against what it installs."""
    p = subprocess.run([sys.executable, ROOT / "examples/gla.py", TINY, "x"], capture_output=True, text=True, env={**os.environ, "LIBGLA": "no/such/libgla.so"})
    check(p.returncode == 1 and p.stderr.count("\n") == 1 and "LIBGLA" in p.stderr and "make install" in p.stderr, "examples/gla.py without its library", p.stderr)
    if not shutil.which("make"):
        return
    place = tmp / "root"
    p = subprocess.run(["make", "-s", "install", f"DESTDIR={place}", "PREFIX=/opt/gla", "CFLAGS=-O1"], cwd=ROOT, capture_output=True, text=True)
    for built in ("libgla.a", "libgla.so", "gla.o"):  # with -O1, not what an installation should find
        (ROOT / "build" / built).unlink(missing_ok=True)
    base = place / "opt/gla"
    names = "bin/gla include/gla.h lib/libgla.a lib/libgla.so lib/libgla.so.0 lib/pkgconfig/gla.pc share/man/man1/gla.1 share/bash-completion/completions/gla share/zsh/site-functions/_gla".split()
    check(p.returncode == 0 and all((base / n).is_file() for n in names), "make install", p.stderr[-500:])
    pc = (base / "lib/pkgconfig/gla.pc").read_text()
    check("prefix=/opt/gla\n" in pc and str(place) not in pc, "gla.pc names the prefix", pc)
    shared = {**os.environ, "LD_LIBRARY_PATH": str(base / "lib"), "DYLD_LIBRARY_PATH": str(base / "lib"), "LIBGLA": str(base / "lib/libgla.so")}
    if shutil.which("nm") and sys.platform == "linux":
        names = [line.split()[-1] for line in subprocess.run(["nm", "-D", "--defined-only", base / "lib/libgla.so"], capture_output=True, text=True).stdout.splitlines()]
        check(len(names) > 40 and all(n.startswith("gla_") for n in names), "libgla.so has the interface and nothing else", [n for n in names if not n.startswith("gla_")])
    p = subprocess.run([sys.executable, ROOT / "examples/gla.py", TINY, PROMPT], capture_output=True, env=shared)
    check(p.returncode == 0 and p.stdout.rstrip(b"\n") == subprocess.run([base / "bin/gla", TINY, "-i", PROMPT, "-s", "42", "-n", "100"], capture_output=True).stdout.rstrip(b"\n"), "examples/gla.py says what gla says", (p.stdout, p.stderr))
    p = subprocess.run([sys.executable, ROOT / "examples/gla.py"], capture_output=True, text=True)
    check(p.returncode == 1 and p.stderr.startswith("usage: "), "examples/gla.py says what it needs", p.stderr)
    if shutil.which("g++"):
        cpp = write("story.cpp", '#include <gla.h>\n#include <cstdio>\nint main(int argc, char **argv) { char err[GLA_ERR] = ""; GlaModel *m; GlaInfo i; GlaGenerate how = GlaGenerate(); (void)how; '
                    'if (argc < 2 || gla_open(&m, argv[1], err)) return 1; gla_info(m, &i); std::printf("%d\\n", i.n_layers); gla_close(m); }\n')
        p = subprocess.run(["g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", tmp / "story", cpp, f"-I{base}/include", f"-L{base}/lib", "-lgla"], capture_output=True, text=True)
        check(p.returncode == 0 and subprocess.run([tmp / "story", TINY], capture_output=True, env=shared).stdout == b"2\n", "a program in C++", p.stderr[:500])
    libs = re.search(r"^Libs: (.*)$", pc, re.M)[1].replace("${prefix}", str(base)).split()
    want = {name: subprocess.run([base / "bin/gla", TINY, "-i", text, "-s", "42", "-n", "60"], capture_output=True).stdout[:-1] for name, text in (("a", PROMPT), ("b", "and then"))}
    story = write("story.c", '#include <stdio.h>\n#include <string.h>\n' + (ROOT / "tests/embed.c").read_text().replace("#define RUN_NO_MAIN\n", "").replace("run.c", "gla.h").replace(".steps = 100", ".steps = 60"))
    for source, args, out in ((story, [PROMPT], want["a"]), (ROOT / "examples/from_memory.c", [PROMPT], want["a"] + b"\n"),
                              (ROOT / "examples/two_threads.c", [PROMPT, "and then"], PROMPT.encode() + want["a"] + b"\nand then" + want["b"] + b"\n")):
        p = subprocess.run([*os.environ.get("CC", "cc").split(), "-Wall", "-Wextra", "-Werror", "-o", tmp / "example", source, f"-I{base}/include", *libs, "-pthread"], capture_output=True, text=True)
        check(p.returncode == 0, f"{source.name} builds", p.stderr[:500])
        if p.returncode == 0:
            q = subprocess.run([tmp / "example", TINY, *args], capture_output=True, env=shared)
            usage = subprocess.run([tmp / "example"], capture_output=True, text=True, env=shared)
            check(usage.returncode == 2 and usage.stderr.startswith("usage: ") and "MODEL PROMPT" in usage.stderr, f"{source.name} says what it needs", usage.stderr)
            check(q.returncode == 0 and q.stdout == out, f"{source.name} says what gla says", (q.stdout, out))


def test_pages() -> None:
    """What doc/recurrence.md names in the code is there."""
    source = (ROOT / "run.c").read_text() + (ROOT / "train_tiny.c").read_text()
    page = re.sub(r"^```.*?^```$", "", (ROOT / "doc/recurrence.md").read_text(), flags=re.M | re.S)
    names = set(re.findall(r"`(\w+)`", page))
    missing = sorted(n for n in names if not re.search(rf"\b{n}\b", source))
    check(len(names) > 20 and not missing, "doc/recurrence.md names what the code has", missing)


def run_tests(tests: Iterable[Callable[[], None]]) -> int:
    """The exit status: 0 when no check failed."""
    for test in tests:
        begin = time.monotonic()
        try:
            test()
        except Exception as error:  # a test that cannot go on has failed; the others run
            check(False, test.__name__, repr(error))
        if verbose:
            print(f"{test.__name__} {time.monotonic() - begin:.1f} s")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


def main() -> int:
    global tmp
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        tests = [test_misuse, test_help, test_spellings, test_other_programs, test_failures, test_full_disk, test_generate, test_sessions, test_drafts, test_modes, test_interrupt, test_interrupt_at_once, test_watched, test_pages_printed]
        if program == str(ROOT / "run"):
            tests += [test_embedding, test_bench, test_install, test_pages]
        return run_tests(tests)


if __name__ == "__main__":
    sys.exit(main())
