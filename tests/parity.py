#!/usr/bin/env python3
"""Does ./run compute what the reference libraries compute? parity.py [GOLDEN_FOLDER ...] [--only SECTION,...]

golden      checkpoints with stored logits (tests/golden, or the folders named), exported at f32 and at bf16
random      other configurations of Qwen3.5, Qwen3, Qwen2, Llama, Mistral, Gemma 3 against transformers in float32
gla         configurations of GLA against a float64 definition (make_models.py)
bind        the goldens' files with tensors and keys dropped, changed, added: a sentence or the same bits (bind.c)
mixers      configurations of the other mixers against the definitions in definitions/ (make_mixers.py), and same bits in any split
quantised   q8_0 and q4_0 files against the same dequantised weights as float32
tokenizer   ids of a hostile corpus against HuggingFace tokenizers
exporter    export.py alone: same bytes twice, shards, PyTorch files, multimodal checkpoints, the drafting block, output matrices, chat
            templates, everything it must refuse

Bounds of agreement on logits whose standard deviation is about 1.4: max |difference| < 1e-4. Where the readout of a strongly
decaying head is tiny and a norm follows (Qwen3.5), float32 rounding alone is amplified: there rms < 3e-5 and max < 1e-3.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

import make_mixers as fla
import make_models as models

ROOT = Path(__file__).resolve().parent.parent
logging.disable(logging.WARNING)


class Tally:
    passed = failed = 0
    run = ROOT / "run"

    def line(self, ok: bool, name: str, detail: str) -> None:
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {detail}", flush=True)

    def logits(self, name: str, family: str, got: np.ndarray | str, want: np.ndarray) -> None:
        if isinstance(got, str):
            return self.line(False, name, got)
        if got.shape != want.shape:
            return self.line(False, name, f"logits have the shape {got.shape}, expected {want.shape}")
        d = got.astype(np.float64) - want
        worst, rms = np.abs(d).max(), np.sqrt((d * d).mean())
        margin = min(1e-3 / worst, 3e-5 / rms) if family == "qwen35" else 1e-4 / worst
        where = "" if margin > 1 else f", worst at position {np.unravel_index(np.abs(d).argmax(), d.shape)[0]}"
        self.line(bool(margin > 1), name, f"max {worst:.1e} rms {rms:.1e} margin {margin:.1f}x{where}")


def call(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, timeout=600)


def export(folder: Path, out: Path, *options: object) -> subprocess.CompletedProcess:
    return call(sys.executable, ROOT / "export.py", folder, out, *options)


def run_logits(run: Path, file: Path, ids: np.ndarray, *options: object) -> np.ndarray | str:
    """(T, vocab) float32 from ./run, or what went wrong."""
    ids_file, out = file.with_suffix(".ids"), file.with_suffix(".logits")
    ids_file.write_text(" ".join(str(i) for i in ids))
    done = call(run, file, "-m", "logits", "--ids", ids_file, "--out", out, *options)
    if done.returncode:
        return f"./run ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}"
    return np.fromfile(out, "<f4").reshape(len(ids), -1)


def export_and_compare(t: Tally, name: str, family: str, folder: Path, work: Path, ids: np.ndarray, want: np.ndarray,
                       types: tuple[str, ...]) -> None:
    for kind in types:
        file = work / f"{name}-{kind}.gguf"
        done = export(folder, file, "--type", kind)
        if done.returncode:
            t.line(False, f"{name} {kind}", done.stderr.decode().strip())
        else:
            t.logits(f"{name} {kind}", family, run_logits(t.run, file, ids), want)


# ---- logits ----------------------------------------------------------------------------------------------------------

def golden(t: Tally, work: Path, folders: list[Path]) -> None:
    for folder in folders:
        data = np.load(folder / "golden.npz")
        family = "qwen35" if "qwen3_5" in json.loads((folder / "config.json").read_text())["model_type"] else ""
        export_and_compare(t, folder.resolve().name, family, folder, work, data["tokens"], data["logits"], ("f32", "bf16"))


def random(t: Tally, work: Path, folders: list[Path]) -> None:
    for seed, name in enumerate(models.TRANSFORMERS_CASES):
        family = models.TRANSFORMERS_CASES[name][0]
        ids, want = models.transformers_case(work / name, name, seed=seed, shards=1 + seed % 3)
        export_and_compare(t, name, family, work / name, work, ids, want, ("f32",) if seed % 4 else ("f32", "bf16"))
    for name, dtype, kind in (("qwen35", torch.float16, "f16"), ("llama", torch.float32, "f32")):
        ids, want = models.transformers_case(work / f"{name}-{kind}", name, dtype=dtype, seed=99)
        export_and_compare(t, f"{name} from {kind}", name, work / f"{name}-{kind}", work, ids, want, (kind,))
    ids, step = models.transformers_case(work / "chunked", "qwen35", length=150)
    _, chunked = models.transformers_case(work / "chunked", "qwen35", length=150, chunked=True)
    t.logits("transformers' chunked form against its token-by-token form", "qwen35", chunked, step)
    export_and_compare(t, "qwen35, 150 tokens", "qwen35", work / "chunked", work, ids, step, ("f32",))


def gla(t: Tally, work: Path, folders: list[Path]) -> None:
    for seed, name in enumerate(models.GLA_CASES):
        ids, want = models.gla_case(work / name, name, seed=seed, shards=1 + seed % 2)
        export_and_compare(t, name, "gla", work / name, work, ids, want, ("f32",) if seed % 4 else ("f32", "bf16"))


def mixers(t: Tally, work: Path, folders: list[Path]) -> None:
    """Each configuration in one run of tokens against its definition; then token by token, in runs of 7 on two threads, and saved and
    loaded half-way, which must give the same bits."""
    for seed, name in enumerate(fla.CASES):
        folder, file = work / name.replace(" ", "-").replace(",", ""), work / "mixer.gguf"
        ids, want = fla.mixer_case(folder, name, seed)
        done = export_here(folder, file, "bf16" if seed % 2 else "f32")
        if done:
            t.line(False, name, done)
            continue
        whole = run_logits(t.run, file, ids)
        t.logits(name, "fla", whole, want)
        if isinstance(whole, str):
            continue
        half, session = len(ids) // 2, work / "session"
        parts = [run_logits(t.run, file, ids, "-b", 1, "-j", 1), run_logits(t.run, file, ids, "-b", 7, "-j", 2)]
        first, second = run_logits(t.run, file, ids[:half], "--save-state", session), run_logits(t.run, file, ids[half:], "--load-state", session)
        parts.append(first + second if isinstance(first, str) or isinstance(second, str) else np.concatenate([first, second]))
        for how, got in zip(("token by token", "seven at a time, two threads", "saved and loaded"), parts):
            if isinstance(got, str) or not np.array_equal(got, whole):
                t.line(False, f"{name}, {how}", got if isinstance(got, str) else f"other bits, up to {np.abs(got - whole).max():.1e}")
        if name == "wall_transformer":
            said = run_logits(t.run, file, ids, "--kv", "f16")
            t.line(isinstance(said, str) and "f32 only" in said, f"{name} refuses --kv f16", str(said)[-120:])


    for i, (kind, changes, word) in enumerate(MIXERS_REFUSED):
        folder = work / f"refused{i}"
        fla.mixer_case(folder, kind)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        said = export_here(folder, work / "refused.gguf", "bf16")
        t.line(word in said and said.count("\n") == 0, f"refuses {kind} with {json.dumps(changes)[1:-1]}", said[-120:])


def bind(t: Tally, work: Path, folders: list[Path]) -> None:
    """The exported goldens with tensors and keys dropped, changed and added, and every such change to the models of tests/bind.c."""
    files = [work / f"{folder.resolve().name}.gguf" for folder in folders]
    for folder, file in zip(folders, files):
        said = export_here(folder, file, "f32")
        t.line(not said, f"bind {file.stem}", said or "exported")
    program = ROOT / "build" / "bind"
    shares = [[program, "-a"], *([program, *files[i::4]] for i in range(4))]
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        for share, done in zip(shares, pool.map(lambda share: call(*share), shares)):
            last = re.fullmatch(r"(\d+) passed, (\d+) failed", done.stdout.decode().rstrip().rpartition("\n")[2])
            ok = done.returncode == 0 and last is not None
            t.line(ok, f"bind, {len(share) - 1} files" if "-a" not in share else "bind -a", done.stdout.decode(errors="replace").strip()[-2000:])


MIXERS_REFUSED: list[tuple[str, dict[str, Any], str]] = [  # case, changes to config.json, what the sentence names
    ("linear_attn relu", {"feature_map": "rebased"}, "feature_map"), ("linear_attn relu", {"use_short_conv": True}, "use_short_conv"),
    ("retnet", {"feature_map": "elu"}, "feature_map"), ("retnet", {"hidden_act": "powlu"}, "hidden_act"), ("retnet", {"num_kv_heads": 3}, "heads"),
    ("simple_gla", {"hidden_act": "gelu"}, "hidden_act"), ("hgrn", {"expand_ratio": 2}, "use_lower_bound"), ("hgrn2", {"use_short_conv": True}, "conv1d"),
    ("gsa", {"feature_map": "elu"}, "feature_map"), ("delta_net", {"qk_norm": "rms"}, "qk_norm"), ("delta_net", {"qk_activation": "tanh"}, "qk_activation"),
    ("delta_net", {"use_gate": True}, "g_proj"), ("delta_net", {"conv_bias": True}, "conv_bias"), ("gated_deltanet", {"num_v_heads": 6}, "heads"),
    ("gated_deltanet", {"expand_v": 1.3}, "expand_v"), ("gated_deltaproduct", {"num_v_heads": 8}, "num_v_heads"), ("comba", {"num_v_heads": 8}, "num_v_heads"),
    ("kda", {"lower_bound": -6.0, "safe_gate": True}, "lower_bound"), ("kda", {"lower_bound": 1.0}, "lower_bound"), ("kda", {"safe_gate": True}, "safe_gate"), ("precond_kda", {"attnres_block_size": 2}, "attnres_block_size"),
    ("mamba2", {"dt_limit": [0.1]}, "dt_limit"), ("mamba2", {"hidden_act": "relu"}, "hidden_act"), ("mamba2", {"n_groups": 3}, "groups"),
    ("mamba2", {"attn": {"layers": [1], "num_heads": 4}}, "attn"), ("log_linear_mamba2", {"n_groups": 2}, "n_groups"),
    ("log_linear_mamba2", {"dt_limit": [0.1, 1.0]}, "dt_limit"),
    ("lightnet", {"num_heads": 5}, "heads"), ("lightnet", {"use_short_conv": True}, "conv1d"), ("abc", {"hidden_act": "gelu"}, "hidden_act"),
    ("abc", {"num_heads": 16}, "heads"), ("abc", {"use_short_conv": True}, "conv1d"), ("abc", {"clamp_max": "inf"}, "clamp_max"),
    ("mesa_net", {"max_cg_step_training": 0}, "max_cg_step_training"), ("mesa_net", {"use_output_gate": True}, "g_proj"), ("mesa_net", {"solver": "exact"}, "solver"),
    ("mamba", {"hidden_act": "gelu"}, "hidden_act"), ("mamba", {"use_bias": True}, "_proj.bias"), ("mamba", {"intermediate_size": 64}, "intermediate_size"),
    ("mamba", {"attn": {"layers": [1], "num_heads": 4}}, "attn"), ("samba", {"hidden_act": "powlu"}, "hidden_act"), ("samba", {"conv_kernel": 0}, "conv_kernel"),
    ("transformer", {"num_heads": 5}, "num_heads"), ("transformer", {"attn": {"layers": [1], "num_heads": 4}}, "attn"), ("transformer", {"qk_norm": True}, "norm"),
    ("transformer", {"hidden_act": "relu"}, "hidden_act"), ("forgetting_transformer", {"num_kv_heads": 3}, "num_kv_heads"),
    ("forgetting_transformer", {"use_output_gate": True}, "g_proj"), ("forgetting_transformer", {"use_rope": True}, "use_rope"),
    ("path_attn", {"use_low_rank_w": False}, "w_proj"), ("path_attn", {"use_forget_gate": True}, "g_proj"), ("path_attn", {"num_heads": 5}, "num_heads"),
    ("path_attn", {"window_size": 9}, "window_size"), ("path_attn", {"rope_theta": 10000.0}, "rope_theta"), ("wall_transformer", {"use_scalar_gate": True}, "gs_proj"),
    ("wall_transformer", {"qk_norm": True}, "norm"), ("wall_transformer", {"sink_bias": True}, "sink_bias"),
    ("mamba3", {"is_mimo": True}, "is_mimo"), ("mamba3", {"rope_fraction": 0.25}, "rope_fraction"), ("mamba3", {"head_dim": 20}, "heads"), ("mamba3", {"use_bias": True}, "_proj.bias"),
    *(("gsa", {"model_type": left_out}, left_out) for left_out in ("based", "rebased", "mom", "parallax", "raven", "rodimus", "yoco")),
    ("rwkv6", {"hidden_act": "bias_gelu"}, "hidden_act"), ("rwkv6", {"num_heads": 5}, "heads"), ("rwkv6", {"norm_first": False}, "pre_norm"),
    ("rwkv6", {"proj_low_rank_dim": 9}, "time_mix_w1"), ("rwkv7", {"hidden_act": "powlu"}, "hidden_act"), ("rwkv7", {"value_dim": [48, 96, 48]}, "value_dim"),
    ("rwkv7", {"head_dim": 20}, "head_dim"), ("rwkv7", {"head_dim": None, "num_heads": 5}, "heads"), ("rwkv7", {"attn": {"layers": [1], "num_heads": 4}}, "attn"),
    ("rwkv7", {"norm_bias": False}, "bias"),
]


def export_here(folder: Path, out: Path, kind: str) -> str:
    """export.py in this process, which saves a second each; what it refused, or nothing."""
    import contextlib
    import io
    sys.path.insert(0, str(ROOT))
    import export as program
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program.export(folder, out, kind, [])
    except program.Refusal as refusal:
        return str(refusal)
    return ""


def quantised(t: Tally, work: Path, folders: list[Path]) -> None:
    """Mean KL divergence and share of equal best tokens between a quantised file and its own weights as float32."""
    cases = [(name, work / name, ("q8_0", "q4_0")) for name in ("qwen35-wide", "qwen3-wide", "llama-wide", "qwen2-wide", "gemma3-wide", "gla-wide")]
    for name, folder, kinds in cases + [(f.resolve().name, f, ("q8_0",)) for f in folders]:
        if len(kinds) > 1:
            make = models.gla_case if name.startswith("gla") else models.transformers_case
            ids, _ = make(folder, name, length=300)
        else:
            ids = np.random.default_rng(0).integers(0, json.loads((folder / "config.json").read_text())["vocab_size"], 300)
        for kind in kinds:
            file, twin = work / f"{name}-{kind}.gguf", work / f"{name}-{kind}-f32.gguf"
            said = export_here(folder, file, kind)
            if said:
                t.line(False, f"{name} {kind}", said)
                continue
            dequantised_twin(file, twin)
            want = run_logits(t.run, twin, ids)
            for how, bound, least in ((), 1e-3, 0.99), *([(("--fast",), 5e-2, 0.75)] if len(kinds) > 1 else []):  # random weights magnify what 8 bits lose
                what, got = " ".join([name, kind, *how]), run_logits(t.run, file, ids, *how)
                if isinstance(got, str) or isinstance(want, str):
                    t.line(False, what, str(got if isinstance(got, str) else want))
                    continue
                p, q = (z.astype(np.float64) - np.logaddexp.reduce(z.astype(np.float64), 1, keepdims=True) for z in (want, got))
                kl, same = (np.exp(p) * (p - q)).sum(1).mean(), (p.argmax(1) == q.argmax(1)).mean()
                t.line(bool(kl < bound and same > least), what, f"KL {kl:.1e} (bound {bound:.0e}), same best token {same:.2%}")


def dequantised_twin(file: Path, twin: Path) -> None:
    """The same keys and, as float32, the same weights."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(twin, reader.fields["general.architecture"].contents())
    for f in reader.fields.values():
        if not f.name.startswith("GGUF.") and f.name != "general.architecture":
            writer.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                          .reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- tokenizer -------------------------------------------------------------------------------------------------------

