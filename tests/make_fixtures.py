#!/usr/bin/env python3
"""Write the model files that the C tests and the command-line tests read: make_fixtures.py [FOLDER]    (tests/fixtures)

tiny.gguf            a random hybrid (a GLA layer, a softmax layer) with a vocabulary; standard library only
tiny-mtp.gguf        the like with a block for multi-token prediction
{qwen35,qwen3,gla}   tests/golden/NAME-a through export.py, bfloat16 like the checkpoint: NAME.gguf, and
                     NAME.ref: u32 T, u32 vocab, T i32 ids, T x vocab float32 logits of the reference library
                     (needs tests/requirements.txt, like export.py; skipped with a note otherwise)
mtp                  a random Qwen3.5 of two layers with a block for multi-token prediction: mtp.gguf, and
                     mtp.ref: u32 T, dim, vocab, T i32 ids, float32 hidden rows (T, dim), the block's rows (T, dim) and logits
                     (T, vocab), see mtp_case in make_models.py (needs torch and transformers, too)

The output is the same bytes on every run. Vocabularies of other kinds: make_tokenizer_fixtures.py.
"""
from __future__ import annotations

import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types of GGUF
F32_TENSOR, F16_TENSOR = 0, 1
ALIGNMENT = 32


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v) -> bytes:
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<B"}[kind], v)


def key(name: str, kind: int, v) -> bytes:
    if isinstance(v, list):
        head = struct.pack("<IIQ", ARRAY, kind, len(v))
        return string(name) + head + b"".join(value(kind, x) for x in v)
    return string(name) + struct.pack("<I", kind) + value(kind, v)


def gguf(path: Path, keys: list[tuple], tensors: list[tuple[str, int, list[int], bytes]]) -> None:
    """tensors: name, type, dimensions (the innermost first), bytes."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(key(*k) for k in keys)
    at = 0
    for name, kind, dims, data in tensors:
        out += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
        at += -(-len(data) // ALIGNMENT) * ALIGNMENT
    for *_, data in tensors:
        out += bytes(-len(out) % ALIGNMENT) + data
    path.write_bytes(out + bytes(-len(out) % ALIGNMENT))


# ---- tiny.gguf -------------------------------------------------------------------------------------------------------

def byte_characters() -> list[str]:
    """How byte-level vocabularies write the 256 bytes: Latin-1 where that is visible, else U+0100 and up."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(0x100 + others.index(b)) for b in range(256)]


