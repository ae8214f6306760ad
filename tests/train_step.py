#!/usr/bin/env python3
"""One training step of train_tiny.c against PyTorch: loss, every gradient, the norm, every parameter after AdamW; for every mixer.

    python3 tests/train_step.py [--cc cc] [--only WORD] [--bench [--chunk N]]

First the PyTorch models (definitions/differentiable.py) themselves: their logits against the float64 definitions in definitions/ for
random checkpoints, and against the stored logits of the reference libraries (tests/golden), all by way of export.py, whose files have
the names that the trainer's have. Then the trainer: tests/test_train.c is compiled in double and in float with the fast
exponentials, dumps one step of a small model of each mixer, alone and as a hybrid, with and without a short convolution, and PyTorch
does the same step in float64. --only: mixers and checkpoints with this in their name. --bench measures instead the tokens per second
of the default model in PyTorch (float32, the same number of threads, fused AdamW, the fastest size of chunks) and in ./train_tiny.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import gguf
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "definitions")]
import differentiable as model
import export
import make_mixers
import make_models

# ---- the PyTorch models against the definitions and the libraries ----

CHECKPOINTS = ["gla", "gla-conv-3", "linear_attn elu", "retnet", "simple_gla", "hgrn2 by heads, no bounds", "lightnet", "lightnet by heads, convolutions",
               "gsa", "abc", "mamba2", "mamba2 groups", "delta_net", "delta_net gate, negative", "gated_deltanet", "gated_deltaproduct",
               "gated_deltaproduct three, no forgetting", "comba", "kda", "gdn2", "precond_gated_deltanet", "precond_kda", "rwkv6", "rwkv7", "transformer"]
GOLDENS = ["gla", "retnet", "hgrn2", "lightnet", "gsa", "abc", "mamba2", "mamba2hf-b", "deltanet", "gdn", "gdp", "comba", "kda", "rwkv6", "rwkv7",
           "transformer", "qwen35"]


def read_gguf(path: Path, bfloat16: bool):
    """Description and tensors of a file, as the trainer has them. bfloat16: the checkpoint's numbers were, so what the file holds a
    function of can be had back exactly."""
    file = gguf.GGUFReader(path)
    arch, p = file.fields["general.architecture"].contents(), {}

    def key(*names, absent=None):
        for name in names:
            if f"{arch}.{name}" in file.fields:
                value = file.fields[f"{arch}.{name}"].contents()
                value = max(value) if isinstance(value, list) else value       # one per layer, 0 where it does not apply
                return float(f"{value:.7g}") if isinstance(value, float) else value
        return absent

    for t in file.tensors:
        x = torch.from_numpy(t.data.astype(np.float64))
        if "conv1d" in t.name and x.dim() == 2:
            x = x.T
        if t.name.endswith(("ssm_a", "ssm_m_a", "ssm_p")):
            x = (-x).log() if t.name.endswith("a") else x.logit()
            x = x.bfloat16().double() if bfloat16 else x
        p[t.name] = x
    c = {"arch": arch, "layers": key("block_count"), "eps": key("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
         "divisor": key("mixer.decay_divisor", absent=16), "beta_scale": key("mixer.beta_scale", absent=1)}
    if H := key("mixer.head_count", "ssm.time_step_rank"):
        c |= {"heads": H, "k_heads": key("mixer.head_count_kv", "ssm.group_count", absent=H), "dk": key("mixer.key_length", "ssm.state_size", "wkv.head_size"),
              "dv": key("mixer.value_length") or key("ssm.inner_size") // H}
    if H := key("attention.head_count"):
        d = key("attention.key_length", absent=key("embedding_length") // H)
        c |= {"q_heads": H, "kv_heads": key("attention.head_count_kv"), "head_dim": d, "n_rot": key("rope.dimension_count", absent=d),
              "rope_base": key("rope.freq_base", absent=10000.0)}
    return c, p


def check_model(name: str, folder: Path, ids, want, bfloat16: bool, bound: float) -> bool:
    with tempfile.TemporaryDirectory() as tmp:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            export.export(folder, Path(tmp) / "model.gguf", "f32", [])
        c, p = read_gguf(Path(tmp) / "model.gguf", bfloat16)
    with torch.no_grad():
        err = float(np.abs(model.logits(p, torch.tensor(np.asarray(ids, dtype=np.int64))[None], c)[0].numpy() - want).max())
    print("ok  " if err < bound else "FAIL", f"logits of {name}: {err:.1e} (bound {bound:.0e})", flush=True)
    return err < bound


def check_models(only: str) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        for name in CHECKPOINTS:
            if only in name:
                case = make_models.gla_case if name in make_models.GLA_CASES else make_mixers.mixer_case
                folder = Path(tmp) / name.replace(" ", "-")
                failed += not check_model(name, folder, *case(folder, name), True, 1e-11)
    for name in GOLDENS:
        if only in name:
            folder = HERE / "golden" / (name if "-" in name else f"{name}-a")
            stored = np.load(folder / "golden.npz")
            # float32 over there. Qwen3.5's readouts may nearly vanish, and the norm behind them magnifies their rounding.
            failed += not check_model(f"{folder.name}, stored", folder, stored["tokens"], stored["logits"], False, 1e-3 if name == "qwen35" else 1e-4)
    return failed


# ---- the trainer against the PyTorch models ----

# loss and norm: relative. gradients: relative to the largest of their tensor. parameters: after the step, where the clipped gradient is
# larger than `small`. AdamW: the step alone, from the trainer's gradients; relative to the parameter or 1.
# In float, norm and gradients may be `magnified` more: a norm behind a readout that nearly vanishes magnifies its rounding, from model to
# model by 1 to 1000. PyTorch in float32 says how much it is: the bound is 8 times its own error and this.
BOUNDS = {"double": {"loss": 1e-13, "norm": 1e-12, "gradients": 1e-12, "parameters": 1e-10, "AdamW": 1e-14, "small": 1e-9},
          "float": {"loss": 1e-6, "norm": 1e-5, "gradients": 1e-5, "parameters": 2e-6, "AdamW": 2e-7, "small": 1e-5}}


def adamw(p, lr, decay, fused=False):
    """Weight decay pulls at what multiplies a vector: matrices and the table of tokens, not taps, norms, shares and what has a row per head."""
    kept = re.compile(r"conv1d|norm|lerp|_ln\.|_first|_r_k|ssm_[ad]$")
    on = [x for n, x in p.items() if x.dim() > 1 and not kept.search(n)]
    off = [x for n, x in p.items() if x.dim() < 2 or kept.search(n)]
    return torch.optim.AdamW([{"params": on, "weight_decay": decay}, {"params": off, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def take_step(p) -> float:
    """Returns the norm of the gradient, which is first scaled down to 0.5. (torch's own clip_grad_norm_ divides by the norm + 1e-6.)"""
    norm = float(torch.stack([x.grad.norm() for x in p.values()]).norm())
    for x in p.values():
        x.grad *= min(1.0, 0.5 / norm)
    adamw(p, 1e-2, 0.1).step()
    return norm


def read_dump(path: Path):
    """The description, and three dictionaries of tensors: parameters, gradients, parameters after the step."""
    c, tensors = {}, []
    for line in path.read_text().splitlines():
        name, *rest = line.split()
        if name == "tensor":
            rows, cols = int(rest[1]), int(rest[2])
            tensors.append((rest[0], (rows, cols) if rows else (cols,)))
        elif name in ("ids", "targets"):
            c[name] = torch.tensor([int(x) for x in rest]).reshape(c["batch"], c["seq_len"])
        else:
            c[name] = rest[0] if name == "arch" else float(rest[0]) if name in ("eps", "o_eps", "divisor", "loss", "norm") else int(rest[0])
    data, at, parts = torch.from_numpy(np.fromfile(path.with_suffix(".bin"))), 0, []
    for _ in range(3):
        part = {}
        for name, shape in tensors:
            size = int(np.prod(shape))
            part[name] = data[at:at + size].reshape(shape).clone()
            at += size
        parts.append(part)
    assert at == len(data)
    return c, parts


def gradients(before, c, dtype=torch.float64):
    """Loss, parameters with their gradients, names of constants."""
    p = {n: x.to(dtype, copy=True).requires_grad_(not n.endswith("ssm_decay")) for n, x in before.items()}
    loss = model.loss(p, c["ids"], c["targets"], c)
    loss.backward()
    constants = [n for n, x in p.items() if not x.requires_grad]
    for n in constants:
        del p[n]
    for n, x in p.items():
        assert x.grad is not None or n.startswith(model.UNUSED), f"the model in definitions/differentiable.py does not use {n}"
        x.grad = torch.zeros_like(x) if x.grad is None else x.grad
    return loss.item(), p, constants


def worst(errors):
    return max((float(x.max().nan_to_num(nan=float("inf"))), n) for n, x in errors.items())


def compare(path: Path, real: str) -> list[float]:
    """Prints one line; returns the errors as shares of their bounds."""
    bounds, (c, (before, grads, after)) = dict(BOUNDS[real]), read_dump(path)
    loss, p, constants = gradients(before, c)
    assert all(before[n].equal(after[n]) for n in constants)
    largest = {n: x.grad.abs().max().clamp(min=1e-30) for n, x in p.items()}
    errors = {"loss": (abs(loss - c["loss"]) / loss, ""), "norm": (0.0, ""), "gradients": worst({n: (p[n].grad - grads[n]).abs() / largest[n] for n in p})}
    if real == "float":
        single = gradients(before, c, torch.float32)[1]
        magnified = 8 * worst({n: (p[n].grad - single[n].grad).abs() / largest[n] for n in p})[0]
        bounds["norm"], bounds["gradients"] = bounds["norm"] + magnified, bounds["gradients"] + magnified

    ours = {n: x.detach().clone() for n, x in p.items()}
    for n, x in ours.items():
        x.grad = grads[n].clone()
    norm = take_step(p)
    take_step(ours)
    errors["norm"] = abs(norm - c["norm"]) / norm, ""
    # The first step is lr g / (|g| + 1e-8): where g is only rounding, its sign is too. Compare where g counts.
    counts = {n: x.grad.abs() > bounds["small"] for n, x in p.items()}
    share = sum(int(x.sum()) for x in counts.values()) / sum(x.numel() for x in counts.values())
    errors["parameters"] = worst({n: (x.detach() - after[n]).abs() * counts[n] for n, x in p.items()})
    errors["AdamW"] = worst({n: (x - after[n]).abs() / x.abs().clamp(min=1) for n, x in ours.items()})

    shares = [err / bounds[what] for what, (err, _) in errors.items()]
    ok = all(share < 1 for share in shares)                          # which is false, too, where one is no number
    print("ok  " if ok else "FAIL", f"{real:6} {path.stem[3:]:30}", ", ".join(f"{what} {err:.0e}" for what, (err, _) in errors.items()), f"({100 * share:.1f} %)",
          "" if ok else "bounds: " + ", ".join(f"{what} {bounds[what]:.0e} {where}".strip() for what, (_, where) in errors.items()), flush=True)
    return shares if ok else [float("inf")] * len(shares)


def compare_all(cc: str, only: str) -> int:
    failed = 0
    for real, flags in (("double", ["-DREAL=double"]), ("float", ["-DREAL=float", "-DFAST_EXP=1"])):
        with tempfile.TemporaryDirectory() as tmp:
            exe = Path(tmp) / "test_train"
            subprocess.run([cc, "-O1", *flags, "-o", exe, HERE / "test_train.c", "-lm"], check=True)
            subprocess.run([exe, "--dump", tmp], check=True)
            shares = [compare(path, real) for path in sorted(Path(tmp).glob("*.txt")) if only in path.stem]
        failed += sum(max(s) >= 1 for s in shares)
        if shares:
            margins = [1 / max(max(errors), 1e-9) for errors in zip(*shares)]
            print(f"{real}: {len(shares)} steps; bound / worst error:", ", ".join(f"{what} {m:.1f}" for what, m in zip(BOUNDS[real], margins)))
    return failed


# ---- speed ----

def chunked(q, k, v, decay, beta, size):
    """The gated delta rule in chunks of `size` tokens, as matrix products: what a fast PyTorch program does. v comes multiplied by beta;
    decay, beta (B, T, H, 1). Within a chunk, with G the running sum of ln decay and L_ij = exp(G_i - G_j), i >= j:
      (I + tril(beta_i k_i.k_j L_ij, -1)) w = v - beta exp(G) k S;  o = exp(G) q S + tril(q k' L) w
      S <- exp(G_end) S + (exp(G_end - G) k)' w"""
    B, T, H, dk = q.shape
    q, k, v = (x.transpose(1, 2).reshape(B, H, T // size, size, -1) for x in (q, k, v))
    g, beta = (x.transpose(1, 2).reshape(B, H, T // size, size, 1) for x in (decay.log(), beta))
    g = g.cumsum(-2)
    lower = torch.ones(size, size, dtype=torch.bool).tril()
    L = (g - g.transpose(-1, -2)).masked_fill(~lower, float("-inf")).exp()
    A = torch.eye(size, dtype=q.dtype) + (beta * (k @ k.transpose(-1, -2)) * L).tril(-1)
    both = torch.linalg.solve_triangular(A, torch.cat([v, beta * g.exp() * k], -1), upper=False, unitriangular=True)
    wv, wk = both.split([v.shape[-1], dk], -1)
    scores = (q @ k.transpose(-1, -2)) * L
    S, out = q.new_zeros(B, H, dk, v.shape[-1]), []
    for i in range(T // size):
        w = wv[:, :, i] - wk[:, :, i] @ S
        out.append((q[:, :, i] * g[:, :, i].exp()) @ S + scores[:, :, i] @ w)
        end = g[:, :, i, -1:]
        S = S * end.exp() + (k[:, :, i] * (end - g[:, :, i]).exp()).transpose(-1, -2) @ w
    return torch.stack(out, 2).reshape(B, H, T, -1).transpose(1, 2)


def bench(chunk: int | None, rounds: int) -> None:
    """The default model, batch and context; synthetic ids; PyTorch with the chunked recurrence, fused attention and fused AdamW."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    exe = HERE.parent / "train_tiny"
    page = subprocess.run([exe, "--help"], check=True, capture_output=True, text=True).stdout
    D, L, V, T, B = (int(re.search(rf"--{k} N.*\((\d+)\)", page)[1]) for k in ("dim", "layers", "vocab", "context", "batch"))
    heads, hidden = D // 32, (D * 8 // 3 + 31) // 32 * 32
    c = {"arch": "qwen35", "layers": L, "heads": heads, "dk": 32, "dv": 32, "q_heads": heads,
         "kv_heads": heads // 2 if heads % 2 == 0 else heads // 3 if heads % 3 == 0 else 1, "head_dim": 32, "n_rot": 16, "eps": 1e-6}
    q, k, v, d, beta = (f(1, 128, 2, n, dtype=torch.float64) for f, n in ((torch.randn, 16), (torch.randn, 16), (torch.randn, 16), (torch.rand, 1), (torch.rand, 1)))
    k, d = model.l2(k), torch.exp(-d)
    assert (chunked(q, k, v, d, beta, 32) - model.recurrence(q, k, v, d, e=d * k, rho=beta)).abs().max() < 1e-12
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    for i in range(L):
        n, C = f"blk.{i}.", 3 * D
        shapes |= {n + "attn_norm.weight": (D,), n + "post_attention_norm.weight": (D,), n + "ffn_gate.weight": (hidden, D),
                   n + "ffn_up.weight": (hidden, D), n + "ffn_down.weight": (D, hidden)}
        if (i + 1) % 4:
            shapes |= {n + "attn_qkv.weight": (C, D), n + "attn_gate.weight": (D, D), n + "ssm_beta.weight": (heads, D), n + "ssm_alpha.weight": (heads, D),
                       n + "ssm_conv1d.weight": (4, C), n + "ssm_dt.bias": (heads,), n + "ssm_a": (heads,), n + "ssm_norm.weight": (32,), n + "ssm_out.weight": (D, D)}
        else:
            kv = c["kv_heads"] * 32
            shapes |= {n + "attn_q.weight": (2 * D, D), n + "attn_k.weight": (kv, D), n + "attn_v.weight": (kv, D), n + "attn_q_norm.weight": (32,),
                       n + "attn_k_norm.weight": (32,), n + "attn_output.weight": (D, D)}
    p = {n: (torch.randn(s) * 0.02 if len(s) > 1 else torch.ones(s)).requires_grad_() for n, s in shapes.items()}
    opt, ids = adamw(p, 1e-3, 0.1, fused=True), torch.randint(V, (B, T + 1))

    def rate(steps):                                                 # tokens per second, the mean over the steps, as train_tiny prints it
        start = time.perf_counter()
        for _ in range(steps):
            opt.zero_grad()
            model.loss(p, ids[:, :-1], ids[:, 1:], c).backward()
            torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
            opt.step()
        return B * T * steps / (time.perf_counter() - start)

    def in_chunks(size):
        c["recurrence"] = lambda q, k, v, d, e, rho: chunked(q, k, v, d, rho, size)

    speed = {}
    for size in [chunk] if chunk else [16, 32, 64]:
        in_chunks(size)
        rate(2)
        speed[size] = rate(5)
        print(f"PyTorch {torch.__version__}, chunks of {size}: {speed[size]:.0f} tokens/s")
    in_chunks(max(speed, key=speed.get))
    ratios = []
    for r in range(rounds):                                          # alternating, so that other load hits both
        theirs = rate(20)
        with tempfile.TemporaryDirectory() as tmp:
            log = subprocess.run([exe, "--steps", "60", "-z", HERE.parent / "tokenizer.bin", "-o", Path(tmp) / "m.bin"], check=True, capture_output=True, text=True, errors="replace").stderr
        ours = float(re.findall(r"(\d+) tokens/s", log)[-1])
        ratios.append(ours / theirs)
        print(f"round {r}: PyTorch {theirs:.0f} tokens/s, train_tiny {ours:.0f} tokens/s, {threads} threads: {ours / theirs:.2f} x")
    print(f"median {sorted(ratios)[rounds // 2]:.2f} x")


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cc", default=os.environ.get("CC", "cc"))
    args.add_argument("--only", default="", metavar="WORD", help="mixers and checkpoints with this in their name")
    args.add_argument("--bench", action="store_true", help="measure ./train_tiny instead of checking it")
    args.add_argument("--chunk", type=int, help="tokens per chunk of PyTorch's recurrence (the fastest of 16, 32, 64)")
    args.add_argument("--rounds", type=int, default=3)
    o = args.parse_args()
    if o.bench:
        bench(o.chunk, o.rounds)
        return 0
    torch.set_num_threads(1)                                         # thousands of tiny products
    failed = check_models(o.only) + compare_all(o.cc, o.only)
    print(f"{failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
