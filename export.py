#!/usr/bin/env python3
"""HuggingFace checkpoint folder -> one GGUF file for ./run (and, where it knows the architecture, for llama.cpp).

    ./export.py HF_DIR OUT.gguf [--type f32|f16|bf16|q8_0|q4_0] [--ignore FIELD] [--pre NAME]

--outtype and --outfile are --type and OUT.gguf, as llama.cpp calls them.

 1 checkpoint   config.json, *.safetensors or *.bin; every field that was not understood is noticed
 2 tensors      what happens to a tensor on its way: permuted rows or columns, an elementwise map, a type
 3 models       one configuration function and one table of tensor names per architecture
 4 tokenizer    tokenizer.json, tokenizer.model and other files -> tokenizer.ggml.*
 5 file         plan, write, read back, rename

Tensors stream through in slices of rows, so a laptop converts what it can run. The file depends on the folder only.
To add an architecture: a table of names, a function that reads its config.json, a row in ARCHITECTURES. Nothing else.
"""
from __future__ import annotations

import argparse
import ast
import base64
import json
import math
import os
import re
import struct
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

TYPE_NAMES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def type_name(text: str) -> str | None:
    """A type of --type; None: that of the checkpoint, which llama.cpp calls auto."""
    name = text.lower()
    if name in TYPE_NAMES:
        return name
    if name == "auto":
        return None
    raise argparse.ArgumentTypeError(
        f"{text} is not one of {', '.join(TYPE_NAMES[:-1])} and {TYPE_NAMES[-1]}, the types that can "
        "be written; K-quants such as q4_k_m are read by run but not written here")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export.py", description="Convert a HuggingFace checkpoint folder to a GGUF file.")
    parser.add_argument("folder", metavar="HF_DIR", type=Path)
    parser.add_argument("out", metavar="OUT.gguf", type=Path, nargs="?")
    parser.add_argument("--outfile", metavar="OUT.gguf", type=Path, help="the same, as an option")
    parser.add_argument("--type", "--outtype", metavar="NAME", type=type_name,
                        help=f"of the matrices: {', '.join(TYPE_NAMES)}; default: bf16 if the "
                             "checkpoint is, else f16")
    parser.add_argument("--ignore", metavar="FIELD", action="append", default=[],
                        help="a field of config.json that is known not to matter (repeatable)")
    parser.add_argument("--pre", metavar="NAME",
                        help="how text is cut before the merges (tokenizer.ggml.pre), where the tokenizer's "
                             "files do not say it in a way that is known; qwen2, llama-bpe, gpt-2 ...")
    parser.add_argument("--mtp", action=argparse.BooleanOptionalAction,
                        help="keep the block for multi-token prediction, from which run --draft mtp makes "
                             "drafts, or leave it out; default: keep it where there is one")
    args = parser.parse_intermixed_args()
    if (args.out is None) == (args.outfile is None):
        parser.error("the file to write is given once, as OUT.gguf or by --outfile OUT.gguf")
    args.out = args.out or args.outfile
    return args


# Before the libraries are looked for: --help needs none of them.
ARGUMENTS = arguments() if __name__ == "__main__" else None

try:
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as Type
    from gguf.utility import LocalTensor, SafetensorsLocal
    from safetensors import SafetensorError, safe_open
    from tqdm import tqdm
except ImportError as error:
    REQUIREMENTS = Path(os.path.relpath(Path(__file__).resolve().parent / "doc/requirements-export.txt"))
    sys.exit(f"export.py needs the Python library {error.name}: pip install -r {REQUIREMENTS}")


class Refusal(Exception):
    """Why there will be no file, in one sentence."""


def brief(value: Any) -> str:
    """A value in an error message, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "..."


# ---- 1. checkpoint ---------------------------------------------------------------------------------------------------

# Settings that leave the logits of a single sequence alone: training, caches, kernels, token ids (section 4 reads those).
HARMLESS = set("""
    architectures model_type auto_map transformers_version torch_dtype dtype _name_or_path name_or_path language_model_only
    _attn_implementation attn_implementation _commit_hash id2label label2id return_dict output_attentions
    output_hidden_states use_cache cache_implementation gradient_checkpointing is_encoder_decoder
    attention_dropout hidden_dropout resid_dropout embd_dropout attn_dropout dropout initializer_range pretraining_tp
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id image_token_id video_token_id
    vision_start_token_id vision_end_token_id vision_token_id boi_token_id eoi_token_id
    image_token_index boi_token_index eoi_token_index mm_tokens_per_image
    fuse_norm fuse_swiglu fuse_cross_entropy
    fuse_linear_cross_entropy use_l2warp attn_mode use_gk use_gv mamba_ssm_dtype unsloth_version unsloth_fixed