SPACES = "\t \u0085\u00a0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000"
CORPUS = [
    "", " ", "  ", "   x", "x   ", "\n", "\n\n", " \n", "\n ", "\r\n", "\r\n\r\n x", " \r \n \t x", "\t\t\tx", "x\n\n\n  y", "a  b   c    d",
    "Hello world", " Hello  world ", "hello,world", "it's he'll we're they've I'm you'd don't", "IT'S HE'LL WE'RE THEY'VE I'M YOU'D DON'T",
    "'s", "''s'", "x's's", "'\u017f", "\u2019s", "a'b 'c d' 've", "'RE'Ll", "1", "12", "123", "1234", "12345678", "3.14159", "1,000,000.50",
    "x1y22z333", "\u0661\u0662\u0663\u0664", "\u2460\u2461\u00bd\u00b2\u00b3 \u2167", "\uff11\uff12\uff13", "a1 1a", "$100 100$", "!!!???...", "---===+++",
    " !x", " ! x", "(a)[b]{c}", "a/b\\c|d", "http://example.org/a?b=c&d=e#f", "foo_bar-baz.qux", "<a href='x'>y</a>", "if (x==1) {\n\treturn;\n}\n",
    "    indented\n        more\n", "caf\u00e9 r\u00e9sum\u00e9 na\u00efve", "\u00fcber Stra\u00dfe \u00c6\u00d8\u00c5", "\u041b\u0438\u0441\u0438\u0446\u0430 \u043f\u0440\u044b\u0433\u0430\u0435\u0442",
    "\u72d0\u72f8\u8df3\u8fc7\u4e86\u61d2\u72d7\u3002\uff01\uff1f", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u0645\u0631\u062d\u0628\u0627\u064b \u0628\u0643\u0645", "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd", "x\u0301 \u0301x 1\u0301 !\u0301", "\u0301", " \u0301", "\u0315\u0301a",
    "\U0001f98a\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f", "\U0001d54f\U0001d7d8 \U00010400", "\u200b\u200d\ufeff", "\u00ad\u00a0\u00ff",
    *(f"a{s}b" for s in SPACES), *(f"{s}{s}a {s}\n{s}b" for s in SPACES), "\x00\x01\x1f\x7f", "\x0b\x0c\x1c\x1d", "\ue000\U0010ffff\ufffd",
    "<|im_start|>", "<|im_start|>user\nhi<|im_end|>\n", "x<|im_end|>y", " <|im_end|> ", "<|im_start|><|im_start|>x<|im_end|>", "<|im_start|>xy", "<|im_start|> x", "<|im_startx|>",
    "<|endoftext|>a<|endoftext|>", "<think>\nx\n</think>\n\ny", "<think></think>", "<|im_", "|im_end|>", "<<|im_end|>>", "<s>x</s>", "[PAD1]", "<0x41>", "<unk>",
    "\u2581x\u2581", "a" * 300, "ab" * 200, "1" * 100, "!" * 100, " " * 100 + "x", "\n" * 50, "word " * 80, "\u00e9" * 60, "\U0001f98a" * 30,
    models.TRAINING_TEXT, "The quick brown fox didn't jump over the lazy dog's 12345 bones", "Quick Fox", "the\tquick\r\nbrown", "foxes jumped over",
]
DECOMPOSED = ["cafe\u0301 re\u0301sume\u0301", "\u1100\u1161\u11a8", "A\u030a\u0323", "\u212b \u2126", "\u0958", "e\u0301<|im_end|>o\u0308\u0304"]


