#!/usr/bin/env python3
"""One training step of train_tiny.c against PyTorch: loss, every gradient, every parameter after AdamW.

    python3 tests/train_step.py [--cc cc] [--bench [--chunk N]]

Compiles tests/test_train.c twice, in double and in float with the fast exponentials, lets it dump one step of a small
model of each layout, and does the same step with a model written here in float64. --bench measures instead the tokens per
second of the default model in PyTorch (float32, the same number of threads, fused AdamW, the fastest size of chunks) and in ./train_tiny.
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent


def rms(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def l2(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def rope(x, n_rot, base=10000.0):
    """x (B, T, heads, n): the first n_rot dims turn in pairs (i, i + n_rot / 2)."""
    half = n_rot // 2
    freq = base ** (-2.0 * torch.arange(half, dtype=torch.float64) / n_rot)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * freq
    c, s = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
    a, b = x[..., :half], x[..., half:n_rot]
    return torch.cat([a * c - b * s, b * c + a * s, x[..., n_rot:]], -1)


def recurrence(q, k, v, decay, beta=None):
    """q, k, decay (B, T, H, dk) or decay (B, T, H, 1), v (B, T, H, dv): the state is a matrix per head, token by token."""
    B, T, H, dk = q.shape
    S = q.new_zeros(B, H, dk, v.shape[-1])
    out = []
    for t in range(T):
        S = S * decay[:, t, :, :, None]
        w = v[:, t]
        if beta is not None:
            recalled = torch.einsum("bhij,bhi->bhj", S, k[:, t])
            w = beta[:, t, :, None] * (w - recalled)
        S = S + k[:, t, :, :, None] * w[:, :, None, :]
        out.append(torch.einsum("bhij,bhi->bhj", S, q[:, t]))
    return torch.stack(out, 1)


def chunked(q, k, v, log_decay, beta, size):
    """The gated delta rule in chunks of `size` tokens, as matrix products: what a fast PyTorch program does.
    log_decay, beta (B, T, H). Within a chunk, with G the running sum of log_decay and L_ij = exp(G_i - G_j), i >= j:
      (I + tril(beta_i k_i.k_j L_ij, -1)) w = beta (v - exp(G) k S);  o = exp(G) q S + tril(q k' L) w
      S <- exp(G_end) S + (exp(G_end - G) k)' w"""
    B, T, H, dk = q.shape
    q, k, v = (x.transpose(1, 2).reshape(B, H, T // size, size, -1) for x in (q, k, v))
    g, beta = (x.transpose(1, 2).reshape(B, H, T // size, size, 1) for x in (log_decay, beta))
    g = g.cumsum(-2)
    lower = torch.ones(size, size, dtype=torch.bool).tril()
    L = (g - g.transpose(-1, -2)).masked_fill(~lower, float("-inf")).exp()
    A = torch.eye(size, dtype=q.dtype) + (beta * (k @ k.transpose(-1, -2)) * L).tril(-1)
    both = torch.linalg.solve_triangular(A, torch.cat([beta * v, beta * g.exp() * k], -1), upper=False, unitriangular=True)
    wv, wk = both.split([v.shape[-1], dk], -1)
    scores = (q @ k.transpose(-1, -2)) * L
    S, out = q.new_zeros(B, H, dk, v.shape[-1]), []
    for i in range(T // size):
        w = wv[:, :, i] - wk[:, :, i] @ S
        out.append((q[:, :, i] * g[:, :, i].exp()) @ S + scores[:, :, i] @ w)
        end = g[:, :, i, -1:]
        S = S * end.exp() + (k[:, :, i] * (end - g[:, :, i]).exp()).transpose(-1, -2) @ w
    return torch.stack(out, 2).reshape(B, H, T, -1).transpose(1, 2)


def gated_delta(p, n, h, c):
    B, T, _ = h.shape
    H, dk, dv = c["heads"], c["dk"], c["dv"]
    K = H * dk
    u = h @ p[n + "attn_qkv.weight"].T
    w = p[n + "ssm_conv1d.weight"]                                  # (taps, channels)
    u = F.silu(F.conv1d(F.pad(u.transpose(1, 2), (w.shape[0] - 1, 0)), w.T[:, None], groups=w.shape[1]).transpose(1, 2))
    q = l2(u[..., :K].reshape(B, T, H, dk)) * dk ** -0.5
    k = l2(u[..., K:2 * K].reshape(B, T, H, dk))
    v = u[..., 2 * K:].reshape(B, T, H, dv)
    log_decay = -p[n + "ssm_a"].exp() * F.softplus(h @ p[n + "ssm_alpha.weight"].T + p[n + "ssm_dt.bias"])
    beta = torch.sigmoid(h @ p[n + "ssm_beta.weight"].T)
    o = chunked(q, k, v, log_decay, beta, c["chunk"]) if c.get("chunk") else recurrence(q, k, v, log_decay.exp()[..., None], beta)
    z = (h @ p[n + "attn_gate.weight"].T).reshape(B, T, H, dv)
    return (rms(o, p[n + "ssm_norm.weight"], c["eps"]) * F.silu(z)).reshape(B, T, -1) @ p[n + "ssm_out.weight"].T


def gla(p, n, h, c):
    B, T, _ = h.shape
    H, dk, dv = c["heads"], c["dk"], c["dv"]
    q = (h @ p[n + "attn_q.weight"].T).reshape(B, T, H, dk) * dk ** -0.5
    k = (h @ p[n + "attn_k.weight"].T).reshape(B, T, H, dk)
    v = (h @ p[n + "attn_v.weight"].T).reshape(B, T, H, dv)
    a = h @ p[n + "ssm_f_a.weight"].T @ p[n + "ssm_f_b.weight"].T + p[n + "ssm_f_b.bias"]
    o = recurrence(q, k, v, torch.exp(F.logsigmoid(a) / 16).reshape(B, T, H, dk))
    z = (h @ p[n + "attn_gate.weight"].T).reshape(B, T, H, dv)
    return (rms(o, p[n + "ssm_norm.weight"], c["eps"]) * F.silu(z)).reshape(B, T, -1) @ p[n + "attn_output.weight"].T


def attention(p, n, h, c):
    B, T, _ = h.shape
    H, G, d = c["q_heads"], c["kv_heads"], c["head_dim"]
    q, gate = (h @ p[n + "attn_q.weight"].T).reshape(B, T, H, 2 * d).split(d, -1)
    k = (h @ p[n + "attn_k.weight"].T).reshape(B, T, G, d)
    v = (h @ p[n + "attn_v.weight"].T).reshape(B, T, G, d)
    q = rope(rms(q, p[n + "attn_q_norm.weight"], c["eps"]), c["n_rot"])
    k = rope(rms(k, p[n + "attn_k_norm.weight"], c["eps"]), c["n_rot"])
    k, v = (x.repeat_interleave(H // G, 2).transpose(1, 2) for x in (k, v))
    o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True).transpose(1, 2)
    return (o * torch.sigmoid(gate)).reshape(B, T, -1) @ p[n + "attn_output.weight"].T


def forward(p, ids, targets, c):
    x = p["token_embd.weight"][ids]
    for i in range(c["layers"]):
        n = f"blk.{i}."
        h = rms(x, p[n + "attn_norm.weight"], c["eps"])
        if c["interval"] and (i + 1) % c["interval"] == 0:
            x = x + attention(p, n, h, c)
        else:
            x = x + (gla if c["mixer"] else gated_delta)(p, n, h, c)
        h = rms(x, p[n + ("ffn_norm" if c["mixer"] else "post_attention_norm") + ".weight"], c["eps"])
        x = x + (F.silu(h @ p[n + "ffn_gate.weight"].T) * (h @ p[n + "ffn_up.weight"].T)) @ p[n + "ffn_down.weight"].T
    logits = rms(x, p["output_norm.weight"], c["eps"]) @ p["token_embd.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def decays(name, rows):
    return rows > 0 and "conv1d" not in name


def adamw(p, lr, decay, fused=False):
    on = [x for n, x in p.items() if decays(n, x.dim() - 1)]
    off = [x for n, x in p.items() if not decays(n, x.dim() - 1)]
    return torch.optim.AdamW([{"params": on, "weight_decay": decay}, {"params": off, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def read_dump(path: Path):
    c, tensors = {}, []
    for line in path.with_suffix(".txt").read_text().splitlines():
        name, *rest = line.split()
        if name == "tensor":
            rows, cols = int(rest[1]), int(rest[2])
            tensors.append((rest[0], (rows, cols) if rows else (cols,)))
        elif name in ("ids", "targets"):
            c[name] = [int(x) for x in rest]
        else:
            c[name] = float(rest[0]) if name in ("eps", "loss", "norm") else int(rest[0])
    data, at, parts = np.fromfile(path.with_suffix(".bin")), 0, []
    for _ in range(3):
        part = {}
        for name, shape in tensors:
            size = int(np.prod(shape))
            part[name] = torch.from_numpy(data[at:at + size].reshape(shape).copy())
            at += size
        parts.append(part)
    assert at == len(data)
    return c, parts


def compare(folder: Path, real: str, bounds) -> int:
    failed = 0
    for mixer, layout in enumerate(("qwen35", "gla")):
        c, (before, grads, after) = read_dump(folder / f"step-{mixer}.bin")
        p = {n: x.clone().requires_grad_() for n, x in before.items()}
        ids, targets = (torch.tensor(c[k]).reshape(c["batch"], c["seq_len"]) for k in ("ids", "targets"))
        loss = forward(p, ids, targets, c)
        loss.backward()
        mean = loss.item()
        worst_grad = max((float((p[n].grad - grads[n]).abs().max() / p[n].grad.abs().max()), n) for n in p)
        norm = float(torch.nn.utils.clip_grad_norm_(list(p.values()), 0.5, error_if_nonfinite=True))
        opt = adamw(p, 1e-2, 0.1)
        opt.step()
        # The first AdamW step is lr g / (|g| + 1e-8): where g is only rounding, its sign is too. Compare where g counts.
        worst_param, seen, total = (0.0, ""), 0, 0
        for n in p:
            big = grads[n].abs() > bounds[3]
            seen, total = seen + int(big.sum()), total + big.numel()
            if big.any():
                worst_param = max(worst_param, (float((p[n].detach() - after[n]).abs()[big].max()), n))
        lines = [("loss", abs(mean - c["loss"]) / mean, bounds[0], ""), ("gradient norm", abs(norm - c["norm"]) / norm, bounds[0], ""),
                 ("gradients, relative to the largest of each tensor", worst_grad[0], bounds[1], worst_grad[1]),
                 (f"parameters after the step ({100 * seen / total:.1f} % of them)", worst_param[0], bounds[2], worst_param[1])]
        for what, err, bound, where in lines:
            ok = err < bound
            failed += not ok
            print(f"{'ok  ' if ok else 'FAIL'} {real:6} {layout:6} {what}: {err:.1e} (bound {bound:.0e}) {where}")
    return failed


def bench(chunk: int | None, rounds: int) -> None:
    """The default model, batch and context; synthetic ids; PyTorch with the chunked recurrence, fused attention and fused AdamW."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    exe = HERE.parent / "train_tiny"
    page = subprocess.run([exe, "--help"], check=True, capture_output=True, text=True).stdout
    D, L, V, T, B = (int(re.search(rf"--{k} N.*\((\d+)\)", page)[1]) for k in ("dim", "layers", "vocab", "context", "batch"))
    heads, hidden = D // 32, (D * 8 // 3 + 31) // 32 * 32
    c = {"mixer": 0, "layers": L, "heads": heads, "dk": 32, "dv": 32, "interval": 4, "q_heads": heads,
         "kv_heads": heads // 2 if heads % 2 == 0 else heads // 3 if heads % 3 == 0 else 1, "head_dim": 32, "n_rot": 16, "eps": 1e-6}
    x = [torch.randn(1, 128, 2, 16, dtype=torch.float64) for _ in range(3)] + [-torch.rand(1, 128, 2, dtype=torch.float64), torch.rand(1, 128, 2, dtype=torch.float64)]
    x[1] = l2(x[1])
    assert (chunked(*x, 32) - recurrence(*x[:3], x[3].exp()[..., None], x[4])).abs().max() < 1e-12
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
            forward(p, ids[:, :-1], ids[:, 1:], c).backward()
            torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
            opt.step()
        return B * T * steps / (time.perf_counter() - start)

    speed = {}
    for c["chunk"] in [chunk] if chunk else [16, 32, 64]:
        rate(2)
        speed[c["chunk"]] = rate(5)
        print(f"PyTorch {torch.__version__}, chunks of {c['chunk']}: {speed[c['chunk']]:.0f} tokens/s")
    c["chunk"], ratios = max(speed, key=speed.get), []
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
    args.add_argument("--bench", action="store_true", help="measure ./train_tiny instead of checking it")
    args.add_argument("--chunk", type=int, help="tokens per chunk of PyTorch's recurrence (the fastest of 16, 32, 64)")
    args.add_argument("--rounds", type=int, default=3)
    o = args.parse_args()
    if o.bench:
        bench(o.chunk, o.rounds)
        return 0
    failed = 0
    for real, flags, bounds in (("double", ["-DREAL=double"], (1e-13, 1e-12, 1e-8, 1e-9)), ("float", ["-DREAL=float", "-DFAST_EXP=1"], (2e-6, 5e-5, 5e-6, 1e-5))):
        with tempfile.TemporaryDirectory() as tmp:
            exe = Path(tmp) / "test_train"
            subprocess.run([o.cc, "-O3", *flags, "-o", exe, HERE / "test_train.c", "-lm"], check=True)
            subprocess.run([exe, "--dump", tmp], check=True)
            failed += compare(Path(tmp), real, bounds)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
