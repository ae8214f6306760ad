#!/usr/bin/env python3
"""The command line of ./train_tiny: train_cli.py [-v] [PROGRAM]    (./train_tiny; standard library only)

Every training here takes a fraction of a second. What it promises: no file is replaced that it did not make, nothing that
was trained is lost, a checkpoint goes on to the same bits, no option is without effect, and any text ends in a model or in
one sentence.
"""
from __future__ import annotations

import os
import pty
import random
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli import check, run_tests

ROOT = Path(__file__).resolve().parent.parent
program = os.path.abspath([ROOT / "train_tiny", *(a for a in sys.argv[1:] if a != "-v")][-1])
SIZES = ("--mixer", "gla", "--dim", 32, "--layers", 1, "--hidden", 32, "--context", 16, "--batch", 1, "-j", 1)
TINY = (*SIZES, "--vocab", 270, "--steps", 2)
VOCAB = ROOT / "tests" / "fixtures" / "tiny.gguf"
WORDS = "the cat sat on the mat and saw a small bird that sang in the old tree . "
ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive")
tmp = Path()


def start(*args: object, **how) -> subprocess.Popen:
    how = dict(cwd=tmp, stdin=subprocess.DEVNULL, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) | how
    return subprocess.Popen([program, *map(str, args)], **how)


def run(*args: object, seconds: float = 60, **how) -> tuple[int | str, str, str]:
    """Exit code, standard output and standard error."""
    p = start(*args, **how)
    try:
        out, err = p.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        p.kill()
        p.communicate()
        return "timeout", "", ""
    return p.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def trained(*args: object, **how) -> str:
    """Standard error of a run that has to succeed."""
    code, _, err = run(*args, **how)
    check(code == 0, " ".join(map(str, args)), f"exit {code}, {err[-300:]}")
    return err


def refused(code: int, what: str, *args: object, message: str = "", **how) -> None:
    """Ends with this code and one line on standard error that has the message."""
    got, out, err = run(*args, **how)
    one = err.count("\n") == 1 and err.startswith(f"{os.path.basename(program)}: ")
    check(got == code and one and message in err and not out, what, (got, err[-300:]))


def clean() -> Path:
    """An empty folder with a text in it."""
    for path in tmp.iterdir():
        if path.is_dir() and not path.is_symlink():
            os.chmod(path, 0o700)
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            path.unlink()
    text = tmp / "book.txt"
    text.write_text(WORDS * 30)
    return text


def names() -> set[str]:
    return {p.name for p in tmp.iterdir()}


def test_names() -> None:
    clean()
    trained("book.txt", *TINY)
    check(names() == {"book.txt", "book.bin", "book.bin.ckpt"}, "the model is named after the text", names())
    (tmp / "shelf").mkdir()
    (tmp / "book.txt").rename(tmp / "shelf" / "novel.part.txt")
    trained("shelf/novel.part.txt", *TINY)
    check((tmp / "novel.part.bin").exists(), "and is in this folder", names())
    trained("-", *TINY, stdin=open(tmp / "shelf" / "novel.part.txt", "rb"))
    check((tmp / "text.bin").exists(), "a text from standard input", names())
    err = trained(*SIZES, "--steps", 1, "-z", VOCAB)
    check((tmp / "stories.bin").exists(), "without a text: stories", names())
    check("warning: half of the texts" in err, "stories in a context of 16", err[:300])


