#!/usr/bin/env python3
"""Write small vocabularies (GGUF) and the ids that HuggingFace tokenizers gives for hostile texts.

    pip install tokenizers==0.23.3 gguf
    python3 tests/make_tokenizer_fixtures.py tests/tokenizer        (output is the same bytes on every run)

One pair of files per kind of vocabulary, NAME.gguf and NAME.ids. The second is a row of records, little endian:
    u32 flags       1: with bos as the file asks (TOK_BOS); 2: special tokens in the text are recognised (TOK_SPECIAL)
    u32 text_len    bytes
    u32 n_ids
    text            text_len bytes, may hold NUL
    ids             n_ids x i32
And how every pre-tokenizer of pretokenizers.json cuts a few texts, in `pieces`, per row of it:
    u16 n_names, the names (n_names bytes), u8 characters (spaces are U+2581), u16 n_texts
    per text        u16 n_pieces, per piece u16 bytes and the piece; the text is all of them together
"""
import argparse
import json
import struct
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# name -> regex, NFC, ignore_merges, control tokens, user-defined tokens; the first control token is bos, the second eos
BYTE_LEVEL = {
    "gpt-2": (GPT2, False, False, ["<|endoftext|>", "<|pad|>"], []),
    "qwen2": (QWEN2, True, False, ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_", "<|im_end|><|im_start|>"],
              ["<think>", "</think>", "<tool_call>", "im_end", "\u00e9\u0301x"]),
    "qwen35": (QWEN35, True, False, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], ["<think>", "</think>"]),
    "llama-bpe": (LLAMA3, False, True, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"], []),
}

TEXT = """\
Once upon a time there was a small house at the edge of the wood, and in the house lived an old woman who counted the
stars. She'd count them every night; they're many, she'll say, and I've not finished. It's 1234567890 or 3.14159 or so.
The quick brown fox jumps over the lazy dog. HE SAID "DON'T", I'M SURE; WE'VE SEEN IT. Don't won't can't it's I'd we'll.
def main(argc, argv):\n    for i in range(0, 100):\n        print(f"{i:>4}: {argv[i]!r}")\n\n    return 0\n\t\tif (x == y) { z += 1; }
#include <stdio.h>\r\nint main(void) { return 0; }\r\n\r\n/* ---------- */   // =====    ####   ....
Le c\u0153ur d\u00e9\u00e7u mais l'\u00e2me plut\u00f4t na\u00efve, Lou\u00ffs r\u00eava de crapa\u00fcter en cano\u00eb. Falsches \u00dcben von Xylophonmusik qu\u00e4lt jeden gr\u00f6\u00dferen Zwerg.
\u0421\u044a\u0435\u0448\u044c \u0436\u0435 \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a, \u0434\u0430 \u0432\u044b\u043f\u0435\u0439 \u0447\u0430\u044e. \u0395\u03bd \u03b1\u03c1\u03c7\u03ae \u03ae\u03bd \u03bf \u03bb\u03cc\u03b3\u03bf\u03c2.
\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u5427\u3002 \u79c1\u306f\u6bce\u65e5\u65e5\u672c\u8a9e\u3092\u52c9\u5f37\u3057\u3066\u3044\u307e\u3059\u3002\u30ab\u30bf\u30ab\u30ca \uc548\ub155\ud558\uc138\uc694 \uc138\uacc4
\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u0932\u093f\u0916\u0928\u093e \u0915\u0920\u093f\u0928 \u0928\u0939\u0940\u0902 \u0939\u0948\u0964 \u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645 \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 Ti\u1ebfng Vi\u1ec7t r\u1ea5t hay
\U0001f600\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u200d\U0001f467\u2764\ufe0f \u00bd \u2167 \u00b2 x\u00b2+y\u00b2 \u20ac100 \u2026 \u201cquoted\u201d \u2014 dash
"""