def tokenizer(t: Tally, work: Path, folders: list[Path]) -> None:
    from tokenizers import Tokenizer
    for kind in (*models.SPLITS, "llama"):
        folder, file = work / f"tokenizer-{kind}", work / f"tokenizer-{kind}.gguf"
        models.tokenizer_case(folder, kind)
        done = export(folder, file)
        if done.returncode:
            t.line(False, f"tokenizer {kind}", done.stderr.decode().strip())
            continue
        keys = {f.name: f.contents() for f in gguf.GGUFReader(file).fields.values()}
        pre = {"llama": "default"}.get(kind, kind)
        reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        token_type = {"<|im_start|>": 3, "<think>": 4, "[PAD%d]" % reference.get_vocab_size(): 5, "a": 1}
        token_type |= {"<unk>": 2, "<0x0A>": 6} if kind == "llama" else {}
        end = {"llama": "</s>"}.get(kind, "<|im_end|>")
        expected = {"pre": pre, "model": "llama" if kind == "llama" else "gpt2", "eos_token_id": reference.token_to_id(end),
                    "eot_token_id": reference.token_to_id("<|im_start|>"), "padding_token_id": reference.token_to_id("<|im_start|>"),
                    "add_bos_token": kind in ("llama", "llama-bpe"), "add_eos_token": False}
        wrong_keys = [k for k, v in expected.items() if keys[f"tokenizer.ggml.{k}"] != v]
        tokens = keys["tokenizer.ggml.tokens"]
        wrong_keys += [k for k, v in token_type.items() if keys["tokenizer.ggml.token_type"][tokens.index(k)] != v]
        wrong_keys += [k for k, v in {"temp": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "penalty_repeat": 1.05}.items()
                       if abs(keys[f"general.sampling.{k}"] - v) > 1e-6]
        ok = not wrong_keys and keys["tokenizer.chat_template"].startswith("{% for m")
        t.line(ok, f"tokenizer {kind} keys", " ".join(wrong_keys) or f"pre is {pre}, {len(tokens)} tokens")
        for title, corpus in (("", CORPUS), (", decomposed text", DECOMPOSED)):
            if title and not kind.startswith("qwen"):
                continue
            wrong, text_file = [], work / "text.txt"
            for text in corpus:
                text_file.write_bytes(text.encode())
                done = call(t.run, file, "-m", "tokenize", "-f", text_file)
                got = done.stdout.decode().split() if done.returncode == 0 else [f"exit {done.returncode}", done.stderr.decode()[-200:]]
                want = [str(i) for i in reference.encode(text).ids]
                if got != want:
                    wrong.append((text, got, want))
            t.line(not wrong, f"tokenizer {kind}{title}", f"{len(corpus) - len(wrong)} of {len(corpus)} texts have HuggingFace's ids")
            for text, got, want in wrong[:5]:
                first = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
                print(f"       {text[:50]!r} from token {first}: got {' '.join(got[first:first + 8])}; expected "
                      f"{' '.join(want[first:first + 8])} {[reference.id_to_token(int(i)) for i in want[first:first + 4]]}")


