#!/usr/bin/env python3
"""Chats, sessions and scripts from outside: chat.py [-v] [PROGRAM]    (./run; standard library only)

What needs a terminal runs on a pseudo-terminal; what needs a full disk runs on a file system of 1 MB, which only root can mount
(elsewhere a line says that it was skipped).
"""
from __future__ import annotations

import json
import math
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cli
from cli import PROMPT, TINY, VOCAB, check, ran, refused, run, write

CHATML = "{{'<|im_start|>'}} <think> {%- if add_generation_prompt %}{%- if enable_thinking is false %}{{'<think>\\n\\n</think>\\n\\n'}}{%- else %}{{'<think>\\n'}}"
MODEL = Path()    # tiny.gguf with a chat template and two tokens for thoughts


def chat_model(path: Path, template: str = CHATML, rstrip: tuple[int, ...] = ()) -> None:
    """tiny.gguf with a chat template; the tokens 266 and 267 become <think> and </think>, of type 4 (user-defined). rstrip: tokens that
    take the white space behind them along."""
    data = TINY.read_bytes()
    n_keys, = struct.unpack_from("<Q", data, 16)
    at, keys = 24, []

    def string(at: int) -> tuple[bytes, int]:
        n, = struct.unpack_from("<Q", data, at)
        return data[at + 8:at + 8 + n], at + 8 + n

    def put(s: bytes) -> bytes:
        return struct.pack("<Q", len(s)) + s

    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    for _ in range(n_keys):
        name, at = string(at)
        kind, = struct.unpack_from("<I", data, at)
        start, at = at, at + 4
        if kind == 8:
            at = string(at)[1]
        elif kind == 9:
            of, n = struct.unpack_from("<IQ", data, at)
            at += 12
            items, first = [], at
            for _ in range(n):
                if of == 8:
                    item, at = string(at)
                    items.append(put(item))
                else:
                    items.append(data[at:at + widths[of]])
                    at += widths[of]
            if name == b"tokenizer.ggml.tokens":
                items[266:268] = [put(b"<think>"), put(b"</think>")]
            if name == b"tokenizer.ggml.token_type":
                items[266:268] = [struct.pack("<i", 4)] * 2
            keys.append(put(name) + data[start:first] + b"".join(items))
            continue
        else:
            at += widths[kind]
        keys.append(put(name) + data[start:at])
    keys.append(put(b"tokenizer.chat_template") + struct.pack("<I", 8) + put(template.encode()))
    if rstrip:
        keys.append(put(b"tokenizer.gla.rstrip") + struct.pack(f"<IIQ{len(rstrip)}i", 9, 5, len(rstrip), *rstrip))
    infos = at
    n_tensors, = struct.unpack_from("<Q", data, 8)
    for _ in range(n_tensors):
        at = string(at)[1]
        dims, = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dims + 12
    out = data[:16] + struct.pack("<Q", len(keys)) + b"".join(keys) + data[infos:at]
    path.write_bytes(out + bytes(-len(out) % 32) + data[-(-at // 32) * 32:])


def chat(text: str, *args: object, **how) -> subprocess.CompletedProcess:
    return run(MODEL, "-m", "chat", "-s", 1, "-n", 8, *args, stdin=text.encode(), **how)


# ---- scripts -----------------------------------------------------------------------------------------------------------

def test_script() -> None:
    lines = "once upon\nthe time\nand then\n"
    p = chat(lines, "-y", "be kind")
    check(p.returncode == 0 and b"3 answers" in p.stderr and b"\x1b" not in p.stdout + p.stderr, "three lines, three answers", p.stderr)
    check(chat(lines, "-y", "be kind").stdout == p.stdout, "a seed repeats a chat")
    objects = [json.loads(line) for line in chat(lines, "-y", "be kind", "--json").stdout.splitlines()]
    check(len(objects) == 3 and all(o["finish"] in ("length", "end", "loop") and o["generated_tokens"] == len(o["ids"]) for o in objects), "an object per answer", objects)
    check(objects[-1]["position"] == sum(o["prompt_tokens"] + o["generated_tokens"] for o in objects), "every token was evaluated once", objects)
    one = run(MODEL, "-m", "chat", "-s", 1, "-n", 8, "-i", "once upon", "-y", "be kind")
    check(one.returncode == 0 and p.stdout.startswith(one.stdout), "-i is one message, and the same one", (one.stdout, p.stdout))
    check(run(MODEL, "-m", "chat", "-s", 1, "-n", 8, "-f", write("m", "once upon"), "-y", "be kind").stdout == one.stdout, "-f is one message")
    check(run(MODEL, "-m", "chat", "-s", 1, "-n", 8, "-i", "-", "-y", "be kind", stdin=b"once upon").stdout == one.stdout, "-i - is one message")
    p = run(MODEL, "-m", "chat", "-f", cli.tmp / "none", stdin=b"hi\n")
    check(p.returncode == 1 and not p.stdout and b"none: cannot open" in p.stderr, "-f of no file is no chat with standard input", (p.returncode, p.stdout, p.stderr))
    many = chat('once \\\nupon\n"""\na\nb\n"""\n', "--json")
    check(many.stdout.count(b"\n") == 2, "lines that go on", many.stdout)
    p = chat("once\n/ save notes\n/sav x\n", cwd=cli.tmp)
    check(p.returncode == 1 and not list(cli.tmp.glob("*notes")) and not (cli.tmp / "x").exists() and p.stderr.count(b"no command /") == 2 and b"did you mean /save?" in p.stderr, "no half of a command is one", p.stderr)
    check(chat("once\n/regen\n/clear\n/?\n/bye\nupon\n", "--json").stdout.count(b"\n") == 2, "commands as other programs call them")
    check(chat("once\n/save " + str(cli.tmp / "quiet") + "\n/undo\n", "--quiet").stderr == b"", "--quiet in a chat")
    check(chat("//undo is text\n", "--json").stdout.count(b"\n") == 1, "// begins a message with /")
    p = chat("once\n/nope\nupon\n")
    check(p.returncode == 1 and b"2 answers" in p.stderr and p.stderr.count(b"/nope") == 1, "an unknown command is told, and is the exit status of a script that goes on", p.stderr)
    session = cli.tmp / "nowhere"
    p = chat(f"once\n/load {session}\n/undo\n/redo\n/redo\n/save\nupon\n", "--json")
    told = [line for line in p.stderr.decode().splitlines() if line.startswith(f"{os.path.basename(cli.program)}: ")]
    check(p.returncode == 1 and len(told) == 3 and str(session) in told[0] and "nothing to redo" in told[1] and "file name" in told[2], "a sentence for every command that fails", told)
    kept = chat("once\nupon\n", "--json")
    check([json.loads(x)["ids"] for x in p.stdout.splitlines()][0] == json.loads(kept.stdout.splitlines()[0])["ids"] and p.stdout.count(b"\n") == 2, "and the answers around them", p.stdout)
    check(chat("once\n/quit\nupon\n", "--json").stdout.count(b"\n") == 1, "/quit")
    check(run(MODEL, "-m", "chat").returncode == 0, "no input, no answer")
    p = run(TINY, "-m", "chat", "-n", 5, "-s", 1, stdin=b"hello\n")
    check(p.returncode == 0 and b"no chat template" in p.stderr, "a file without a template says so", p.stderr)
    refused(2, "thoughts without a chat", MODEL, "--think", message="-m chat")
    refused(2, "a system prompt without a chat", MODEL, "-y", "x", message="-m chat")
    refused(2, "both ways of thinking", MODEL, "-m", "chat", "--think", "--no-think")
    refused(2, "log probabilities without json", MODEL, "--logprobs", 1, message="--json")
    refused(1, "a chat without a vocabulary", cli.GLA, "-m", "chat", "-i", "x", cwd=cli.tmp, message="vocabulary")
    for model, how, names in ((TINY, ["--think"], "--think"), (TINY, ["--no-think", "--hide-thinking"], "--no-think, --hide-thinking"),
                              (TINY, ["--think-budget", 5], "--think-budget"), (TINY, [], ""), (MODEL, ["--think", "--think-budget", 5], "")):
        told = [line for line in run(model, "-m", "chat", "-n", 1, "-s", 1, "-i", "x", *how).stderr.decode().splitlines() if "no way to think" in line]
        check(told == ([f"this model has no way to think; without effect: {names}"] if names else []), f"options of thoughts in vain {how}", told)
    # sessions: a conversation in two programs is one conversation
    session = cli.tmp / "talk"
    both = [json.loads(x) for x in chat("one\ntwo\n", "--json", "-t", 0).stdout.splitlines()]
    a = json.loads(chat("one\n", "--json", "-t", 0, "--save-state", session).stdout)
    b = json.loads(chat("two\n", "--json", "-t", 0, "--load-state", session, "--save-state", session).stdout)
    check([a["ids"], b["ids"]] == [o["ids"] for o in both], "a conversation in two programs", (a, b, both))
    p = chat("/undo\n/undo\n/redo\n/stats\n", "--load-state", session)
    check(p.returncode == 0 and b"[0 turns, 2 undone" in p.stderr, "turns of a loaded session", p.stderr)
    p = chat("one\n/fork\n/undo\n/redo\n/save %s\n/stats\n/help\n" % session)
    told = p.stderr.decode()
    check("2 of 2, 1 turn]" in told and "[1 turn, 0 undone; 0 tokens" in told and " 1 turn saved to" in told, "one turn is a turn", told)
    check(max(len(line) for line in told.splitlines() if str(session) not in line) <= 80, "/stats, /help and the end fit 80 columns", told)
    p = chat("/set parameter temperature 1\n")
    check(p.returncode == 1 and b"/system TEXT" in p.stderr and b"/think" in p.stderr, "/set, as another program has it", p.stderr)
    p = chat("/redo\n")
    check(p.returncode == 1 and b"nothing to redo" in p.stderr, "nothing to redo", p.stderr)
    p = chat("one\n/system\n/stats\n/system other\n/system\n/new\n/system\n", "-y", "be kind")
    told = [line for line in p.stderr.decode().splitlines() if line.startswith(("[the system", "[a new"))]
    check(told == ["[the system prompt: be kind]", "[a new conversation]", "[the system prompt: other]", "[a new conversation]", "[the system prompt: other]"], "/system, /new", told)
    check(b"no system prompt" in chat("/system\n").stderr, "/system without one")
    p = chat(f"one\n/save {session}\ntwo\n/load {session}\n/undo\n/fork\nthree\n/fork 1\n/system other\nfour\n/stats\n/help\n/think on\n/retry\n")
    check(p.returncode == 0 and b"branch 2 of 2" in p.stderr and b"branch 1 of 2" in p.stderr and b"new conversation" in p.stderr and b"/redo" in p.stderr, "commands", p.stderr.decode())


def test_twenty_turns() -> None:
    rng = random.Random(3)
    words = ["once", "upon", "the", "time", "and", "on", "in"]
    text = "".join(" ".join(rng.choices(words, k=rng.randint(1, 9))) + "\n" for _ in range(20))
    for model, how in ((MODEL, ["--no-think", "--logit-bias", "266=-inf"]), (MODEL, ["--think", "--think-budget", 5]), (MODEL, ["--think", "--think-budget", 5, "-b", 3, "-y", "kind"])):
        p = run(model, "-m", "chat", "-s", 4, "-n", 14, "-c", 4000, "--json", "--loop-guard", 0, *how, stdin=(text + "/stats\n").encode())
        turns = [json.loads(line) for line in p.stdout.splitlines()]
        check(len(turns) == 20, f"20 turns {how}", p.stderr)
        at = 0
        for i, t in enumerate(turns):
            check(t["prompt_tokens"] < 14 * 9 and t["generated_tokens"] <= 14 and at + t["prompt_tokens"] + t["generated_tokens"] <= t["position"], f"turn {i} costs its own tokens", t)
            at = t["position"]
        last = re.findall(rb"evaluated (\d+) tokens, the conversation has (\d+)", p.stderr)
        check(len(last) == 2 and last[-1][0] == last[-1][1] == str(at).encode(), f"20 turns evaluate each token once {how}", last)
        check(("--think" not in how) or any(t["thinking"] for t in turns), "there were thoughts")
        check(("--no-think" not in how) or not any(t["thinking"] for t in turns), "there were none")
        back = run(model, "-m", "chat", "-s", 4, "-n", 14, "-c", 4000, "--loop-guard", 0, *how, stdin=(text + "/undo\n" * 20 + "/redo\n" * 20 + "/stats\n").encode())
        last = re.findall(rb"evaluated (\d+) tokens, the conversation has (\d+)", back.stderr)
        check(back.returncode == 0 and last and last[-1][0] == last[-1][1] and b" 0 tokens read again" in back.stderr and back.stderr.count(b"tokens read again") == 40 and back.stderr.count(b"; 0 tokens read again") == 40,
              "20 turns undone and redone read nothing again", back.stderr[-300:])


def test_context() -> None:
    text = "once upon the time\n" * 12
    p = run(MODEL, "-m", "chat", "-s", 4, "-n", 10, "-c", 200, "--loop-guard", 0, stdin=text.encode())
    check(p.returncode == 1 and b"room for" in p.stderr and b"/forget" in p.stderr and b"context of 200" in p.stderr, "a full context is announced, then said", p.stderr.decode()[-600:])
    p = run(MODEL, "-m", "chat", "-s", 4, "-n", 10, "-c", 200, "--loop-guard", 0, "--forget", stdin=text.encode())
    check(p.returncode == 0 and b"12 answers" in p.stderr and b"are forgotten" in p.stderr, "--forget goes on", p.stderr.decode()[-600:])
    p = run(MODEL, "-m", "chat", "-s", 1, "-t", 0, "-n", 400, "-c", 1000, "--loop-guard", 12, "--logit-bias", "97=500", "--ignore-eos", "--json", "-i", "a")
    check(p.returncode == 0 and json.loads(p.stdout)["finish"] == "loop" and b"repeat penalty is raised" in p.stderr and b"stopped" in p.stderr, "a loop is ended, and said", p.stderr)


def test_system_of_a_session() -> None:
    session, args = cli.tmp / "bob", [cli.program, str(MODEL), "-m", "chat", "-n", "3", "-s", "1"]
    subprocess.run([*args, "-y", "You are Bob.", "--save-state", str(session)], input=b"Hi\n", capture_output=True)
    p = subprocess.run([*args, "-y", "Be brief.", "--load-state", str(session)], input=b"/system\n/new\n/system\n", capture_output=True)
    said = p.stderr.decode()
    check("its own system prompt" in said and said.index("of its session") < said.index("a new conversation") < said.index("[the system prompt: Be brief.]"), "a session has its own system prompt", said)


def test_ends_badly() -> None:
    """What was said before an error, or before the terminal went away, is in the session."""
    session = cli.tmp / "badly"
    args = [cli.program, str(MODEL), "-m", "chat", "-n", "6", "-s", "1", "--save-state", str(session)]
    p = subprocess.run(args, input=b"Hello\n/redo\n", capture_output=True)
    check(p.returncode == 1 and b"nothing to" in p.stderr and session.exists(), "a command that fails in a pipe keeps the session", (p.returncode, p.stderr))
    session.unlink(missing_ok=True)
    p = subprocess.run([*args, "-c", "40"], input=b"Hello\n" + b"once upon the time " * 40 + b"\nHello\n", capture_output=True)
    check(p.returncode == 1 and b"context of 40" in p.stderr and b"answers" not in p.stderr and session.exists(), "a message that cannot be said ends a script and keeps the session", (p.returncode, p.stderr))
    session.unlink(missing_ok=True)
    p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(b"Hello\n")
    p.stdin.flush()
    p.stdout.read(1)
    p.send_signal(signal.SIGHUP)
    p.communicate(timeout=60)
    check(p.returncode == 128 + signal.SIGHUP and session.exists(), "SIGHUP keeps the session", p.returncode)
    p = subprocess.Popen([*args, "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(b"Hello\nhalf a mess")
    p.stdin.flush()
    first = p.stdout.readline()
    time.sleep(0.2)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=60)
    check(p.returncode == 128 + signal.SIGINT and first and not out, "Ctrl-C while a message comes: no answer to half of it", (p.returncode, out))
    p = subprocess.run([cli.program, str(MODEL), "-i", "x", "-n", "1", "--logit-bias", "999999=1"], capture_output=True)
    check(p.returncode == 2 and b"999999" in p.stderr, "a bias of no token", (p.returncode, p.stderr))


def test_json() -> None:
    plain = ran(TINY, "-i", PROMPT, "-n", 20, "-s", 3)[:-1]
    o = json.loads(ran(TINY, "-i", PROMPT, "-n", 20, "-s", 3, "--json", "--logprobs", 4))
    check(o["text"] == plain.decode(errors="replace") and len(o["ids"]) == 20 and o["finish"] == "length" and o["seed"] == 3, "--json holds the text", o["text"])
    check(o["prompt_tokens"] == len(ran(TINY, "-m", "tokenize", "-i", PROMPT).split()) and all(v >= 0 for v in o["timing"].values()), "and the counts")
    check([s["id"] for s in o["logprobs"]] == o["ids"] and all(len(s["top"]) == 4 for s in o["logprobs"]), "log probabilities of every token")
    ids = ran(TINY, "-m", "tokenize", "-i", PROMPT).decode().split() + [str(i) for i in o["ids"]]
    ran(TINY, "-m", "logits", "--ids", write("ids", " ".join(ids)), "--out", cli.tmp / "out")
    rows, worst = cli.floats(cli.tmp / "out"), 0.0
    for i, s in enumerate(o["logprobs"]):
        row = rows[(len(ids) - 20 - 1 + i) * VOCAB:][:VOCAB]
        total = math.log(sum(math.exp(v - max(row)) for v in row)) + max(row)
        order = sorted(range(VOCAB), key=lambda j: (-row[j], j))[:4]
        worst = max([worst, abs(row[s["id"]] - total - s["logprob"]), *(abs(row[t["id"]] - total - t["logprob"]) for t in s["top"])])
        check([t["id"] for t in s["top"]] == order, "the likeliest tokens", (order, s["top"]))
    check(worst < 1e-4, "log probabilities are those of the logits", worst)
    banned = ran(TINY, "-i", PROMPT, "-n", 60, "-s", 3, "--json", *(x for i in range(32) for x in ("--logit-bias", f"{i}=-inf")))
    check(not set(json.loads(banned)["ids"]) & set(range(32)), "--logit-bias -inf bans")
    forced = json.loads(ran(TINY, "-i", PROMPT, "-n", 5, "-s", 3, "--json", "--logit-bias", "65=900"))
    check(forced["text"] == "AAAAA", "--logit-bias adds", forced)
    o = json.loads(ran(TINY, "-i", PROMPT, "-n", 3, "-t", 0, "--json", "--logit-bias", "255=900", "--stop", "x"))
    check(o["text"] == "\ufffd" * 3, "bytes that are no text", o)
    o = json.loads(ran(TINY, "-i", PROMPT, "-n", 9, "-t", 0, "--json", "--logit-bias", "34=900", "--logit-bias", "10=899"))
    check(set(o["text"]) <= {'"', "\n"} and len(o["text"]) == 9, "quotes are escaped", o)
    for bad in ("x", "1", "1=", "=1", "1=nan", "-1=2", "1=5000", "1=inf"):
        refused(2, f"--logit-bias {bad}", TINY, "--logit-bias", bad)
    refused(2, "too many biases", TINY, *["--logit-bias", "1=1"] * 33)
    for size, ok in (("1K", 1), ("90K", 0), ("2G", 0), ("1.5G", 2), ("-1", 2), ("9999999999T", 2), ("1X", 2)):
        check(run(TINY, "-i", "x", "-n", 1, "--prompt-cache", cli.tmp / "sizes", "--cache-bytes", size).returncode == ok, f"--cache-bytes {size}")


def test_json_only() -> None:
    close = [x for c in '"]}' for x in ("--logit-bias", f"{ord(c)}=5")]  # the weights are random: without these a string would hardly ever end
    kinds, ends = set(), 0
    for seed in range(24):
        o = json.loads(ran(TINY, "-i", PROMPT, "-n", 300, "-s", seed, "--json-only", "--json", *close))
        ends += o["finish"] == "end"
        if o["finish"] == "end":
            value = json.loads(o["text"])
            kinds.add(type(value))
    check(ends > 8 and kinds == {dict, list}, "--json-only: what ends is JSON", (ends, kinds))
    p = run(TINY, "-i", PROMPT, "-n", 4, "-s", 1, "--json-only", "--json", "--logit-bias", "93=-inf", "--logit-bias", "125=-inf")
    o = json.loads(p.stdout)
    check(p.returncode == 1, "JSON that ended early", p.returncode)
    check(o["finish"] == "length" and o["text"].lstrip()[0] in "{[", "--json-only: -n ends it earlier", o)
    o = json.loads(ran(MODEL, "-m", "chat", "-i", "hello", "-n", 300, "-s", 3, "--no-think", "--json-only", "--json", *close))
    check(o["thinking"] == "" and o["text"].lstrip()[0] in "{[", "--json-only in a chat that does not think", o)
    # a thought first: of its own length, of the budget's, one that the model ends the answer in; then nothing but JSON
    thoughts = ends = 0
    for seed, how in [(s, []) for s in range(6)] + [(s, ["--think-budget", 7]) for s in range(6)] + [(1, ["--think", "--logit-bias", "270=9"])]:
        p = run(MODEL, "-m", "chat", "-i", "hello", "-n", 400, "-s", seed, "--loop-guard", 0, "--json-only", "--json", "--logit-bias", "267=2", *close, *how)
        o = json.loads(p.stdout)
        thoughts += len(o["thinking"]) > 0
        check(not o["text"] or o["text"].lstrip()[0] in "{[", f"JSON after a thought, seed {seed} {how}", o)
        check(o["text"] or not how, f"--json-only: the budget ends the thought, then there is JSON, seed {seed}", o)
        if o["finish"] == "end":
            ends += 1
            json.loads(o["text"])
    check(thoughts > 6 and ends > 4, "--json-only: thoughts, and JSON behind them", (thoughts, ends))
    script = chat("hello\n/think off\nand\n/think on\nonce\n", "--json-only", "--json", "--think-budget", 5, "-n", 60, *close)
    turns = [json.loads(line) for line in script.stdout.splitlines()]
    check([bool(t["thinking"]) for t in turns] == [True, False, True] and all(t["text"].lstrip()[:1] in "{[" for t in turns), "--json-only: turns of a chat", (turns, script.stderr))
    p = run(TINY, "-i", PROMPT, "--json-only", "--logit-bias", "123=-inf", "--logit-bias", "91=-inf", "-s", 1)
    check(p.returncode == 1 and b"JSON" in p.stderr, "--json-only: no token for it", (p.returncode, p.stderr))
    p = run(TINY, "-i", PROMPT, "-n", 4, "-s", 1, "--json-only", "--logit-bias", "93=-inf", "--logit-bias", "125=-inf")
    check(p.returncode == 1 and p.stderr.count(b"not complete") == 1, "--json-only: a cut text is said to be one", p.stderr)
    p = run(MODEL, "-m", "chat", "-i", PROMPT, "-n", 4, "-s", 1, "--json-only", "--logit-bias", "93=-inf", "--logit-bias", "125=-inf")
    check(p.returncode == 1 and p.stderr.count(b"not complete") == 1, "--json-only: and in a chat", p.stderr)


# ---- templates: what a row says, on short templates that have its marks ---------------------------------------------------

CHATML_LOOP = "{%- for message in messages %}{{- '<|im_start|>' ~ message.role ~ \"\\n\" ~ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
CHATML_PROMPT = "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
QWEN = ("{%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\\n' + CONTENT + '<|im_end|>' + '\\n' }}{% else %}{% set content = CONTENT.split('</think>')[-1].lstrip('\\n') %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content }}{% if message.tool_calls %}{% endif %}{{- '<|im_end|>\\n' }}{% endif %}")
SWITCH = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
LLAMA_TURN = "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
LLAMA_31 = ("{{- bos_token }}{%- if strftime_now is defined %}{%- set date_string = DATE %}{% endif %}{% set system_message = messages[0]['content']|trim %}{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
            "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{% if tools %}{% endif %}" + LLAMA_TURN)
SYSTEM, HI, YO = {"role": "system", "content": "  Be.\n"}, {"role": "user", "content": "    x = 1\n"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n yo "}
STRIPPED = "\t\v\f\x1c\x1f\x85\xa0\u1680\u2000\u200a\u2028\u202f\u205f\u3000\r\n"  # Python's white space, all of it but a few
TODAY = time.strftime("%d %b %Y")

TEMPLATES: list[tuple[str, str, list[dict[str, str]], list[str], str]] = [  # name, template, messages, options, what is written
    ("ChatML", CHATML_LOOP + CHATML_PROMPT, [HI], [], "<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n"),
    ("ChatML", "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou\\'re new.<|im_end|>\n' }}{% endif %}" + CHATML_LOOP + CHATML_PROMPT, [HI], [],
     "<|im_start|>system\nYou're new.<|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n"),
    ("ChatML", "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are new.<|im_end|>\n' }}{% endif %}" + CHATML_LOOP + CHATML_PROMPT, [SYSTEM | {"content": ""}, HI, YO, HI], [],
     "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n yo <|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n"),
    ("Qwen3", QWEN.replace("CONTENT", "message.content") + SWITCH + "{% endif %}{% endif %}", [SYSTEM, HI, YO, HI], [],
     "<|im_start|>system\n  Be.\n<|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n yo <|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n"),
    ("Qwen3", QWEN.replace("CONTENT", "message.content") + SWITCH + "{% endif %}{% endif %}", [HI], ["--no-think"], "<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ("Qwen3.5", "{% set content = render_content(message.content, true)|trim %}" + SWITCH + "{% else %}{{- '<think>\\n' }}{% endif %}{% endif %}", [SYSTEM, HI | {"content": STRIPPED + "\u200bx = 1\u200b" + STRIPPED}, YO, HI], [],
     "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n\u200bx = 1\u200b<|im_end|>\n<|im_start|>assistant\n yo<|im_end|>\n<|im_start|>user\nx = 1<|im_end|>\n<|im_start|>assistant\n<think>\n"),
    ("Llama 3.1", LLAMA_31.replace("DATE", 'strftime_now("%d %b %Y")'), [SYSTEM, HI], [],
     f"<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: {TODAY}\n\nBe.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nx = 1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("Llama 3.1", LLAMA_31.replace("DATE", '"26 Jul 2024"'), [HI], [],
     "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nx = 1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("Llama 3", LLAMA_TURN, [HI], [], "<|start_header_id|>user<|end_header_id|>\n\nx = 1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("Gemma 3", "{{ bos_token }}{% set first_user_prefix = messages[0]['content'] + '\n\n' %}<start_of_turn>{{ message['content'] | trim }}", [SYSTEM, HI, YO, HI], [],
     "<|endoftext|><start_of_turn>user\n  Be.\n\n\nx = 1<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n\n yo<end_of_turn>\n<start_of_turn>user\nx = 1<end_of_turn>\n<start_of_turn>model\n"),
    ("Mistral", "{{ '[INST] ' + message['content'] + ' [/INST]' }}{{ message['content'] + eos_token}}", [HI, YO, HI], [], "[INST]     x = 1\n [/INST]<think>\nhm\n</think>\n\n yo <|endoftext|>[INST]     x = 1\n [/INST]"),
    ("Mistral 3", "{{ '[INST]' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}", [SYSTEM, HI, YO, HI], [],
     "[INST]    x = 1\n[/INST]<think>\nhm\n</think>\n\n yo <|endoftext|>[INST]  Be.\n\n\n    x = 1\n[/INST]"),
    ("Granite 3", "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}{% set system_message = \"It's \" + strftime_now('%Y') + '.' %}"
     "{% set system_message = system_message + ' You are a helpful AI assistant.' %}", [HI], [],
     f"<|start_of_role|>system<|end_of_role|>It's {TODAY[-4:]}. You are a helpful AI assistant.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>    x = 1\n<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"),
    ("DeepSeek R1", "{{'<\uff5cUser\uff5c>' + message['content']}}{% set content = content.split('</think>')[-1] %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}", [HI, YO, HI], [],
     "<\uff5cUser\uff5c>    x = 1\n<\uff5cAssistant\uff5c>\n\n yo <\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>    x = 1\n<\uff5cAssistant\uff5c><think>\n"),
    ("Phi-3", "{% if message['role'] == 'system' and message['content'] %}{% endif %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% else %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}", [SYSTEM | {"content": ""}, HI], [],
     "<|user|>\n    x = 1\n<|end|>\n<|assistant|>\n"),
    ("Zephyr", "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% else %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
     "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", [HI], [], "<|user|>\n    x = 1\n<|endoftext|>\n<|assistant|>\n"),
    ("RWKV", "{{bos_token}}{{- 'System: ' + ns.system_prompt + '\\n\\n' }}{% if x %}{{'User: ' + message['content']|trim + '\\n\\n' }}{% else %}{{ 'Assistant: ' + content|trim + '\\n\\n' }}", [SYSTEM, HI, YO, HI], ["--think"],
     "<|endoftext|>System:   Be.\n\n\nUser: x = 1\n\nAssistant: yo\n\nUser: x = 1\n\nAssistant: <think>"),
]


def written(model: Path, messages: object, *how: object) -> tuple[str, str, list[int]]:
    p = run(model, "-m", "tokenize", "--messages", write("messages.json", json.dumps(messages)), *how)
    return ran(model, "-m", "tokenize", "--ids", write("ids", p.stdout.decode())).decode()[:-1], p.stderr.decode(), [int(i) for i in p.stdout.split()]


def test_templates() -> None:
    model = cli.tmp / "template.gguf"
    for name, template, messages, how, want in TEMPLATES:
        chat_model(model, template)
        text, told, ids = written(model, messages, *how)
        check(f"chat template {name}\n" in told, f"{name} is recognised", told)
        check(text == want, f"{name} {how}: what is written", (text, want))
        # a chat evaluates these ids, whether the messages come in a file or one by one
        o = json.loads(ran(model, "-m", "chat", "-s", 1, "-n", 1, "--json", "--messages", cli.tmp / "messages.json", "--save-state", cli.tmp / "session", *how))
        check(o["prompt_tokens"] == len(ids), f"{name}: a chat reads them", (o, len(ids)))
        if len(messages) == 1:
            o = json.loads(ran(model, "-m", "chat", "-s", 1, "-n", 1, "--json", "-f", write("message", messages[0]["content"]), *how))
            check(o["prompt_tokens"] == len(ids), f"{name}: -f is this message", (o, len(ids)))
    # laid out otherwise, with comments: the same template; with another expression: not
    chat_model(model, CHATML_LOOP.replace("~", "\n  +\n").replace("{%- for", "{#- a comment #}\n{%- for") + CHATML_PROMPT)
    check("chat template ChatML\n" in written(model, [HI])[1], "layout does not matter")
    for template, shown in ((CHATML_LOOP.replace("message['content']", "message['content'] | upper") + CHATML_PROMPT, "ChatML"), ("{{ messages }}", "plain text"), ("<|start_header_id|>", "Llama 3")):
        chat_model(model, template)
        for told in (written(model, [HI])[1], run(model, "-m", "chat", "-n", 1, "-s", 1, "-i", "x").stderr.decode()):
            check("not known here" in told and f"written as {shown}" in told, f"a template that is not known: {shown}", told)
    check("has no chat template" in written(TINY, [HI])[1], "no template")
    # a message is text, whatever it looks like
    text, _, ids = written(MODEL, [{"role": "user", "content": "<|im_end|>"}])
    check(ids.count(270) == 1 and text.count("<|im_end|>") == 2, "a mark that was typed is text", ids)
    # a token that takes white space along does so in a chat, too
    chat_model(model, CHATML_LOOP + CHATML_PROMPT, rstrip=(269, 270))
    text, _, ids = written(model, [HI, YO, HI])
    rendered = "<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n yo <|im_end|>\n<|im_start|>user\n    x = 1\n<|im_end|>\n<|im_start|>assistant\n"
    check(text == rendered.replace("<|im_end|>\n", "<|im_end|>"), "white space behind a mark", text)
    check(ran(model, "-m", "tokenize", "-f", write("rendered", rendered)).split() == [str(i).encode() for i in ids], "as in the text that was rendered", ids)
    # linear time, and no read outside: templates that never end
    times = []
    for n in (100_000, 1_000_000):
        begin = time.monotonic()
        for template in ("<|im_start|>" + "a" * n + "add_generation_prompt", "{{'<|im_start|>system\n'}}" * (n // 24), "{%set date_string=date_string%}" * (n // 32) + "'Today Date: '+date_string", "{{'" + "\\" * n, "{%-" * (n // 3), "\n \t" * (n // 3) + "{%"):
            chat_model(model, template)
            check(run(model, "-m", "chat", "-i", "a", "-n", 1, "-c", 1000000).returncode == 0, "a long template", template[:40])
        times.append(time.monotonic() - begin)
    check(times[1] < 40 * times[0] + 1, "the template is read in linear time", times)


def test_messages() -> None:
    def refusal(what: object, message: str, model: Path = MODEL) -> None:
        text = what if isinstance(what, str) else json.dumps(what)
        for mode in ("tokenize", "chat"):
            refused(1, f"--messages {text[:60]}", model, "-m", mode, "--messages", write("messages.json", text), message=message)

    parts = [{"type": "text", "text": "hi"}]
    want = written(MODEL, [{"role": "user", "content": "hi"}])[2]
    same = ['[{"content":"hi","role":"user"}]', ' [ {"role" : "user" , "content" : "h\\u0069", "id": {"a": [1, -2.5e3, true, null, "x"]}, "tool_calls": null} ] \n', json.dumps([{"role": "user", "content": parts}])]
    for text in same:
        got = ran(MODEL, "-m", "tokenize", "--messages", write("messages.json", text))
        check([int(i) for i in got.split()] == want, f"the same message: {text}", got)
    check(run(MODEL, "-m", "tokenize", "--messages", "-", stdin=same[0].encode()).stdout.split() == [str(i).encode() for i in want], "--messages -")
    content = '"\\/\b\f\n\r\t\u00e9\U0001f600\u0000x'
    check(content in written(MODEL, [{"role": "user", "content": content}])[0], "escapes")
    check("\ufffd" in written(MODEL, [{"role": "user", "content": "\ud800!"}])[0], "half of a pair")
    refusal("", "a list of messages")
    refusal("{}", "a list of messages")
    refusal([], "has to be a user")
    refusal("[1]", "an object")
    refusal([YO], "has to be a user")
    refusal([HI, SYSTEM, HI], "message 2 is a system message")
    refusal([{"role": "tool", "content": "x"}], '"tool" is not understood')
    refusal([HI, {"role": "assistant", "content": "", "tool_calls": [{}]}, HI], "tool_calls")
    refusal([{"role": "user", "content": parts * 2}], "one part")
    refusal([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "one part")
    refusal([{"role": "user"}], "no content")
    refusal([{"content": "x"}], "role")
    for bad in ('[{"role":"user","content":"hi"}', '[{"role":"user","content":"hi"}] x', '[{"role":"user" "content":"hi"}]', '[{"role":"user","content":"h', '[{"role":"user","content":"\\x"}]', '[{"role":"user","content":"\\u12"}]',
                '[{"role":"user","content":"\n"}]', '[{"role":"user","content":' + "[" * 300 + ']', '[{"x":' + "[" * 9999, "[,]", '[{"role":nil}]',
                '[{"role":"user","content":"hi"},]', '[{"role":"user","content":"hi",}]', '[{"role":"user","content":"hi"}]\0x',
                '[{"role":"user","content":"hi","x":[1,]}]', '[{"role":"user","content":[{"type":"text","text":"hi",}]}]'):
        refusal(bad, "message")
    chat_model(cli.tmp / "turns.gguf", TEMPLATES[10][1])
    refusal([HI, HI], "out of turn", cli.tmp / "turns.gguf")
    refused(2, "messages and a prompt", MODEL, "-m", "chat", "--messages", "x", "-i", "x", message="--prompt")
    refused(2, "messages and no chat", MODEL, "-m", "generate", "--messages", "x", message="-m chat")
    check(ran(MODEL, "-s", 1, "-n", 3, "--messages", write("m.json", json.dumps([HI]))) == ran(MODEL, "-m", "chat", "-s", 1, "-n", 3, "--messages", cli.tmp / "m.json"), "--messages is a chat")
    # -y where the file has no system message; /undo within what was given
    both = [json.loads(ran(MODEL, "-m", "chat", "-s", 1, "-n", 3, "--json", "--messages", write("m.json", json.dumps(m)), *how)) for m, how in (([SYSTEM, HI], []), ([SYSTEM, HI], ["-y", "x"]), ([HI], ["-y", SYSTEM["content"]]))]
    check(len({tuple(o["ids"]) for o in both}) == 1 and len({o["position"] for o in both}) == 1, "a system message of the file, or of -y", both)
    session = cli.tmp / "told"
    one = json.loads(ran(MODEL, "-m", "chat", "-t", 0, "-n", 4, "--json", "--messages", write("m.json", json.dumps([HI, {"role": "assistant", "content": "yo"}, HI])), "--save-state", session))
    p = chat("/undo\n/stats\n/undo\n/redo\n/redo\n/stats\nonce\n", "--load-state", session, "--json")
    check(p.returncode == 0 and b"1 turn, 1 undone" in p.stderr and b"0 turns, 2 undone" in p.stderr and p.stdout.count(b"\n") == 1, "turns that were given are turns of the session", (one, p.stderr))


def test_prompt_cache() -> None:
    folder, text = cli.tmp / "cache", "once upon the time and then " * 20
    want = ran(TINY, "-i", text + "on", "-n", 15, "-s", 2)
    n = len(ran(TINY, "-m", "tokenize", "-i", text).split())
    first = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder)
    check(first.returncode == 0 and f"reused 0 of {n} tokens".encode() in first.stderr and len(list(folder.iterdir())) == 2, "a prompt is stored", (first.stderr, list(folder.iterdir())))
    again = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder)
    check(again.stdout == first.stdout and f"reused {n} of {n} tokens".encode() in again.stderr, "the same prompt reads nothing", again.stderr)
    quantised = [run(cli.ROOT / "model.bin", "-i", "Tom", "-n", 2, "-s", 2, "--prompt-cache", folder, *how).stderr for how in ([], [], ["--fast"], ["--fast"])]
    check([b"reused 0 of" in e for e in quantised] == [True, False, True, False], "--fast keeps prompts of its own", quantised)
    longer = run(TINY, "-i", text + "on", "-n", 15, "-s", 2, "--prompt-cache", folder, "--repeat-penalty", 1.0)
    reused = re.search(rb"reused (\d+) of (\d+) tokens", longer.stderr)
    check(longer.stdout == want and reused and int(reused[1]) >= n - 2 and int(reused[2]) > n - 1, "a longer prompt goes on", longer.stderr)
    penalised = [ran(TINY, "-i", text, "-n", 25, "-s", 2, "--repeat-penalty", 1.5, *how) for how in ([], ["--prompt-cache", folder])]
    check(penalised[0] == penalised[1], "penalties know the reused tokens")
    for f in folder.iterdir():
        f.write_bytes(f.read_bytes()[:-5])
    p = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder)
    check(p.returncode == 0 and p.stdout == first.stdout and b"reused 0 of" in p.stderr, "cut snapshots are passed over", p.stderr)
    p = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder)
    check(p.stdout == first.stdout and f"reused {n} of {n} tokens".encode() in p.stderr, "and replaced", p.stderr)
    for kv in ("f16", "f32"):
        for reused in (0 if kv == "f16" else n, n):
            p = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder, "--kv", kv)
            check(p.returncode == 0 and f"reused {reused} of {n} tokens".encode() in p.stderr, f"snapshots of {kv} apart from others", p.stderr)
    refused(1, "a file is no cache", TINY, "-i", text, "--prompt-cache", TINY, message="folder")
    p = run(TINY, "-i", text, "-n", 5, "-s", 2, "--prompt-cache", folder, "--cache-bytes", 100)
    check(p.returncode == 1 and p.stdout == first.stdout and p.stderr.count(b"not cached") == 1, "a cache that is too small", p.stderr)
    # two programs at once, on the same prompts
    shared = cli.tmp / "shared"
    jobs = [subprocess.Popen([cli.program, TINY, "-i", text + "x" * (i % 3), "-n", "5", "-s", "2", "--prompt-cache", shared, "--cache-bytes", "250K"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(12)]
    outs = [(i % 3, *j.communicate(timeout=60), j.returncode) for i, j in enumerate(jobs)]
    check(all(o[3] == 0 for o in outs) and len({(o[0], o[1]) for o in outs}) == 3, "twelve programs, one cache", outs)
    check(sum(f.stat().st_size for f in shared.iterdir()) <= 250 * 1024, "the cache keeps its bound", list(shared.iterdir()))
    # the system prompt of a chat
    for k in range(2):
        p = run(MODEL, "-m", "chat", "-s", 1, "-n", 4, "-y", text, "-i", "hello", "--json", "--prompt-cache", cli.tmp / "chats")
        o = json.loads(p.stdout)
        check(p.returncode == 0 and (o["prompt_tokens"] > n) == (k == 0), f"the system prompt is read once, run {k}", o)


# ---- disks, signals ------------------------------------------------------------------------------------------------------

def test_full_disk() -> None:
    disk = cli.tmp / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True) if os.geteuid() == 0 and sys.platform == "linux" else None
    if not made or made.returncode:
        print("skipped: a file system of 1 MB needs root and Linux")
        return
    try:
        session, text = disk / "s", "once upon the time " * 120
        ran(TINY, "-i", PROMPT, "-n", 5, "-t", 0, "-c", 8000, "--save-state", session)
        old = session.read_bytes()
        (disk / "ballast").write_bytes(bytes(900_000 - len(old)))
        p = run(TINY, "-i", text, "-n", 5, "-t", 0, "-c", 8000, "--save-state", session)
        check(p.returncode == 1 and b"cannot write" in p.stderr and session.read_bytes() == old and not list(disk.glob("*.tmp")), "a full file system keeps the old session", (p.returncode, p.stderr))
        ids = write("ids", " ".join(["5"] * 1500))
        p = run(TINY, "-m", "logits", "--ids", ids, "--out", session, "-c", 8000)
        check(p.returncode == 1 and session.read_bytes() == old and not list(disk.glob("*.tmp")), "logits on a full file system", p.stderr)
        p = run(TINY, "-i", text, "-n", 5, "-t", 0, "-c", 8000, "--prompt-cache", disk / "cache")
        check(p.returncode == 1 and p.stdout == ran(TINY, "-i", text, "-n", 5, "-t", 0, "-c", 8000) and p.stderr.count(b"not cached") == 1, "a prompt cache on a full file system", p.stderr)
        check(not list((disk / "cache").iterdir()), "nothing is left in it")
        p = run(MODEL, "-m", "chat", "-n", 4, "-s", 1, "-c", 8000, stdin=f"{text}\n/save {session}\n".encode())
        check(p.returncode == 1 and session.read_bytes() == old, "/save on a full file system", p.stderr)
        check(run(TINY, "-n", 3, "-c", 8000, "--load-state", session).returncode == 0, "the old session still loads")
    finally:
        subprocess.run(["umount", disk], check=False)


def size(path: Path) -> int:
    """Bytes of a file that may be gone at any moment; -1 when it is."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def test_killed() -> None:
    """kill -9 at any moment: the session is the old one or the new one, never half of one."""
    session, long = cli.tmp / "killed", cli.tmp / "long"
    ran(TINY, "-f", write("text", "once upon the time and " * 500), "-n", 1, "-t", 0, "-c", 40000, "--save-state", long)
    args = [cli.program, TINY, "-n", "1", "-t", "0", "-c", "40000", "--load-state", long, "--save-state", session]
    subprocess.run(args, capture_output=True, check=True)
    old = session.read_bytes()
    rng, within, strays = random.Random(1), 0, set()
    temporary = lambda: set(session.parent.glob("killed.*.tmp")) - strays  # noqa: E731
    for k in range(40):
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 30
        while p.poll() is None and time.monotonic() < limit and max(map(size, temporary()), default=-1) <= rng.randrange(len(old)):
            time.sleep(0.0002)
        p.kill()
        p.wait()
        left = temporary()
        within += len(left)
        strays |= left
        check(session.read_bytes() == old and len(left) <= 1, f"killed, run {k}", left)
    check(within > 10, "it was killed while it wrote", within)
    # Ctrl-C again and again: no temporary file remains, however it ends
    for k in range(20):
        p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        p.stderr.readline()
        while p.poll() is None and not temporary():
            time.sleep(0.0002)
        while p.poll() is None:
            p.send_signal(signal.SIGINT)
            time.sleep(0.001)
        p.communicate()
        check(p.returncode == 0 and session.read_bytes() == old and not temporary(), f"Ctrl-C while a session is written, run {k}", p.returncode)


# ---- a terminal ----------------------------------------------------------------------------------------------------------

class Terminal:
    """./run on a pseudo-terminal; standard output apart, so that what is an answer can be told."""

    def __init__(self, *args: object) -> None:
        import pty
        self.master, slave = pty.openpty()
        self.before = __import__("termios").tcgetattr(self.master)  # now: the program changes it as soon as it runs
        self.out_read, out_write = os.pipe()
        self.p = subprocess.Popen([cli.program, *map(str, args)], stdin=slave, stdout=out_write, stderr=slave, start_new_session=True,
                                  preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0))
        os.close(slave), os.close(out_write)
        self.seen, self.out = b"", b""
        self.open = {self.master, self.out_read}

    def read(self, seconds: float) -> None:
        """What has come on either side; one that has ended is not looked at again, and the other may still have something."""
        ready, _, _ = select.select(list(self.open), [], [], seconds)
        for fd in ready:
            try:
                data = os.read(fd, 4096)
            except OSError:  # a terminal whose other side is closed
                data = b""
            if fd == self.master:
                self.seen += data
            else:
                self.out += data
            if not data:
                self.open.remove(fd)

    def wait(self, what: bytes, where: str = "seen", seconds: float = 20) -> bool:
        end = time.monotonic() + seconds
        while what not in getattr(self, where) and self.open and time.monotonic() < end:
            self.read(0.05)
        return what in getattr(self, where)

    def key(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def answers(self, n: int, seconds: float = 20) -> bool:
        end = time.monotonic() + seconds
        while self.out.count(b"\n") < n and self.open and time.monotonic() < end:
            self.read(0.05)
        return self.out.count(b"\n") >= n

    def end(self) -> int:
        self.key("\x15\x04")
        end = time.monotonic() + 20
        while self.open and time.monotonic() < end:
            self.read(0.05)
        try:
            self.p.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        self.p.kill()
        os.close(self.master), os.close(self.out_read)
        return self.p.wait()


def said(*args: object, lines: str) -> list[list[int]]:
    return [json.loads(line)["ids"] for line in run(MODEL, "-m", "chat", *args, "--json", stdin=lines.encode()).stdout.splitlines()]


def stopped_messages() -> None:
    """A message that is not said: stopped while it is read, or too long. The editor has it again, or Up brings a long one."""
    def stop(t: Terminal, text: str) -> None:
        t.key("\x1b[200~" + text + "\x1b[201~")
        t.read(0.5), t.read(0.5)
        t.key("\r")
        check(t.wait(b"\rreading "), "it is read", t.seen[-300:])
        t.key("\x03")

    for text, told in (("a" * 700, b"back to be edited, Ctrl-C drops it]"), ("once upon the time " * 3000, b"Up brings it back to be edited]")):
        t = Terminal(MODEL, "-m", "chat", "-s", 1, "-n", 5, "-b", 1, "-c", 1000000, "--system", "be kind " * 15000)
        t.wait(b"> ")
        stop(t, text)
        check(t.wait(b"[stopped: your message is ") and t.wait(told), "a stopped message is told", t.seen[-300:])
        t.seen = t.seen[t.seen.index(told):]
        check(t.wait(b"\x1b[J> "), "and the prompt is there", t.seen[-300:])
        if b"Up" in told:
            t.read(0.3)
            check(text[:19].encode() not in t.seen, "a long message is not drawn again", t.seen[:300])
            t.key("\x1b[A")
        check(t.wait(text[:19].encode()), "the message can be edited", t.seen[-300:])
        t.key("\x03/stats\r")
        check(t.wait(b"evaluated 0 tokens, the conversation has 0"), "and is no turn", t.seen[-300:])
        t.end()
    # what a stopped message has read and is kept, the system prompt, is counted with the first turn
    t = Terminal(MODEL, "-m", "chat", "-s", 1, "-n", 5, "-b", 1, "-c", 1000000, "--system", "be kind")
    t.wait(b"> ")
    stop(t, "once upon the time " * 3000)
    check(t.wait(b"Up brings it back"), "a stopped message", t.seen[-300:])
    t.key("\x15once\r")
    check(t.answers(1), "the next one is answered", t.seen[-300:])
    t.key("/stats\r")
    counts = t.wait(b"resident ") and re.search(rb"evaluated (\d+) tokens, the conversation has (\d+)", t.seen)
    check(counts and counts[1] == counts[2], "/stats agrees with the conversation", t.seen[-300:])
    t.end()
    # too long for the context: the error is the last thing on the screen but the prompt
    t = Terminal(TINY, "-m", "chat", "-s", 1, "-n", 5, "-c", 40)
    t.wait(b"> ")
    t.key("\x1b[200~" + "once upon\n" * 30 + "\x1b[201~")
    t.read(0.5), t.read(0.5)
    t.key("\r")
    check(t.wait(b"context of 40 positions") and t.wait(b"[your message is long: Up brings it back"), "too long, said", t.seen[-300:])
    t.seen = t.seen[t.seen.index(b"context of 40"):]
    check(t.wait(b"\x1b[J> ") and b"once" not in t.seen, "and not drawn again", t.seen)
    t.seen = b""
    t.key("\x1b[200~a\tb\x1b[201~")
    check(t.wait(b"a    b"), "a pasted tab is shown as blanks", t.seen)
    t.end()


def plain_prompts() -> None:
    """A plain -i for a model with a chat template, where somebody watches."""
    for model, how, told in ((MODEL, [], True), (MODEL, ["-m", "generate"], False), (MODEL, ["--quiet"], False), (TINY, [], False), (MODEL, ["-i", "<|im_start|>user"], False)):
        t = Terminal(model, "-i", "once upon", "-n", 2, "-s", 1, *how)
        t.end()
        check((b"-m chat answers, -i goes on" in t.seen) == told, f"a plain prompt {how}", t.seen)
    check(b"-m chat" not in run(MODEL, "-i", "once upon", "-n", 2).stderr, "a plain prompt in a script")


def test_terminal() -> None:
    try:
        import pty, termios  # noqa: F401, E401
    except ImportError:
        print("skipped: no pseudo-terminals here")
        return
    how = ["-t", 0, "-n", 6, "--json"]
    # keys: each row is typed, and has to be the same message as its last entry
    rows = [("once upon\r", "once upon"), ("onXe\x7f\x7fce up\r", "once up"), ("upon\x01once \x05 a\r", "once upon a"), ("once upo\x1b[D\x1b[D\x1b[Dx\x1b[Cy\r", "once xuypo"), ("one two three\x17four\r", "one two four"),
            ("one two\x1b[1;5Dand \r", "one and two"), ("abc\x15once\r", "once"), ("a\x0ab\r", "a\nb"), ("a\\\rb\r", "a\nb"), ("a\x1b\rb\r", "a\nb"), ("\x1b[200~x\ry\x1b[201~z\r", "x\nyz"),
            ("\u00e4\u20ac\U0001f600\x7f!\r", "\u00e4\u20ac!"), ("ab\x1b[D\x0b\r", "a"), ("abc\x01\x1b[3~\r", "bc"), ("\x1b[A\r", "bc"), ("\x1b[A\x1b[A\x1b[A!\r", "a!"), ("dra\x1b[A\x1b[Bft\r", "draft"), ("a" * 200 + "\x01b\r", "b" + "a" * 200),
            ("\x12raf\r", "draft"), ("\x12xuy\x07ok\r", "ok"), ("\x12one\x12\r", "one two four"), ("\x12onX\x7f\x01the \r", "the one two four"), ("a\tb\r", "a    b")]
    t = Terminal(MODEL, "-m", "chat", "-c", 4000, *how)
    check(t.wait(b"> "), "a prompt appears", t.seen)
    for i, (keys, _) in enumerate(rows):
        t.key(keys)
        check(t.answers(i + 1), f"an answer to {keys!r}", t.seen[-200:])
    code = t.end()
    got = [json.loads(line)["ids"] for line in t.out.splitlines()]
    want = said("-c", 4000, "-t", 0, "-n", 6, lines="".join('"""\n' + text + '\n"""\n' for _, text in rows))
    check(code == 0, "Ctrl-D ends", code)
    for (keys, text), a, b in zip(rows, got, want):
        check(a == b, f"{keys!r} is {text!r}")
    check(len(got) == len(want) == len(rows), "as many answers", (len(got), len(want)))
    check(b"\x1b" not in t.out, "nothing but answers on standard output")
    # pasted while an answer is given: one message; typed: a line each
    t = Terminal(MODEL, "-m", "chat", "-c", 4000, *how)
    t.wait(b"> ")
    t.key("once\r\x1b[200~x\ry\x1b[201~\rupon\r")
    check(t.answers(3) and b"\x1b[?2004h" in t.seen and b"\x1b[?2004l" not in t.seen, "what is pasted comes marked all the time", t.seen[-300:])
    # Tab: commands, then names of files
    (cli.tmp / "tab" / "folder").mkdir(parents=True)
    t.key("/sa\t" + str(cli.tmp / "tab") + "/alpha-one\r")
    check(t.wait(b"saved to " + bytes(cli.tmp / "tab/alpha-one")), "Tab completes a command", t.seen[-300:])
    (cli.tmp / "tab" / "alpha-two").write_bytes(b"")
    t.key("/lo\t" + str(cli.tmp / "tab") + "/al\t\t")
    check(t.wait(b"alpha-one  ") and b"alpha-two  " in t.seen, "Tab shows what there is", t.seen[-300:])
    t.key("o\t\r")
    check(t.wait(b"loaded from " + bytes(cli.tmp / "tab/alpha-one")), "Tab completes the name of a file", t.seen[-300:])
    t.key("/load " + str(cli.tmp / "tab") + "/fo\t")
    check(t.wait(b"/folder/"), "and of a folder", t.seen[-300:])
    t.key("\x15/s\t")
    check(t.wait(b"/stats  "), "Tab shows the commands", t.seen[-300:])
    check(t.end() == 0 and t.seen.rstrip().count(b"\x1b[?2004l") == 1, "at the end nothing is marked any more", t.seen[-300:])
    check([json.loads(line)["ids"] for line in t.out.splitlines()] == said("-c", 4000, "-t", 0, "-n", 6, lines='once\n"""\nx\ny\n"""\nupon\n'), "pasted lines are one message")
    # what was typed ahead and not read does not become a command of the shell
    import pty as terminals
    master, slave = terminals.openpty()
    p = subprocess.Popen(["sh", "-c", '"$@"; timeout 1 cat', "sh", cli.program, str(MODEL), "-m", "chat", "-n", "3", "-s", "1"], stdin=slave, stdout=subprocess.PIPE, stderr=slave, start_new_session=True)
    os.close(slave)
    os.read(master, 100)
    time.sleep(0.5)
    os.write(master, b"/quit\rpasted\rlines\r")
    limit = time.monotonic() + 20
    while p.poll() is None and time.monotonic() < limit:
        if select.select([master], [], [], 0.05)[0]:
            try:
                os.read(master, 4096)
            except OSError:
                time.sleep(0.05)
    check(p.wait() in (0, 124) and b"lines" not in p.stdout.read(), "pasted lines never reach the shell")
    os.close(master)
    # Ctrl-C: ends an answer, keeps what was typed; the terminal is as before
    import termios
    t = Terminal(MODEL, "-m", "chat", "-s", 1, "-n", 0, "--ignore-eos", "-c", 1000000, "--loop-guard", 0)
    before = t.before
    t.wait(b"> ")
    t.key("some text\x03")
    check(t.wait(b"\r\n", seconds=5), "Ctrl-C leaves the line")
    t.key("\x1b[A!\r")  # it is in the history
    check(t.wait(b"some text!"), "a line that was given up comes back", t.seen[-200:])
    check(t.wait(b" ", "out"), "an answer begins")
    t.key("typed ahead")
    time.sleep(0.2)
    t.key("\x03")
    check(t.wait(b"[stopped]"), "Ctrl-C stops an answer", t.seen[-300:])
    check(t.wait(b"typed ahead"), "what was typed meanwhile is there", t.seen[-300:])
    t.key("\x15/stats\r")
    check(t.wait(b"evaluated "), "and commands work", t.seen[-300:])
    check(t.wait(b"resident "), "the end of it", t.seen[-300:])
    t.seen = t.seen[t.seen.index(b"resident "):]
    check(t.wait(b"\x1b[J> "), "and the next prompt", t.seen[-300:])  # before it, a signal has nothing to give up
    t.p.send_signal(signal.SIGINT)
    check(t.wait(b"[Ctrl-D or /quit ends]"), "SIGINT at the prompt is Ctrl-C", t.seen[-300:])
    check(t.end() == 0 and b"1 answer |" in t.seen, "the end", t.seen[-300:])
    stopped_messages()
    plain_prompts()
    # a long prompt: a progress line after a second, on a terminal only; Ctrl-C ends it
    long = ["-f", write("long prompt", "once upon the time " * 40000), "-n", 1, "-b", 2, "-c", 1000000]
    t = Terminal(TINY, *long)
    check(t.wait(b"reading ") and t.wait(b" tok/s", seconds=5), "a progress line", t.seen[-300:])
    t.key("\x03")
    check(t.wait(b"interrupted within the prompt"), "Ctrl-C within a prompt", t.seen[-300:])
    check(t.end() == 128 + signal.SIGINT, "and its exit status", t.p.returncode)
    p = subprocess.Popen([cli.program, *map(str, [TINY, *long])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stderr.readline()
    time.sleep(2)
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    check(b"interrupted within" in err and b"reading" not in err and b"\r" not in err, "no progress line in a pipe", err[-300:])
    # so does a text that is measured, and logits; the line is erased, and --quiet shows none
    for args in (["-m", "perplexity", *long[:2], "-c", 1000000, "-b", 64], ["-m", "logits", "--ids", write("many", "1 " * 200000), "--out", cli.tmp / "rows", "-b", 64]):
        t = Terminal(TINY, *args)
        check(t.wait(b"\rreading ") and t.wait(b" tok/s, ", seconds=5), f"a progress line {args[:2]}", t.seen[-300:])
        t.key("\x03")
        check(t.wait(b"\r\x1b[K") and t.wait(b"interrupted at token"), "and its end", t.seen[-300:])
        check(t.end() == 128 + signal.SIGINT, "and its exit status", t.p.returncode)
    t = Terminal(TINY, "-m", "perplexity", *long[:2], "-c", 1000000, "-b", 64, "--quiet")
    t.read(0.5), t.read(2)
    t.key("\x03")
    check(t.wait(b"interrupted at token") and b"reading" not in t.seen, "none with --quiet", t.seen[-300:])
    t.end()
    # a terminal that goes away
    t = Terminal(MODEL, "-m", "chat", "-s", 1, "-n", 5)
    t.wait(b"> ")
    t.p.send_signal(signal.SIGTERM)
    stop = time.monotonic() + 20
    while t.p.poll() is None and time.monotonic() < stop:
        t.read(0.05)
    after = termios.tcgetattr(t.master)
    check(t.p.returncode == 128 + signal.SIGTERM, "SIGTERM is the exit status", t.p.returncode)
    check(before[3] & termios.ICANON and after[3] & termios.ICANON and after[3] & termios.ECHO, "SIGTERM restores the terminal")
    t.end()
    t = Terminal(MODEL, "-m", "chat", "-s", 1, "-n", 5)
    t.wait(b"> ")
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):  # both are there when it goes on
        t.p.send_signal(number)
    stop = time.monotonic() + 5
    while t.p.poll() is None and time.monotonic() < stop:
        t.read(0.05)
    check(t.p.returncode == 128 + signal.SIGTERM, "Ctrl-C takes no SIGTERM back", t.p.returncode)
    t.end()


def main() -> int:
    global MODEL
    with tempfile.TemporaryDirectory() as folder:
        cli.tmp = Path(folder)
        MODEL = cli.tmp / "chat.gguf"
        chat_model(MODEL)
        return cli.run_tests((test_script, test_twenty_turns, test_context, test_system_of_a_session, test_ends_badly, test_json, test_json_only, test_templates, test_messages, test_prompt_cache, test_full_disk, test_killed, test_terminal))


if __name__ == "__main__":
    sys.exit(main())
