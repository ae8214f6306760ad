#!/usr/bin/env python3
"""Do our files load in llama.cpp, and does it continue a text as ./run does?

Tiny random models with tokenizers, exported at f32 (and q8_0, bf16), read by llama-cpp-python. Compared are the ids of a corpus,
the logits of every position, and the greedy continuation: llama.cpp's own tokens, each checked against ./run's
best token. Then SmolLM2's own weights: how far each program is from transformers on the same weights as
float32, in the figures of real.py.
Own virtual environment, as llama-cpp-python compiles llama.cpp:

    python3 -m venv .venv-llamacpp
    CMAKE_ARGS=-DLLAVA_BUILD=OFF .venv-llamacpp/bin/pip install -r tests/requirements-llamacpp.txt
    .venv-llamacpp/bin/python tests/llamacpp.py
"""
from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

import make_models as models
import real
from parity import CORPUS, Tally, call, dequantised_twin, export, run_logits

# name, configuration, tokenizer, type; llama.cpp's qwen35 needs dk = dv, its qwen3 and llama an unscaled or llama3 rotation
CASES = [
    ("qwen35", "qwen35-three-per-key", "qwen35", "f32"),
    ("qwen35 irregular", "qwen35-irregular", "qwen35", "f32"),
    ("qwen35 bf16", "qwen35-wide", "qwen35", "bf16"),
    ("qwen35 q8_0", "qwen35-wide", "qwen35", "q8_0"),
    ("qwen35 q4_0", "qwen35-wide", "qwen35", "q4_0"),
    ("qwen3", "qwen3-one-kv", "qwen2", "f32"),
    ("qwen3 tied", "qwen3-wide", "qwen2", "f32"),
    ("qwen3 linear rope", "qwen3-linear-rope", "gpt-2", "f32"),
    ("llama", "llama-tied", "llama-bpe", "f32"),
    ("llama 3 rope", "llama-3-rope", "llama", "f32"),
    ("llama bias", "llama-bias", "gpt-2", "f32"),
    ("llama q8_0", "llama-wide", "llama", "q8_0"),
    ("llama yarn", "llama-yarn", "gpt-2", "f32"),
    ("qwen2", "qwen2", "qwen2", "f32"),
    ("qwen2 tied", "qwen2-tied", "qwen2", "f32"),
    ("gemma3", "gemma3", "qwen2", "f32"),
    ("gemma3 softcap", "gemma3-softcap", "qwen2", "f32"),
    ("gemma3 linear rope", "gemma3-linear-rope", "qwen2", "f32"),
]
# llama.cpp rounds activations to 8 bits before a quantised product and to bfloat16 before a bfloat16 one, which ./run need not
# do. So ./run's logits are held against llama.cpp's on the same weights stored as float32, and llama.cpp's on our file against
# those too, by mean KL divergence: enough to see a block read wrongly, no judgement on its rounding. ./run rounds activations to
# 16 bits before a block-quantised product, so there its own bound is the promised one, a divergence below 1e-3.
BOUND, KL_BOUND, OUR_KL_BOUND = 2e-3, 0.05, 1e-3
GELU_BOUND = 6e-3  # llama.cpp rounds the argument and the value of a GELU to half precision (a table)


PROMPT = "The quick brown fox didn't jump over 12345 bones;"


class Model:
    """Just enough of llama.cpp's C interface: ids of a text, logits of every position."""

    def __init__(self, file: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp does not load the file")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: bytes) -> list[int]:
        ids = (llama_cpp.llama_token * (len(text) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, len(ids), True, True)
        return list(ids[:n])

    def logits(self, ids: list[int]) -> np.ndarray:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads = 512, 512, 1
        params.type_k = params.type_v = 0  # float32 cache; the default rounds it to float16
        params.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(self.model, params)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp does not evaluate the model")
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (self.n_vocab,)).copy() for i in range(len(ids))]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return np.array(rows)