# ---- exporter --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [  # family, changes to config.json, what the sentence names
    *((family, changes, word) for family in ("llama", "qwen3", "qwen35") for changes, word in (
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"architectures": ["PhiForCausalLM"]}, "PhiForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4}}, "longrope"),
        ({"new_twist": 0.5}, "new_twist"),
        ({"layer_types": ["chunked_attention"] * 4, "num_hidden_layers": 4}, "chunked_attention"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"vocab_size": 130}, "vocab_size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    )),
    ("llama", {"mlp_bias": True}, "mlp.gate_proj.bias"),
    ("qwen2", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotated"),
    ("llama", {"sliding_window": 16}, "sliding_window"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("llama", {"head_dim": 10}, "attn_q"),
    ("llama", {"num_hidden_layers": 4, "layer_types": None}, "model.layers.3"),
    ("llama", {"num_hidden_layers": 2, "layer_types": None}, "model.layers.2"),
    ("qwen3", {"attention_bias": True}, "self_attn.q_proj.bias"),
    ("qwen3", {"rope_parameters": {"rope_type": "llama3"}}, "llama3"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": "8", "max_window_layers": 0, "layer_types": None}, "sliding_window"),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}, "original_max_position_embeddings": -4}, "original_max_position_embeddings"),
    ("qwen35", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
    ("llama", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
    ("llama", {"head_dim": 2**30}, "heads"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rope_theta"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "linear"),
    ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma3", {"final_logit_softcapping": "30"}, "final_logit_softcapping"),
    ("gemma3", {"sliding_window": None}, "sliding_window"),
    ("gemma3", {"hidden_activation": "mish"}, "hidden_activation"),
    ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"use_sliding_window": True, "layer_types": None, "max_window_layers": 0, "sliding_window": 0}, "sliding_window"),
    ("qwen2", {"num_key_value_heads": 5}, "num_key_value_heads"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_attention"),
    ("qwen35", {"attn_output_gate": False}, "attn_output_gate"),
    ("qwen35", {"output_gate_type": "sigmoid"}, "output_gate_type"),
    ("qwen35", {"linear_num_value_heads": 5}, "linear_num_value_heads"),
    ("qwen35", {"linear_value_head_dim": 4}, "attn_qkv"),
    ("gla", {"hidden_act": "gelu"}, "hidden_act"),
    ("gla", {"hidden_act": "powlu"}, "hidden_act"),
    ("gla", {"feature_map": "elu"}, "feature_map"),
    ("gla", {"feature_map": "bias_gelu"}, "feature_map"),
    ("gla", {"num_kv_heads": 3}, "heads"),
    ("gla", {"attnres_block_size": 3}, "attnres_block_size"),
    ("gla", {"attn": {"layers": [7], "num_heads": 4}}, "layers"),
    ("gla", {"attn": {"layers": [0, 0], "num_heads": 4}}, "layers"),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "attention_factor": 1.5}}, "attention_factor"),
    ("gla", {"attn": {"layers": [1]}}, "num_heads"),
    ("gla", {"conv_bias": True}, "conv_bias"),
    ("gla", {"clamp_min": "low"}, "clamp_min"),
]


def exporter(t: Tally, work: Path, folders: list[Path]) -> None:
    base = {name: name for name in ("llama", "qwen3", "qwen35", "qwen2", "gemma3")}
    for family, name in base.items():
        models.transformers_case(work / "base" / family, name)
    models.gla_case(work / "base" / "gla", "gla")

    for family, changes, word in REFUSED:
        folder = work / "refused"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "base" / family, folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        refused(t, f"{family} with {json.dumps(changes)[1:-1][:60]}", folder, work, word)

    def spoil(title: str, word: str, change: Any, *options: object, family: str = "qwen35") -> None:
        folder = work / "spoiled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "base" / family, folder)
        change(folder)
        refused(t, title, folder, work, word, *options)

    def tensor(name: str, value: torch.Tensor | None) -> Any:
        def change(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors") | {name: value}
            save_file({n: v for n, v in tensors.items() if v is not None}, folder / "model.safetensors")
        return change

    norm, up = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"
    spoil("a missing tensor", norm, tensor(norm, None))
    spoil("a tensor too many", "model.layers.1.surprise", tensor("model.layers.1.surprise.weight", torch.ones(3)))
    spoil("a value that is not a number", "ffn_up", tensor(up, torch.full((80, 48), float("nan"))))
    spoil("a value too large for float16", "ffn_up", tensor(up, torch.full((80, 48), 1e5)), "--type", "f16")
    spoil("an integer tensor", "I32", tensor(up, torch.ones(80, 48, dtype=torch.int32)))
    spoil("a cut checkpoint", "model.safetensors", lambda d: os.truncate(d / "model.safetensors", 5000))
    spoil("no checkpoint", "model.safetensors", lambda d: (d / "model.safetensors").unlink())
    spoil("no config.json", "config.json", lambda d: (d / "config.json").unlink())
    spoil("config.json that is not JSON", "config.json", lambda d: (d / "config.json").write_text("{"))
    spoil("config.json that is a list", "config.json", lambda d: (d / "config.json").write_text("[]"))
    spoil("a shard that is not there", "other.safetensors",
          lambda d: (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {norm: "other.safetensors"}})))
    spoil("a tokenizer larger than the embedding", "rows", lambda d: (models.tokenizer_case(work / "tok", "qwen2"), shutil.copy(
        work / "tok" / "tokenizer.json", d)))

    done = export(work / "base" / "llama", work / "no" / "such" / "folder.gguf")
    t.line(done.returncode == 1, "an output folder that is not there", done.stderr.decode().strip())
    inputs, link = work / "inputs", work / "inputs.gguf"
    shutil.copytree(work / "base" / "llama", inputs)
    (work / "pipe.gguf").symlink_to("/dev/null")
    for out in (inputs / "model.safetensors", inputs / ".." / "inputs" / "config.json", link, work / "pipe.gguf"):
        if out == link:
            os.link(inputs / "model.safetensors", link)
        before = out.read_bytes()
        done = export(inputs, out)
        t.line(done.returncode == 1 and out.read_bytes() == before and b"replaced" in done.stderr, f"{out.name} is not replaced",
               done.stderr.decode().strip())
    done = [export(inputs, inputs / "out.gguf") for _ in range(2)][-1]
    t.line(done.returncode == 0 and not list(inputs.glob("*.tmp")), "an export beside the checkpoint, and again",
           done.stderr.decode().strip())
    done = export(work / "base" / "llama", work / "x.gguf", "--type", "q2_k")
    t.line(done.returncode == 2, "misuse ends with 2", done.stderr.decode().strip().splitlines()[-1][:80])
    command_line(t, work, work / "base" / "llama")
    (work / "ignored").mkdir()
    shutil.copytree(work / "base" / "llama", work / "ignored" / "llama")
    config = json.loads((work / "base" / "llama" / "config.json").read_text())
    (work / "ignored" / "llama" / "config.json").write_text(json.dumps(config | {"new_twist": 0.5}))
    same(t, "--ignore", work, work / "base" / "llama", [], work / "ignored" / "llama", ["--ignore", "new_twist"])

    for family in base | {"gla": ""}:
        same(t, f"{family} twice", work, work / "base" / family, [], work / "base" / family, ["--type", "bf16"])
    models.transformers_case(work / "shards" / "qwen35", "qwen35", shards=4)
    same(t, "four shards", work, work / "base" / "qwen35", ["--type", "q8_0"], work / "shards" / "qwen35", ["--type", "q8_0"])
    multimodal(work / "base" / "qwen35", work / "multimodal" / "qwen35")
    same(t, "the text tower of a multimodal checkpoint", work, work / "base" / "qwen35", [], work / "multimodal" / "qwen35", [])
    multimodal_gemma(t, work)
    pytorch_files(t, work)
    output_matrices(t, work)
    chat_templates(t, work)
    old_gemma(t, work)
    drafting(t, work)
    for folder in folders:
        contradictions(t, work, folder)
    odd_fields(t, work)
    odd_files(t, work)


def command_line(t: Tally, work: Path, folder: Path) -> None:
    """The options as llama.cpp spells them, and one sentence for types that are not written."""
    tool, out = [sys.executable, ROOT / "export.py"], work / "spelled.gguf"
    want = work / "plain.gguf"
    done = export(folder, want, "--type", "q8_0")
    for args in ([folder, "--outtype", "q8_0", "--outfile", out], [folder, out, "--outtype=Q8_0"],
                 [folder, "--type", "q8_0", out], ["--outfile", out, "--outtype", "q8_0", folder]):
        out.unlink(missing_ok=True)
        done = subprocess.run([*tool, *args], capture_output=True)
        words = " ".join(getattr(a, "name", a) for a in args)
        t.line(done.returncode == 0 and out.read_bytes() == want.read_bytes(), words, done.stderr.decode()[-200:])
    auto, default = (export(folder, out, *options) and out.read_bytes() for options in (["--outtype", "auto"], []))
    t.line(auto == default, "--outtype auto is the default", "")
    for args, word in (([folder, out, "--outtype", "q4_k_m"], "K-quants"),
                       ([folder, out, "--type", "q5_0"], "bf16, q8_0 and q4_0"), ([folder], "--outfile"), ([folder, out, "--outfile", out], "given once")):
        done = subprocess.run([*tool, *args], capture_output=True)
        said = done.stderr.decode().strip().splitlines()[-1]
        t.line(done.returncode == 2 and word in said, f"misuse: {word}", said)


def refused(t: Tally, title: str, folder: Path, work: Path, word: str, *options: object) -> None:
    """Exit 1, one sentence that names the cause, and no file, whole or half."""
    out = work / "refused-out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    done = export(folder, out / "x.gguf", *options)
    said = done.stderr.decode().strip()
    ok = done.returncode == 1 and said.count("\n") == 0 and word in said and "Error:" not in said and not any(out.iterdir())
    t.line(ok, f"refuses {title}", said[-160:] if ok else f"exit {done.returncode}, {said[-300:]!r}")


def same(t: Tally, title: str, work: Path, a: Path, options_a: list, b: Path, options_b: list) -> None:
    for i, (folder, options) in enumerate(((a, options_a), (b, options_b))):
        done = export(folder, work / f"same{i}.gguf", *options)
        if done.returncode:
            return t.line(False, f"same bytes: {title}", done.stderr.decode().strip())
    t.line((work / "same0.gguf").read_bytes() == (work / "same1.gguf").read_bytes(), f"same bytes: {title}",
           f"{(work / 'same0.gguf').stat().st_size} bytes")


def multimodal(source: Path, target: Path) -> None:
    """The same language model as Qwen3_5ForConditionalGeneration stores it."""
    text = json.loads((source / "config.json").read_text())
    tensors = {n.replace("model.", "model.language_model.", 1) if n.startswith("model.") else n: v
               for n, v in load_file(source / "model.safetensors").items()}
    tensors |= {"model.visual.patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "model.visual.merger.norm.weight": torch.ones(4)}
    config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "image_token_id": 3, "vision_start_token_id": 4,
              "tie_word_embeddings": text.pop("tie_word_embeddings"), "vision_config": {"depth": 2}, "text_config": text}
    del text["architectures"]
    models.save(target, config, tensors, shards=2)


def multimodal_gemma(t: Tally, work: Path) -> None:
    """Gemma3ForConditionalGeneration: both places where transformers has kept its language model, and the fields that its text_config leaves
    out."""
    source = work / "base" / "gemma3"
    for style, (prefix, head, tower) in {"of old": ("language_model.model.", "language_model.lm_head.weight", "vision_tower."),
                                         "of transformers 5": ("model.language_model.", "lm_head.weight", "model.vision_tower.")}.items():
        target = work / f"gemma-{len(style)}" / "gemma3"
        tensors = load_file(source / "model.safetensors")
        tensors = {n.replace("model.", prefix, 1): v for n, v in tensors.items()}
        tensors |= {tower + "embeddings.weight": torch.ones(3, 4), tower.replace("vision_tower", "multi_modal_projector") + "norm.weight": torch.ones(4)}
        if style == "of old":
            tensors[head] = tensors[prefix + "embed_tokens.weight"].clone()
        text = json.loads((source / "config.json").read_text())
        usual = {"tie_word_embeddings", "rms_norm_eps", "hidden_activation", "attention_bias", "rope_parameters", "layer_types", "architectures"}
        config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256, "boi_token_index": 5,
                  "image_token_index": 6, "eoi_token_index": 7, "vision_config": {"hidden_size": 4},
                  "text_config": {n: v for n, v in text.items() if n not in usual}}
        models.save(target, config, tensors)
        same(t, f"the text tower of a Gemma 3 checkpoint {style}", work, source, [], target, [])