TEXTS = [
    "", " ", "  ", "   ", "\n", "\r\n", "\t", "a", " a", "  a", "   a b", "a ", "a  ", "\n\n\n", " \n ", "  \n\n  x", "\r\r\n\n\r",
    "Hello, world! It's 2024.", "HELLO I'M HE'LL they'VE 'Tis 'S 's ''ll 'reed 'x '", "can't've 'd'D'm'M \u2019s '\u017fa '\u017f",
    "x'TXy'SXz'MXw'DXv'LLOu'REXt'VEXq's't'LL " * 6, "\u017fx\u017fx'\u017fx " * 6, "x'txy'sxz'mxw'dxv'llou'rext'vex'l'r'v'e " * 6,
    "1", "12", "123", "1234", "12345678901234567890", " 1 22 333", "3.14159e-10", "x2y33z444", "\u0661\u0662\u0663\u0664 \u00bd\u00be\u2167",
    "for (int i = 0; i < n; i++) {\n\t\tfoo(&bar[i]);\n\n\n    }\r\n", "  leading and trailing  ", "a\u00a0b\u2003c\u3000d\u0085e\u2028f\u1680g",
    "\u00a0\u00a0x \u3000 y\t\tz \t\n \tw", "...!!!???\n\n---\r\n## title", "(foo) [bar] {baz} \"qux\" $x @y #z", "snake_case camelCase __init__",
    "na\u00efve cafe\u0301 \u1e9b\u0323 A\u030a \u212b \u2126 \u0340\u0341", "e\u0301\u0323\u0302 q\u0307\u0323 \u0327\u0301 a\u0315\u0300\u05ae\u0300",
    "\u1100\u1161\u11a8 \uac00\u11a8 \ud55c\uae00 \u1112\u1161\u11ab", "\u0958\u0915\u093c \u2adc \u0344 \ufb2c \uf900\ufa10 \U0002f800 \U0001d160",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093c\u0932\u092e \u0e17\u0e35\u0e48\u0e19\u0e35\u0e48 \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u064e\u0629",
    "\u4f60\u597d\u4e16\u754c123\uff01\u6211\u4eec\u3000\u53bb \u3053\u3093\u306b\u3061\u306f\u30ef\u30fc\u30eb\u30c9", "\uc548\ub155 \uc138\uacc4", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0451 \u0435\u0308",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea\U0001f3f4\U000e0067\U000e007f\u2764\ufe0f", "a\x00b\x00\x00 \x01\x7f\x1f\x1c",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|><|im_start|><|im_ <|im_en", "<think >< think></think",
    "<|endoftext|><|endoftext|> <|endoftext|>a", "<|begin_of_text|><|start_header_id|>x<|eot_id|>", "<s>a</s> b<unk><0x41>\u2581c",
    "im_end<|im_end\u00e9\u0301x e\u0301x", "\u0301 start <think>\u0301\u0302 <|im_end|>\u0308", "a" * 300, "ab" * 100, " " * 70, "=" * 65 + "\n" * 9,
    "\ud7ff\ue000\ufffd\uffff\U0010ffff\U000f0000 \u0378\u0301", "\u0898\u0897\u0301 \U00016121\U00016d63 \U00011383\u1ae5 \U00031350\U000105c0",
    "Once upon a time there was a stars counting woman\u2026 she\u2019d \u201ccount\u201d them", "x" + " " * 5 + "\n" + " " * 3 + "y \r\n z\r",
    "\u200b\u200d\ufeffzero\u00adwidth\u2060", "\u01c5\u02b0\u00aa\u00ba\u2071\u24b6\u2460\u3007\u16ee\U0001d7d8\U00010107",
]