def test_nothing_is_replaced() -> None:
    text, model, ckpt = clean(), tmp / "book.bin", tmp / "book.bin.ckpt"
    model.write_text("mine")
    refused(2, "a model that is there", "book.txt", *TINY, message="--force")
    refused(2, "a model that is there, by -o", "book.txt", *TINY, "-o", "./book.bin", message="--force")
    check(model.read_text() == "mine" and names() == {"book.txt", "book.bin"}, "it stays, and nothing else comes", names())
    trained("book.txt", *TINY, "--force")
    check(model.read_bytes()[:4] == b"GGUF", "--force replaces it")
    model.unlink()
    refused(2, "a checkpoint that is there", "book.txt", *TINY, message="--resume")
    ckpt.write_text("mine")
    refused(1, "a file that is no checkpoint", "book.txt", *TINY, "--resume", message="not a checkpoint")
    check(ckpt.read_text() == "mine", "it stays")
    ckpt.unlink()
    refused(1, "no checkpoint", "book.txt", *TINY, "--resume", message="No such file")
    vocabulary = tmp / "v.gguf"
    vocabulary.write_text("mine")
    refused(2, "a vocabulary that is there", "book.txt", *TINY, "--tokenizer", "v.gguf", message="--force")
    check(vocabulary.read_text() == "mine", "it stays")
    (tmp / "link.bin").symlink_to("nowhere")
    refused(2, "a link that leads nowhere", "book.txt", *TINY, "-o", "link.bin", message="--force")
    os.mkfifo(tmp / "pipe.bin")
    (tmp / "folder.bin").mkdir()
    for name in ("pipe.bin", "folder.bin", "/dev/full"):
        refused(1, f"--force -o {name}", "book.txt", *TINY, "--force", "-o", name)
    refused(1, "-o of no name", "book.txt", *TINY, "-o", "")
    refused(1, "a folder that is not there", "book.txt", *TINY, "-o", "nowhere/x.bin")
    check(stat.S_ISFIFO(os.stat(tmp / "pipe.bin").st_mode), "a pipe stays one")
    check(text.read_text() == WORDS * 30, "the text stays")


def test_inputs() -> None:
    """What is read is never written, with --force neither, under no name."""
    text = clean()
    vocabulary = tmp / "v.gguf"
    vocabulary.write_bytes(VOCAB.read_bytes())
    os.link(text, tmp / "hard")
    (tmp / "soft").symlink_to("book.txt")
    (tmp / "a.ckpt").symlink_to("book.txt")
    before = names()
    for name in ("book.txt", "./book.txt", str(text), "hard", "soft"):
        refused(2, f"-o {name} is the text", "book.txt", *TINY, "--force", "-o", name, message="in use")
        refused(2, f"--tokenizer {name} is the text", "book.txt", *TINY, "--force", "--tokenizer", name, message="in use")
    refused(2, "the checkpoint is the text", "book.txt", *TINY, "--force", "-o", "a", message="in use")
    refused(2, "-o is the vocabulary", "book.txt", *SIZES, "--force", "-z", "v.gguf", "-o", "v.gguf", message="in use")
    refused(2, "--tokenizer is the vocabulary", "book.txt", *SIZES, "--force", "-z", "v.gguf", "--tokenizer", "v.gguf",
            message="in use")
    refused(2, "two outputs are one", "book.txt", *TINY, "-o", "m.bin", "--tokenizer", "./m.bin", message="same")
    refused(2, "vocabulary and checkpoint are one", "book.txt", *TINY, "-o", "m", "--tokenizer", "m.ckpt", message="same")
    with open(text, "rb") as f:
        refused(2, "standard input is the output", "-", *TINY, "--force", "-o", "hard", stdin=f, message="in use")
    (tmp / "hard").rename(tmp / "hard.bin")
    refused(2, "the text has the name of its model", "hard.bin", *TINY, "--force", message="in use")
    (tmp / "hard.bin").rename(tmp / "hard")
    check(text.read_text() == WORDS * 30 and vocabulary.read_bytes() == VOCAB.read_bytes() and names() == before,
          "all of them stay", names())


def test_meanwhile() -> None:
    """A file that appears while a model is trained is another's; the model gets a name that is free."""
    for kind in ("file", "folder", "gone"):
        clean()
        (tmp / "out").mkdir()
        p = start("book.txt", *SIZES, "--vocab", 270, "--minutes", 0.01, "-o", "out/m.bin")
        p.stderr.readline()
        if kind == "file":
            (tmp / "out" / "m.bin").write_text("theirs")
            (tmp / "out" / "m.bin.ckpt").write_text("theirs")
        elif kind == "folder":
            (tmp / "out" / "m.bin").symlink_to("nowhere")
        else:
            (tmp / "out").rename(tmp / "moved")
        _, err = p.communicate(timeout=60)
        name = "m.bin" if kind == "gone" else "out/m-2.bin"
        found = tmp / name
        check(p.returncode == 0 and found.exists() and found.read_bytes()[:4] == b"GGUF" and f"the model is {name}" in err.decode(),
              f"{kind} meanwhile: the model has another name", (p.returncode, err.decode()[-300:]))
        if kind == "file":
            theirs = [(tmp / "out" / n).read_text() for n in ("m.bin", "m.bin.ckpt")]
            check(theirs == ["theirs"] * 2 and (tmp / "out" / "m.bin-2.ckpt").exists(), "theirs stay", theirs)


