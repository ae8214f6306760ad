#!/usr/bin/env python3
"""Compare the pre-tokenizers of run.c, section 11, with HuggingFace tokenizers.

    pip install tokenizers==0.23.3 gguf
    python3 tests/pretokenizers.py [--texts 10000] [--seed 0] [--cc cc] [NAME ...]

pretokenizers.json holds the names of tokenizer.ggml.pre and, for each group of them, the regular expressions that cut a text, one
after the other. For each group a HuggingFace tokenizer with these expressions encodes random texts of many scripts, and so does
run.c by that name: every id has to be the same. The vocabulary was trained on such texts without any cutting, so that a piece
cut in another place nearly always has other ids.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
ALPHABETS = [   # where random texts come from: characters, or words
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "0123456789", " ", " ", "\n", "\r\n", "\t", " \t\n\r\x0b\x0c",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "'", "/", "_", ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "'\u017f"],
    ["the", "The", " the", "don't", "it's", "HTTPServer", "camelCase", " a b c", "x1y22z333", "3.14159", "1,234,567", "1234567890", "12345a"],
    ["    ", "  ", " " * 8, " " * 17, "\n\n\n", " \n", "\n ", "\r\n\r\n", "IMGIMGABCZ", "IMGIMGAZ", "<sentinel:12>", "<sentinel:>"],
    "\u00a0\u2003\u2028\u2029\u3000\u0085\u1680", "\u00e9\u00e8\u00fc\u00df\u00f1\u0153\u017f\u0130\u0131", "e\u0301a\u0308o\u0302n\u0303",
    "\u0430\u0431\u0432\u0433\u0434\u0415\u0416\u0417", "\u03b1\u03b2\u03b3\u0391\u0392\u0393\u1f00", "\u4f60\u597d\u4e16\u754c\u3007\u3005\u9fff\ua000",
    "\u3042\u3044\u30ab\u30bf\u30fc\uff71", "\ud55c\uad6d\uc5b4\u1112\u1161\u11ab\u3131", "\u0939\u093f\u0928\u094d\u0926\u0940\u0964", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0627\u0644\u0639\u064e\u0631\u0628\u060c\u06d4", "\u05e9\u05c1\u05dc\u05d5\u05dd", "\u0661\u0662\u0663\u00b2\u00bd\u2167\u2460\u24b6\u3021", "\u2026\u201c\u201d\u2018\u2019\u2014\u3002\uff0c\uff01\uff1a\u3001",
    "\U0001f600\U0001f468\u200d\u2764\ufe0f\U0001f1e9", "\u20ac\u00a3\u221e\u2192\u2713\u00a9", "\u01c5\u02b0\u00aa\u2071\u16ee", "\u1000\u1780\uaa60\uf900\ufaff\u2f00\u3105\ufe30",
]


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 14)):
        if rng.random() < 0.03:
            c = rng.randrange(0x110000)
            parts.append(chr(c) * rng.randint(1, 3) if not 0xD800 <= c <= 0xDFFF and c else "?")
            continue
        letters = rng.choice(ALPHABETS)
        n = 1 if isinstance(letters, list) else rng.choice((1, 1, 2, 3, 5, 9))
        parts.append("".join(rng.choice(letters) for _ in range(n)))
    return "".join(parts)


def vocabulary(texts: list[str], characters: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges, trained across every border: of bytes, or of characters with U+2581 for spaces."""
    tok = Tokenizer(models.BPE())
    if characters:
        tok.normalizer = normalizers.Replace(" ", "\u2581")
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = [] if characters else sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet, show_progress=False, max_token_length=8))
    model = json.loads(tok.to_str())["model"]
    vocab = model["vocab"]
    for b in range(256 if characters else 0):
        vocab.setdefault(f"<0x{b:02X}>", len(vocab))
    return vocab, [tuple(m) for m in model["merges"]]


def write_gguf(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    w = gguf.GGUFWriter(path, "none")
    w.add_tokenizer_model("gpt2")
    w.add_token_list(sorted(vocab, key=vocab.get))
    w.add_token_merges([" ".join(m) for m in merges])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def reference(row: dict, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    characters = "characters" in row["flags"]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges="ignore_merges" in row["flags"], byte_fallback=characters))
    if "nfc" in row["flags"]:
        tok.normalizer = normalizers.NFC()
    if characters:
        tok.normalizer = normalizers.Replace(" ", "\u2581")
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in row["passes"]]
    to_bytes = [] if characters else [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tok.pre_tokenizer = pre_tokenizers.Sequence(splits + to_bytes)
    return tok


def build_ids(cc: str, work: Path) -> Path:
    program = work / "ids"
    subprocess.run([cc, "-std=gnu11", "-O1", "-DRUN_SCALAR", "-w", "-o", program, HERE / "ids.c", "-lm"], check=True)
    return program


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("names", nargs="*", help="pre-tokenizers (all)")
    ap.add_argument("--texts", type=int, default=10000)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--cc", default="cc")
    args = ap.parse_args()
    rng = random.Random(args.seed)
    texts = [random_text(rng) for _ in range(args.texts)]
    training = [random_text(rng) for _ in range(3000)]
    raw = b"".join(t.encode() + b"\0" for t in texts)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        program = build_ids(args.cc, work)
        made = {}
        for characters in (False, True):
            made[characters] = *vocabulary(training, characters), work / f"{characters}.gguf"
            write_gguf(made[characters][2], *made[characters][:2])
        for row in json.loads((HERE / "pretokenizers.json").read_text()):
            names = [n for n in row["names"].split() if not args.names or n in args.names]
            if not names:
                continue
            vocab, merges, file = made["characters" in row["flags"]]
            want = [e.ids for e in reference(row, vocab, merges).encode_batch(texts, add_special_tokens=False)]
            for name in names:
                done = subprocess.run([program, file, name], input=raw, capture_output=True)
                got = [[int(i) for i in line.split()] for line in done.stdout.decode().split("\n")[:-1]]
                wrong = [i for i, w in enumerate(want) if i >= len(got) or got[i] != w]
                failed += bool(wrong)
                print(f"{'FAIL' if wrong else 'ok  '} {name}: {len(want) - len(wrong)} of {len(want)} texts have HuggingFace's ids")
                if wrong:
                    i = min(wrong, key=lambda i: len(texts[i]))
                    print(f"     {texts[i]!r}: {got[i] if i < len(got) else done.stderr} instead of {want[i]}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