# Spaces and letters around added tokens that take them along, or that are words.
ADDED_TEXTS = [
    "<l>", "a<l>", "a <l> b", "  <l>  b", "\t\n <l>\n", "<r>", "<r> b", "a <r>  \n b", "a<r>", "<l> <r> <l>", "<l>  <l>", "<r>  <r> x",
    "a <b> b", "<b>", " <b> ", "a  <b>  <b>  b", "<b> <l> <r>", "word", "a word b", "words", "sword", "word word", "_word", "word_",
    "wordword", "\u00e9word", "word\u00e9", "word.", "(word)", "1word", "word\u0301", "a\u2003<l>\u2003b", "\u3000<b>\u3000", "<r>\u00a0\u00a0x",
    "<l", "l>", "< l>", "e\u0301x", "\u00e9x", "ae\u0301xb <l>", "<l>e\u0301x<r> e\u0301x", "<im> a <im>", " <im>word<im> ", "\n<b>\r\n<im>",
]
# What cuts one pre-tokenizer's way and not the other's. Nothing that NFC would change.
PIECE_TEXTS = [
    "Hello I'm HE'LL they'VE can't've 'Tis \u2019s x'\u017f ''ll", "camelCase HTTPServer aBC ABc \u01c5x \u02b0A A\u00aaB \u00e9\u00c9 \u0416\u0436\u0416",
    "1 12 123 1234 12345 1234567 1,234.5 12345a 123_4 1234\u00bd \u0661\u0662\u0663\u0664 \u216712 x1y22z3333", "  a   b\t\tc \n d\n\n  e\r\n\r\nf  \n",
    " \u00a0x\u2003\u2003y\u3000z\u3000\u3000 ", "...!? (a) [b] {c}: \"d\" $e+f=g ~h^i|j`k` a/b//c\n/ #\n\n==\r\n---/\n", "!abc .net <a> _b__c", "\u4f60\u597d\u4e16\u754c123\u3002\u3007\u3005ab\u4e2d \u6587",
    "\u3072\u3089\u304c\u306a\u30ab\u30bf\u30fc\uff71 \ud55c\uad6d\uc5b4 \u3131 \u3105 a\ud55c", "\u0939\u093f\u0928\u094d\u0926\u0940\u0964 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0645\u064e\u0631\u062d\u060c\u06d4 \u05e9\u05dc\u05d5\u05dd",
    "a b c d\u0303 e", "\u2026\u201cx\u201d \u2014 \uff0c\uff01\uff1a\u3001 \u20ac5 \u221e\u00a9 \U0001f600\u200d\U0001f44d\ufe0f", "IMGIMGABCZ IMGIMGAZ <sentinel:12> <sentinel:>", " " * 21 + "x" + " " * 7,
]


def added(text: str, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def byte_level(name: str, text: list[str], size: int, across: bool = False) -> Tokenizer:
    """A byte-level BPE as the models of that pre-tokenizer have it. `across`: trained without the regular expression,
    so that there are tokens across its borders, and a piece cut in the wrong place changes the ids."""
    regex, nfc, whole, control, user = BYTE_LEVEL[name]
    tok = Tokenizer(models.BPE(ignore_merges=whole))
    if nfc:
        tok.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), to_bytes])
    tok.pre_tokenizer = to_bytes if across else split
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False,
                                                      max_token_length=24))
    tok.pre_tokenizer = split
    if whole:       # tokens no merge leads to, which only ignore_merges finds
        tok = rebuilt(tok, ["\u0120\u0120\u0120\u0120\u0120x", "\u0120counting", "count" + "er" * 3])
    tok.add_special_tokens([added(c, True) for c in control])
    tok.add_tokens([added(u, False) for u in user])
    return tok


def rebuilt(tok: Tokenizer, more: list[str]) -> Tokenizer:
    """The same tokenizer with further tokens at the end of its BPE vocabulary."""
    state = json.loads(tok.to_str())
    vocab = state["model"]["vocab"]
    for text in more:
        vocab.setdefault(text, len(vocab))
    return Tokenizer.from_str(json.dumps(state))