def interrupt(*args: object) -> str:
    """Ctrl-C soon after the first step."""
    p = start(*args)
    while line := p.stderr.readline():
        if line.startswith(b"step"):
            break
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    check(p.returncode == 0 and b"--resume goes on" in err, "Ctrl-C leaves a checkpoint", (p.returncode, err[-300:]))
    return err.decode()


def test_resume() -> None:
    clean()
    sizes = (*SIZES, "--vocab", 270)
    trained("book.txt", *sizes, "--steps", 400, "-o", "whole.bin")
    interrupt("book.txt", *sizes, "--steps", 400, "--tokenizer", "v.gguf")
    check(names() >= {"book.bin", "book.bin.ckpt", "v.gguf"}, "and the model", names())
    half = (tmp / "book.bin").read_bytes()
    trained("book.txt", *sizes, "--resume", "--tokenizer", "v.gguf")
    model = (tmp / "book.bin").read_bytes()
    check(model != half and model == (tmp / "whole.bin").read_bytes(), "goes on to the same bits, --steps as it was")
    code, out, err = run("book.txt", *sizes, "--resume")
    check(code == 0 and "larger --steps than 400" in err and (tmp / "book.bin").read_bytes() == model,
          "a run that was done says so", err[-300:])
    check(not out and err.count("\n") == 1, "in one line, without a report", (out, err))
    (tmp / "book.bin").unlink()
    trained("book.txt", *sizes, "--resume")
    check((tmp / "book.bin").read_bytes() == model, "and writes the model again")
    err = trained("book.txt", *sizes, "--resume", "--steps", 420)
    check("step 420 100 %" in err and (tmp / "book.bin").read_bytes() != model, "goes on with more steps", err[-300:])
    done = 420
    for _ in range(2):
        code, out, err = run("book.txt", *sizes, "--resume", "--minutes", 0.01)
        steps = int(err.split("step ")[-1].split()[0]) if "step " in err else 0
        check(code == 0 and steps > done and "perplexity" in out, "--minutes are minutes more", (steps, done, err[-300:]))
        done = steps
    code, out, err = run("book.txt", *sizes, "--resume")
    check(code == 0 and f"larger --steps than {done}" in err and not out, "none are left then", (done, out, err[-300:]))
    refused_one = run("book.txt", *sizes, "--resume", "--steps", 100)
    check(refused_one[0] == 1 and "would go back" in refused_one[2], "fewer steps than done", refused_one)
    for other in (("--lr", 0.001), ("--seed", 5), ("--batch", 2), ("--conv", 4)):
        code, _, err = run("book.txt", *sizes, "--resume", *other)
        check(code == 1 and err.splitlines()[-1].endswith("vocabulary"), f"other options: {other}", (code, err[-300:]))
    with open(tmp / "book.bin", "ab") as f:
        f.write(b"x")
    refused(2, "a model that the run did not leave", "book.txt", *sizes, "--resume", message="--force")
    trained("book.txt", *sizes, "--resume", "--force")
    code, _, err = run("--task", "mqar", "--mixer", "gla", "--minutes", 0.01, "-j", 1)
    check(code == 0 and "mqar.ckpt" not in names(), "a task that has no file leaves nothing", (code, err[-300:]))