def old_gemma(t: Tally, work: Path) -> None:
    """config.json as transformers 4 wrote it says the same in other fields."""
    name = "gemma3-linear-rope"
    models.transformers_case(work / "new" / name, name)
    shutil.copytree(work / "new" / name, work / "older" / name)
    config = json.loads((work / "new" / name / "config.json").read_text())
    for field in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        config.pop(field, None)
    config |= {"rope_theta": 1000000.0, "rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
               "sliding_window_pattern": 6}
    (work / "older" / name / "config.json").write_text(json.dumps(config))
    same(t, "a Gemma 3 configuration of transformers 4", work, work / "new" / name, [], work / "older" / name, [])


def pytorch_files(t: Tally, work: Path) -> None:
    """pytorch_model.bin, whole, in shards, and as torch wrote it before it wrote archives; and files that are something else."""
    source = work / "base" / "llama"
    tensors = load_file(source / "model.safetensors")
    names = list(tensors)
    for title, shards, old in (("a PyTorch file", 1, False), ("an old PyTorch file", 1, True), ("PyTorch shards", 3, False)):
        folder = work / f"bin-{shards}{old:d}" / "llama"
        folder.mkdir(parents=True)
        shutil.copy(source / "config.json", folder)
        parts = {f"pytorch_model-{i + 1:05}.bin" if shards > 1 else "pytorch_model.bin": names[i::shards] for i in range(shards)}
        for file, part in parts.items():
            torch.save({n: tensors[n] for n in part}, folder / file, _use_new_zipfile_serialization=not old)
        if shards > 1:
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {n: f for f, part in parts.items() for n in part}}))
        same(t, title, work, source, [], folder, [])
    spoiled = work / "spoiled-bin"
    spoiled.mkdir()
    shutil.copy(source / "config.json", spoiled)
    for title, content, word in (("a PyTorch file that runs a program", {"x": Path("/")}, "tensors"), ("a PyTorch file that holds a list", [1], "by name"),
                                 ("a PyTorch file that holds a number", {"model.norm.weight": 1}, "by name")):
        torch.save(content, spoiled / "pytorch_model.bin")
        refused(t, title, spoiled, work, word)
    for title, size in (("a cut PyTorch file", 3000), ("an empty PyTorch file", 0)):
        torch.save(tensors, spoiled / "pytorch_model.bin")
        os.truncate(spoiled / "pytorch_model.bin", size)
        refused(t, title, spoiled, work, "pytorch_model.bin")
    for title, index, word in (("an index without shards", {"weight_map": {}}, "weight_map"), ("an index that is a list", [], "weight_map"),
                               ("an index of numbers", {"weight_map": {"a": 1}}, "weight_map"), ("an index that leads elsewhere", {"weight_map": {"a": "../x"}}, "same folder")):
        (spoiled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        refused(t, title, spoiled, work, word)


def output_matrices(t: Tally, work: Path) -> None:
    """An output matrix that differs from the embedding is kept whatever tie_word_embeddings says; one that equals it is not stored twice."""
    for title, tied, differs, kept in (("tied, and differs", True, True, True), ("tied, and the same", True, False, False),
                                       ("not tied, and the same", False, False, True), ("not tied, and absent", False, None, False)):
        folder = work / "heads" / title.replace(" ", "-")
        shutil.copytree(work / "base" / "llama", folder)
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        head = tensors["model.embed_tokens.weight"].clone()
        if differs:
            head[-1, -1] += 1
        tensors = {n: v for n, v in tensors.items() if n != "lm_head.weight"} | ({} if differs is None else {"lm_head.weight": head})
        save_file(tensors, folder / "model.safetensors")
        done = export(folder, folder / "x.gguf")
        found = done.returncode == 0 and any(x.name == "output.weight" for x in gguf.GGUFReader(folder / "x.gguf").tensors)
        t.line(done.returncode == 0 and found == kept, f"an output matrix, {title}", f"{'' if found else 'not '}stored")


def chat_templates(t: Tally, work: Path) -> None:
    """Where a checkpoint keeps its template, and what stands above what."""
    config, second = {"chat_template": "from the configuration"}, {"chat_template": "from the file of old"}
    several = {"chat_template": [{"name": "default", "template": "A"}, {"name": "tools", "template": "B"}]}
    cases = {"chat_template.jinja": ({"chat_template.jinja": "from its own file"}, config, "from its own file", []),
             "tokenizer_config.json": ({}, config, "from the configuration", []),
             "chat_template.json": ({"chat_template.json": json.dumps(second)}, {}, "from the file of old", []),
             "a list": ({}, several, "A", ["tools"]),
             "further files": ({"chat_template.jinja": "C", "additional_chat_templates/rag.jinja": "D"}, config, "C", ["rag"]), "none": ({}, {}, None, [])}
    for title, (files, settings, expected, others) in cases.items():
        folder = work / "templates" / title.replace(" ", "-")
        models.tokenizer_case(folder, "qwen2")
        for file in ("chat_template.jinja", "chat_template.json"):
            (folder / file).unlink(missing_ok=True)
        kept = json.loads((folder / "tokenizer_config.json").read_text())
        kept.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(kept | settings))
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        done = export(folder, folder / "x.gguf")
        keys = {f.name: f.contents() for f in gguf.GGUFReader(folder / "x.gguf").fields.values()} if done.returncode == 0 else {}
        got, named = keys.get("tokenizer.chat_template"), keys.get("tokenizer.chat_templates", [])
        t.line(done.returncode == 0 and got == expected and named == others, f"chat template: {title}", f"{got!r} {named}")
    (folder / "tokenizer_config.json").write_text(json.dumps(kept | {"chat_template": 5}))
    refused(t, "a chat template that is a number", folder, work, "chat_template")