def sentencepiece_like(text: list[str], size: int, n_bytes: int = 256) -> tuple[Tokenizer, list[float]]:
    """A Llama-2 style BPE: whole text as one piece, U+2581 for spaces, byte fallback; and the score of each token.
    Without byte tokens (n_bytes 0) characters can be unknown.
    Merges follow from the scores as the Llama converter derives them: every split of a token into two tokens."""
    first = Tokenizer(models.BPE())
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    first.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    found = sorted(first.get_vocab(), key=first.get_vocab().get)
    pieces = [p for p in found if len(p) > 1] + [p for p in found if len(p) == 1]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(n_bytes)}
    scores = [0.0] * len(vocab)
    for rank, p in enumerate(pieces):
        vocab[p] = len(vocab)
        scores.append(-float(rank))
    merges = []
    for p in pieces:
        splits = [(p[:k], p[k:]) for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
        merges += sorted(splits, key=lambda ab: -len(ab[0]))
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens([added(c, True) for c in ("<unk>", "<s>", "</s>")])
    tok.add_tokens([added("<think>", False)])
    return tok, scores + [0.0]


def write_gguf(path: Path, tok: Tokenizer, model: str, pre: str | None, scores: list[float] | None, bos: int, eos: int,
               add_bos: bool, keys: dict[str, bool | str | list[int]] | None = None) -> None:
    state = json.loads(tok.to_str())
    n = tok.get_vocab_size(with_added_tokens=True)
    texts = [tok.id_to_token(i) for i in range(n)]
    types = [gguf.TokenType.NORMAL] * n
    for a in state["added_tokens"]:
        types[a["id"]] = gguf.TokenType.CONTROL if a["special"] else gguf.TokenType.USER_DEFINED
    if model in ("llama", "gemma4"):
        types[0] = gguf.TokenType.UNKNOWN
        types = [gguf.TokenType.BYTE if text.startswith("<0x") else kind for text, kind in zip(texts, types)]
    w = gguf.GGUFWriter(path, "none")
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(texts)
    w.add_token_types(types)
    if scores:
        w.add_token_scores(scores)
    else:
        w.add_token_merges([" ".join(m) for m in state["model"]["merges"]])
    w.add_bos_token_id(bos)
    w.add_eos_token_id(eos)
    w.add_add_bos_token(add_bos)
    for key, value in (keys or {}).items():
        {bool: w.add_bool, str: w.add_string, list: w.add_array}[type(value)](f"tokenizer.gla.{key}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def write_ids(path: Path, tok: Tokenizer, bos: int | None, texts: list[str] = TEXTS) -> None:
    with path.open("wb") as f:
        for i, text in enumerate(texts):
            for flags in (2, 0) if "<" in text or "im_" in text else (3,) if i % 4 == 0 else (2,):
                tok.encode_special_tokens = not flags & 2
                ids = tok.encode(text, add_special_tokens=False).ids
                if flags & 1 and bos is not None:
                    ids = [bos] + ids
                raw = text.encode()
                f.write(struct.pack("<III", flags, len(raw), len(ids)) + raw + struct.pack(f"<{len(ids)}i", *ids))
    tok.encode_special_tokens = False


def habits() -> tuple[Tokenizer, dict[str, list[int]]]:
    """A byte-level BPE with added tokens of every habit; the keys that say so."""
    tok = byte_level("qwen2", TEXT.splitlines(keepends=True), 400)
    plain = dict(special=False, normalized=False)
    tok.add_special_tokens([AddedToken("<im>", special=True, normalized=False, lstrip=True)])
    tok.add_tokens([AddedToken("<l>", lstrip=True, **plain), AddedToken("<r>", rstrip=True, **plain),
                    AddedToken("<b>", lstrip=True, rstrip=True, **plain), AddedToken("word", single_word=True, **plain),
                    AddedToken("e\u0301x", special=False, normalized=True)])
    names = {"lstrip": ["<im>", "<l>", "<b>"], "rstrip": ["<r>", "<b>"], "single_word": ["word"], "normalized": ["e\u0301x"]}
    return tok, {key: [tok.token_to_id(t) for t in texts] for key, texts in names.items()}


def gemma_like(text: list[str], size: int) -> Tokenizer:
    """A BPE of characters with U+2581 for spaces, cut at line ends, other characters in bytes."""
    lines = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    first = Tokenizer(models.BPE())
    first.normalizer = normalizers.Replace(" ", "\u2581")
    first.pre_tokenizer = lines
    first.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=16))
    model = json.loads(first.to_str())["model"]
    vocab = {"<unk>": 0, "<bos>": 1, "<eos>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for piece in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(piece, len(vocab))
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.pre_tokenizer = lines
    tok.add_special_tokens([added(c, True) for c in ("<unk>", "<bos>", "<eos>")])
    tok.add_tokens([added("<think>", False)])
    return tok


def write_rwkv(folder: Path) -> None:
    """The longest token that the rest of the text begins with; texts of tokens are spelled as Python spells bytes."""
    words = ["\n\n", "  ", "    ", "\r\n", "\u4f60\u597d", "\U0001f600", "'s", "'\"", "\\n", "\\x41", "th", "the", " the", "count", "counti", "counting s"]
    words += sorted({w[:k] for w in TEXT.split() for k in (2, 3, 5)})
    tokens = [b"<s>"] + [bytes([b]) for b in range(256)] + sorted({w.encode() for w in words if len(w.encode()) > 1})
    texts = ["<s>"] + [repr(t)[2:-1] for t in tokens[1:]]
    w = gguf.GGUFWriter(folder / "rwkv.gguf", "none")
    w.add_tokenizer_model("rwkv")
    w.add_token_list(texts)
    w.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(texts) - 1))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    ids = {t: i for i, t in enumerate(tokens) if i}
    with (folder / "rwkv.ids").open("wb") as f:
        for text in TEXTS:
            raw, found, at = text.encode(), [], 0
            while at < len(raw):
                length = next(n for n in range(min(64, len(raw) - at), 0, -1) if raw[at:at + n] in ids)
                found.append(ids[raw[at:at + length]])
                at += length
            f.write(struct.pack("<III", 0, len(raw), len(found)) + raw + struct.pack(f"<{len(found)}i", *found))