def test_checkpoints() -> None:
    """Cut and changed: one sentence each."""
    clean()
    trained("book.txt", *TINY)
    ckpt = tmp / "book.bin.ckpt"
    whole = ckpt.read_bytes()
    head = 96
    tries = [(whole[:n], f"cut at {n}") for n in (*range(0, head + 2, 7), head + 1000, len(whole) - 1)]
    tries += [(whole + b"x", "a byte more")]
    for at in (*range(0, head), head + 5, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 0x41
        tries.append((bytes(changed), f"byte {at} changed"))
    for data, what in tries:
        ckpt.write_bytes(data)
        code, _, err = run("book.txt", *TINY, "--resume", "--quiet")
        check(code == 1 and err.count("\n") == 1 and ckpt.read_bytes() == data, what, (code, err[-300:]))
    ckpt.unlink()
    os.mkfifo(ckpt)
    refused(1, "a pipe", "book.txt", *TINY, "--resume", "--quiet", message="pipe")


def test_types() -> None:
    clean()
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0"):
        trained("book.txt", *TINY, "--type", kind, "-o", f"{kind}.bin")
        p = subprocess.run([ROOT / "run", tmp / f"{kind}.bin", "-n", "3", "-t", "0", "-i", "the"], capture_output=True)
        info = subprocess.run([ROOT / "run", tmp / f"{kind}.bin", "-m", "info"], capture_output=True, text=True).stdout
        check(p.returncode == 0 and kind.upper() in info, f"run reads {kind}", (p.stderr, info))
    sizes = [(tmp / f"{kind}.bin").stat().st_size for kind in ("f32", "f16", "q8_0", "q4_0")]
    check(sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4, "each is smaller than the one before", sizes)


def test_context() -> None:
    text = clean()
    long, short = WORDS * 8, WORDS
    for parts, warned in (([long] * 9, True), (["cat sat"] * 99 + [long] * 9, False), ([long * 9], False), ([short, long, long] * 5, True)):
        text.write_text("<|endoftext|>".join(parts))
        err = trained("book.txt", *TINY, "--force", "--context", 24)
        check(("warning: half of the texts" in err) == warned, f"{len(parts)} texts, a context of 24", err[:300])


def test_options() -> None:
    clean()
    code, out, err = run("--help")
    lines = out.splitlines()
    check(code == 0 and not err and max(map(len, lines)) <= 80, "help fits in 80 columns", max(lines, key=len))
    for word in ("stories.bin", "--force", "(0.008)", "q4_0", "(12000; 3000", "(q8_0)", "(1536)"):
        check(word in out, f"help has {word}")
    for wrong, right in (("--stpes", "--steps"), ("--max_iters", "--steps"), ("-steps", "--steps"), ("--outptu", "--out"), ("--output", "--out"),
                         ("--epochs", "--steps"), ("--num_train_epochs", "--steps"), ("--n-layer", "--layers"),
                         ("--lr-decay", "--lr"), ("--learning_rate", "--lr"), ("--batch_size", "--batch"),
                         ("--block-size", "--context"), ("--n_embd", "--dim"),
                         ("--ctx", "--context"), ("--LR", "--lr"), ("--token", "--tokenizer"), ("--hidden-dim", "--hidden")):
        refused(2, wrong, wrong, 3, message=f"did you mean {right}?")
    for name in ("gated_deltanet", "Gated-DeltaNet", "delta_net", "linear_attn", "lightning_attn",
                 "precond_gated_deltanet", "simple_gla"):
        check(f"in files {name}" in " ".join(out.split()) or name == "Gated-DeltaNet", f"help has {name}")
        refused(2, f"--mixer {name} is known", "--mixer", name, "--dim", 33, message="--dim must be")
    refused(2, "a mixer with a letter off", "--mixer", "gated_deltanot", message="did you mean gated_deltanet?")
    refused(2, "a mixer like no other", "--mixer", "banana", message="--help lists, not banana")
    refused(2, "a word like no other", "--banana", message="unknown option --banana")
    refused(2, "a flag with a value", "--resume=yes", message="no value")
    task = ("--task", "mqar", "--minutes", 0.01)
    for args in ((*task, "--mixer", "deltanet", "--half-life", 9), (*task, "--mixer", "softmax", "--half-life", 9), (*task, "--type", "f32"),
                 (*task, "--mixer", "gla", "--without", "decay", "--half-life", 9), (*task, "--mixer", "softmax", "--heads", 2),
                 (*task, "--context", 64), (*task, "-i", "x"), (*task, "--steps", 9), ("book.txt", "--without", "gate"),
                 ("book.txt", "-z", VOCAB, "--vocab", 300), ("book.txt", "--mixer", "softmax", "--half-life", 9)):
        refused(2, f"without effect: {args}", *args)
    (tmp / "-text").write_text(WORDS * 30)
    trained(*TINY, "--", "-text")
    check((tmp / "-text.bin").exists(), "a text whose name begins with -", names())


def test_texts() -> None:
    """Any text ends in a model or in one sentence, in little time and memory."""
    text = clean()
    for data, message in ((b"", "empty"), (bytes(10000), "zero bytes"), (b"word\0" * 999, "zero bytes"), (b"\xff\xfew\0o\0r\0d\0", "UTF-16"),
                          (b"few words", "9 bytes")):
        text.write_bytes(data)
        refused(1, f"{data[:12]!r}", "book.txt", *TINY, message=message)
    refused(1, "a folder", ".", *TINY)
    refused(1, "no file", "nothing.txt", *TINY, message="No such file")
    sparse = tmp / "sparse.txt"
    with open(sparse, "wb") as f:
        f.truncate(3 << 30)
    refused(1, "3 GB of nothing", "sparse.txt", *TINY, message="zero bytes", seconds=5)
    os.mkfifo(tmp / "pipe.txt")
    refused(1, "a pipe that nobody writes to", "pipe.txt", *TINY, message="nothing writes", seconds=20)
    endless = subprocess.Popen(["yes", "the cat sat"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    refused(1, "a pipe without an end", "-", *TINY, stdin=endless.stdout, message="more than 256 MB")
    endless.stdout.close()
    endless.wait()
    for i, data in enumerate((bytes(range(128, 256)) * 99, b"\n" * 200000, b"a" * 200000, " ☃\u2028\r\n".encode() * 999,
                              bytes(97 + (k * k >> 7) % 26 for k in range(300000)))):
        text.write_bytes(data)
        trained("book.txt", *TINY, "-o", f"{i}.bin")
        check((tmp / f"{i}.bin").exists(), f"a text that begins {data[:12]!r}")


def on_terminal(*args: object) -> bytes:
    """Standard error, which is a terminal."""
    parent, child = pty.openpty()
    p = start(*args, stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    seen = b""
    while select.select([parent], [], [], 60)[0]:
        try:
            part = os.read(parent, 1 << 16)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(parent)
    check(p.wait(60) == 0, "on a terminal", seen[-300:])
    return seen


def test_fit() -> None:
    """A report says why a model is worse than the trigram."""
    text = clean()
    sizes = (*SIZES, "--vocab", 270, "--lr", 0.03, "--batch", 8)
    numbers = random.Random(7)
    text.write_text(" ".join(numbers.choice(WORDS.split()) + str(numbers.randrange(1000)) for _ in range(150)))
    code, out, err = run("book.txt", *sizes, "--steps", 300)
    small = [line for line in out.splitlines() if "too small for this model" in line]
    check(code == 0 and len(small) == 1 and "worse than the trigram" in small[0], "a small text", out[:600])
    check(small and "tokens, " in small[0] and "parameters, each token seen" in small[0], "in numbers", small)
    check("lowest after step" in out and "(--steps " in out, "its held-out loss rose", out[:600] + err[-600:])
    text.write_text(WORDS * 300)
    code, out, err = run("book.txt", *SIZES, "--vocab", 270, "--steps", 3, "--force")
    check(code == 0 and "too few steps" in out and "too small" not in out, "few steps", out[:600])
    code, out, err = run("book.txt", *sizes, "--steps", 200, "--force")
    check(code == 0 and "too few" not in out and "too small" not in out, "a text that is enough", out[:600])


def test_progress() -> None:
    clean()
    begin = time.monotonic()
    seen = on_terminal("book.txt", *SIZES, "--vocab", 270, "--minutes", 0.04)
    seconds = time.monotonic() - begin
    steps = seen.count(b"step ")
    check(1 <= steps <= seconds + 2, f"a line a second at most: {steps} in {seconds:.1f} s", seen[:300])
    check(on_terminal("book.txt", *TINY, "--quiet", "-o", "q.bin") == b"", "--quiet: nothing")
    check("\r" not in trained("book.txt", *TINY, "-o", "r.bin") and "step 2" in trained("book.txt", *TINY, "-o", "s.bin"), "not a terminal: whole lines")


def main() -> int:
    global tmp
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        return run_tests([test_names, test_nothing_is_replaced, test_inputs, test_meanwhile, test_resume,
                          test_checkpoints, test_types, test_context, test_options, test_texts, test_fit,
                          test_progress])


if __name__ == "__main__":
    sys.exit(main())