# Fields that no weights but their own go with.
SIZES = ("hidden_size", "vocab_size", "intermediate_size",
         "num_attention_heads", "num_key_value_heads",
         "num_kv_heads", "num_v_heads", "num_slots", "conv_kernel", "state_size", "n_groups",
         "linear_conv_kernel_dim", "linear_num_key_heads", "linear_value_head_dim")


def contradictions(t: Tally, work: Path, folder: Path) -> None:
    """A config.json whose sizes are not those of the weights: one sentence that names the field or
    the tensor, and no file. Every tensor of the checkpoint has a shape to compare it with."""
    spoiled, out, wrong = work / "sizes" / folder.name, work / "sizes-out", []
    out.mkdir(exist_ok=True)
    said = export_here(folder, out / "x.gguf", "f32")
    if said:
        return t.line(False, f"sizes of {folder.name}", f"refused as it is: {said}")
    import export as program
    reader = gguf.GGUFReader(out / "x.gguf")
    arch = reader.fields["general.architecture"].contents()
    unknown = [x.name for x in reader.tensors if not program.shape_in_letters(arch, x.name)]
    wrong += [f"{name} has no shape" for name in unknown if not name.endswith("ssm_decay")]
    (out / "x.gguf").unlink()
    shutil.copytree(folder, spoiled)
    config = json.loads((folder / "config.json").read_text())
    fields = [name for name in SIZES if type(config.get(name)) is int]
    changes = {name: 2 * config[name] for name in fields}
    if "linear_attention" in config.get("layer_types", []):
        changes["layer_types"] = config["layer_types"][::-1]
    for name, value in changes.items():
        (spoiled / "config.json").write_text(json.dumps(config | {name: value}))
        said = export_here(spoiled, out / "x.gguf", "f32")
        named = any(x in said for x in (name, "model.", "backbone."))
        if not named or "\n" in said or any(out.iterdir()):
            wrong.append(f"{name} = {value}: {said or 'exported'}")
        (out / "x.gguf").unlink(missing_ok=True)
    t.line(not wrong, f"sizes of {folder.name} that are not those of its weights",
           ", ".join(changes) + "".join(f"\n       {line}" for line in wrong[:5]))