""".split())


def is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


class Fields:
    """A JSON object of settings that remembers which were read. A field set to null counts as absent, a flag set to null as false."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where, self.read = data, where, set[str]()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        value = self.data.get(name)
        return default if value is None else value

    def typed(self, name: str, default: Any, ok: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name, default)
        if not ok(value):
            raise Refusal(f"{self.where}: {name} is {brief(value)}, expected {expected}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        return self.typed(name, default, lambda v: type(v) is int and 0 < v < 2**31, "a whole number above zero")

    def real(self, name: str, default: float | None = None) -> float:
        return float(self.typed(name, default, lambda v: is_number(v, -3e38, 3e38), "a number"))

    def flag(self, name: str, default: bool = False) -> bool:
        default = default and self.data.get(name, True) is not None
        return self.typed(name, default, lambda v: type(v) is bool, "true or false")

    def only(self, name: str, *allowed: Any) -> Any:
        """One of the allowed values; the first of them is the default. Anything else would change the arithmetic."""
        return self.typed(name, allowed[0], lambda v: v in allowed, "what is supported: " + json.dumps(allowed)[1:-1])

    def no_more(self, ignored: Iterable[str] = ()) -> None:
        """Refuse what nobody read, unless it is switched off (false, 0, empty) or known to be harmless."""
        for name, value in self.data.items():
            if value and name not in self.read and name not in HARMLESS and name not in ignored:
                raise Refusal(f"{self.where}: {name} = {json.dumps(value)[:80]} is not supported and may change the "
                              f"arithmetic; pass --ignore {name} if it does not")


def read_json(path: Path, missing: Any = Refusal) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not Refusal:
            return missing
        raise Refusal(f"{path} does not exist; expected a HuggingFace checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"{path} is not readable as JSON: {str(error)[:200]}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with the text tower of a multimodal checkpoint lifted to the top (model_type, sizes, rope ...)."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
        raise Refusal(f"{folder / 'config.json'} does not hold a JSON object of settings")
    if "text_config" in config:
        tie = config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings"))
        tied = {} if tie is None else {"tie_word_embeddings": tie}
        config = {**config, **config["text_config"], **tied,
                  "architectures": config.get("architectures"), "text_config": None, "vision_config": None}
    return config


def checkpoint_name(name: str) -> str:
    """Multimodal checkpoints keep the language model one level deeper."""
    for prefix in ("model.language_model.", "language_model.model."):
        if name.startswith(prefix):
            return "model." + name[len(prefix):]
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return name.removeprefix("model.") if name.startswith("model.mtp.") else name


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint."""
    shape: tuple[int, ...]
    dtype: str                            # as safetensors spells it
    at: LocalTensor | np.ndarray          # a part of a file, or an array that torch has mapped

    @property
    def nbytes(self) -> int:
        return self.at.nbytes if isinstance(self.at, np.ndarray) else self.at.data_range.size

    def matrix(self, height: int, width: int) -> np.ndarray:
        """Mapped anew for every slice: pages already used do not count as this program's memory."""
        if isinstance(self.at, np.ndarray):
            return self.at.reshape(height, width)
        where, kind = self.at.data_range, SOURCE_TYPES[self.dtype]
        return np.memmap(where.filename, kind, "r", where.offset, (height, width))


Tensors = dict[str, Stored]


def read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, "np"):  # the library's own validation of header and offsets
            pass
        tensors = SafetensorsLocal(path).tensors
        return {name: Stored(tuple(t.shape), t.dtype, t) for name, t in tensors.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise Refusal(f"{path} is not a safetensors file: {one_line(error)}") from None


def read_pytorch(path: Path) -> Tensors:
    """weights_only: a file may hold tensors, and nothing that runs."""
    try:
        import torch
    except ImportError:
        raise Refusal(f"{path} is a PyTorch file, and torch is not installed: pip install torch, "
                      "or save the model as safetensors") from None
    types = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16",
             torch.bfloat16: "BF16"}
    try:
        with open(path, "rb") as file:  # older files are no archives and cannot be mapped
            archive = file.read(4) == b"PK\x03\x04"
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever the bytes make of the library
        raise Refusal(f"{path} is not a PyTorch file of tensors: {one_line(error)}") from None
    if not isinstance(state, dict) or not all(
            isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state.items()):
        raise Refusal(f"{path} does not hold tensors by name, as a HuggingFace checkpoint does")
    tensors: Tensors = {}
    for name, t in state.items():
        if t.layout != torch.strided or t.is_quantized or t.device.type == "meta":
            raise Refusal(f"{path}: {name} is not stored as plain numbers")
        kind = types.get(t.dtype, str(t.dtype).removeprefix("torch."))
        data, array = t.detach().contiguous(), np.empty(0)
        if kind == "BF16":
            array = data.view(torch.int16).numpy().view(np.uint16)
        elif kind in types.values():
            array = data.numpy()
        tensors[name] = Stored(tuple(t.shape), kind, array)
    return tensors


def one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def read_tensors(folder: Path) -> Tensors:
    """Canonical name -> where its bytes lie, over all shards. Nothing is loaded. PyTorch files only
    where there is nothing else."""
    kinds = [("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pytorch)]
    name, read = next((kind for kind in kinds if any(
        (folder / file).is_file() for file in (kind[0], f"{kind[0]}.index.json"))), kinds[0])
    index_file = folder / f"{name}.index.json"
    weight_map = {}
    if index_file.is_file():
        index = read_json(index_file)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        weight_map = weight_map if isinstance(weight_map, dict) and weight_map else {"": 0}
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise Refusal(f"{index_file} has no weight_map of tensor names")
    tensors: Tensors = {}
    for file in sorted(set(weight_map.values())) or [name]:
        path = folder / file
        if Path(file).name != file:
            raise Refusal(f"{index_file} names {file[:80]}, expected a file in the same folder")
        if not path.is_file():
            raise Refusal(f"{path} does not exist; expected model.safetensors or "
                          "pytorch_model.bin, whole or in the shards of an index")
        for tensor_name, tensor in read(path).items():
            if tensors.setdefault(checkpoint_name(tensor_name), tensor) is not tensor:
                raise Refusal(f"{path}: {tensor_name} appears twice in the checkpoint")
    missing = sorted(n for n in weight_map if checkpoint_name(n) not in tensors)
    if missing:
        raise Refusal(f"{folder}: the index lists {missing[0]}, which no shard holds")
    return tensors


# ---- 2. tensors ------------------------------------------------------------------------------------------------------
# A tensor is a matrix of rows as they lie in memory: the last dimension is the row, a vector is a column of 1-wide rows.

SOURCE_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
SLICE_BYTES = 32 << 20  # of float32 in flight; memory stays near this, whatever the model's size


@dataclass(frozen=True)
class View:
    """How a stored tensor is seen: out[i, j] = fn(stored[rows[i], cols[j]]), without the dimension `drop` of size 1, and
    finally in the shape `shape`."""
    rows: np.ndarray | None = None
    cols: np.ndarray | None = None
    fn: Callable[[np.ndarray], np.ndarray] | None = None
    drop: int | None = None
    shape: tuple[int, ...] | None = None


PLAIN = View()
PLUS_ONE = View(fn=lambda w: w + np.float32(1))  # norms stored as an offset from one
SQUEEZE_CONV = View(drop=1)                      # depthwise filters [C, 1, W] -> [C, W]; tap W-1 is the current token
SQUEEZE_ROW = View(drop=0)                       # a [1, D] projection is a vector


@dataclass
class Piece:
    """One tensor of the output file."""
    name: str
    source: Stored | np.ndarray
    view: View = PLAIN
    type: Type = Type.F32
    origin: str = ""                      # in the checkpoint

    def __post_init__(self) -> None:
        self.stored = tuple(self.source.shape)
        told = f"{self.origin} ({self.name}) has the shape {self.stored}"
        if not self.stored or not all(self.stored):
            raise Refusal(f"{told}, with nothing in it")
        self.width = self.stored[-1] if len(self.stored) > 1 else 1
        self.height = math.prod(self.stored) // self.width
        drop = self.view.drop
        if drop is not None and (drop >= len(self.stored) or self.stored[drop] != 1):
            raise Refusal(f"{told}; dimension {drop} should be 1")
        self.shape = tuple(n for i, n in enumerate(self.stored) if i != drop)
        if self.view.shape:
            try:
                self.shape = np.empty(self.stored, np.bool_).reshape(self.view.shape).shape
            except ValueError:
                raise Refusal(f"{told}, which does not go with the sizes in config.json") from None
        for order, size in ((self.view.rows, self.height), (self.view.cols, self.width)):
            if order is not None and len(order) != size:
                raise Refusal(f"{told}, but config.json asks for {len(order)} where it has {size}")

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size

    def slices(self) -> Iterator[np.ndarray]:
        """The rows in order, as float32 matrices of at most SLICE_BYTES (or one row)."""
        step = max(1, SLICE_BYTES // (4 * self.width))
        for start in range(0, self.height, step):
            end = min(start + step, self.height)
            if isinstance(self.source, np.ndarray):
                stored, dtype = self.source.reshape(self.height, self.width), "F32"
            else:
                stored, dtype = self.source.matrix(self.height, self.width), self.source.dtype
            part = stored[start:end] if self.view.rows is None else stored[self.view.rows[start:end]]
            part = (part.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else part.astype(np.float32)
            part = part if self.view.cols is None else part[:, self.view.cols]
            part = self.view.fn(part) if self.view.fn else part
            if not np.isfinite(part).all():
                raise Refusal(f"{self.name} holds a value that is not a finite number")
            yield part


# The largest value that a half-precision number or block scale can stand for.
LARGEST = {Type.F16: 65504.0, Type.Q8_0: 65504.0 * 127, Type.Q4_0: 65504.0 * 8}
TYPES = {"f32": (Type.F32, 0), "f16": (Type.F16, 1), "bf16": (Type.BF16, 32), "q8_0": (Type.Q8_0, 7), "q4_0": (Type.Q4_0, 2)}
KEEP_F32 = re.compile(r"_norm\.weight$|ssm_conv1d|ffn_gate_inp|time_mix_(lerp|first|decay|[wavg]\d)|channel_mix_lerp")


def stored_type(name: str, shape: tuple[int, ...], wanted: Type, head: str) -> Type:
    """What llama.cpp's converter keeps in float32 stays so; rows that do not fill blocks of 32 become float16. The output
    matrix `head` gets 8 bits in a q4_0 file: it is the one matrix whose rounding is seen directly in the logits."""
    if len(shape) == 1 or not name.endswith(".weight") or KEEP_F32.search(name):
        return Type.F32
    wanted = Type.Q8_0 if wanted == Type.Q4_0 and name == head else wanted
    return Type.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


# ---- 3. models -------------------------------------------------------------------------------------------------------

# Name in the checkpoint (or several, "a|b", the first that exists) -> name in the file, and the plan's view of it.
Table = dict[str, "str | tuple[str, str]"]


@dataclass
class Plan:
    """What a configuration function finds out. Keys get the architecture as prefix; bool, int, float, str and lists of
    them become bool, u32, f32, str and arrays (i32 for whole numbers)."""
    keys: dict[str, Any]
    top: list[Table]
    blocks: list[tuple[str, list[Table]]] = field(default_factory=list)  # prefix in the checkpoint, tables; block N in order
    views: dict[str, View] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)            # tensors computed from the configuration
    # From whole small tensors: one, or several "a|b" of which all are there.
    derived: dict[str, tuple[str, Callable[..., np.ndarray]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)               # prefix of checkpoint names -> why
    notes: list[str] = field(default_factory=list)


VIEWS = {"-exp": View(fn=lambda a: -np.exp(a)), "sigmoid": View(fn=lambda a: 1 / (1 + np.exp(-a))), "column": View(shape=(-1, 1)),
         "-exp column": View(fn=lambda a: -np.exp(a), shape=(-1, 1)), "+1": PLUS_ONE, "conv": SQUEEZE_CONV, "vector": SQUEEZE_ROW,
         "flat": View(shape=(-1,))}
TOP: Table = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
HEAD: Table = {"lm_head.weight": "output.weight"}
NORMS: Table = {"input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight"}
ATTENTION: Table = {
    "self_attn.q_proj.weight": ("attn_q.weight", "q"),
    "self_attn.k_proj.weight": ("attn_k.weight", "k"),
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
QK_NORM: Table = {"self_attn.q_norm.weight": ("attn_q_norm.weight", "norm"),
                  "self_attn.k_norm.weight": ("attn_k_norm.weight", "norm")}
ATTENTION_BIAS: Table = {source.replace("weight", "bias"): entry.replace("weight", "bias") if isinstance(entry, str) else
                         (entry[0].replace("weight", "bias"), entry[1]) for source, entry in ATTENTION.items()}
QKV_BIAS: Table = {s: entry for s, entry in ATTENTION_BIAS.items() if "o_proj" not in s}
MLP: Table = {f"mlp.{kind}_proj.weight": f"ffn_{kind}.weight" for kind in ("gate", "up", "down")}
MLP_BIAS: Table = {f"mlp.{kind}_proj.bias": f"ffn_{kind}.bias" for kind in ("gate", "up", "down")}


def plus_one(table: Table) -> Table:
    """The same table for norms whose stored weight is an offset from one."""
    return {source: (name if isinstance(name, str) else name[0], "+1") for source, name in table.items()}


def decoder(f: Fields, has: Tensors) -> tuple[Plan, int]:
    """What the transformers decoders share, and the number of layers. Every matrix that leaves the block is listed."""
    n = f.count("num_hidden_layers")
    if n > len(has):
        raise Refusal(f"{f.where}: num_hidden_layers is {n}, but the checkpoint has only "
                      f"{len(has)} tensors")
    plan = Plan({"block_count": n, "context_length": f.count("max_position_embeddings", 2048),
                 "embedding_length": f.count("hidden_size"), "feed_forward_length": f.count("intermediate_size"),
                 "vocab_size": f.count("vocab_size"),
                 "attention.layer_norm_rms_epsilon": f.real("rms_norm_eps", 1e-6)}, [TOP])
    output_matrix(plan, f, has)
    return plan, n


def output_matrix(plan: Plan, f: Fields, has: Tensors) -> None:
    """lm_head becomes output.weight, unless it holds what the embedding holds and config.json says
    that they are one."""
    tied = f.flag("tie_word_embeddings")
    embedding = next((name for name in next(iter(plan.top[0])).split("|") if name in has), "")
    if "lm_head.weight" not in has:
        if not tied:
            plan.notes.append("the checkpoint has no lm_head.weight, so the embedding serves as "
                              "output matrix")
    elif tied and embedding in has and same_values(has["lm_head.weight"], has[embedding]):
        plan.left_out["lm_head.weight"] = "the embedding is the output matrix"
    else:
        plan.top.append(HEAD)
        if tied:
            plan.notes.append("lm_head.weight differs from the embedding and is kept, although "
                              "config.json has tie_word_embeddings")


def same_values(a: Stored, b: Stored) -> bool:
    if a.shape != b.shape or not {a.dtype, b.dtype} <= set(SOURCE_TYPES):
        return False
    slices = zip(Piece("lm_head.weight", a).slices(), Piece("the embedding", b).slices())
    return all(np.array_equal(x, y) for x, y in slices)


def attention(plan: Plan, f: Fields, head_dim: int | None = None) -> tuple[int, int, int, list[Table]]:
    """Heads, key/value heads, head width and tables of softmax attention; sets their keys."""
    heads = f.count("num_attention_heads")
    kv = f.count("num_key_value_heads", heads)
    width = f.count("head_dim", head_dim or plan.keys["embedding_length"] // heads)
    if heads % kv:
        raise Refusal(f"{f.where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv}")
    if heads * width > 1 << 24:
        raise Refusal(f"{f.where}: {heads} heads of {width} channels are too many")
    plan.keys |= {"attention.head_count": heads, "attention.head_count_kv": kv,
                  "attention.key_length": width, "attention.value_length": width}
    return heads, kv, width, [ATTENTION, ATTENTION_BIAS] if f.flag("attention_bias") else [ATTENTION]


def rope(plan: Plan, f: Fields, width: int, kinds: tuple[str, ...], partial: float = 1.0) -> None:
    """Rotary keys. transformers 5 keeps them in rope_parameters, which wins over the older top-level fields."""
    old = {name: f.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    inner = f.get("rope_scaling") or f.get("rope_parameters") or {}
    f.get("rope_parameters")
    if not isinstance(inner, dict):
        raise Refusal(f"{f.where}: rope_parameters is {json.dumps(inner)[:80]}, expected an object")
    context = {name: f.get(name) for name in ("original_max_position_embeddings",) if f.get(name)}
    r = Fields({**old, **inner, **context}, f"{f.where}: rope_parameters")
    kind = rope_kind(r, kinds)
    dims = int(width * r.real("partial_rotary_factor", partial))
    if not 0 < dims <= width or dims % 2 or partial == 1.0 and dims != width:
        raise Refusal(f"{r.where}: {dims} of {width} channels would be rotated, which is not supported for this model")
    plan.keys |= {"rope.freq_base": rope_base(r, 10000.0), "rope.dimension_count": dims}
    rope_scaling(plan, r, kind, dims)
    if partial != 1.0:  # image positions: which pairs follow time, height and width; in a text all three are the same
        r.flag("mrope_interleaved")
        sections = r.typed("mrope_section", [11, 11, 10], lambda v: isinstance(v, list) and all(
            type(n) is int and 0 <= n < 2**31 for n in v), "whole numbers")
        plan.keys["rope.dimension_sections"] = [*sections, 0, 0, 0, 0][:4]
    r.no_more()


def rope_kind(r: Fields, kinds: tuple[str, ...]) -> str:
    kind = r.get("rope_type", r.get("type", "default"))
    if kind not in kinds:
        raise Refusal(f"{r.where}: rope_type = {json.dumps(kind)} is not supported for this "
                      f"model, only {', '.join(kinds)}")
    r.read |= {"type", "rope_type", "original_max_position_embeddings"}
    return kind


def rope_base(r: Fields, default: float) -> float:
    base = r.typed("rope_theta", default, lambda v: is_number(v, 1, 1e15), "a number from 1 on")
    return float(base)


def rope_scaling(plan: Plan, r: Fields, kind: str, dims: int) -> None:
    """The keys of positions beyond the context of training. run.c and llama.cpp multiply cos and
    sin by attn_factor times 0.1 ln(factor) + 1, so that a factor given in full is divided by that."""
    if kind == "llama3":
        plan.made["rope_freqs.weight"] = llama3_factors(r, dims, plan.keys)
    if kind in ("linear", "yarn"):
        context = r.count("original_max_position_embeddings", plan.keys["context_length"])
        ratio = plan.keys["context_length"] / context if kind == "yarn" else None
        factor = r.typed("factor", ratio, lambda v: is_number(v, 1e-3, 1e6), "a number above zero")
        plan.keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(factor)}
    if kind == "yarn":
        r.only("truncate", True)
        fast, slow = r.real("beta_fast", 32.0) or 32.0, r.real("beta_slow", 1.0) or 1.0

        def grown(by: float) -> float:
            return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0
        both = r.get("mscale") and r.get("mscale_all_dim")
        scale = grown(r.real("mscale")) / grown(r.real("mscale_all_dim")) if both else grown(1)
        plan.keys |= {"rope.scaling.original_context_length": context,
                      "rope.scaling.yarn_beta_fast": fast, "rope.scaling.yarn_beta_slow": slow}
        if (scale := r.real("attention_factor", scale)) != grown(1):
            plan.keys["rope.scaling.attn_factor"] = scale / grown(1)


def llama3_factors(r: Fields, dims: int, keys: dict[str, Any]) -> np.ndarray:
    """Divisor of each pair's frequency, {dims / 2}: 1 for wavelengths (tokens) that the original context holds `high` times,
    `factor` for those it holds less than `low` times, and between them the mix 1 / ((1 - s) / factor + s)."""
    factor, low, high = r.real("factor"), r.real("low_freq_factor"), r.real("high_freq_factor")
    context = r.count("original_max_position_embeddings", keys["context_length"])
    wavelength = 2 * np.pi * keys["rope.freq_base"] ** (np.arange(0, dims, 2) / dims)
    s = (context / wavelength - low) / (high - low)
    mixed = 1 / ((1 - s) / factor + s)
    divisor = np.where(wavelength < context / high, 1.0, np.where(wavelength > context / low, factor, mixed))
    return divisor.astype(np.float32)


# -- decoders with softmax attention in every layer: what one has and another has not --
# run.c has the same rows.

# The activations of transformers, which has several spellings, and their names in the file.
ACTIVATIONS = {
    "relu": "relu", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
    "relu2": "sqrelu", "linear": "identity",
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast",
                     "gelu_accurate"), "gelu_tanh"),
}
SANDWICH: Table = {"post_attention_layernorm.weight": ("post_attention_norm.weight", "+1"),
                   "post_feedforward_layernorm.weight": ("post_ffw_norm.weight", "+1")}
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Decoder:
    tables: tuple[Table, ...]           # of a layer, but for attention and feed-forward
    defaults: dict[str, Any]            # what transformers takes where config.json is silent
    top: Table = field(default_factory=lambda: TOP)
    kinds: tuple[str, ...] = ("default", "linear", "yarn")  # of rotary scaling
    # llama.cpp rotates pairs (2i, 2i + 1) where HuggingFace rotates (i, i + width / 2)
    adjacent: bool = False
    biased: bool = False                # q, k, v have a bias whatever the configuration says
    mlp_bias: bool = False              # the feed-forward may have them
    act: tuple[str, str] = ("hidden_act", "silu")   # the field, and the one that a reader expects
    acts: tuple[str, ...] = ("silu", "swish")       # what the field may say
    window: str = ""            # of which layers: "all", "upper" (if use_sliding_window), "period"
    two_bases: bool = False     # layers with a window have a rotary base of their own


LLAMA_ROPES = ("default", "linear", "yarn", "llama3")
QWEN_DEFAULTS = dict(max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096,
                     max_window_layers=28)
GEMMA3_DEFAULTS = dict(
    vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, max_position_embeddings=131072,
    tie_word_embeddings=True, query_pre_attn_scalar=256, sliding_window=4096,
    sliding_window_pattern=6)
GEMMA3_NORMS = plus_one({"input_layernorm.weight": "attn_norm.weight",
                         "pre_feedforward_layernorm.weight": "ffn_norm.weight"} | QK_NORM)
DECODERS = {
    "llama": Decoder((NORMS,), {}, kinds=LLAMA_ROPES, adjacent=True, mlp_bias=True),
    "mistral": Decoder(
        (NORMS,), dict(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
        kinds=LLAMA_ROPES, adjacent=True, window="all"),
    "qwen2": Decoder((NORMS,), QWEN_DEFAULTS, biased=True, window="upper"),
    "qwen3": Decoder((NORMS, QK_NORM), QWEN_DEFAULTS | dict(head_dim=128), window="upper"),
    "gemma3": Decoder(
        (GEMMA3_NORMS, SANDWICH), GEMMA3_DEFAULTS,
        top=TOP | plus_one({"model.norm.weight": "output_norm.weight"}),
        act=("hidden_activation", "gelu_tanh"), acts=("gelu_pytorch_tanh", *ACTIVATIONS),
        window="period", two_bases=True),
}


def layer_kinds(f: Fields, n: int, rule: str) -> list[str]:
    """full_attention or sliding_attention for each layer."""
    window = f.get("sliding_window") is not None
    window = window and (rule != "upper" or f.flag("use_sliding_window"))
    kinds = [FULL] * n
    if rule == "upper" and window:
        first = f.typed("max_window_layers", 28, lambda v: type(v) is int, "a whole number")
        kinds = [SLIDING if i >= first else FULL for i in range(n)]
    if rule == "all" and window:
        kinds = [SLIDING] * n
    if rule == "period":
        period = f.count("sliding_window_pattern", 6)
        kinds = [SLIDING if (i + 1) % period else FULL for i in range(n)]
    kinds = f.typed("layer_types", kinds, lambda v: isinstance(v, list) and len(v) == n,
                    f"one name for each of {n} layers")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise Refusal(f"{f.where}: layer_types contains {json.dumps(kind)}, only {FULL} and "
                          f"{SLIDING} are supported")
    if SLIDING in kinds and not window:
        raise Refusal(f"{f.where}: layer_types contains {SLIDING}, but no sliding_window is set")
    if rule == "all" and window and FULL in kinds:
        raise Refusal(f"{f.where}: layer_types contains {FULL}, which this model gives the "
                      "sliding_window, too")
    if not rule and f.get("sliding_window"):
        raise Refusal(f"{f.where}: sliding_window = {f.get('sliding_window')} is not supported for "
                      "this model")
    f.read |= {"sliding_window", "sliding_window_pattern", "_sliding_window_pattern",
               "max_window_layers", "use_sliding_window"}
    return kinds


def windows(plan: Plan, f: Fields, kinds: list[str], default: list[str]) -> None:
    """The window's length, and which layers have it where a reader of the file expects others."""
    if SLIDING not in kinds:
        return
    plan.keys["attention.sliding_window"] = f.count("sliding_window")
    if kinds != default:
        plan.keys["attention.sliding_window_pattern"] = [kind == SLIDING for kind in kinds]


def two_ropes(plan: Plan, f: Fields, width: int, kinds: tuple[str, ...]) -> None:
    """Rotary keys of full layers, which may be scaled, and of layers with a window, which are
    not."""
    def inner(fields: Fields, name: str) -> dict[str, Any]:
        return fields.typed(name, {}, lambda v: isinstance(v, dict), "an object")
    both = Fields(inner(f, "rope_parameters"), f"{f.where}: rope_parameters")
    full, local, scaling = inner(both, FULL), inner(both, SLIDING), inner(f, "rope_scaling")
    r = Fields({"rope_theta": f.get("rope_theta"), **full, **scaling}, f"{both.where}: {FULL}")
    kind = rope_kind(r, kinds)
    plan.keys |= {"rope.freq_base": rope_base(r, 1e6), "rope.dimension_count": width}
    rope_scaling(plan, r, kind, width)
    s = Fields({"rope_theta": f.get("rope_local_base_freq"), **local}, f"{both.where}: {SLIDING}")
    rope_kind(s, ("default",))
    plan.keys["rope.freq_base_swa"] = rope_base(s, 10000.0)
    for x in (r, s):
        x.only("partial_rotary_factor", 1.0, None)
        x.no_more()
    both.no_more()


def plain(row: Decoder, f: Fields, has: Tensors) -> Plan:
    """A decoder of the table above."""
    f.data = row.defaults | f.data
    name, expected = row.act
    act = ACTIVATIONS[f.only(name, *row.acts)]
    plan, n = decoder(f, has)
    plan.top[0] = row.top
    heads, kv, width, attend = attention(plan, f)
    if act != expected:
        plan.keys["feed_forward_activation"] = act
    if row.biased:
        attend = [ATTENTION, QKV_BIAS]
    kinds = layer_kinds(f, n, row.window)
    usual = 6 if row.window == "period" else n + 1
    windows(plan, f, kinds, [SLIDING if (i + 1) % usual else FULL for i in range(n)])
    may_bias = (False, True) if row.mlp_bias else (False,)
    mlp = [MLP, MLP_BIAS] if f.only("mlp_bias", *may_bias) else [MLP]
    if row.two_bases:
        two_ropes(plan, f, width, row.kinds)
    else:
        rope(plan, f, width, row.kinds)
    if row.adjacent:  # rows of every head interleave
        plan.views = {name: View(rows=np.arange(h * width).reshape(h, 2, -1).swapaxes(1, 2).ravel())
                      for name, h in (("q", heads), ("k", kv))}
    plan.blocks = [(f"model.layers.{i}.", [*row.tables, *attend, *mlp]) for i in range(n)]
    plan.left_out |= VISION
    return plan


VISION = dict.fromkeys(("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                        "model.multi_modal_projector."), "the image tower")


def gemma3(f: Fields, has: Tensors) -> Plan:
    """attn_logit_softcapping and hidden_act have no effect in the library."""
    f.read |= {"attn_logit_softcapping", "hidden_act"}
    plan = plain(DECODERS["gemma3"], f, has)
    f.only("use_bidirectional_attention", False)
    scale = f.real("query_pre_attn_scalar")
    if scale <= 0:
        raise Refusal(f"{f.where}: query_pre_attn_scalar is {scale:g}, expected more than zero")
    # For 62 layers llama.cpp and run.c assume another scale.
    if scale != plan.keys["attention.key_length"] or plan.keys["block_count"] == 62:
        plan.keys["attention.scale"] = scale ** -0.5
    if f.get("final_logit_softcapping"):
        plan.keys["final_logit_softcapping"] = f.real("final_logit_softcapping")
    return plan


QWEN35_NORMS = plus_one({"input_layernorm.weight": "attn_norm.weight",
                         "post_attention_layernorm.weight": "post_attention_norm.weight"})
QWEN35_LINEAR: Table = {
    "linear_attn.in_proj_qkv.weight": ("attn_qkv.weight", "qkv rows"),
    "linear_attn.in_proj_z.weight": ("attn_gate.weight", "v rows"),
    "linear_attn.in_proj_b.weight": ("ssm_beta.weight", "heads"),
    "linear_attn.in_proj_a.weight": ("ssm_alpha.weight", "heads"),
    "linear_attn.conv1d.weight": ("ssm_conv1d.weight", "qkv conv"),
    "linear_attn.dt_bias": ("ssm_dt.bias", "heads"),
    "linear_attn.A_log": ("ssm_a", "-exp, heads"),
    "linear_attn.norm.weight": "ssm_norm.weight",  # an ordinary norm: no offset
    "linear_attn.out_proj.weight": ("ssm_out.weight", "v columns"),
}
QWEN35_MTP: Table = {"fc.weight": "nextn.eh_proj.weight"} | plus_one({
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight", "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight"})


def qwen35(f: Fields, has: Tensors) -> Plan:
    plan, n = decoder(f, has)
    f.only("hidden_act", "silu")
    _, _, width, attend = attention(plan, f, 256)
    f.only("attn_output_gate", True)
    f.only("output_gate_type", "swish", "silu")
    rope(plan, f, width, ("default",), partial=0.25)
    dk, dv = f.count("linear_key_head_dim", 128), f.count("linear_value_head_dim", 128)
    nk, nv = f.count("linear_num_key_heads", 16), f.count("linear_num_value_heads", 32)
    if nv % nk:
        raise Refusal(f"{f.where}: linear_num_value_heads = {nv} is not a multiple of linear_num_key_heads = {nk}")
    plan.keys |= {"ssm.conv_kernel": f.count("linear_conv_kernel_dim", 4), "ssm.state_size": dk, "ssm.group_count": nk,
                  "ssm.time_step_rank": nv, "ssm.inner_size": nv * dv}
    # HuggingFace groups the value heads by key head (h reads h div r), llama.cpp tiles them (h reads h mod nk).
    def tiled(unit: int, first: int = 0) -> np.ndarray:
        return np.append(np.arange(first), first + np.arange(nv * unit).reshape(nk, nv // nk, unit).swapaxes(0, 1).ravel())
    mixed = tiled(dv, 2 * nk * dk)
    plan.views = {"qkv rows": View(rows=mixed), "qkv conv": View(rows=mixed, drop=1), "v rows": View(rows=tiled(dv)),
                  "heads": View(rows=tiled(1)), "-exp, heads": View(rows=tiled(1), fn=lambda a: -np.exp(a)),
                  "v columns": View(cols=tiled(dv))}
    period = f.count("full_attention_interval", 4)
    linear = [(i + 1) % period != 0 for i in range(n)]
    if f.get("layer_types"):
        names = {"linear_attention": True, "full_attention": False}
        types = f.typed("layer_types", None, lambda v: isinstance(v, list) and len(v) == n, f"a list of {n}")
        if unknown := [t for t in types if t not in names]:
            raise Refusal(f"{f.where}: layer_types contains {json.dumps(unknown[0])}, only {' and '.join(names)} are supported")
        linear = [names[t] for t in types]
        period = linear.index(False) + 1 if False in linear else n + 1
    full = [QWEN35_NORMS, *attend, plus_one(QK_NORM), MLP]
    plan.top[0] = TOP | plus_one({"model.norm.weight": "output_norm.weight"})
    plan.blocks = [(f"model.layers.{i}.", [QWEN35_NORMS, QWEN35_LINEAR, MLP] if linear[i] else full) for i in range(n)]
    # The block that predicts the token after next follows the main stack.
    if f.get("mtp_num_hidden_layers") == 1 and "mtp.fc.weight" in has and not f.get("mtp_use_dedicated_embeddings"):
        plan.blocks.append(("mtp.", [{"layers.0." + s: name for t in full for s, name in t.items()}, QWEN35_MTP]))
        plan.keys |= {"block_count": n + 1, "nextn_predict_layers": 1}
    f.read |= {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mlp_only_layers"}
    plan.keys["full_attention_interval"] = period
    if linear != [(i + 1) % period != 0 for i in range(n)]:
        plan.keys["attention.recurrent_layers"] = linear + [False] * (len(plan.blocks) - n)
    plan.left_out |= {"model.visual.": "the image tower", "mtp.": "the block that predicts the token after next"}
    return plan


# flash-linear-attention: one decoder around many mixers; softmax layers may replace the mixer in some layers.
FLA_QKVO: Table = {f"attn.{p}_proj.weight": f"attn_{name}.weight" for p, name in zip("qkvo", ("q", "k", "v", "output"))}
FLA_CONV: Table = {f"attn.{p}_conv1d.weight": (f"ssm_conv1d_{p}.weight", "conv") for p in "qkv"}
FLA_RES: Table = {"attn_res_proj.weight": ("attn_res_proj.weight", "vector"), "attn_res_norm.weight": "attn_res_norm.weight",
                  "mlp_res_proj.weight": ("ffn_res_proj.weight", "vector"), "mlp_res_norm.weight": "ffn_res_norm.weight"}
FLA_TOP_RES: Table = {"model.res_proj.weight": ("output_res_proj.weight", "vector"),
                      "model.res_norm.weight": "output_res_norm.weight"}
FLA_GATE: Table = {"attn.g_proj.weight": "attn_gate.weight"}
FLA_LOW_GATE: Table = {"attn.g_proj.0.weight": "ssm_g_a.weight", "attn.g_proj.1.weight": "ssm_g_b.weight", "attn.g_proj.1.bias": "ssm_g_b.bias"}
FLA_DT: Table = {"attn.A_log": ("ssm_a", "-exp"), "attn.dt_bias": "ssm_dt.bias"}
FLA_BETA: Table = {"attn.b_proj.weight": "ssm_beta.weight"}
FLA_LOW_DECAY: Table = {"attn.f_proj.0.weight": "ssm_f_a.weight", "attn.f_proj.1.weight": "ssm_f_b.weight"} | FLA_DT
FLA_O_NORM: Table = {"attn.o_norm.weight": "ssm_norm.weight"}
FLA_G_NORM: Table = {"attn.g_norm_swish_gate.weight|attn.g_norm.weight": "ssm_norm.weight"}  # fused with the gate or not: one norm, two names
FLA_DECAY: Table = {"attn.a_proj.weight": "ssm_alpha.weight"}
FLA_MOMENT: Table = {"attn.b_atk_proj.weight": "ssm_m_beta.weight", "attn.A_log_atk": ("ssm_m_a", "-exp"), "attn.dt_bias_atk": "ssm_m_dt.bias",
                     "attn.log_atk_scale": "ssm_m_scale"}
FLA_MAMBA2: Table = {"mixer.in_proj.weight": "ssm_in.weight", "mixer.conv1d.weight": ("ssm_conv1d.weight", "conv"), "mixer.dt_bias": "ssm_dt.bias",
                     "mixer.A_log": ("ssm_a", "-exp column"), "mixer.D": ("ssm_d", "column"), "mixer.out_proj.weight": "ssm_out.weight"}
FLA_MAMBA: Table = {"mixer.in_proj.weight": "ssm_in.weight", "mixer.conv1d.weight": ("ssm_conv1d.weight", "conv"), "mixer.x_proj.weight": "ssm_x.weight",
                    "mixer.dt_proj.weight": "ssm_dt.weight", "mixer.dt_proj.bias": "ssm_dt.bias", "mixer.A_log": ("ssm_a", "-exp"), "mixer.D": "ssm_d",
                    "mixer.out_proj.weight": "ssm_out.weight"}
# What the mixer of each model_type has in every configuration; the functions below add what switches turn on.
FLA_MIXERS: dict[str, Table] = {
    "gla": FLA_QKVO | {"attn.gk_proj.0.weight": "ssm_f_a.weight", "attn.gk_proj.1.weight": "ssm_f_b.weight",
                       "attn.gk_proj.1.bias": "ssm_f_b.bias"},
    "gated_deltanet": FLA_QKVO | FLA_BETA | FLA_DT | FLA_DECAY | FLA_O_NORM,
    "kda": FLA_QKVO | FLA_BETA | FLA_LOW_DECAY | FLA_LOW_GATE | FLA_O_NORM,
    "gdn2": FLA_QKVO | FLA_BETA | FLA_LOW_DECAY | FLA_LOW_GATE | FLA_O_NORM | {"attn.w_proj.weight": "ssm_w.weight"},
    "linear_attn": FLA_QKVO | {"attn.norm.weight": "ssm_norm.weight"},
    "retnet": FLA_QKVO, "lightning_attn": FLA_QKVO,
    "simple_gla": FLA_QKVO | {"attn.gk_proj.weight": "ssm_alpha.weight", "attn.gk_proj.bias": "ssm_alpha.bias"},
    "gsa": FLA_QKVO | {"attn.f_proj.weight": "ssm_alpha.weight"},
    "delta_net": FLA_QKVO | FLA_O_NORM, "gated_deltaproduct": FLA_QKVO | FLA_BETA | FLA_O_NORM,
    "comba": FLA_QKVO | FLA_BETA | FLA_DT | FLA_DECAY | FLA_O_NORM | {"attn.decay": ("ssm_p", "sigmoid"), "attn.D": "ssm_d"},
    "precond_gated_deltanet": FLA_QKVO | FLA_BETA | FLA_DT | FLA_DECAY | FLA_O_NORM | FLA_MOMENT | {"attn.a_atk_proj.weight": "ssm_m_alpha.weight"},
    "precond_kda": FLA_QKVO | FLA_BETA | FLA_LOW_DECAY | FLA_LOW_GATE | FLA_O_NORM | FLA_MOMENT | {"attn.a_proj.weight": "ssm_m_alpha.weight"},
    "mamba": FLA_MAMBA, "samba": FLA_MAMBA, "mamba2": FLA_MAMBA2, "log_linear_mamba2": FLA_MAMBA2 | {"mixer.L": "ssm_levels"},
    "mamba3": {"mixer.in_proj.weight": "ssm_in.weight", "mixer.dt_bias": "ssm_dt.bias", "mixer.B_norm.weight": "ssm_b_norm.weight",
               "mixer.C_norm.weight": "ssm_c_norm.weight", "mixer.B_bias": ("ssm_b.bias", "flat"), "mixer.C_bias": ("ssm_c.bias", "flat"), "mixer.D": "ssm_d",
               "mixer.out_proj.weight": "ssm_out.weight"},
    "transformer": FLA_QKVO, "forgetting_transformer": FLA_QKVO | {"attn.f_proj.weight": "attn_forget.weight", "attn.f_proj.bias": "attn_forget.bias"},
    "path_attn": FLA_QKVO | {"attn.bt_proj.weight": "ssm_beta.weight", "attn.bt_proj.bias": "ssm_beta.bias"},
    "wall_transformer": FLA_QKVO | {"attn.g_proj.weight": "attn_fade.weight", "attn.g_proj.bias": "attn_fade.bias"},
    "lightnet": {"attn.q_proj.weight": "attn_q.weight", "attn.k_proj.weight": "ssm_alpha.weight", "attn.v_proj.weight": "attn_v.weight",
                 "attn.o_proj.weight": "attn_output.weight", "attn.g_proj.0.weight": "ssm_g_a.weight", "attn.g_proj.1.weight": "ssm_g_b.weight"},
    "abc": FLA_QKVO | FLA_GATE | {"attn.s_proj.weight": "ssm_alpha.weight"},
    "mesa_net": FLA_QKVO | FLA_BETA | FLA_DECAY | FLA_O_NORM | {"attn.a_proj.bias": "ssm_alpha.bias", "attn.b_proj.bias": "ssm_beta.bias",
                                                                "attn.lambda_params": ("ssm_ridge", "ridge")},
    "hgrn": {"attn.f_proj.weight": "ssm_alpha.weight", "attn.i_proj.weight": "attn_v.weight", "attn.o_proj.weight": "attn_output.weight"} | FLA_GATE,
    "hgrn2": {"attn.q_proj.weight": "attn_q.weight", "attn.f_proj.weight": "ssm_alpha.weight", "attn.i_proj.weight": "attn_v.weight",
              "attn.o_proj.weight": "attn_output.weight"},
}
# The library's one-argument activations, and their names in the file: its gelu is the tanh approximation.
ACT2FN = {"swish": "swish", "silu": "silu", "relu": "relu", "sigmoid": "sigmoid", "logsigmoid": "logsigmoid", "sqrelu": "sqrelu",
          "gelu": "gelu_tanh"}


@dataclass
class Mixer:
    """What a function below finds out about the recurrent layers: keys under mixer.*, tables of their tensors."""
    keys: dict[str, Any]
    tables: list[Table]
    width: int                   # hidden_size
    layers: int
    has: Tensors
    derived: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = field(default_factory=dict)
    hidden_ratio: float = 4
    hidden: bool = True          # a gated feed-forward in every layer
    eps: str = "norm_eps"
    views: dict[str, View] = field(default_factory=dict)
    plain_keys: dict[str, Any] = field(default_factory=dict)  # of llama.cpp, under their own names
    left_out: dict[str, str] = field(default_factory=dict)
    made: Callable[[int], dict[str, np.ndarray]] = lambda i: {}

    def take(self, table: Table, on: bool = True) -> None:
        if on:
            self.tables.append(table)

    def conv(self, f: Fields, default: bool, letters: str = "qkv", names: str = "qkv") -> None:
        """Short convolutions on these projections, and what the file calls them."""
        on, self.keys["conv_kernel"] = f.flag("use_short_conv", default), 0
        size = f.count("conv_size", 4)
        if on:
            self.keys["conv_kernel"] = size
            self.take({f"attn.{p}_conv1d.weight": (f"ssm_conv1d_{n}.weight", "conv") for p, n in zip(letters, names)})

    def shape(self, where: str, heads: int, kv: int, key: int, value: int) -> None:
        """Output heads, heads of the shared projections, total key and value width of the output heads."""
        if heads < 1 or heads % kv or key % heads or value % heads:
            raise Refusal(f"{where}: {heads} heads over {kv} key/value heads do not divide the widths {key} and {value}")
        self.keys |= {"head_count": heads, "head_count_kv": kv, "key_length": key // heads, "value_length": value // heads}


@dataclass(frozen=True)
class FlaNames:
    """How a model of the library names its parts, and which of the decoder's options it has."""
    prefix: str = "model"
    norm: str = "attn_norm"
    final: str = "norm"
    res: str = "attn_res"
    hybrid: bool = True
    residual: bool = True
    own_width: bool = False      # its intermediate_size is not the feed-forward's, nor hidden_act
    eps: float = 1e-6
    slot: str = "attn"           # of the softmax layers of a hybrid


FLA_NAMES = {"mamba": FlaNames("backbone", "norm", "norm_f", hybrid=False, residual=False, own_width=True, eps=1e-5),
             "samba": FlaNames("backbone", "mixer_norm", "norm_f", own_width=True, eps=1e-5, slot="mixer"),
             "mamba2": FlaNames("backbone", "norm", "norm_f", hybrid=False, residual=False, own_width=True, eps=1e-5),
             "mamba3": FlaNames("backbone", "norm", "norm_f", hybrid=False, residual=False, own_width=True, eps=1e-5),
             "log_linear_mamba2": FlaNames("backbone", "mixer_norm", "norm_f", hybrid=False, own_width=True, eps=1e-5),
             "transformer": FlaNames(hybrid=False), "forgetting_transformer": FlaNames(hybrid=False),
             "path_attn": FlaNames(hybrid=False), "wall_transformer": FlaNames(hybrid=False),
             "precond_gated_deltanet": FlaNames(residual=False), "precond_kda": FlaNames(residual=False)}


def fla(read: Callable[[Fields, Mixer], None], f: Fields, has: Tensors, name: str) -> Plan:
    """The decoder around a mixer, with softmax layers where the configuration puts them."""
    n, width = f.count("num_hidden_layers"), f.count("hidden_size")
    m = Mixer({}, [FLA_MIXERS[name]], width, n, has)
    read(f, m)
    names = FLA_NAMES.get(name, FlaNames())
    hidden = 0
    if m.hidden:
        ratio = f.real("hidden_ratio", 4 if "hidden_ratio" in f.data else m.hidden_ratio)
        hidden = 256 * -(-int(width * ratio * 2 / 3) // 256)
        if not names.own_width and f.get("intermediate_size"):
            hidden = f.count("intermediate_size")
        f.read |= {"hidden_ratio"}
    plan = Plan({"block_count": n, "context_length": f.count("max_position_embeddings", 2048), "embedding_length": width,
                 "feed_forward_length": int(hidden), "vocab_size": f.count("vocab_size", 32000),
                 "attention.layer_norm_rms_epsilon": f.real(m.eps, names.eps)},
                [{f"{names.prefix}.embeddings.weight|{names.prefix}.embedding.weight": "token_embd.weight", f"{names.prefix}.{names.final}.weight": "output_norm.weight"}],
                views=m.views, left_out=m.left_out)
    if not names.own_width:
        plan.keys["feed_forward_activation"] = f.only("hidden_act", "swish", "powlu")
    output_matrix(plan, f, has)
    softmax = fla_softmax(f, n, plan) if names.hybrid else {}
    residual = [{k.replace("attn_res", names.res): v for k, v in FLA_RES.items()}] if names.residual and f.get("attnres_block_size") else []
    if residual:
        block = f.count("attnres_block_size")
        if block != 1 and block % 2:
            raise Refusal(f"{f.where}: attnres_block_size = {block} is neither 1 nor even")
        plan.keys["residual_attention.block_size"] = block
        plan.top.append({k.replace("model.", names.prefix + "."): v for k, v in FLA_TOP_RES.items()})
    for i in range(n):
        kind = [{k.replace("attn.", names.slot + "."): v for k, v in (FLA_QKVO | softmax[i]).items()}] if i in softmax else m.tables
        block = [{f"{names.norm}.weight": "attn_norm.weight"}] + ([{"mlp_norm.weight": "ffn_norm.weight"} | MLP] if hidden else [])
        plan.blocks.append((f"{names.prefix}.layers.{i}.", [*block, *residual, *kind]))
        if i not in softmax:
            plan.made |= {f"blk.{i}.{tensor}": array for tensor, array in m.made(i).items()}
    plan.keys |= {f"mixer.{key}": value for key, value in m.keys.items()} | m.plain_keys
    plan.derived = {tensor: d for tensor, d in m.derived.items() if int(tensor.split(".")[1]) not in softmax}
    if any(source == "model.lower_bounds" for source, _ in m.derived.values()):
        plan.left_out["model.lower_bounds"] = "folded into ssm_f_low"
    return plan


def fla_softmax(f: Fields, n: int, plan: Plan) -> dict[int, Table]:
    """The field attn: layers of plain softmax attention -> their bias tensors. Keys are lists with 0 elsewhere."""
    columns: dict[str, list] = {name: [0] * n for name in ("head_count", "head_count_kv", "sliding_window", "freq_base")}
    layers: dict[int, Table] = {}
    for spec in softmax_specs(f):
        s = Fields(spec, f"{f.where}: attn")
        heads = s.count("num_heads")
        for i in s.typed("layers", None, lambda v: isinstance(v, (list, tuple)), "a list of layer numbers"):
            if type(i) is not int or not 0 <= i < n or i in layers:
                raise Refusal(f"{s.where}: layers contains {i}, expected each layer of 0..{n - 1} at most once")
            layers[i] = {f"attn.{p}_proj.bias": f"attn_{p}.bias" for p in "qkv"} if s.flag("qkv_bias") else {}
            row = (heads, s.count("num_kv_heads", heads), s.count("window_size") if s.get("window_size") else 0,
                   s.real("rope_theta", 10000.0))
            for column, value in zip(columns.values(), row):
                column[i] = value
        if plan.keys["embedding_length"] % heads or heads % s.count("num_kv_heads", heads):
            raise Refusal(f"{s.where}: num_heads = {heads} does not divide the width, or is no multiple of num_kv_heads")
        plan.notes += [f"attn: {name} is ignored, as the library does" for name in s.data if name not in s.read]
    if layers:
        plan.keys |= {"attention.head_count": columns["head_count"], "attention.head_count_kv": columns["head_count_kv"]}
        if any(columns["sliding_window"]):
            plan.keys["attention.sliding_window"] = columns["sliding_window"]
        bases = [columns["freq_base"][i] for i in layers]
        other = bases[0]  # never used: what a recurrent layer's place in the list holds
        plan.keys["rope.freq_base"] = other if len(set(bases)) == 1 else [float(b or other) for b in columns["freq_base"]]
    return layers


def gla(f: Fields, m: Mixer) -> None:
    """Gated linear attention. The low-rank gate (16) and its divisor (16) are not in the configuration."""
    m.conv(f, False)
    heads = f.count("num_heads", 4)
    m.shape(f.where, heads, f.count("num_kv_heads", heads), int(m.width * f.real("expand_k", 0.5)), int(m.width * f.real("expand_v", 1.0)))
    m.take(FLA_G_NORM, f.flag("elementwise_affine", True))
    m.keys["decay_divisor"] = 16.0
    if f.get("feature_map"):
        m.keys["feature_map"] = ACT2FN[f.only("feature_map", *ACT2FN)]
    if f.flag("use_output_gate", True):
        m.take(FLA_GATE)
        m.keys["output_gate"] = "swish"
    if not recurrent_free(f, m):
        f.only("hidden_act", "swish")  # also the gate's activation, and the library's table of those lacks powlu
    if f.get("clamp_min") is not None:
        m.keys["decay_min"] = float(f.typed("clamp_min", None, lambda v: is_number(v, -3e38, 0),
                                            "a number up to zero"))


def softmax_specs(f: Fields) -> list[dict[str, Any]]:
    """The field attn: one kind of softmax layer, or a list of them."""
    specs = f.get("attn", [])
    specs = [specs] if isinstance(specs, dict) else specs
    if not isinstance(specs, list) or not all(
            isinstance(s, dict) and isinstance(s.get("layers", []), list) for s in specs):
        raise Refusal(f"{f.where}: attn is {json.dumps(specs)[:80]}, expected an object, or a "
                      "list of them, each with a list of layers")
    return specs


def recurrent_free(f: Fields, m: Mixer) -> bool:
    """Whether softmax attention takes every layer."""
    return all(any(i in (s.get("layers") or []) for s in softmax_specs(f)) for i in range(m.layers))


def delta_heads(f: Fields, m: Mixer, heads: int, width: int, expand_v: float) -> None:
    """What the gated delta rules share: num_v_heads output heads over num_heads query/key heads, and the range of beta."""
    heads, dk = f.count("num_heads", heads), f.count("head_dim", width)
    v_heads = f.count("num_v_heads", heads)
    dv = dk * f.real("expand_v", expand_v)
    if dv != int(dv):
        raise Refusal(f"{f.where}: head_dim times expand_v is {dv}, not a whole number")
    m.conv(f, True)
    m.shape(f.where, v_heads, heads, v_heads * dk, v_heads * int(dv))
    m.keys["beta_scale"] = 2.0 if f.flag("allow_neg_eigval") else 1.0


def gated_deltanet(f: Fields, m: Mixer) -> None:
    delta_heads(f, m, 6, 256, 2.0)
    m.take(FLA_GATE, f.flag("use_gate", True))


def kda(f: Fields, m: Mixer) -> None:
    delta_heads(f, m, 16, 128, 1.0)
    if f.get("lower_bound") is not None:
        low = -5 if f.flag("safe_gate") else -1e6
        m.keys["decay_bound"] = f.typed("lower_bound", None, lambda v: type(v) in (int, float) and low <= v < 0, f"a number from {low:g} to below 0") * 1.0
    elif f.flag("safe_gate"):
        raise Refusal(f"{f.where}: safe_gate needs a lower_bound")
    f.read |= {"safe_gate"}


def gdn2(f: Fields, m: Mixer) -> None:
    delta_heads(f, m, 16, 128, 1.0)


def retnet(f: Fields, m: Mixer) -> None:
    """The decay of head h is 1 - 2^(-5 - h). use_short_conv has no effect in the library."""
    f.read |= {"use_short_conv", "conv_size"}
    m.hidden_ratio = 2
    scalar_decay(f, m, 8, 1.0, 2.0)
    heads, dk = m.keys["head_count"], m.keys["key_length"]
    if dk % 2:
        raise Refusal(f"{f.where}: keys of {dk} channels cannot be rotated in pairs")
    m.keys |= {"rope_dimension_count": dk, "rope_freq_base": 10000.0}
    m.made = lambda i: {"ssm_decay": (1 - 2.0 ** (-5 - np.arange(heads))).astype(np.float32)}
    if f.get("feature_map"):
        m.keys["feature_map"] = ACTIVATIONS[f.only("feature_map", *ACTIVATIONS)]


def scalar_decay(f: Fields, m: Mixer, heads: int, expand_k: float, expand_v: float) -> None:
    """What RetNet and the models with one decay per head share."""
    heads = f.count("num_heads", heads)
    m.shape(f.where, heads, f.count("num_kv_heads", heads), int(m.width * f.real("expand_k", expand_k)), int(m.width * f.real("expand_v", expand_v)))
    m.take(FLA_G_NORM, f.flag("elementwise_affine", True))
    m.take(FLA_GATE, f.flag("use_output_gate", True))
    if f.get("use_output_gate", True) and not recurrent_free(f, m):
        f.only("hidden_act", "swish")  # also the gate's


def simple_gla(f: Fields, m: Mixer) -> None:
    """One decay per head from the data. The library has the layer; the model around it is that of gla."""
    scalar_decay(f, m, 4, 1.0, 1.0)
    m.conv(f, True)
    m.keys["decay_divisor"] = f.real("gate_logit_normalizer", 16.0)
    if f.get("feature_map"):
        m.keys["feature_map"] = ACT2FN[f.only("feature_map", *ACT2FN)]


def lightning(f: Fields, m: Mixer) -> None:
    """Simple GLA with the constant decays of Lightning attention: exp(-8 h / H (1 - layer / layers)) for head h."""
    scalar_decay(f, m, 4, 1.0, 1.0)
    m.conv(f, True)
    heads = m.keys["head_count"]
    m.made = lambda i: {"ssm_decay": np.exp(-8 / heads * (1 - i / m.layers) * np.arange(heads)).astype(np.float32)}
    if f.get("feature_map"):
        m.keys["feature_map"] = ACT2FN[f.only("feature_map", *ACT2FN)]


def linear_attn(f: Fields, m: Mixer) -> None:
    heads = f.count("num_heads", 4)
    m.shape(f.where, heads, f.count("num_kv_heads", heads), int(m.width * f.real("expand_k", 1.0)), int(m.width * f.real("expand_v", 1.0)))
    if not f.flag("elementwise_affine", True):  # no weight to take
        m.tables[0] = FLA_QKVO
    m.keys["feature_map"] = kind = {"elu": "elu_plus_one"}.get(name := f.only(
        "feature_map", "elementwise_product", "hedgehog", "t2r", "dpfp", "elu", "relu", "identity"), name)
    parts = {"elementwise_product": {"layer1": "", "layer2": "2"}, "hedgehog": {"layer": ""}, "t2r": {"layer": ""}}.get(kind, {})
    tied = f.flag("tie_feature_map_qk")
    for p in "q" if tied else "qk":
        both = [f"attn.feature_map_{x}" for x in ("qk" if tied else p)]
        for part, number in parts.items():
            for end in ("weight", "bias") if kind != "t2r" else ("weight",):
                m.take({"|".join(f"{x}.{part}.{end}" for x in both): f"ssm_map_{p}{number}.{end}"})
    if tied:  # a file may hold the same tensors under the other name, too
        m.left_out = {f"model.layers.{i}.attn.feature_map_k.": "the feature map of q" for i in range(m.layers)}
    for p in "qk":
        if f.flag(f"norm_{p}"):
            m.keys |= {f"{p}_norm": "sum", "sum_epsilon": 1e-4}
    if f.flag("norm_feature_map"):
        m.keys["normalizer_epsilon"] = 1e-10


def slots(f: Fields, m: Mixer) -> int:
    """null: as many as a key has channels."""
    return f.count("num_slots", m.keys["key_length"] if "num_slots" in f.data else 64)


def gsa(f: Fields, m: Mixer) -> None:
    """use_output_gate, use_norm and the clamps have no effect in the library."""
    f.read |= {"use_output_gate", "use_norm", "clamp_min", "clamp_max"}
    heads = f.count("num_heads", 4)
    m.conv(f, False)
    m.shape(f.where, heads, f.count("num_kv_heads", heads), int(m.width * f.real("expand_k", 1.0)), int(m.width * f.real("expand_v", 1.0)))
    kind = f.only("feature_map", "swish", "relu", "t2r")
    m.take({"attn.feature_map.layer.weight": "ssm_map_q.weight"}, kind == "t2r")
    m.take({"attn.g_norm.weight": "ssm_norm.weight"}, f.flag("elementwise_affine", True))
    m.keys |= {"feature_map": kind, "slot_count": slots(f, m), "decay_divisor": f.real("gate_logit_normalizer", 8.0),
               "scale": 1.0, "layer_norm_rms_epsilon": 1e-5}  # the last two whatever the configuration says


def delta_net(f: Fields, m: Mixer) -> None:
    """use_output_norm has no effect in the library."""
    f.read |= {"use_output_norm"}
    heads = f.count("num_heads", 16)
    m.conv(f, True)
    m.shape(f.where, heads, heads, int(m.width * f.real("expand_k", 1.0)), int(m.width * f.real("expand_v", 1.0)))
    m.take(FLA_BETA, f.flag("use_beta", True))
    m.take(FLA_GATE, f.flag("use_gate"))
    m.keys["beta_scale"] = 2.0 if f.flag("allow_neg_eigval") else 1.0
    m.keys["feature_map"] = {"elu": "elu_plus_one"}.get(name := f.only("qk_activation", "silu", "relu", "elu", "identity"), name)
    m.keys |= dict.fromkeys(("q_norm", "k_norm"), f.only("qk_norm", "l2", "sum"))


def gated_deltaproduct(f: Fields, m: Mixer) -> None:
    if f.get("num_v_heads", f.count("num_heads", 6)) != f.count("num_heads", 6):
        raise Refusal(f"{f.where}: num_v_heads differs from num_heads, which the library's model does not support")
    delta_heads(f, m, 6, 256, 2.0)
    m.keys["writes_per_token"] = f.count("num_householder", 1)
    m.take(FLA_DT | FLA_DECAY, f.flag("use_forget_gate"))
    m.take(FLA_GATE, f.flag("use_output_gate", True))


def comba(f: Fields, m: Mixer) -> None:
    """use_inner_decay, use_output_correction and correction_factor do not reach the layer in the library: both are always on."""
    f.read |= {"use_inner_decay", "use_output_correction", "correction_factor"}
    if f.get("num_v_heads", f.count("num_heads", 6)) != f.count("num_heads", 6):
        raise Refusal(f"{f.where}: num_v_heads differs from num_heads, which the library does not support")
    delta_heads(f, m, 6, 256, 2.0)
    m.keys["beta_scale"] = 1.0
    m.take(FLA_GATE, f.flag("use_output_gate", True))


def squash(f: Fields) -> float:
    return float(f.typed("squash_x", 1.5, lambda v: is_number(v, 1, 1e6), "a number from 1 on"))


def preconditioned(f: Fields, m: Mixer) -> None:
    f.read |= {"a_log_init_lower", "log_atk_scale_init"}  # how a training run starts
    delta_heads(f, m, 6, 256, 2.0)
    m.take(FLA_GATE, f.flag("use_gate", True))
    m.keys |= {"squash": squash(f), "squash_epsilon": f.real("squash_eps", 1e-6)}


def precond_kda(f: Fields, m: Mixer) -> None:
    f.read |= {"a_log_init_lower", "log_atk_scale_init"}
    kda(f, m)
    m.keys |= {"squash": squash(f), "squash_epsilon": f.real("squash_eps", 1e-6)}


def limits(f: Fields, name: str) -> tuple[float, float]:
    """A range of time steps; JSON has no infinity, so a bound may be {"__float__": "Infinity"}."""
    pair = f.typed(name, [0.0, math.inf], lambda v: isinstance(v, (list, tuple)) and len(v) == 2, "a pair of bounds")
    try:
        low, high = (float(v["__float__"] if isinstance(v, dict) else v) for v in pair)
    except (TypeError, ValueError, KeyError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high:
        raise Refusal(f"{f.where}: {name} is {json.dumps(pair)}, expected two bounds from 0 on")
    return low, high


def from_transformers(f: Fields) -> bool:
    """Mamba and Mamba-2 are model types of two libraries. Those of fla say norm_eps, those of transformers layer_norm_epsilon."""
    return "layer_norm_epsilon" in f.data or not {"norm_eps", "dt_limit", "dt_rank", "rmsnorm", "fuse_norm"} & f.data.keys()


def mamba2(f: Fields, m: Mixer) -> None:
    """The gated norm spans each of the groups, in both libraries. transformers has time_step_limit where fla has dt_limit; only
    fla knows norm_before_gate, D_has_hdim and rmsnorm, which transformers passes over. The sizes of time steps at the start of
    training do not matter."""
    f.read |= {"A_init_range", "chunk_size", "conv_init", "dt_init_floor", "dt_max", "dt_min", "rescale_prenorm_residual", "residual_in_fp32",
               "time_step_floor", "time_step_max", "time_step_min", "time_step_rank", "rms_norm", "num_heads", "intermediate_size", "time_step_scale",
               "time_step_init_scheme"}
    log_linear = bool(m.tables[0].get("mixer.L"))
    transformers = not log_linear and from_transformers(f)
    inner, width, groups = m.width * f.count("expand", 2), f.count("head_dim", 64), f.count("n_groups", 8 if transformers else 1)
    heads = inner // width
    if inner % width or heads % groups or f.get("num_heads", heads) != heads:
        raise Refusal(f"{f.where}: num_heads = {f.get('num_heads', heads)} of head_dim = {width} "
                      f"in n_groups = {groups} do not make expand times hidden_size = {inner}")
    if log_linear and groups != 1:
        raise Refusal(f"{f.where}: n_groups = {groups} is not supported for this model")
    m.plain_keys = {"ssm.conv_kernel": f.count("conv_kernel", 4), "ssm.inner_size": inner, "ssm.state_size": f.count("state_size", 128),
                    "ssm.time_step_rank": heads, "ssm.group_count": groups}
    f.only("hidden_act", "silu", "swish")
    m.take({"mixer.conv1d.bias": "ssm_conv1d.bias"}, f.flag("use_conv_bias", True))
    m.take({"mixer.in_proj.bias": "ssm_in.bias", "mixer.out_proj.bias": "ssm_out.bias"}, f.flag("use_bias"))
    low, high = limits(f, "time_step_limit" if transformers else "dt_limit")
    if (low, high) != (0, math.inf):
        if log_linear:
            raise Refusal(f"{f.where}: dt_limit is not supported for this model")
        m.keys |= {"step_min": low, "step_max": high}
    m.hidden = log_linear
    if transformers:
        f.read |= {"norm_before_gate", "D_has_hdim", "rmsnorm"}
        m.eps = "layer_norm_epsilon"
    elif f.flag("norm_before_gate"):
        m.keys["norm_before_gate"] = 1
    if not transformers and f.flag("D_has_hdim"):
        m.keys["skip_per_channel"] = 1
    if transformers or f.flag("rmsnorm", True):
        m.take({"mixer.norm.weight": ("ssm_norm.weight", "groups")})
        m.views["groups"] = View(shape=(groups, -1))


def mamba3(f: Fields, m: Mixer) -> None:
    """One write and one readout per token and head; is_mimo would be several."""
    f.read |= {"dt_min", "dt_max", "dt_init_floor", "chunk_size", "mimo_rank", "residual_in_fp32", "rescale_prenorm_residual", "num_heads", "intermediate_size", "time_step_rank"}
    f.only("is_mimo", False), f.only("hidden_act", "silu", "swish")
    inner, width, groups, states = m.width * f.count("expand", 2), f.count("head_dim", 64), f.count("n_groups", 1), f.count("state_size", 128)
    heads = inner // width
    if inner % width or heads % groups or f.get("num_heads", heads) != heads:
        raise Refusal(f"{f.where}: num_heads = {f.get('num_heads', heads)} of head_dim = {width} "
                      f"in n_groups = {groups} do not make expand times hidden_size = {inner}")
    fraction = f.real("rope_fraction", 0.5)
    if fraction not in (0.5, 1):
        raise Refusal(f"{f.where}: rope_fraction = {fraction} is neither 0.5 nor 1")
    m.plain_keys = {"ssm.inner_size": inner, "ssm.state_size": states, "ssm.time_step_rank": heads, "ssm.group_count": groups}
    m.keys |= {"rope_dimension_count": int(states * fraction) // 2 * 2, "rate_min": f.real("A_floor", 1e-4)}
    m.take({"mixer.in_proj.bias": "ssm_in.bias", "mixer.out_proj.bias": "ssm_out.bias"}, f.flag("use_bias"))
    m.take({"mixer.norm.weight": "ssm_norm.weight"}, f.flag("is_outproj_norm"))
    m.hidden = False


def mamba(f: Fields, m: Mixer, falcon: bool = False) -> None:
    """fla says dt_rank, transformers and samba time_step_rank. In transformers an intermediate_size counts more than expand does. The
    sizes of time steps at the start of training do not matter, nor which of several programs scans."""
    f.read |= {"dt_init_floor", "dt_init_scheme", "dt_max", "dt_min", "dt_scale", "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_max",
               "time_step_min", "time_step_scale", "time_step_init_scheme", "use_associative_scan", "use_mambapy", "use_falcon_mambapy"}
    samba = f.get("model_type") == "samba"
    inner = m.width * f.count("expand", 2)
    if falcon or (not samba and from_transformers(f)):
        inner = f.count("intermediate_size", inner)
        m.eps = "layer_norm_epsilon"
    elif f.get("intermediate_size", inner) != inner:
        raise Refusal(f"{f.where}: intermediate_size = {f.get('intermediate_size')} is not expand times hidden_size")
    rank = "dt_rank" if "dt_rank" in f.data else "time_step_rank"
    m.plain_keys = {"ssm.conv_kernel": f.count("conv_kernel", 4), "ssm.inner_size": inner, "ssm.state_size": f.count("state_size", 16),
                    "ssm.time_step_rank": -(-m.width // 16) if f.get(rank, "auto") == "auto" else f.count(rank)}
    f.only("hidden_act", *(("swish",) if samba else ("silu", "swish")))
    f.only("use_bcdt_rms", *((False, True) if falcon else (False,)))
    m.take({"mixer.conv1d.bias": "ssm_conv1d.bias"}, f.flag("use_conv_bias", True) or samba)  # which samba never hands on to the mixer
    m.take({"mixer.in_proj.bias": "ssm_in.bias", "mixer.out_proj.bias": "ssm_out.bias"}, f.flag("use_bias"))
    m.hidden = samba


def falcon_mamba(f: Fields, m: Mixer) -> None:
    """Mamba that divides the time step, B and C by their root mean square."""
    mamba(f, m, falcon=True)
    m.plain_keys["ssm.dt_b_c_rms"] = True
    m.keys["dt_b_c_rms_epsilon"] = f.real("mixer_rms_eps", 1e-6)


def hgrn(f: Fields, m: Mixer) -> None:
    channels = m.width * f.count("expand_ratio", 1)
    m.conv(f, False, "if", "vf")
    m.shape(f.where, channels, channels, channels, channels)
    m.take({"attn.g_norm.weight": "ssm_norm.weight"}, f.flag("elementwise_affine", True))
    if f.flag("use_lower_bound", True) and channels != m.width:
        raise Refusal(f"{f.where}: expand_ratio = {channels // m.width} does not go with use_lower_bound")
    lower_bounds(f, m)


def lower_bounds(f: Fields, m: Mixer) -> None:
    """lb of layer l: rows 1..l of the softmax over layers of model.lower_bounds, summed; layer 0 has none."""
    if f.flag("use_lower_bound", True):
        def bound(i: int) -> Callable[[np.ndarray], np.ndarray]:
            def fn(rows: np.ndarray) -> np.ndarray:
                p = np.exp(rows.astype(np.float64) - rows.max(0))
                return (p / p.sum(0))[1:i + 1].sum(0).astype(np.float32)
            return fn
        m.derived = {f"blk.{i}.ssm_f_low": ("model.lower_bounds", bound(i)) for i in range(m.layers)}


def hgrn2(f: Fields, m: Mixer) -> None:
    """expand_ratio, when set, is the key width of a head, and the number of heads follows from it."""
    m.conv(f, False, "qfi", "qfv")
    ratio = f.get("expand_ratio", None) if "expand_ratio" in f.data else 128
    heads = m.width // f.count("expand_ratio", 128) if ratio else f.count("num_heads")
    f.read |= {"num_heads"}
    m.shape(f.where, heads, heads, heads * ratio if ratio else m.width, m.width)
    m.take({"attn.g_norm.weight": "ssm_norm.weight"}, f.flag("elementwise_affine", True))
    m.keys["layer_norm_rms_epsilon"] = 1e-5  # of the output norm, whatever norm_eps says
    lower_bounds(f, m)


def lightnet(f: Fields, m: Mixer) -> None:
    """The key, weighed against all keys before, is decay and key at once. expand_ratio is the key width of a head."""
    f.read |= {"gate_low_rank_dim"}  # seen in the tensors
    m.conv(f, False, "qkv", "qfv")
    ratio = f.get("expand_ratio", None) if "expand_ratio" in f.data else 128
    heads = f.count("num_heads") if f.get("num_heads") else m.width // f.count("expand_ratio", 128)
    m.shape(f.where, heads, heads, heads * f.count("expand_ratio", 128) if ratio else m.width, m.width)
    m.take({"attn.g_norm.weight": "ssm_norm.weight"}, f.flag("elementwise_affine", True))
    m.keys["layer_norm_rms_epsilon"] = 1e-6  # whatever norm_eps says
    # this model of the library never hands rope_theta on to its softmax layers
    f.data["attn"] = [spec | {"rope_theta": 10000.0} for spec in softmax_specs(f)]


def abc(f: Fields, m: Mixer) -> None:
    f.read |= {"gate_low_rank_dim"}  # has no effect in the library
    heads = f.count("num_heads", 4)
    m.conv(f, False)
    m.shape(f.where, heads, heads, int(m.width * f.real("expand_k", 0.5)), int(m.width * f.real("expand_v", 1.0)))
    m.take({"attn.g_norm.weight": "ssm_norm.weight"}, f.flag("elementwise_affine", True))
    m.keys |= {"slot_count": slots(f, m), "score_min": f.real("clamp_min", -32.0), "score_max": f.real("clamp_max", 32.0)}
    if f.flag("use_rope", True):
        dk = m.keys["key_length"]
        if dk % 2:
            raise Refusal(f"{f.where}: keys of {dk} channels cannot be rotated in pairs")
        m.keys |= {"rope_dimension_count": dk, "rope_freq_base": 10000.0}
    if not recurrent_free(f, m):
        f.only("hidden_act", "swish")  # also the gate's


def mesa_net(f: Fields, m: Mixer) -> None:
    """The steps of training are those of a whole sequence, which is what defines the model; v has no convolution. use_short_conv has
    no effect in the library."""
    f.read |= {"max_cg_step_decoding", "use_short_conv"}
    heads, width = f.count("num_heads", 16), f.count("head_dim", 128)
    m.shape(f.where, heads, heads, heads * width, heads * width)
    m.keys |= {"conv_kernel": f.count("conv_size", 4), "decay_divisor": 1.0, "scale": 1.0, "solver_steps": f.count("max_cg_step_training", 30)}
    m.take({f"attn.{p}_conv1d.weight": (f"ssm_conv1d_{p}.weight", "conv") for p in "qk"})
    bound = f.real("lambda_lower_bound", 0.25)
    m.views["ridge"] = View(fn=lambda x: (np.logaddexp(0, x.astype(np.float64)) + bound).astype(np.float32))
    m.take(FLA_GATE, f.flag("use_output_gate"))


def softmax_heads(f: Fields, m: Mixer) -> None:
    """Softmax attention in every layer: heads of the full width, optional biases and norms of q and k."""
    heads = f.count("num_heads", 32)
    kv = f.count("num_kv_heads", heads)
    if m.width % heads or heads % kv:
        raise Refusal(f"{f.where}: num_heads = {heads} does not divide the width, or is no multiple of num_kv_heads = {kv}")
    m.plain_keys = {"attention.head_count": heads, "attention.head_count_kv": kv}
    m.take({f"attn.{p}_proj.bias": f"attn_{p}.bias" for p in "qkv"}, f.flag("qkv_bias"))
    if f.flag("qk_norm"):
        m.take({f"attn.{p}_norm.weight": f"attn_{p}_norm.weight" for p in "qk"})
        m.plain_keys["attention.qk_norm_epsilon"] = 1e-5  # whatever norm_eps says
    f.read |= {"elementwise_affine"}  # of the decoder's norms, which the library gives weights in any case


def transformer(f: Fields, m: Mixer) -> None:
    softmax_heads(f, m)
    if (m.width // m.plain_keys["attention.head_count"]) % 2:
        raise Refusal(f"{f.where}: heads of an odd width cannot be rotated in pairs")
    m.plain_keys["rope.freq_base"] = f.real("rope_theta", 10000.0)
    if f.get("window_size") is not None:
        m.plain_keys["attention.sliding_window"] = f.count("window_size")


def forgetting_transformer(f: Fields, m: Mixer) -> None:
    """No rotation. window_size bounds only the cache of the library's decoding, not what a whole sequence sees."""
    softmax_heads(f, m)
    f.read |= {"window_size"}
    m.plain_keys["rope.dimension_count"] = 0
    m.take(FLA_GATE, f.flag("use_output_gate"))


def path_attn(f: Fields, m: Mixer) -> None:
    """No rotation: w, narrowed to 32 channels unless the configuration says otherwise, marks positions."""
    softmax_heads(f, m)
    m.plain_keys["rope.dimension_count"] = 0
    m.keys["beta_scale"] = 2.0
    low = f.flag("use_low_rank_w", True)
    m.take({"attn.w_proj.0.weight": "ssm_w_a.weight", "attn.w_proj.1.weight": "ssm_w_b.weight"} if low else {"attn.w_proj.weight": "ssm_w.weight"})
    if f.flag("use_w_shortconv", True):
        m.keys["conv_kernel"] = 3
        m.take({"attn.w_conv1d.weight": ("ssm_conv1d_w.weight", "conv")})
    m.take({f"attn.g_proj.{e}": f"attn_forget.{e}" for e in ("weight", "bias")}, f.flag("use_forget_gate"))


def wall_transformer(f: Fields, m: Mixer) -> None:
    """No rotation: g fades keys per channel of each query head, gs per query head."""
    softmax_heads(f, m)
    m.plain_keys["rope.dimension_count"] = 0
    if f.get("window_size") is not None:
        m.plain_keys["attention.sliding_window"] = f.count("window_size")
    m.take({f"attn.gs_proj.{e}": f"attn_forget.{e}" for e in ("weight", "bias")}, f.flag("use_scalar_gate"))
    m.take({"attn.o_gate_proj.weight": "attn_gate.weight"}, f.flag("use_output_gate"))
    f.read |= {"gate_init_bias"}


RWKV_LAYER: Table = {"attn_norm.weight": "attn_norm.weight", "ffn_norm.weight": "attn_norm_2.weight"}
RWKV_MIX: Table = {"attn.o_proj.weight": "time_mix_output.weight", "attn.g_norm.weight": "time_mix_ln.weight", "attn.g_norm.bias": "time_mix_ln.bias"}
RWKV7_MIX: Table = RWKV_MIX | {"attn.r_proj.weight": "time_mix_receptance.weight", "attn.k_proj.weight": "time_mix_key.weight",
                               "attn.v_proj.weight": "time_mix_value.weight", "attn.k_k": "time_mix_k_k.weight", "attn.k_a": "time_mix_k_a.weight",
                               "attn.r_k": ("time_mix_r_k.weight", "flat")}
RWKV7_NARROW = {x: {f"attn.{x}_lora.lora.0.weight": f"time_mix_{x}1.weight", f"attn.{x}_lora.lora.2.weight": f"time_mix_{x}2.weight"} |
                ({} if x == "g" else {f"attn.{x}_lora.lora.2.bias": f"time_mix_{x}0.weight"}) for x in "wavg"}
RWKV7_FFN: Table = {"ffn.x_k": "channel_mix_lerp_k.weight", "ffn.key.weight": "channel_mix_key.weight", "ffn.value.weight": "channel_mix_value.weight"}
RWKV6_MIX: Table = RWKV_MIX | {"attn.r_proj.linear.weight": "time_mix_receptance.weight", "attn.k_proj.linear.weight": "time_mix_key.weight",
                               "attn.v_proj.linear.weight": "time_mix_value.weight", "attn.g_proj.linear.weight": "time_mix_gate.weight",
                               "attn.w_proj.linear.lora.0.weight": "time_mix_decay_w1.weight", "attn.w_proj.linear.lora.2.weight": "time_mix_decay_w2.weight",
                               "attn.w_proj.linear.lora.2.bias": "time_mix_decay.weight", "attn.bonus": "time_mix_first.weight",
                               "attn.x_proj.0.mu": "time_mix_lerp_x.weight", "attn.x_proj.0.linear.weight": ("time_mix_w1.weight", "wkvrg rows"),
                               "attn.x_bias": ("time_mix_lerp_fused.weight", "wkvrg")}
RWKV6_FFN: Table = {"ffn.key.mu": "channel_mix_lerp_k.weight", "ffn.key.linear.weight": "channel_mix_key.weight", "ffn.receptance.mu": "channel_mix_lerp_r.weight",
                    "ffn.receptance.linear.weight": "channel_mix_receptance.weight", "ffn.value.weight": "channel_mix_value.weight"}


def rwkv_decoder(f: Fields, has: Tensors, hidden_ratio: float, ffn: Table) -> Plan:
    """What both generations share: LayerNorms, one more behind the embedding, and a channel mix. Its blocks lack the mixer."""
    n, width = f.count("num_hidden_layers"), f.count("hidden_size")
    act = ACT2FN[f.only("hidden_act", *dict.fromkeys(["sqrelu", *ACT2FN]))]
    hidden = f.count("intermediate_size", 32 * -(-int(width * f.real("hidden_ratio", hidden_ratio)) // 32))
    plan = Plan({"block_count": n, "context_length": f.count("max_position_embeddings", 2048), "embedding_length": width,
                 "feed_forward_length": hidden, "vocab_size": f.count("vocab_size", 32000), "attention.head_count": 0, "token_shift_count": 2,
                 "attention.layer_norm_epsilon": f.real("norm_eps", 1e-5)},
                [{"model.embeddings.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}])
    if act != "sqrelu":
        plan.keys["feed_forward_activation"] = act
    first: Table = {"model.layers.0.pre_norm.weight": "token_embd_norm.weight"} if f.flag("norm_first", True) else {}
    biased = f.flag("norm_bias", True)

    def norms(table: Table) -> Table:
        return table | ({s.replace("weight", "bias"): str(name).replace("weight", "bias") for s, name in table.items() if "norm" in s} if biased else {})
    plan.top = [norms(plan.top[0] | first)]
    output_matrix(plan, f, has)
    plan.blocks = [(f"model.layers.{i}.", [norms(RWKV_LAYER), ffn]) for i in range(n)]
    return plan


def rwkv7(f: Fields, has: Tensors) -> Plan:
    plan = rwkv_decoder(f, has, 4, RWKV7_FFN)
    width, layers = plan.keys["embedding_length"], plan.keys["block_count"]
    by_heads = "head_dim" in f.data and f.get("head_dim") is None  # only then does num_heads count, whatever it says
    dk = width // f.count("num_heads") if by_heads else f.count("head_dim", 64)
    heads = width // dk if dk else 0
    values = f.get("value_dim", width)
    values = values if isinstance(values, list) else [values] * layers
    f.read |= {"num_heads"}
    if not heads or heads * dk != width:
        raise Refusal(f"{f.where}: {heads} heads of head_dim = {dk} do not make the width {width}")
    even = len(values) == layers and all(v == values[0] and type(v) is int for v in values)
    if not even or values[0] < 1 or values[0] % heads:
        raise Refusal(f"{f.where}: value_dim is {json.dumps(values)[:80]}, expected the same multiple of {heads} for each of {layers} layers")
    ranks = {"decay": f.count("decay_low_rank_dim", 64), "iclr": f.count("a_low_rank_dim", 64),
             "value_residual_mix": f.count("v_low_rank_dim", 16),
             "gate": f.count("gate_low_rank_dim", 128)}  # for llama.cpp; here the tensors count
    plan.keys |= {f"attention.{name}_lora_rank": int(rank) for name, rank in ranks.items()}
    plan.keys |= {"wkv.head_size": dk, "mixer.head_count": heads, "mixer.value_length": values[0] // heads,
                  "mixer.layer_norm_epsilon": dk * plan.keys["attention.layer_norm_epsilon"]}
    if f.flag("fuse_norm", True):  # the fused norm of the erase key has an epsilon in the root, the other one a bound of the length
        plan.keys["mixer.l2_norm_epsilon"] = 1e-6
    for i, (prefix, tables) in enumerate(plan.blocks):
        tables += [RWKV7_MIX] + [RWKV7_NARROW[x] for x in "wavg" if i or x != "v"]
        mixes = [f"{prefix}attn.x_{x}" for x in "rwkvag"]
        if f"{prefix}attn.x_x" in has:  # older files have all six in one
            mixes = [f"{prefix}attn.x_x"]
        plan.derived[f"blk.{i}.time_mix_lerp_fused.weight"] = ("|".join(mixes), lambda *x: np.concatenate([a.ravel() for a in x]).reshape(6, 1, 1, width))
    if values[0] == width:  # llama.cpp wants them, and does not read them
        for part, source in (("0", "lora.2.bias"), ("1", "lora.0.weight"), ("2", "lora.2.weight")):
            plan.derived[f"blk.0.time_mix_v{part}.weight"] = (f"model.layers.0.attn.a_lora.{source}", np.ravel if part == "0" else np.asarray)
    return plan


def rwkv6(f: Fields, has: Tensors) -> Plan:
    plan = rwkv_decoder(f, has, 3.5, RWKV6_FFN)
    width, heads = plan.keys["embedding_length"], f.count("num_heads", 4)
    keys, values = int(width * f.real("expand_k", 0.5)), int(width * f.real("expand_v", 1.0))
    if not keys or not values or keys % heads or values % heads:
        raise Refusal(f"{f.where}: {heads} heads do not divide the widths {keys} and {values}")
    rank = f.count("proj_low_rank_dim", 32)
    plan.keys |= {"wkv.head_size": keys // heads, "mixer.head_count": heads, "mixer.value_length": values // heads, "rescale_every_n_layers": 0,
                  "time_mix_extra_dim": rank, "time_decay_extra_dim": f.count("gate_low_rank_dim", 64),
                  "mixer.layer_norm_epsilon": plan.keys["attention.layer_norm_epsilon"]}
    order = np.array([1, 2, 3, 0, 4])  # fla has r, w, k, v, g, llama.cpp w, k, v, r, g
    plan.views |= {"wkvrg": View(rows=order, shape=(5, 1, 1, -1)), "wkvrg rows": View(rows=(order[:, None] * rank + np.arange(rank)).ravel())}
    softmax = fla_softmax(f, len(plan.blocks), plan)
    for i, (prefix, tables) in enumerate(plan.blocks):
        tables += [FLA_QKVO, softmax[i]] if i in softmax else [RWKV6_MIX]
        if i not in softmax:
            plan.derived[f"blk.{i}.time_mix_w2.weight"] = (f"{prefix}attn.x_proj.2.weight", lambda w: w.reshape(width, 5, rank)[:, order].swapaxes(0, 1))
    return plan


@dataclass(frozen=True)
class Architecture:
    name: str                                   # general.architecture
    read: Callable[[Fields, Tensors], Plan]
    about: str                                  # conventions, recorded in general.description


NEOX = "rotary pairs (i, i + n/2)"
NEIGHBOURS = "rotary pairs (2i, 2i + 1), query and key rows interleaved to match"
ARCHITECTURES = {
    "Qwen3_5ForCausalLM": Architecture("qwen35", qwen35, f"norm weights include the one; value heads tiled, head h reads "
                                       f"key head h mod n; ssm_a is -exp(A_log); {NEOX}"),
    "Qwen3ForCausalLM": Architecture("qwen3", partial(plain, DECODERS["qwen3"]), NEOX),
    "Qwen2ForCausalLM": Architecture("qwen2", partial(plain, DECODERS["qwen2"]), NEOX),
    "LlamaForCausalLM": Architecture("llama", partial(plain, DECODERS["llama"]), NEIGHBOURS),
    "MistralForCausalLM": Architecture("llama", partial(plain, DECODERS["mistral"]), NEIGHBOURS),
    "Gemma3ForCausalLM": Architecture("gemma3", gemma3, f"norm weights include the one; {NEOX}"),
    "RWKV6ForCausalLM": Architecture("rwkv6", rwkv6, "five shares in the order w, k, v, r, g"),
    "RWKV7ForCausalLM": Architecture("rwkv7", rwkv7, "six shares in the order r, w, k, v, a, g"),
}
ARCHITECTURES["Qwen3_5ForConditionalGeneration"] = ARCHITECTURES["Qwen3_5ForCausalLM"]
ARCHITECTURES["Gemma3ForConditionalGeneration"] = ARCHITECTURES["Gemma3ForCausalLM"]
FLA_MODELS = {"gla": ("GLAForCausalLM", gla), "retnet": ("RetNetForCausalLM", retnet), "linear_attn": ("LinearAttentionForCausalLM", linear_attn),
              "simple_gla": ("SimpleGLAForCausalLM", simple_gla), "lightning_attn": ("LightningAttentionForCausalLM", lightning),
              "mamba": ("MambaForCausalLM", mamba), "samba": ("SambaForCausalLM", mamba), "mamba2": ("Mamba2ForCausalLM", mamba2), "mamba3": ("Mamba3ForCausalLM", mamba3), "log_linear_mamba2": ("LogLinearMamba2ForCausalLM", mamba2),
              "hgrn": ("HGRNForCausalLM", hgrn), "hgrn2": ("HGRN2ForCausalLM", hgrn2), "gsa": ("GSAForCausalLM", gsa),
              "delta_net": ("DeltaNetForCausalLM", delta_net), "gated_deltanet": ("GatedDeltaNetForCausalLM", gated_deltanet),
              "gated_deltaproduct": ("GatedDeltaProductForCausalLM", gated_deltaproduct), "comba": ("CombaForCausalLM", comba),
              "transformer": ("TransformerForCausalLM", transformer), "forgetting_transformer": ("ForgettingTransformerForCausalLM", forgetting_transformer),
              "path_attn": ("PaTHAttentionForCausalLM", path_attn), "wall_transformer": ("WallTransformerForCausalLM", wall_transformer),
              "lightnet": ("LightNetForCausalLM", lightnet), "abc": ("ABCForCausalLM", abc), "mesa_net": ("MesaNetForCausalLM", mesa_net),
              "kda": ("KDAForCausalLM", kda), "gdn2": ("GDN2ForCausalLM", gdn2),
              "precond_gated_deltanet": ("PrecondGatedDeltaNetForCausalLM", preconditioned), "precond_kda": ("PrecondKDAForCausalLM", precond_kda)}
ARCHITECTURES |= {cls: Architecture(name, partial(fla, read, name=name), f"head h reads shared head h div (n / n_kv); {NEOX}")
                  for name, (cls, read) in FLA_MODELS.items()}
ARCHITECTURES["FalconMambaForCausalLM"] = Architecture("mamba", partial(fla, falcon_mamba, name="mamba"), ARCHITECTURES["MambaForCausalLM"].about)
MODEL_TYPES = {"falcon_mamba": "FalconMambaForCausalLM", "qwen3_5_text": "Qwen3_5ForCausalLM", "qwen3_5": "Qwen3_5ForCausalLM", "qwen3": "Qwen3ForCausalLM",
               "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
               "gemma3": "Gemma3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "rwkv6": "RWKV6ForCausalLM", "rwkv7": "RWKV7ForCausalLM"} | {name: cls for name, (cls, _) in FLA_MODELS.items()}  # where config.json names no class


# Shapes in the file, as sizes in config.json make them, and the tensors that have them; dimensions
# of 1 do not count. A size is a sum of products of digits and of these letters:
#   D width, F of the feed-forward, E vocabulary, C taps of a convolution, L levels
#   H heads, N those that they share, Q heads of q, V of v, K and W widths of a key and of a value
#   S slots, M writes per token, X share of a mix
#   I inner width, T time steps (or their rank), G groups, B states, R rotated pairs
#   P = I / G, O = I / T, Y channels of the skip
#   small letters: narrow widths that no field gives, the same in all tensors of a layer
# A bias has the rows of its weight, unless it has a row of its own.
Shapes = dict[str, tuple[str, ...]]


def shapes(rows: dict[str, str]) -> Shapes:
    return {name: tuple(shape.split()) for shape, names in rows.items() for name in names.split()}


SHAPES = shapes({
    "E D": "token_embd output",
    "D": "output_norm token_embd_norm output_res_proj output_res_norm attn_norm attn_norm_2 "
         "ffn_norm post_attention_norm post_ffw_norm "
         "attn_res_proj attn_res_norm ffn_res_proj ffn_res_norm "
         "channel_mix_lerp_k channel_mix_lerp_r time_mix_lerp_x "
         "nextn.enorm nextn.hnorm nextn.shared_head_norm",
    "D 2D": "nextn.eh_proj", "D D": "channel_mix_receptance",
    "F D": "ffn_gate ffn_up channel_mix_key", "D F": "ffn_down channel_mix_value",
    "QK D": "attn_q", "NKM D": "attn_k", "VWM D": "attn_v", "D HW": "attn_output time_mix_output",
    "HW D": "attn_gate time_mix_value time_mix_gate", "K": "attn_q_norm attn_k_norm",
    "HK D": "attn_fade time_mix_receptance time_mix_key", "H D": "attn_forget ssm_alpha",
    "QK C": "ssm_conv1d_q", "NKM C": "ssm_conv1d_k", "VWM C": "ssm_conv1d_v",
    "HK C": "ssm_conv1d_f", "NK C": "ssm_conv1d_w", "HM D": "ssm_beta",
    "NK D": "ssm_w", "W": "ssm_norm",
    "K K": "ssm_map_q ssm_map_q2 ssm_map_k ssm_map_k2",
    "f D": "ssm_f_a", "HK f": "ssm_f_b",
    "g D": "ssm_g_a time_mix_g1", "HW g": "ssm_g_b time_mix_g2",
    "w D": "ssm_w_a time_mix_w1 time_mix_decay_w1", "NK w": "ssm_w_b",
    "HK w": "time_mix_w2 time_mix_decay_w2", "a D": "time_mix_a1", "HK a": "time_mix_a2",
    "v D": "time_mix_v1", "HW v": "time_mix_v2", "HW": "time_mix_ln time_mix_v0",
    "H": "ssm_a ssm_dt.bias ssm_p ssm_d", "N D": "ssm_m_alpha ssm_m_beta",
    "N": "ssm_m_a ssm_m_dt.bias ssm_m_scale", "NK": "ssm_ridge",
    "HK": "ssm_f_low time_mix_w0 time_mix_a0 time_mix_k_k time_mix_k_a time_mix_r_k time_mix_decay",
    "H K": "time_mix_first", "6 D": "time_mix_lerp_fused",
})
MAMBA_SHAPES = shapes({
    "2I D": "ssm_in", "I C": "ssm_conv1d", "T+2B I": "ssm_x", "I T": "ssm_dt",
    "I": "ssm_d ssm_dt.bias", "I B": "ssm_a", "D I": "ssm_out"})
MAMBA2_SHAPES = shapes({
    "2I+2GB+T D": "ssm_in", "I+2GB C": "ssm_conv1d", "T": "ssm_a ssm_dt.bias", "Y": "ssm_d",
    "D I": "ssm_out", "G P": "ssm_norm"})
NORM_OF_ALL = shapes({"HW": "ssm_norm", "HK D": "ssm_alpha"})
NORMS_OF_ALL = shapes({"HK": "attn_q_norm", "NK": "attn_k_norm"})
# What an architecture has otherwise.
OWN_SHAPES = {
    "qwen35": shapes({"2QK D": "attn_q", "2GB+I D": "attn_qkv", "I D": "attn_gate",
                      "T D": "ssm_beta ssm_alpha", "2GB+I C": "ssm_conv1d",
                      "T": "ssm_a ssm_dt.bias", "O": "ssm_norm", "D I": "ssm_out"}),
    "mamba": MAMBA_SHAPES, "samba": MAMBA_SHAPES, "mamba2": MAMBA2_SHAPES,
    "log_linear_mamba2": MAMBA2_SHAPES | shapes({"2I+2GB+T+TL D": "ssm_in", "T L": "ssm_levels"}),
    "mamba3": shapes({"2I+2GB+3T+R D": "ssm_in", "B": "ssm_b_norm ssm_c_norm", "I": "ssm_norm",
                      "TB": "ssm_b.bias ssm_c.bias", "T": "ssm_d ssm_dt.bias", "D I": "ssm_out"}),
    "gla": shapes({"NK f": "ssm_f_b"}),
    "hgrn": NORM_OF_ALL, "hgrn2": NORM_OF_ALL, "lightnet": NORM_OF_ALL,
    "gsa": NORM_OF_ALL | shapes({"NS D": "ssm_alpha"}), "abc": shapes({"NS D": "ssm_alpha"}),
    "kda": shapes({"HK": "ssm_dt.bias"}),
    "gdn2": shapes({"NK f": "ssm_f_b", "NK D": "ssm_beta", "HW D": "ssm_w", "N": "ssm_a",
                    "NK": "ssm_dt.bias"}),
    "precond_kda": shapes({"HK": "ssm_dt.bias", "N D": "ssm_beta", "H D": "ssm_m_alpha ssm_m_beta",
                           "H": "ssm_m_a ssm_m_dt.bias ssm_m_scale"}),
    "path_attn": shapes({"N D": "ssm_beta"}),
    "forgetting_transformer": NORMS_OF_ALL, "wall_transformer": NORMS_OF_ALL,
    "rwkv6": shapes({"5X D": "time_mix_w1", "5 D X": "time_mix_w2", "5 D": "time_mix_lerp_fused"}),
}
# In these, heads of values share those of q and k; in the others, heads of q those of k and v.
SHARED_QUERIES = ("gated_deltanet", "kda", "gdn2", "precond_gated_deltanet", "precond_kda")


def shape_in_letters(arch: str, name: str) -> tuple[str, ...] | None:
    """None: a tensor that does not come from the checkpoint."""
    table = SHAPES | OWN_SHAPES.get(arch, {})
    name = re.sub(r"^blk\.\d+\.", "", name)
    shape = table.get(name, table.get(name.removesuffix(".weight")))
    weight = table.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
    return shape or (weight and weight[:1])


def shape_letters(arch: str, keys: dict[str, Any], i: int) -> dict[str, int]:
    """The sizes of layer i, by letter."""
    def size(*names: str) -> int:
        values = (keys.get(name) for name in names)
        return next((int(v[i] if isinstance(v, list) else v) for v in values if v), 0)
    width, heads = size("embedding_length"), size("attention.head_count")
    inner, groups = size("ssm.inner_size"), size("ssm.group_count")
    steps = size("ssm.time_step_rank")
    if heads:
        shared = size("attention.head_count_kv")
        key = value = size("attention.key_length") or width // heads
    else:
        heads, shared = size("mixer.head_count"), size("mixer.head_count_kv")
        key, value = size("mixer.key_length", "wkv.head_size"), size("mixer.value_length")
    flip = arch in SHARED_QUERIES and not size("attention.head_count")
    return {"D": width, "F": size("feed_forward_length"), "E": size("vocab_size"), "H": heads,
            "N": shared, "Q": shared if flip else heads, "V": heads if flip else shared,
            "K": key, "W": value, "C": size("ssm.conv_kernel", "mixer.conv_kernel"), "L": 15,
            "S": size("mixer.slot_count"), "M": size("mixer.writes_per_token") or 1,
            "X": size("time_mix_extra_dim"), "I": inner, "T": steps, "G": groups,
            "B": size("ssm.state_size"), "R": size("mixer.rope_dimension_count") // 2,
            "P": inner // (groups or 1), "O": inner // (steps or 1),
            "Y": inner if size("mixer.skip_per_channel") else steps}


# Relatives that are not converted, and why.
LEFT_OUT = {
    "raven": "the router of its slots is not implemented",
    "rodimus": "its blocks add attention to the input of the feed-forward only, which the decoder here has no place for",
    "mom": "it keeps several memories, each with the convolution of the tokens routed to it, which the state here has no place for",
    "yoco": "its upper half reads keys of one layer in the middle, which the state here has no place for",
    "parallax": "its attention weighs every key a second time, which is not implemented",
    "based": "it is a layer without a model", "rebased": "it is a layer without a model",
}


# ---- 4. tokenizer ----------------------------------------------------------------------------------------------------
# A reader per kind of file makes a Vocabulary. Tokens and settings that stand in other files of
# the folder come on top. What a GGUF file cannot say gets one sentence that names it.

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # how SentencePiece writes a space
LONGEST = 1 << 14  # characters of a token; real ones stay below a few hundred
LONGEST_ADDED = 256  # bytes of one that is cut out of the text, which is what ./run takes
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def settings_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    data = read_json(path, missing={})
    if not isinstance(data, dict):
        raise Refusal(f"{path} holds {brief(data)}, expected a JSON object of settings")
    return data


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A line on a terminal, for what takes longer than a second."""
    return tqdm(items, desc=what, leave=False, delay=1, disable=None)


def part(value: Any, where: str) -> Fields:
    """A JSON object inside of a file."""
    if not isinstance(value, dict):
        raise Refusal(f"{where} is {brief(value)}, expected a JSON object")
    return Fields(value, where)


def steps_of(value: Any, inner: str, where: str, depth: int = 8) -> list[Fields]:
    """The steps of a normalizer, pre-tokenizer or post-processor: none, one, or those of a
    Sequence, in order.
    """
    if value is None:
        return []
    step = part(value, where)
    if step.get("type") != "Sequence":
        return [step]
    if depth == 0:
        raise Refusal(f"{where} holds a Sequence in a Sequence in a Sequence ..., too deep")
    steps = step.typed(inner, [], lambda v: isinstance(v, list), "a list of steps")
    return [s for value in steps for s in steps_of(value, inner, where, depth - 1)]


# How text is cut into pieces: llama.cpp's name (tokenizer.ggml.pre) and the expressions, each of
# which cuts the pieces that the one before has left. `nfc` and `whole` (ignore_merges) are what
# the name means there; files say both themselves.
@dataclass(frozen=True)
class Pre:
    name: str
    passes: tuple[str, ...]
    nfc: bool = False
    whole: bool = False


CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
ANY_CASE = rf"(?i:{CONTRACTIONS})"
BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS, UPPER, LOWER = r"\p{L}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
DIGIT, THREE = r"\p{N}", r"\p{N}{1,3}"


def words(
    digits: str, word: str = LETTERS, apart: str = r"\p{L}\p{N}", start: str = ANY_CASE + "|"
) -> str:
    """Contractions, words with the character before, numbers, signs with their line ends,
    blanks.
    """
    return rf"{start}[^\r\n\p{{L}}\p{{N}}]?{word}+|{digits}| ?[^\s{apart}]+[\r\n]*{BLANKS}"


def cased(tail: str, digits: str, minus: str = "", signs: str = r"[\r\n/]*") -> str:
    """As `words`, but a word ends where small letters are followed by capitals."""
    upper, lower, before = f"[{UPPER}{minus}]", f"[{LOWER}{minus}]", r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{tail}|{before}{upper}+{lower}*{tail}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{signs}{BLANKS}"
    )


GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)"
HALVES = r"|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
CHINESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
LINES = r"[^\n]+|[\n]+"
RIGHT_THREE = r"\d{1,3}(?=(?:\d{3})*\b)"
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
BLOOM_NESTED = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
PUNCTUATION = {"Isolated": r"[\p{P}!-/:-@\[-`{-~]", "Contiguous": r"[\p{P}\$\+<=>\^~\|`]+"}
ALPHABETS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-"
    "\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00"
    "-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"
    "\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13"
    "-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
ASIAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00"
    "-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-"
    "\ua9ff\uac00-\ud7af\u1100-\u11ff"
)
YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a"
    "\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-"
    "\u309f\u30a0-\u30ff]+"
)

PRE_TOKENIZERS = (
    Pre("llama-bpe", (words(THREE),), whole=True),
    Pre("dbrx", (words(THREE),)),
    Pre("qwen2", (words(DIGIT),), nfc=True),
    Pre("stablelm2", (words(DIGIT),)),
    Pre("qwen35", (words(DIGIT, r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"),), nfc=True),
    Pre("gpt-2", (GPT2,)),
    Pre("olmo", (GPT2,), nfc=True),
    Pre("smollm", (DIGIT, GPT2)),
    Pre("minicpm5", (THREE, words(r"\p{N}+")), whole=True),
    Pre(
        "bailingmoe2",
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    Pre("ufakzeka", (words(DIGIT, start=""),)),
    Pre(
        "seed-coder",
        (
            rf"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{BLANKS}",
        ),
    ),
    Pre("jais-2", (words(THREE).replace(r"|\s+(?!\S)|\s+", rf"|{HALVES}|\s{{1}}"),)),
    Pre("laguna", (LINES, words(DIGIT))),
    Pre(
        "exaone-moe",
        (
            rf"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    Pre("tekken", (cased("", DIGIT),), whole=True),
    Pre("gpt-4o", (cased(ANY_CASE + "?", THREE),)),
    Pre("tiny_aya", (RIGHT_THREE, cased(ANY_CASE + "?", THREE))),
    Pre("kimi-k2", (r"[\p{Han}]+|" + cased(ANY_CASE + "?", THREE, r"&&[^\p{Han}]", r"[\r\n]*"),)),
    Pre("youtu", (YOUTU, cased(ANY_CASE + "?", DIGIT)), whole=True),
    Pre(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{ALPHABETS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            r"\p{N}+",
        ),
    ),
    Pre(
        "deepseek-coder",
        (
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            DIGIT,
        ),
    ),
    Pre("deepseek-v3", (THREE, CHINESE, SIGNS + r"[\r\n]*" + BLANKS)),
    Pre("spark2.5", (THREE, CHINESE, SIGNS + r"|[\r\n]|\s+(?!\S)|\s+", DIGIT)),
    Pre(
        "afmoe",
        (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", f"[{ASIAN}]+", SIGNS + r"[\r\n]*" + BLANKS),
    ),
    Pre("falcon", (PUNCTUATION["Contiguous"], GPT2, "[0-9][0-9][0-9]")),
    Pre("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    Pre("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    Pre("bloom", (BLOOM,)),
    Pre("bloom", (BLOOM_NESTED,)),
    Pre("viking", (BLOOM, DIGIT)),
    Pre("viking", (BLOOM_NESTED, DIGIT)),
    Pre(
        "chameleon",
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            PUNCTUATION["Isolated"],
            GPT2,
        ),
    ),
)


def canonical(expression: str) -> str:
    """Spellings of an expression that match the same pieces become one."""
    for character, escape in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        expression = expression.replace(character, escape)
    expression = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), expression)
    expression = expression.replace("'(?i:[sdmt]|ll|ve|re)", ANY_CASE)
    expression = re.sub(
        r"(?:'[a-z]{1,2}\|){6}'[a-z]{1,2}", lambda m: "|".join(sorted(m[0].split("|"))), expression
    )
    expression = re.sub(
        r"([\])}][?+*])\+", r"\1", expression
    )  # possessive: what follows could not use what is given back
    expression = expression.replace(r"|\s*[\r\n]+|", r"|\s*[\r\n]|").replace(r"\p{N}{1}", r"\p{N}")
    return re.sub(
        r"(\|\\s\+\(\?!\\S\))\|\\s\+$", r"\1", expression
    )  # what is left over is a piece, too


def pre_named(passes: Iterable[str], nfc: bool, whole: bool) -> Pre | None:
    """The row with these expressions; of several the one whose name says most of the rest."""
    passes = tuple(passes)
    plain = tuple(map(canonical, passes))
    rows = [
        p for p in PRE_TOKENIZERS if p.passes == passes or tuple(map(canonical, p.passes)) == plain
    ]
    return max(
        rows, key=lambda p: (p.passes == passes, p.whole == whole, p.nfc == nfc), default=None
    )


@dataclass
class Vocabulary:
    """What a tokenizer file says."""

    keys: dict[str, Any]  # tokenizer.* of this kind of file
    texts: dict[int, str] = field(default_factory=dict)  # id -> text, spelled as GGUF does
    types: dict[int, int] = field(default_factory=dict)  # id -> NORMAL, CONTROL, ...
    ids: dict[str, int] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)  # "llama" only
    merges: list[tuple[str, str]] = field(default_factory=list)  # "llama", where it has no scores
    named: dict[str, int] = field(
        default_factory=dict
    )  # bos, eos, unk, pad -> id, where this file says so
    around: tuple[list[int], list[int]] = field(
        default_factory=lambda: ([], [])
    )  # what stands before and behind a text
    added: list[Added] = field(default_factory=list)
    normalizes: bool = False  # text changes before added tokens of that kind are found

    def put(self, i: int, text: str, kind: int, where: str) -> None:
        """Two texts for an id are one too many, unless they are a byte and its character."""
        old = self.texts.get(i, text)
        if old != text and BYTE_TOKEN.fullmatch(text) and old == chr(int(text[3:5], 16)):
            return
        if old != text and BYTE_TOKEN.fullmatch(old) and text == chr(int(old[3:5], 16)):
            del self.ids[old]
        elif old != text:
            raise Refusal(f"{where}: the id {i} belongs to {brief(text)} and to {brief(old)}")
        if len(text) > LONGEST:
            raise Refusal(
                f"{where}: the token {i} has {len(text)} characters, at most {LONGEST} are "
                "supported"
            )
        self.texts[i], self.types[i] = text, kind
        self.ids.setdefault(text, i)

    def drop(self, text: str) -> int:
        i = self.ids.pop(text)
        del self.texts[i], self.types[i]
        return i


@dataclass(frozen=True)
class Added:
    """A token that is cut out of the text before anything else."""

    text: str
    id: int | None = None  # as stated; a text of the vocabulary has its own
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def id_in(value: Any, where: str) -> int:
    if not is_id(value):
        raise Refusal(f"{where} is {brief(value)}, expected the id of a token")
    return value


def added_token(
    value: Any, where: str, i: int | None = None, special: bool | None = None
) -> Added | None:
    """From the text, or from an object with flags. An empty text is no token."""
    if isinstance(value, str):
        return Added(value, i, bool(special), normalized=not special) if value else None
    fields = part(value, where)
    text = fields.typed("content", None, lambda v: isinstance(v, str), "the text of a token")
    i = (
        id_in(fields.get("id"), f"{where}: id of {brief(text)}")
        if i is None and "id" in fields.data
        else i
    )
    special = fields.flag("special") if special is None else special
    flags = {name: fields.flag(name) for name in ("lstrip", "rstrip", "single_word")}
    return (
        Added(text, i, special, **flags, normalized=fields.flag("normalized", not special))
        if text
        else None
    )


# Settings that name a token, and those that list some. What they name is special.
NAMING = [f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
LISTING = ["additional_special_tokens", "extra_special_tokens"]


def named_tokens(settings: dict[str, Any], where: str) -> dict[str, Added]:
    """Setting -> the token that it names."""
    found = {name: settings[name] for name in NAMING if settings.get(name)}
    for name in LISTING:
        listed = settings.get(name) or []
        if not isinstance(listed, (list, dict)):
            raise Refusal(f"{where}: {name} is {brief(listed)}, expected a list of tokens")
        values = listed.values() if isinstance(listed, dict) else listed
        found |= {f"{name}[{k}]": value for k, value in enumerate(values)}
    tokens = {
        name: added_token(value, f"{where}: {name}", special=True) for name, value in found.items()
    }
    return {name: token for name, token in tokens.items() if token}


def all_added(folder: Path, own: list[Added]) -> tuple[list[Added], dict[str, Added]]:
    """The added tokens of all files, and those that a setting names (bos_token ...). Of two that
    have the same text the flags of tokenizer_config.json count. The older files are read where
    it lists none.
    """
    path = folder / "tokenizer_config.json"
    settings = settings_in(path)
    decoder = settings.get("added_tokens_decoder")
    named = named_tokens(settings, str(path))
    tokens = {token.text: token for token in own}
    if decoder is not None:
        for key, value in part(decoder, f"{path}: added_tokens_decoder").data.items():
            where = f"{path}: added_tokens_decoder {brief(key)}"
            token = added_token(value, where, id_in(int(key) if key.isdecimal() else key, where))
            if token and token.text in {t.text for t in named.values()}:
                token = replace(token, special=True)
            if token:
                tokens[token.text] = token
    else:
        file = folder / "special_tokens_map.json"
        named |= named_tokens(settings_in(file), str(file))
        for text, i in settings_in(folder / "added_tokens.json").items():
            special = text in {t.text for t in named.values()}
            if token := added_token(
                text, "added_tokens.json", id_in(i, f"added_tokens.json: {brief(text)}"), special
            ):
                tokens.setdefault(text, token)
    for token in named.values():
        tokens.setdefault(token.text, token)
    return list(tokens.values()), named


def looks_special(text: str) -> bool:
    return bool(re.fullmatch(r"<\|.*\|>|<\uff5c.*\uff5c>", text, re.DOTALL))


def added_kind(vocabulary: Vocabulary, token: Added, i: int) -> int:
    """The type of an added token. Runs of marks that are words of the vocabulary, too, remain
    NORMAL, as which they are shown as spaces.
    """
    old = vocabulary.types.get(i, USER_DEFINED)
    if old in (UNKNOWN, BYTE):
        return old
    if token.special or looks_special(token.text):
        return CONTROL
    return NORMAL if old == NORMAL and SPACE in token.text and vocabulary.merges else USER_DEFINED


HABITS = ("lstrip", "rstrip", "single_word", "normalized", "added")


def place(vocabulary: Vocabulary, tokens: list[Added], rows: int, notes: list[str]) -> None:
    """Give the added tokens their ids: that of the vocabulary, else the one stated, else the
    next one; and write down flags.
    """
    lists: dict[str, list[int]] = {name: [] for name in HABITS}
    beyond = []
    for token in tokens:
        stated = max(vocabulary.texts, default=-1) + 1 if token.id is None else token.id
        i = vocabulary.ids.get(token.text, stated)
        if i >= rows:
            beyond.append(token.text)
            continue
        if len(token.text.encode("utf-8", "replace")) > LONGEST_ADDED:
            raise Refusal(
                f"the added token {brief(token.text)} is longer than {LONGEST_ADDED} bytes, the "
                "most that is supported"
            )
        kind = added_kind(vocabulary, token, i)
        vocabulary.put(i, token.text, kind, "the added tokens")
        has = vars(token) | {"added": kind == NORMAL}
        has["normalized"] = token.normalized and vocabulary.normalizes
        for name in HABITS:
            lists[name] += [i] * has[name]
    if beyond:
        notes.append(
            f"left out {len(beyond)} added tokens for which the embedding has no row, such as "
            f"{brief(beyond[0])}"
        )
    vocabulary.keys |= {f"tokenizer.gla.{name}": ids for name, ids in lists.items() if ids}


# -- tokenizer.json


def read_vocab(model: Fields) -> Vocabulary:
    """The texts and ids of a BPE model."""
    vocabulary = Vocabulary({})
    expected = "an object of texts and ids"
    texts = model.typed("vocab", None, lambda v: isinstance(v, dict), expected)
    for text, i in progress(texts.items(), "vocabulary"):
        if not is_id(i):
            raise Refusal(f"{model.where}: vocab gives {brief(text)} the id {brief(i)}")
        vocabulary.put(i, text, NORMAL, model.where)
    return vocabulary


def merge_pairs(model: Fields, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs, or strings with a space between the two. No text has a space when it is merged, so
    pairs with one are left out.
    """
    pairs = []
    merges = model.typed("merges", [], lambda v: isinstance(v, list), "a list of merges")
    for merge in progress(merges, "merges"):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise Refusal(f"{model.where}: the merge {brief(merge)} is not a pair of tokens")
        left, right = pair
        if left not in ids or right not in ids or left + right not in ids:
            raise Refusal(
                f"{model.where}: the merge {brief(merge)} needs a token that the vocabulary lacks"
            )
        if left and right and " " not in left and " " not in right:
            pairs.append((left, right))
    return pairs


def split_pass(step: Fields) -> str:
    """The expression of a Split. Where it matches everything, keeping the matches only is the
    same as cutting at them.
    """
    pattern = part(step.get("pattern"), f"{step.where}: pattern").data
    expression = pattern.get(
        "Regex", re.escape(pattern["String"]) if isinstance(pattern.get("String"), str) else None
    )
    if not isinstance(expression, str):
        raise Refusal(f"{step.where}: pattern is {brief(pattern)}, expected a Regex or a String")
    behavior, invert = step.get("behavior"), step.flag("invert")
    whole = behavior == "Removed" and invert and expression.endswith((r"|\s+", GPT2))
    if behavior != "Isolated" and not whole:
        raise Refusal(
            f"{step.where}: a Split at {brief(expression)} with the behavior {brief(behavior)} is "
            "not supported"
        )
    return expression


def punctuation_pass(step: Fields) -> str:
    behavior = step.get("behavior", "Isolated")
    if behavior not in tuple(PUNCTUATION):
        raise Refusal(
            f"{step.where}: Punctuation with the behavior {brief(behavior)} is not supported"
        )
    return PUNCTUATION[behavior]


PASSES: dict[str, Callable[[Fields], str]] = {
    "Split": split_pass,
    "Punctuation": punctuation_pass,
    "Digits": lambda step: DIGIT if step.flag("individual_digits") else r"\p{N}+",
}


@dataclass
class Cuts:
    """How a byte-level tokenizer cuts text."""

    passes: list[str] = field(default_factory=list)
    prefix: bool = False  # a space before the text
    late: list[bool] = field(default_factory=list)  # digits behind ByteLevel, each its own piece?


def byte_level(steps: list[Fields], where: str) -> Cuts:
    """The steps of a byte-level pre-tokenizer, ByteLevel among them."""
    cuts, mapped = Cuts(), False
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not mapped:
            mapped, cuts.prefix = True, step.flag("add_prefix_space", True)
            if cuts.prefix and cuts.passes:
                raise Refusal(f"{where}: add_prefix_space behind another step is not supported")
            cuts.passes += [GPT2] if step.flag("use_regex", True) else []
        elif kind == "Digits" and mapped:
            cuts.late.append(step.flag("individual_digits"))
        elif kind in tuple(PASSES):
            cuts.passes.append(PASSES[kind](step))
            if mapped and not re.fullmatch(r"(\[0-9\])+", cuts.passes[-1]):
                raise Refusal(f"{where}: {kind} behind ByteLevel would cut bytes, not supported")
        else:
            raise Refusal(f"{where}: the step {brief(kind)} is not supported")
    if not mapped or not cuts.passes:
        raise Refusal(f"{where}: expected ByteLevel and an expression that cuts the text")
    return cuts


def cut_by_digits(merges: list[tuple[str, str]], each: bool) -> bool:
    """Does a merge join what a step of digits behind ByteLevel keeps apart? Where none does, the
    step changes nothing: its digits are those of bytes, which no expression can name.
    """
    for left, right in merges:
        a, b = (unicodedata.category(c)[0] == "N" for c in (left[-1], right[0]))
        if a or b if each else a != b:
            return True
    return False


@dataclass
class Spaces:
    """How a tokenizer of the SentencePiece kind writes the spaces of a text."""

    nfc: bool = False
    marks: bool = False  # a space becomes SPACE
    prefix: str = "never"  # as in tokenizer.gla.space_prefix
    splits: bool = False  # a word begins at a mark


def normalizer(steps: list[Fields]) -> Spaces:
    """NFC and spaces; nothing else that a normalizer does has a place in GGUF."""
    spaces = Spaces()
    for step in steps:
        kind = step.get("type")
        if kind == "NFC":
            spaces.nfc = True
        elif kind == "Prepend" and step.get("prepend") == SPACE:
            spaces.prefix = "prepend"
        elif (
            kind == "Replace"
            and step.get("pattern") == {"String": " "}
            and step.get("content") == SPACE
        ):
            spaces.marks = True
        else:
            detail = "".join(f" {brief(v)}" for k, v in step.data.items() if k != "type")
            raise Refusal(
                f"{step.where}: the step {brief(kind)}{detail} cannot be written to a GGUF file; "
                "NFC and spaces as "
                f"U+2581 can"
            )
    return spaces


def metaspace(steps: list[Fields], spaces: Spaces) -> str | None:
    """What the pre-tokenizer does about spaces; returns the name of a rule that cuts the text,
    or None.
    """
    name = None
    for step in steps:
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            scheme = step.get(
                "prepend_scheme", "always" if step.flag("add_prefix_space", True) else "never"
            )
            if scheme not in ("always", "first", "never"):
                raise Refusal(
                    f"{step.where}: prepend_scheme is {brief(scheme)}, expected always, first or "
                    "never"
                )
            # Text that has its mark gets no second one
            spaces.prefix = scheme if spaces.prefix == "never" else spaces.prefix
            spaces.marks, spaces.splits = True, spaces.splits or step.flag("split", True)
        elif (
            kind == "Split"
            and pattern == {"String": " "}
            and spaces.marks
            and not step.flag("invert")
        ):
            pass  # there are no spaces any more
        elif kind == "Split" and spaces.marks and split_pass(step) == LINES:
            name = "gemma4"
        else:
            raise Refusal(
                f"{step.where}: the step {brief(kind)} with spaces as {SPACE} is not supported"
            )
    return name


def scores_of(vocabulary: Vocabulary) -> tuple[dict[int, float], bool]:
    """SentencePiece joins the neighbours whose union is the token of the highest score; the rank of
    a token's first merge, negated, is such a score. Also says whether the two agree: they do when
    every way of splitting a token into two tokens is a merge, and those of a token stand together.
    """
    kinds = (NORMAL, USER_DEFINED)
    ids = {text: i for text, i in vocabulary.ids.items() if vocabulary.types[i] in kinds}
    merges, scores = set(vocabulary.merges), {}
    same, last = True, ""
    for rank, (left, right) in enumerate(progress(vocabulary.merges, "scores")):
        text = left + right
        same = same and (text == last or vocabulary.ids[text] not in scores)
        scores.setdefault(vocabulary.ids[text], -float(rank))
        last = text
    same = same and all(
        (text[:k], text[k:]) in merges
        for text in progress(ids, "merges")
        for k in range(1, len(text))
        if text[:k] in ids and text[k:] in ids
    )
    least = -float(len(merges) + 1)
    return {i: scores.get(i, least) for i in vocabulary.texts}, same


def read_sentences(model: Fields, vocabulary: Vocabulary, spaces: Spaces, rule: str | None) -> None:
    """A BPE over characters with spaces as marks: "llama", or "gemma4" where it has a rule that
    cuts the text.
    """
    vocabulary.merges = merge_pairs(model, vocabulary.ids)
    if spaces.splits and any(SPACE in (left + right)[1:] for left, right in vocabulary.merges):
        raise Refusal(
            f"{model.where}: Metaspace with split, and merges across the words that it cuts, is "
            "not supported"
        )
    unknown, fallback = model.get("unk_token"), model.flag("byte_fallback")
    for text, i in vocabulary.ids.items():
        if BYTE_TOKEN.fullmatch(text):
            vocabulary.types[i] = BYTE
            if not fallback:
                vocabulary.keys["tokenizer.gla.byte_fallback"] = False
    if isinstance(unknown, str) and unknown in vocabulary.ids:
        vocabulary.named["unk"] = vocabulary.ids[unknown]
        vocabulary.types[vocabulary.ids[unknown]] = UNKNOWN
    if model.flag("ignore_merges"):
        vocabulary.keys["tokenizer.gla.ignore_merges"] = True
    spelled = fallback and list(vocabulary.types.values()).count(BYTE) == 256
    if "unk" in vocabulary.named and not spelled and not model.flag("fuse_unk"):
        vocabulary.keys["tokenizer.gla.fuse_unk"] = False
    vocabulary.keys |= {
        "tokenizer.ggml.model": "gemma4" if rule else "llama",
        "tokenizer.ggml.pre": rule or "default",
        "tokenizer.ggml.add_space_prefix": spaces.prefix != "never",
    }
    if spaces.prefix in ("first", "always"):
        vocabulary.keys["tokenizer.gla.space_prefix"] = spaces.prefix


def template_sides(step: Fields) -> tuple[list[int], list[int]]:
    """TemplateProcessing: the special tokens before and behind the text in the form for a single
    one.
    """
    table = part(step.get("special_tokens", {}), f"{step.where}: special_tokens").data
    sides: tuple[list[int], list[int]] = ([], [])
    behind = 0
    for piece in step.typed("single", [], lambda v: isinstance(v, list), "a list of pieces"):
        kind, value = next(iter(part(piece, f"{step.where}: single").data.items()), ("", {}))
        name = part(value, f"{step.where}: {brief(kind)}").get("id")
        if kind == "Sequence":
            behind = 1
        elif isinstance(name, str):
            ids = part(table.get(name), f"{step.where}: special token {brief(name)}").get("ids", [])
            sides[behind].extend(
                id_in(i, f"{step.where}: {brief(name)}")
                for i in (ids if isinstance(ids, list) else [ids])
            )
    return sides


def marked_sides(step: Fields) -> tuple[list[int], list[int]]:
    """RobertaProcessing and BertProcessing: [text, id] of the tokens before (cls) and behind
    (sep).
    """
    pairs = [
        step.typed(name, None, lambda v: isinstance(v, list) and len(v) == 2, "a text and an id")
        for name in ("cls", "sep")
    ]
    before, behind = (id_in(pair[1], f"{step.where}: {brief(pair[0])}") for pair in pairs)
    return [before], [behind]


SIDES: dict[str, Callable[[Fields], tuple[list[int], list[int]]]] = {
    "TemplateProcessing": template_sides,
    "RobertaProcessing": marked_sides,
    "BertProcessing": marked_sides,
    "ByteLevel": lambda step: ([], []),
}


def around_of(steps: list[Fields]) -> tuple[list[int], list[int]]:
    """The tokens that a post-processor puts before and behind a text."""
    before: list[int] = []
    behind: list[int] = []
    for step in steps:
        if step.get("type") not in tuple(SIDES):
            raise Refusal(f"{step.where}: the step {brief(step.get('type'))} is not supported")
        left, right = SIDES[step.get("type")](step)
        before, behind = left + before, behind + right
    return before, behind


def read_tokenizer_json(path: Path, options: Options) -> Vocabulary:
    tok = part(read_json(path), str(path))
    model = part(tok.get("model"), f"{path}: model")
    if model.get("type", "BPE") != "BPE":
        raise Refusal(
            f"{path}: a tokenizer of type {brief(model.get('type'))} is not supported, only BPE"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise Refusal(f"{path}: {name} = {brief(model.get(name))} is not supported")
    vocabulary = read_vocab(model)
    changes = steps_of(tok.get("normalizer"), "normalizers", f"{path}: normalizer")
    cuts = steps_of(tok.get("pre_tokenizer"), "pretokenizers", f"{path}: pre_tokenizer")
    spaces = normalizer(changes)
    if spaces.marks or any(step.get("type") == "Metaspace" for step in cuts):
        read_sentences(model, vocabulary, spaces, metaspace(cuts, spaces))
    else:
        if spaces.prefix != "never":
            raise Refusal(
                f"{path}: a normalizer that prepends {SPACE} to a byte-level text is not supported"
            )
        read_pieces(model, vocabulary, cuts, spaces.nfc, options)
    if spaces.nfc:
        vocabulary.keys["tokenizer.gla.nfc"] = True
    own = tok.typed("added_tokens", [], lambda v: isinstance(v, list), "a list of tokens")
    vocabulary.added = [t for value in own if (t := added_token(value, f"{path}: added_tokens"))]
    vocabulary.normalizes = bool(changes)
    vocabulary.around = around_of(
        steps_of(tok.get("post_processor"), "processors", f"{path}: post_processor")
    )
    return vocabulary


def read_pieces(
    model: Fields, vocabulary: Vocabulary, steps: list[Fields], nfc: bool, options: Options
) -> None:
    """A byte-level BPE, by the name of its pre-tokenizer."""
    merges, whole = merge_pairs(model, vocabulary.ids), model.flag("ignore_merges")
    where = f"{model.where}, pre_tokenizer"
    pre, cuts = options.pre, Cuts(prefix=any(s.data.get("add_prefix_space") for s in steps))
    if pre is None:
        cuts = byte_level(steps, where)
        pre = pre_named(cuts.passes, nfc, whole)
    if pre is None or any(whole or cut_by_digits(merges, each) for each in cuts.late):
        raise Refusal(
            f"{where}: text is cut by {brief(cuts.passes + ['Digits'] * len(cuts.late))}, which is "
            f"not a pre-tokenizer that is known; --pre NAME takes one that is close: {PRE_NAMES}"
        )
    read_bytes(vocabulary, merges, pre.name, nfc, whole)
    if not all(byte_text(bytes([b])) in vocabulary.ids for b in range(256)):
        unknown = model.get("unk_token")  # without one, a byte that has no token is lost
        vocabulary.named["unk"] = vocabulary.ids.get(unknown, -1) if isinstance(unknown, str) else -1
        vocabulary.keys["tokenizer.gla.fuse_unk"] = model.flag("fuse_unk")
    if cuts.prefix:
        vocabulary.keys["tokenizer.gla.space_prefix"] = "always"


def read_bytes(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], pre: str, nfc: bool, whole: bool
) -> None:
    """A byte-level BPE: "gpt2"."""
    vocabulary.keys |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.gla.nfc": nfc,
        "tokenizer.gla.ignore_merges": whole,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


# -- other kinds of file


@dataclass(frozen=True)
class Options:
    """What a file may leave open."""

    folder: Path
    pre: Pre | None = None  # --pre


PRE_NAMES = ", ".join(dict.fromkeys(p.name for p in PRE_TOKENIZERS))
CLASSES = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "gpt-2",
    "GPTNeoXTokenizer": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
    "QWenTokenizer": "qwen2",
}


def expressions_in(source: str) -> Iterator[str]:
    """The texts in a Python file, and those that it joins with "|". Nothing is executed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.List) and all(
            isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts
        ):
            yield "|".join(e.value for e in node.elts)


def stated_pre(path: Path, options: Options) -> Pre:
    """How text is cut, for a file of ranks or merges that does not say it: --pre, else the
    expression in the checkpoint's own Python code, else what the class of the tokenizer does.
    """
    if options.pre:
        return options.pre
    known = {canonical(p.passes[0]): p for p in reversed(PRE_TOKENIZERS) if len(p.passes) == 1}
    for file in sorted(options.folder.glob("tokenization_*.py")):
        try:
            found = [
                known[canonical(e)]
                for e in expressions_in(file.read_text(encoding="utf-8"))
                if canonical(e) in known
            ]
        except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            found = []
        if found:
            return found[0]
    named = settings_in(options.folder / "tokenizer_config.json").get("tokenizer_class")
    name = CLASSES.get(named.removesuffix("Fast")) if isinstance(named, str) else None
    if name is None:
        raise Refusal(
            f"{path} does not say how text is cut before the merges; name it with --pre, one of "
            f"{PRE_NAMES}"
        )
    return next(p for p in PRE_TOKENIZERS if p.name == name)


def read_merges_txt(path: Path, options: Options) -> Vocabulary:
    """vocab.json and merges.txt, a line for each pair."""
    vocabulary = read_vocab(Fields({"vocab": read_json(path)}, str(path)))
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise Refusal(f"{path} needs merges.txt beside it, and there is none")
    lines = map(str.rstrip, merges.read_text(encoding="utf-8").split("\n"))
    listed = [line for line in lines if line and not line.startswith("#version")]
    pre = stated_pre(path, options)
    pairs = merge_pairs(Fields({"merges": listed}, str(merges)), vocabulary.ids)
    read_bytes(vocabulary, pairs, pre.name, pre.nfc, False)
    return vocabulary


def byte_text(token: bytes) -> str:
    """Bytes as "gpt2" vocabularies spell them: printable ones of Latin-1 as they are, the others
    from U+0100 on.
    """
    return token.decode("latin-1").translate(BYTE_TEXT)


PLAIN_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TEXT = {b: chr(0x100 + n) for n, b in enumerate(b for b in range(256) if b not in PLAIN_BYTES)}


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that the merges of lower rank leave of a token; None if they leave more."""
    parts, rank = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(parts) > 2:
        best, at = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        if best >= rank:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if all(p in ranks for p in parts) else None


def read_ranks(path: Path, options: Options) -> Vocabulary:
    """tiktoken: lines of a token in base64 and its rank. Joined is what gives the lowest rank;
    as merges that is one pair for each token, the one that lower ranks lead to. A token that
    none leads to is found as a whole piece only.
    """
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().split(b"\n"):
        fields = line.split()
        if not fields:
            continue
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (ValueError, IndexError):
            raise Refusal(
                f"{path}: {brief(line.decode('latin-1'))} is not a token in base64 and its rank"
            ) from None
        if not 0 < len(token) <= 512 or len(fields) != 2 or token in ranks:
            raise Refusal(
                f"{path}: {brief(line.decode('latin-1'))} is empty, too long or there twice"
            )
        ranks[token] = id_in(rank, f"{path}: rank of {brief(token.decode('latin-1'))}")
    pre, vocabulary, merges, whole = stated_pre(path, options), Vocabulary({}), [], False
    ordered = sorted(ranks, key=ranks.__getitem__)
    for token in progress(ordered, "merges"):
        vocabulary.put(ranks[token], byte_text(token), NORMAL, str(path))
        pair = last_merge(token, ranks) if len(token) > 1 else ()
        whole = whole or pair is None
        merges += [(byte_text(pair[0]), byte_text(pair[1]))] if pair else []
    read_bytes(vocabulary, merges, pre.name, pre.nfc, whole)
    if path.name == "qwen.tiktoken":  # its special tokens stand in code
        names = [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            *(f"<|extra_{i}|>" for i in range(205)),
        ]
        vocabulary.added = [
            Added(name, len(ranks) + i, special=True) for i, name in enumerate(names)
        ]
    return vocabulary


def protobuf(data: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """The fields of a message: their number, and a whole number or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 64:
            value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value
        raise Refusal(f"{where} is neither a SentencePiece model nor a list of tiktoken ranks")

    while at < len(data):
        number, kind = divmod(varint(), 8)
        size = {1: 8, 5: 4}.get(kind)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else size
        if size is None or at + size > len(data):
            raise Refusal(f"{where} is neither a SentencePiece model nor a list of tiktoken ranks")
        at += size
        yield number, data[at - size : at]


def read_sentencepiece(path: Path, options: Options) -> Vocabulary:
    """SentencePiece's own file: pieces with scores (field 1), how it was trained (2), what
    happens to the text first (3).
    """
    data = path.read_bytes()
    if re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n", data):
        return read_ranks(path, options)
    fields = list(protobuf(data, str(path)))
    trainer, text = (
        dict(
            item
            for n, v in fields
            if n == number and isinstance(v, bytes)
            for item in protobuf(v, str(path))
        )
        for number in (2, 3)
    )
    if trainer.get(3, 1) != 2:
        kind = {1: "unigram", 3: "word", 4: "char"}.get(trainer.get(3, 1))
        raise Refusal(
            f"{path}: a SentencePiece model of the kind {kind} is not supported, only BPE"
        )
    if text.get(2) or not text.get(5, 1) or trainer.get(24):
        raise Refusal(
            f"{path}: the normalization {brief(str(text.get(1, b''), 'utf-8', 'replace'))} cannot "
            "be written to a GGUF file"
        )
    vocabulary = Vocabulary(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.add_space_prefix": bool(text.get(3, 1)),
        }
    )
    for i, piece in enumerate(v for n, v in fields if n == 1 and isinstance(v, bytes)):
        values = dict(protobuf(piece, str(path)))
        token, score, kind = values.get(1, b""), values.get(2, bytes(4)), values.get(3, NORMAL)
        if (
            not isinstance(token, bytes)
            or not isinstance(score, bytes)
            or len(score) != 4
            or kind not in range(1, 7)
        ):
            raise Refusal(f"{path}: piece {i} is not a text with a score")
        vocabulary.put(i, token.decode("utf-8"), kind, str(path))
        vocabulary.scores[i] = struct.unpack("<f", score)[0]
        if not math.isfinite(vocabulary.scores[i]):
            raise Refusal(f"{path}: the score of piece {i} is not a finite number")
    if (
        text.get(3, 1)
        and settings_in(options.folder / "tokenizer_config.json").get("legacy") is False
    ):
        vocabulary.keys["tokenizer.gla.space_prefix"] = "first"
    vocabulary.named = {
        name: i
        for name, n, usual in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2))
        if type(i := trainer.get(n, usual)) is int and i in vocabulary.texts
    }
    vocabulary.around = ([vocabulary.named["bos"]] if "bos" in vocabulary.named else [], [])
    return vocabulary


def read_rwkv(path: Path, options: Options) -> Vocabulary:
    """The RWKV world vocabulary: lines of an id, a Python literal of text or bytes, its length.
    Written as llama.cpp's converter does: bytes escaped as Python prints them, the id 0 as the
    only special token, two line ends to end a turn.
    """
    vocabulary = Vocabulary({"tokenizer.ggml.model": "rwkv"}, named={"bos": 0, "eos": 0})
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(
            r"([0-9]{1,9}) (b?(?:'.{1,2000}'|\".{1,2000}\")) ([0-9]{1,5})\r?", line, re.DOTALL
        )
        try:
            token = ast.literal_eval(match[2]) if match else None
            token = token.encode("utf-8") if isinstance(token, str) else token
        except (ValueError, SyntaxError):
            token = None
        if not isinstance(token, bytes) or len(token) != int(match[3]):
            raise Refusal(f"{path}: line {number} is not an id, a text and its length in bytes")
        vocabulary.put(int(match[1]), repr(token)[2:-1], NORMAL, str(path))
        if token == b"\n\n":
            vocabulary.named["eot"] = int(match[1])
    zero = part(
        settings_in(options.folder / "tokenizer_config.json").get("added_tokens_decoder", {}),
        "added_tokens_decoder",
    ).get("0")
    vocabulary.put(
        0,
        zero["content"] if isinstance(zero, dict) and zero.get("content") else "<s>",
        CONTROL,
        str(path),
    )
    return vocabulary


# File name -> its reader; the first that is there counts.
READERS: tuple[tuple[str, Callable[[Path, Options], Vocabulary]], ...] = (
    ("tokenizer.json", read_tokenizer_json),
    ("tokenizer.model", read_sentencepiece),
    ("spiece.model", read_sentencepiece),
    ("*.tiktoken", read_ranks),
    ("tiktoken.model", read_ranks),
    ("rwkv_vocab*.txt", read_rwkv),
    ("vocab.json", read_merges_txt),
)


def read_vocabulary(options: Options) -> Vocabulary | None:
    for name, read in READERS:
        for path in sorted(options.folder.glob(name)):
            try:
                return read(path, options)
            except UnicodeDecodeError as error:
                raise Refusal(f"{path} holds text that is not UTF-8: {error}") from None
    return None


def tokenizer_keys(
    folder: Path, rows: int, notes: list[str], pre: str | None = None
) -> dict[str, Any]:
    """tokenizer.* keys for a model with this many embedding rows."""
    row = next((p for p in PRE_TOKENIZERS if p.name == pre), None)
    if pre and row is None:
        raise Refusal(f"--pre {pre} is not known; there are {PRE_NAMES}")
    vocabulary = read_vocabulary(Options(folder, row))
    if vocabulary is None:
        notes.append(
            "no tokenizer in the folder, so the file has no vocabulary: ./run then needs -z, or "
            "ids instead of text"
        )
        return {"tokenizer.ggml.model": "no_vocab"}
    added, named = all_added(folder, vocabulary.added)
    for k, token in enumerate(added):
        if vocabulary.ids.get(token.text, -1) >= rows:  # to be left out, by `place`
            added[k] = replace(token, id=vocabulary.drop(token.text))
    if max(vocabulary.texts, default=-1) >= rows:
        raise Refusal(
            f"{folder}: the vocabulary has an id {max(vocabulary.texts)}, but the embedding has "
            f"{rows} rows"
        )
    place(vocabulary, added, rows, notes)
    tokens = [vocabulary.texts.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [vocabulary.types.get(i, UNUSED) for i in range(rows)]
    for i, text in enumerate(tokens):
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise Refusal(f"{folder}: the token {i}, {brief(text)}, is not Unicode text")
    keys = vocabulary.keys | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if vocabulary.merges and not vocabulary.scores:
        vocabulary.scores, same = scores_of(vocabulary)
        if keys["tokenizer.ggml.model"] == "gemma4" or not same:
            keys["tokenizer.ggml.merges"] = [f"{a} {b}" for a, b in vocabulary.merges]
    if vocabulary.scores:
        least = min(vocabulary.scores.values())
        keys["tokenizer.ggml.scores"] = [vocabulary.scores.get(i, least) for i in range(rows)]
    return keys | special_ids(folder, vocabulary, named, rows, notes) | chat_template(folder)


# What ends, begins or fills a text: the setting's name, and that of GGUF's key.
SPECIAL = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "mask": "mask",
}


def special_ids(
    folder: Path, vocabulary: Vocabulary, named: dict[str, Added], rows: int, notes: list[str]
) -> dict[str, Any]:
    """bos, eos, ... by the tokenizer's own word, else by the configuration; and every further id
    that ends a text.
    """
    settings, config = settings_in(folder / "tokenizer_config.json"), read_config(folder)
    generation = settings_in(folder / "generation_config.json")

    def ids_of(name: str, *sources: dict[str, Any]) -> list[int]:
        value = next((s[name] for s in sources if s.get(name) is not None), [])
        return [
            i
            for i in (value if isinstance(value, list) else [value])
            if type(i) is int and 0 <= i < rows
        ]

    ids: dict[str, int] = {}
    for kind in SPECIAL:
        token = named.get(f"{kind}_token")
        if kind == "unk" and kind in vocabulary.named:
            token = None  # the model has the last word; -1: none
        stated = ids_of(f"{kind}_token_id", generation, config)
        if token and token.text in vocabulary.ids:
            ids[kind] = vocabulary.ids[token.text]
        elif kind in vocabulary.named:
            ids |= {kind: i for i in [vocabulary.named[kind]] if i >= 0}
        elif stated:
            ids[kind] = stated[0]
    keys: dict[str, Any] = {}
    for kind, place, side in zip(("bos", "eos"), (-1, 0), vocabulary.around):
        asked = settings.get(f"add_{kind}_token")
        adds = asked if isinstance(asked, bool) else bool(side)
        if side and adds:
            ids[kind] = ids[kind] if ids.get(kind) in side else side[place]
        if side and adds and side != [ids[kind]]:
            notes.append(
                f"the tokenizer puts {' '.join(vocabulary.texts.get(i, '?') for i in side)} "
                "around a text, ./run only "
                f"{vocabulary.texts.get(ids[kind], '?')}"
            )
        keys[f"tokenizer.ggml.add_{kind}_token"] = adds and kind in ids
    keys |= {f"tokenizer.ggml.{SPECIAL[kind]}_token_id": i for kind, i in ids.items()}
    ends = [i for i in ids_of("eos_token_id", generation, config) if i != ids.get("eos")]
    ends = list(dict.fromkeys(ends + [i for kind, i in vocabulary.named.items() if kind == "eot"]))
    eom = bool(ends) and "eom" in vocabulary.texts.get(ends[0], "")
    keys |= {
        f"tokenizer.ggml.{kind}_token_id": i
        for kind, i in zip(("eom", "eot") if eom else ("eot", "eom"), ends)
    }
    if len(ends) > 2:
        keys["tokenizer.gla.end_token_ids"] = ends
    return keys


def chat_template(folder: Path) -> dict[str, Any]:
    """The default template and further named ones. chat_template.jinja stands above the field of
    tokenizer_config.json, and that above chat_template.json; the field is a template or several
    with names, as are the files in additional_chat_templates."""
    names = ("tokenizer_config.json", "chat_template.json")
    objects = [read_json(folder / name, missing={}) for name in names]
    fields = [o.get("chat_template") for o in objects if isinstance(o, dict)]
    found = next((t for t in fields if t), None)
    if isinstance(found, list) and all(isinstance(t, dict) for t in found):
        found = {t.get("name"): t.get("template") for t in found}
    named = found if isinstance(found, dict) else {"default": found} if found is not None else {}
    further = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {"default": folder / "chat_template.jinja"} | {p.stem: p for p in further}
    for name, file in files.items():
        try:
            named = named | ({name: file.read_text(encoding="utf-8")} if file.is_file() else {})
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(f"{file} is not readable: {error}") from None
    if not all(isinstance(x, str) for item in named.items() for x in item):
        raise Refusal(f"{folder}: chat_template is neither a text nor texts with names")
    named = {name: text for name, text in named.items() if text}
    others = sorted(name for name in named if name != "default")
    keys = {f"tokenizer.chat_template.{n}": named[n] for n in others} | ({"tokenizer.chat_templates": others} if others else {})
    return keys | ({"tokenizer.chat_template": named["default"]} if "default" in named else {})


def sampling_keys(folder: Path) -> dict[str, Any]:
    """general.sampling.* from generation_config.json, unless it asks for greedy decoding."""
    g = settings_in(folder / "generation_config.json")
    if g.get("do_sample") is False:
        return {}
    names = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p",
             "repetition_penalty": "penalty_repeat"}
    keys = {f"general.sampling.{to}": float(g.get(name)) for name, to in names.items()
            if is_number(g.get(name), -3e38, 3e38)}
    top_k = g.get("top_k")
    return keys | ({"general.sampling.top_k": [top_k]} if type(top_k) is int and -1 <= top_k < 2**31 else {})


# ---- 5. file ---------------------------------------------------------------------------------------------------------

def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for number in value if isinstance(value, list) else [value]:
        low = -2**31 if isinstance(value, list) else 0
        if type(number) is int and not low <= number < 2**32 or \
                type(number) is float and not abs(number) < 3.4e38:
            raise Refusal(f"{key} would be {number}, out of range; a field of config.json is wrong")
    if key == "general.sampling.top_k":
        writer.add_sampling_top_k(*value)  # signed in llama.cpp
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        add[type(value)](key, value)


def plan_pieces(plan: Plan, tensors: Tensors, wanted: Type) -> tuple[list[Piece], list[str]]:
    """Tables times checkpoint: every tensor once. Returns the output's tensors in order, and what was left out and why."""
    left, pieces = dict(tensors), []
    views = {"q": PLAIN, "k": PLAIN, "norm": PLAIN} | VIEWS | plan.views

    def take(tables: Iterable[Table], source_prefix: str, prefix: str) -> None:
        for source, entry in (item for table in tables for item in table.items()):
            name, view = (entry, PLAIN) if isinstance(entry, str) else (entry[0], views[entry[1]])
            source = next((s for s in source.split("|") if source_prefix + s in left), source)
            if source_prefix + source not in left:
                raise Refusal(f"the checkpoint has no tensor {source_prefix + source}, which config.json asks for")
            tensor = left.pop(source_prefix + source)
            if tensor.dtype not in SOURCE_TYPES:
                raise Refusal(f"{source_prefix + source} is stored as {tensor.dtype}; a quantised checkpoint is not supported")
            pieces.append(Piece(prefix + name, tensor, view, origin=source_prefix + source))

    take(plan.top, "", "")
    for i, (source_prefix, tables) in enumerate(plan.blocks):
        take(tables, source_prefix, f"blk.{i}.")
    pieces += [Piece(name, array) for name, array in plan.made.items()]
    for name, (sources, fn) in plan.derived.items():
        whole = []
        for source in sources.split("|"):
            if source not in tensors:
                raise Refusal(f"the checkpoint has no tensor {source}, which config.json asks for")
            whole.append(np.concatenate(list(Piece(name, tensors[source], origin=source).slices())))
            left.pop(source, None)
        try:
            pieces.append(Piece(name, np.ascontiguousarray(fn(*whole)), origin=sources))
        except ValueError:
            shapes = " and ".join(str(tensors[source].shape) for source in sources.split("|"))
            raise Refusal(f"{sources} ({name}) has the shape {shapes}, which does not go with the "
                          "sizes in config.json") from None
    head = "output.weight" if HEAD in plan.top else "token_embd.weight"
    for piece in pieces:
        piece.type = stored_type(piece.name, piece.shape, wanted, head)
    if pieces[0].height != plan.keys["vocab_size"]:
        raise Refusal(f"the embedding has {pieces[0].height} rows, but config.json says vocab_size = {plan.keys['vocab_size']}")
    reasons = defaultdict(list)
    for name in left:
        reason = next((why for prefix, why in plan.left_out.items() if name.startswith(prefix)), None)
        reason = "recomputed from the configuration" if name.endswith("rotary_emb.inv_freq") else reason
        if reason is None:
            raise Refusal(f"the checkpoint holds {name}, which config.json does not account for")
        reasons[reason].append(name)
    return pieces, [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({why})" for why, names in reasons.items()]


def compare_shapes(arch: str, keys: dict[str, Any], pieces: list[Piece]) -> None:
    """The weights are those of the sizes in config.json."""
    letters: dict[str, dict[str, int]] = {}
    for piece in pieces:
        block = piece.name.split(".")[1] if piece.name.startswith("blk.") else "0"
        known = letters.setdefault(block, shape_letters(arch, keys, int(block)))
        shape = shape_in_letters(arch, piece.name)
        if shape is None or not piece.origin:
            continue
        for letter, n in zip(shape, piece.shape):
            if letter.islower():  # a width that no field gives: that of the first tensor with it
                known.setdefault(letter, n)
        wanted = [sum(math.prod(int(x) if x.isdigit() else known[x] for x in term)
                      for term in size.split("+")) for size in shape]
        found = piece.shape if len(shape) > 1 else (math.prod(piece.shape),)
        if [n for n in found if n != 1] != [n for n in wanted if n != 1]:
            if piece.view.drop is not None:
                wanted.insert(piece.view.drop, 1)
            raise Refusal(f"{piece.origin} has the shape {piece.stored}, but the sizes in "
                          f"config.json make it {tuple(wanted)}; one of the two is wrong, or of "
                          "another model")


def may_replace(out: Path, folder: Path) -> None:
    """No part of the checkpoint, whatever it is called, and only a file. An earlier export may go."""
    if not out.exists():
        return
    if not out.is_file():
        raise Refusal(f"{out} is not a regular file, and is not replaced by one")
    with out.open("rb") as file:
        if file.read(4) == b"GGUF":
            return
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and path.samefile(out):
            raise Refusal(f"{out} is {path.name} of the checkpoint and would be replaced; "
                          "give another file to write")


def new_file(out: Path) -> Path:
    """An empty file beside out, to take its place; its name is one that nobody has or can guess."""
    mask = os.umask(0)
    os.umask(mask)
    handle, name = tempfile.mkstemp(".tmp", f"{out.name[:50]}.", out.parent)
    os.close(handle)
    os.chmod(name, out.stat().st_mode & 0o777 if out.exists() else 0o666 & ~mask)
    return Path(name)


def write(path: Path, arch: str, keys: dict[str, Any], pieces: list[Piece]) -> None:
    """GGUF v3, alignment 32: keys, tensor infos, then the data in the same order, a slice at a time."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        add_key(writer, key, value)
    for piece in pieces:
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), piece.nbytes, piece.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    with tqdm(total=sum(p.nbytes for p in pieces), unit="B", unit_scale=True, desc="writing", disable=None) as bar:
        for piece in pieces:
            for part in piece.slices():
                limit = LARGEST.get(piece.type, math.inf)
                if np.abs(part).max() > limit:
                    raise Refusal(f"{piece.name} holds {np.abs(part).max():g}, beyond what {piece.type.name} can; try --type bf16")
                with np.errstate(all="ignore"):  # blocks of subnormals round to zero, which is right
                    data = np.ascontiguousarray(gguf.quants.quantize(part, piece.type))
                data.tofile(out)
                bar.update(data.nbytes)
            writer.write_padding(out, piece.nbytes)
    out.flush()
    os.fsync(out.fileno())
    writer.close()


class Reader(gguf.GGUFReader):
    """gguf's reader without the elements of arrays: it keeps two objects for each, a gigabyte for a large vocabulary."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list, list]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, n, at = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if kind == gguf.GGUFValueType.STRING:
            for _ in range(n):
                at += 8 + int.from_bytes(self.data[at:at + 8].tobytes(), "little")
        else:
            at += n * np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]).itemsize
        return at - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]


def check(path: Path, pieces: list[Piece]) -> dict[Type, tuple[float, str]]:
    """Read the file back. Per type, the worst |written - source| in units of the tensor's largest value, and where."""
    written = {t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset) for t in Reader(path).tensors}
    worst: dict[Type, tuple[float, str]] = {}
    for piece in tqdm(pieces, desc="checking", disable=None):
        shape, kind, offset = written[piece.name]
        if shape != piece.shape or kind != piece.type:
            raise Refusal(f"{path}: {piece.name} was not written as planned")
        row_bytes, start, error, largest = piece.nbytes // piece.height, 0, 0.0, 0.0
        for part in piece.slices():
            data = np.fromfile(path, np.uint8, len(part) * row_bytes, offset=offset + start * row_bytes)
            back = gguf.quants.dequantize(data.reshape(len(part), row_bytes), piece.type)
            error = max(error, float(np.abs(back - part).max()))
            largest = max(largest, float(np.abs(part).max()))
            start += len(part)
        relative = error / largest if largest else error
        if relative >= worst.get(piece.type, (-1.0, ""))[0]:
            worst[piece.type] = (relative, piece.name)
    return worst


def export(folder: Path, out: Path, wanted: str | None, ignored: list[str], pre: str | None = None,
           mtp: bool | None = None) -> None:
    config = read_config(folder)
    fields = Fields(config, str(folder / "config.json"))
    names = config.get("architectures") or [MODEL_TYPES.get(config.get("model_type"), config.get("model_type"))]
    arch = ARCHITECTURES.get(names[0]) if isinstance(names, list) else None
    if arch is None and config.get("model_type") in LEFT_OUT:
        raise Refusal(f"{folder / 'config.json'}: model_type {config['model_type']} is not supported: {LEFT_OUT[config['model_type']]}")
    if arch is None:
        raise Refusal(f"{folder / 'config.json'}: the architecture {names} is not supported, only {', '.join(ARCHITECTURES)}")
    tensors = read_tensors(folder)
    block = [name for name in tensors if mtp is False and name.startswith("mtp.")]
    plan = arch.read(fields, {name: t for name, t in tensors.items() if name not in block})
    fields.no_more(ignored)
    if mtp and "nextn_predict_layers" not in plan.keys:
        raise Refusal(f"{folder} has no block for multi-token prediction that could be kept (--mtp): the tensors mtp.*, with "
                      "mtp_num_hidden_layers 1 in config.json, of an architecture that has it here")
    if wanted is None:
        sizes = defaultdict(int)
        for t in tensors.values():
            sizes[t.dtype] += t.nbytes
        wanted = "bf16" if max(sizes, key=sizes.__getitem__, default="") == "BF16" else "f16"
        print(f"type {wanted}, as nothing else was asked for and the checkpoint is mostly {max(sizes, key=sizes.__getitem__)}")
    kind, file_type = TYPES[wanted]
    pieces, left_out = plan_pieces(plan, tensors, kind)
    compare_shapes(arch.name, plan.keys, pieces)
    keys = {"general.type": "model", "general.name": folder.resolve().name, "general.description": arch.about,
            "general.file_type": file_type, "general.quantization_version": gguf.GGML_QUANT_VERSION}
    keys |= sampling_keys(folder) | {f"{arch.name}.{k}": v for k, v in plan.keys.items()}
    keys |= tokenizer_keys(folder, plan.keys["vocab_size"], plan.notes, pre)

    temporary = new_file(out)
    try:
        write(temporary, arch.name, keys, pieces)
        worst = check(temporary, pieces)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)

    print(f"{out}: {arch.name}, {sum(math.prod(p.shape) for p in pieces)} parameters in {len(pieces)} tensors, "
          f"{out.stat().st_size} bytes")
    for t, (error, where) in sorted(worst.items()):
        chosen = [p for p in pieces if p.type == t]
        print(f"  {t.name:5} {len(chosen):5} tensors {sum(p.nbytes for p in chosen):14} bytes, worst error {error:.1e} of the "
              f"largest weight ({where})")
    for name in left_out:
        print(f"  left out: {name}")
    for note in dict.fromkeys(plan.notes):
        print(f"  note: {note}")


def main(args: argparse.Namespace) -> int:
    try:
        if not args.out.resolve().parent.is_dir() or args.out.is_dir():
            raise Refusal(f"{args.out} cannot be written: it is a folder, or its folder does not exist")
        may_replace(args.out, args.folder)
        export(args.folder, args.out, args.type, args.ignore, args.pre, args.mtp)
        return 0
    except Refusal as refusal:
        print(f"export.py: {refusal}", file=sys.stderr)
    except OSError as error:
        print(f"export.py: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
    except MemoryError:
        print(f"export.py: {args.folder} asks for more memory than there is", file=sys.stderr)
    except Exception as error:  # what no check foresaw is still a fault of the folder
        print(f"export.py: {args.folder} is not laid out as expected: {type(error).__name__}: "
              f"{one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("export.py: interrupted, nothing written", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