def tiny(path: Path, mtp: bool = False) -> None:
    """mtp: with a block for multi-token prediction. Its layers add little, so that it often says what the model will."""
    space = "\u0120"  # a space, in the spelling above
    merges = ["t h", "th e", f"{space} a", f"{space} the", "o n", "c e", "on ce", "i n", f"{space} w", "a n", "an d", "e r"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = byte_characters() + [m.replace(" ", "") for m in merges] + control
    dim, hidden, vocab, heads, width = 32, 48, len(tokens), 2, 16
    rng, small = random.Random(2024), 0.2 if mtp else 0.8

    def matrix(name: str, n_in: int, n_out: int, size: float = 1.0) -> tuple:
        scale = size / n_in ** 0.5
        return name, F16_TENSOR, [n_in, n_out], b"".join(struct.pack("<e", rng.gauss(0, scale)) for _ in range(n_in * n_out))

    def vector(name: str, dims: list[int], mean: float, spread: float) -> tuple:
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        return name, F32_TENSOR, dims, b"".join(struct.pack("<f", rng.gauss(mean, spread)) for _ in range(n))

    tensors = [matrix("token_embd.weight", dim, vocab, 6.0), vector("output_norm.weight", [dim], 1, 0.1),
               matrix("output.weight", dim, vocab, 2.5)]
    for i in range(3 if mtp else 2):
        rows = heads * width
        tensors += [vector(f"blk.{i}.attn_norm.weight", [dim], 1, 0.1)]
        tensors += [matrix(f"blk.{i}.attn_{x}.weight", dim, rows) for x in "qkv"]
        if i == 0:
            tensors += [matrix("blk.0.ssm_f_a.weight", dim, 8), matrix("blk.0.ssm_f_b.weight", 8, rows),
                        vector("blk.0.ssm_f_b.bias", [rows], 1, 1), matrix("blk.0.attn_gate.weight", dim, rows),
                        *(vector(f"blk.0.ssm_conv1d_{x}.weight", [4, rows], 0, 0.5) for x in "qkv"),
                        vector("blk.0.ssm_norm.weight", [width], 1, 0.1)]
        tensors += [matrix(f"blk.{i}.attn_output.weight", rows, dim, small), vector(f"blk.{i}.ffn_norm.weight", [dim], 1, 0.1),
                    matrix(f"blk.{i}.ffn_gate.weight", dim, hidden), matrix(f"blk.{i}.ffn_up.weight", dim, hidden),
                    matrix(f"blk.{i}.ffn_down.weight", hidden, dim, small)]
    if mtp:  # mostly the token's half of what it reads
        join = b"".join(struct.pack("<e", (i == j) + rng.gauss(0, 0.02)) for i in range(dim) for j in range(2 * dim))
        tensors += [("blk.2.nextn.eh_proj.weight", F16_TENSOR, [2 * dim, dim], join),
                    *(vector(f"blk.2.nextn.{x}norm.weight", [dim], 1, 0.1) for x in "eh")]
    layers = [0, heads, heads] if mtp else [0, heads]
    gguf(path, [
        ("general.architecture", STRING, "gla"), ("general.name", STRING, "tiny"), ("general.alignment", U32, ALIGNMENT),
        ("gla.block_count", U32, len(layers)), ("gla.context_length", U32, 512), ("gla.embedding_length", U32, dim),
        ("gla.feed_forward_length", U32, hidden), ("gla.attention.layer_norm_rms_epsilon", F32, 1e-6),
        ("gla.attention.head_count", I32, layers), ("gla.attention.head_count_kv", I32, layers),
        *([("gla.nextn_predict_layers", U32, 1)] if mtp else []),
        ("gla.rope.dimension_count", U32, width), ("gla.rope.freq_base", F32, 10000.0),
        ("gla.mixer.head_count", U32, heads), ("gla.mixer.key_length", U32, width), ("gla.mixer.value_length", U32, width),
        ("gla.mixer.conv_kernel", U32, 4), ("gla.mixer.output_gate", STRING, "swish"), ("gla.mixer.decay_divisor", F32, 16.0),
        ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", STRING, tokens), ("tokenizer.ggml.token_type", I32, [1] * (vocab - 3) + [3] * 3),
        ("tokenizer.ggml.merges", STRING, merges), ("tokenizer.ggml.bos_token_id", U32, vocab - 3),
        ("tokenizer.ggml.eos_token_id", U32, vocab - 3), ("tokenizer.ggml.add_bos_token", BOOL, 0),
    ], tensors)


# ---- goldens ---------------------------------------------------------------------------------------------------------

def golden(name: str, folder: Path) -> None:
    import numpy as np
    source = HERE / "golden" / f"{name}-a"
    subprocess.run([sys.executable, HERE.parent / "export.py", source, folder / f"{name}.gguf", "--type", "bf16"], check=True,
                   stdout=subprocess.DEVNULL)
    data = np.load(source / "golden.npz")
    logits = data["logits"].astype("<f4")
    head = struct.pack("<II", *logits.shape)
    (folder / f"{name}.ref").write_bytes(head + data["tokens"].astype("<i4").tobytes() + logits.tobytes())


def mtp(folder: Path) -> None:
    import make_models
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "mtp"
        case = make_models.mtp_case(source, length=30, layer_types=[make_models.L, make_models.F], num_hidden_layers=2)
        subprocess.run([sys.executable, HERE.parent / "export.py", source, folder / "mtp.gguf", "--type", "bf16"], check=True,
                       stdout=subprocess.DEVNULL)
    head = struct.pack("<III", *case["hidden"].shape, case["logits"].shape[1])
    parts = [case["tokens"].astype("<i4"), *(case[name].astype("<f4") for name in ("hidden", "rows", "logits"))]
    (folder / "mtp.ref").write_bytes(head + b"".join(part.tobytes() for part in parts))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    tiny(folder / "tiny.gguf")
    tiny(folder / "tiny-mtp.gguf", mtp=True)
    try:
        import gguf, numpy, safetensors, tqdm  # noqa: E401, F401
    except ImportError as error:
        return print(f"tiny.gguf only: {error.name} is missing (pip install -r tests/requirements.txt)")
    for name in ("qwen35", "qwen3", "gla"):
        golden(name, folder)
    try:
        import torch, transformers  # noqa: E401, F401
    except ImportError as error:
        return print(f"no mtp.gguf: {error.name} is missing")
    mtp(folder)


if __name__ == "__main__":
    main()