ODD = [None, -1, 0, 2**31, 10**400, 1e308, 0.5, "x", [], [None], True, {"a": 1}, float("nan")]


def odd_fields(t: Tally, work: Path) -> None:
    """Every field of config.json at values it should not have: a file, or one sentence that is not Python's."""
    bases = [work / "base" / name for name in ("llama", "qwen2", "gemma3", "qwen35", "gla")]
    bases += [ROOT / "tests" / "golden" / name for name in ("samba-a", "rwkv7-a", "rwkv6-a", "hgrn2-a")]
    more = ["text_config", "rope_scaling", "rope_theta", "head_dim", "mlp_bias", "attention_bias", "partial_rotary_factor", "use_sliding_window",
            "sliding_window_pattern", "num_heads", "value_dim"]
    for base in bases:
        folder, wrong, n = work / "odd", [], 0
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        config = json.loads((base / "config.json").read_text())
        inner = [(outer, name) for outer in ("rope_parameters", "attn") if isinstance(config.get(outer), dict) for name in config[outer]]
        for path in [(name,) for name in [*config, *more]] + inner:
            for value in ODD:
                changed = config | {path[0]: value} if len(path) == 1 else config | {path[0]: config[path[0]] | {path[1]: value}}
                (folder / "config.json").write_text(json.dumps(changed))
                n += 1
                try:
                    export_here(folder, work / "odd.gguf", "f32")
                except Exception as error:  # what export.py did not foresee
                    wrong.append(f"{'.'.join(path)} = {str(value)[:20]}: {type(error).__name__}: {error}")
        t.line(not wrong, f"odd values in {base.name}/config.json", f"{n} tried" + "".join(f"\n       {line}" for line in wrong[:5]))