def compare(t: Tally, name: str, config: str, tokenizer: str, kind: str, work: Path) -> None:
    folder, file = work / name.replace(" ", "-"), work / (name.replace(" ", "-") + ".gguf")
    rows = models.tokenizer_files(folder, tokenizer) + 3
    models.transformers_case(folder, config, length=1, vocab_size=rows)
    done = export(folder, file, "--type", kind)
    if done.returncode:
        return t.line(False, name, done.stderr.decode().strip())
    try:
        model = Model(file)
        ids = model.tokenize(PROMPT.encode())
        start = len(ids)
        for _ in range(32):
            ids.append(int(model.logits(ids)[-1].argmax()))
        theirs = model.logits(ids)
        if kind != "f32":
            dequantised_twin(file, file.with_suffix(".f32.gguf"))
            exact = Model(file.with_suffix(".f32.gguf")).logits(ids)
            kl, _ = real.divergence(exact, theirs)
            t.line(kl < KL_BOUND, f"{name} in llama.cpp", f"KL {kl:.1e} from its own float32 result (bound {KL_BOUND})")
            theirs = exact
    except RuntimeError as error:
        return t.line(False, name, str(error))
    ours = run_logits(t.run, file, np.array(ids))
    if isinstance(ours, str):
        return t.line(False, name, ours)
    worst = float(np.abs(ours - theirs).max())
    # A best token may differ only where the two best are closer than the two programs are.
    order = np.sort(ours[start - 1:-1], 1)
    differ = (ours[start - 1:-1].argmax(1) != np.array(ids[start:])) & (order[:, -1] - order[:, -2] > 2 * worst)
    bound = GELU_BOUND if name.startswith("gemma") else BOUND
    said = f"logits differ by at most {worst:.1e} (bound {bound:g})"
    if kind == "f32":
        said += f", {32 - int(differ.sum())} of 32 greedy tokens agree"
    if kind in ("q8_0", "q4_0"):
        kl, _ = real.divergence(theirs, ours)
        t.line(kl < OUR_KL_BOUND, name, f"KL {kl:.1e} (bound {OUR_KL_BOUND:g}), logits differ by at most {worst:.1e}")
    else:
        t.line(worst < bound and not (kind == "f32" and differ.any()), name, said)
    done = call(t.run, file, "-i", PROMPT, "-t", "0", "-n", "32", "--ignore-eos", "--repeat-penalty", "1")
    piece = (ctypes.c_char * 256)()
    text = b"".join(piece[:max(0, llama_cpp.llama_token_to_piece(model.vocab, i, piece, 256, 0, False))] for i in ids[start:])
    if kind == "f32":
        same = done.stdout.decode(errors="replace").strip() == text.decode(errors="replace").strip()
        t.line(same and done.returncode == 0, f"{name}, generated text",
               "equal" if same else f"\n     ./run     {done.stdout[:120]!r}\n     llama.cpp {text[:120]!r}")
        wrong = []
        for corpus_text in CORPUS:
            (work / "text.txt").write_bytes(corpus_text.encode())
            got = call(t.run, file, "-m", "tokenize", "-f", work / "text.txt").stdout.decode().split()
            if got != [str(i) for i in model.tokenize(corpus_text.encode())]:
                wrong.append(corpus_text)
        print(f"     {name}: {len(CORPUS) - len(wrong)} of {len(CORPUS)} texts have llama.cpp's ids; other ids (HuggingFace's, see "
              f"parity.py): {[w[:16] for w in wrong[:8]]}")
    llama_cpp.llama_model_free(model.model)


def real_weights(t: Tally, work: Path) -> None:
    """llama.cpp's figure beside ours, on the text of real.py: both read the quantised file, transformers
    its weights as float32."""
    file = real.MODELS["smollm2"].file()
    reference, model = real.Reference(file), Model(file)
    ids = reference.tokenizer(real.TEXT)["input_ids"]
    exact = reference.logits(ids)
    ours = [real.logits_of(t.run, file, ids, work, *options) for options in ((), ("--fast",))]
    logits = {"llama.cpp": model.logits(ids), "./run": ours[0], "./run --fast": ours[1]}
    for name, got in logits.items():
        print(f"     {real.agreement(f'smollm2, {name}', exact, got)[2]}")
    llama_cpp.llama_model_free(model.model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Tally.run)
    t = Tally()
    t.run = parser.parse_args().run.resolve()
    if not t.run.is_file():
        parser.error(f"{t.run} does not exist; build it first (make)")
    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as temporary:
        for name, config, tokenizer, kind in CASES:
            compare(t, name, config, tokenizer, kind, Path(temporary))
        real_weights(t, Path(temporary))
    print(f"{t.passed} passed, {t.failed} failed")
    return t.failed > 0


if __name__ == "__main__":
    sys.exit(main())