def write_pieces(path: Path) -> None:
    with path.open("wb") as f:
        for row in json.loads((HERE / "pretokenizers.json").read_text()):
            characters = "characters" in row["flags"]
            cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in row["passes"]])
            f.write(struct.pack("<H", len(row["names"])) + row["names"].encode() + struct.pack("<BH", characters, len(PIECE_TEXTS)))
            for text in PIECE_TEXTS:
                pieces = [p.encode() for p, _ in cut.pre_tokenize_str(text.replace(" ", "\u2581") if characters else text)]
                f.write(struct.pack("<H", len(pieces)) + b"".join(struct.pack("<H", len(p)) + p for p in pieces))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    folder = ap.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = TEXT.splitlines(keepends=True) + [TEXT]
    for name in BYTE_LEVEL:
        tok = byte_level(name, lines + TEXTS * 2, 1500, across=True)
        control = BYTE_LEVEL[name][3]
        bos, eos = tok.token_to_id(control[0]), tok.token_to_id(control[1])
        add_bos = name == "llama-bpe"
        write_gguf(folder / f"{name}.gguf", tok, "gpt2", name, None, bos, eos, add_bos)
        write_ids(folder / f"{name}.ids", tok, bos if add_bos else None)
    for name, n_bytes in (("llama", 256), ("llama-unk", 0)):
        tok, scores = sentencepiece_like(lines, 700, n_bytes)
        write_gguf(folder / f"{name}.gguf", tok, "llama", None, scores, 1, 2, True)
        write_ids(folder / f"{name}.ids", tok, 1)
    for scheme in ("first", "always"):
        tok, scores = sentencepiece_like(lines, 300)
        tok.normalizer = normalizers.Sequence([])
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        write_gguf(folder / f"llama-{scheme}.gguf", tok, "llama", None, scores, 1, 2, True, {"space_prefix": scheme})
        write_ids(folder / f"llama-{scheme}.ids", tok, 1, [t for t in TEXTS if len(t) < 60])
    tok, keys = habits()
    write_gguf(folder / "added.gguf", tok, "gpt2", "qwen2", None, 0, 0, False, keys)
    write_ids(folder / "added.ids", tok, None, ADDED_TEXTS)
    tok = gemma_like(lines + TEXTS * 2, 800)
    write_gguf(folder / "gemma4.gguf", tok, "gemma4", None, None, 1, 2, True)
    write_ids(folder / "gemma4.ids", tok, 1)
    write_rwkv(folder)
    write_pieces(folder / "pieces")
    for p in sorted(folder.glob("*")):
        print(p.name, p.stat().st_size)


if __name__ == "__main__":
    main()