def odd_files(t: Tally, work: Path) -> None:
    """Other files of a checkpoint that hold what they should not: the tensors' header, cut files, generation_config.json ..."""
    folder, wrong, n = work / "odd-files", [], 0
    shutil.copytree(work / "base" / "qwen2", folder)
    whole = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + length])
    sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "do_sample": True, "eos_token_id": [1, 2], "repetition_penalty": 1.1}

    def attempt(title: str, name: str, content: bytes) -> None:
        nonlocal n
        n += 1
        (folder / name).write_bytes(content)
        try:
            said = export_here(folder, work / "odd.gguf", "f32")
        except Exception as error:  # what export.py did not foresee
            said = f"{type(error).__name__}: {error}\n"
        if "\n" in said:
            wrong.append(f"{title}: {said}")

    for i, (tensor, entry) in enumerate(header.items()):
        for value in ODD[i % 3::3]:
            for changed in (value, *({**entry, field: value} for field in entry)):
                text = json.dumps(header | {tensor: changed}).encode()
                attempt(f"{tensor} {str(value)[:20]}", "model.safetensors", len(text).to_bytes(8, "little") + text + whole[8 + length:])
    for cut in (0, 1, 7, 8, 9, 100, length, 8 + length, 9 + length, len(whole) - 1):
        attempt(f"cut to {cut} bytes", "model.safetensors", whole[:cut])
    (folder / "model.safetensors").write_bytes(whole)
    for name in ("generation_config.json", "tokenizer_config.json", "chat_template.json", "model.safetensors.index.json"):
        fields = sampling if name == "generation_config.json" else {}
        for value in ODD:
            for content in (value, *(sampling | {field: value} for field in fields)):
                attempt(f"{name} {str(content)[:40]}", name, json.dumps(content).encode())
        attempt(f"{name} that is no text", name, b"\xff\xfe{")
        (folder / name).unlink()
    t.line(not wrong, "odd files", f"{n} tried" + "".join(f"\n       {line}" for line in wrong[:5]))


def drafting(t: Tally, work: Path) -> None:
    """A checkpoint with the block that predicts the token after next: stored behind the main stack, which stays as it was."""
    source, target = work / "base" / "qwen35", work / "mtp"
    tensors = load_file(source / "model.safetensors")
    width = tensors["model.norm.weight"].shape[0]
    block = {n.replace("model.layers.3.", "mtp.layers.0."): v.clone() for n, v in tensors.items() if n.startswith("model.layers.3.")}
    block |= {"mtp.fc.weight": torch.ones(width, 2 * width), **{f"mtp.{n}.weight": torch.zeros(width) for n in (
        "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}}
    config = json.loads((source / "config.json").read_text())
    models.save(target, config | {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}, tensors | block)
    done = export(target, work / "mtp.gguf", "--type", "f32")
    if done.returncode:
        return t.line(False, "drafting block", done.stderr.decode().strip())
    reader = gguf.GGUFReader(work / "mtp.gguf")
    found = {x.name for x in reader.tensors}
    keys = {f.name: f.contents() for f in reader.fields.values()}
    extra = {n for n in found if n.startswith("blk.4.")}
    ok = keys["qwen35.block_count"] == 5 and keys["qwen35.nextn_predict_layers"] == 1 and len(extra) == 15 and {
        f"blk.4.nextn.{n}.weight" for n in ("eh_proj", "enorm", "hnorm", "shared_head_norm")} < extra
    t.line(ok, "drafting block", f"{len(extra)} tensors in blk.4, block_count {keys['qwen35.block_count']}")
    ids = np.arange(1, 40)
    export(source, work / "no-mtp.gguf", "--type", "f32")
    same(t, "--mtp, as without it", work, target, ["--mtp"], target, [])
    done = export(target, work / "without.gguf", "--type", "f32", "--no-mtp")
    (work / "bare").mkdir()
    models.save(work / "bare" / "mtp", config, tensors)
    export(work / "bare" / "mtp", work / "bare.gguf", "--type", "f32")
    t.line(not done.returncode and b"left out: mtp." in done.stdout and (work / "without.gguf").read_bytes() == (work / "bare.gguf").read_bytes(),
           "--no-mtp leaves the drafting block out", done.stderr.decode().strip())
    for option, asked in (("without the tensors", target), ("of a family without it", work / "base" / "llama")):
        folder = work / "refused-mtp" / asked.name
        models.save(folder, json.loads((asked / "config.json").read_text()),
                    {n: v for n, v in load_file(asked / "model.safetensors").items() if not n.startswith("mtp.")})
        refused(t, f"--mtp {option}", folder, work, "--mtp", "--mtp")
    if t.run.is_file():
        a, b = (run_logits(t.run, work / f, ids) for f in ("mtp.gguf", "no-mtp.gguf"))
        t.line(not isinstance(a, str) and np.array_equal(a, b), "drafting block leaves the logits alone", a if isinstance(a, str) else "")


def main() -> int:
    sections = {f.__name__: f for f in (exporter, golden, random, gla, mixers, bind, quantised, tokenizer)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="golden folders; naming some runs the section golden alone")
    parser.add_argument("--only", help=f"sections out of {','.join(sections)}")
    parser.add_argument("--run", type=Path, default=Tally.run)
    parser.add_argument("--keep", type=Path, help="leave the checkpoints and files here")
    args = parser.parse_args()
    t = Tally()
    t.run = args.run.resolve()
    chosen = args.only.split(",") if args.only else ["golden"] if args.folders else list(sections)
    if unknown := set(chosen) - set(sections):
        parser.error(f"no section {', '.join(unknown)}")
    if not t.run.is_file() and chosen != ["exporter"]:
        parser.error(f"{args.run} does not exist; build it first (make)")
    folders = args.folders or sorted(p.parent for p in (ROOT / "tests" / "golden").glob("*/golden.npz"))
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen:
            print(f"-- {name}")
            work = (args.keep or Path(temporary)) / name
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            sections[name](t, work, folders)
    print(f"{t.passed} passed, {t.failed} failed")
    return t.failed > 0


if __name__ == "__main__":
    sys.exit(main())
