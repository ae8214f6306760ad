"""The mixers in PyTorch: forward passes whose gradients torch.autograd finds by itself, to check the ones that train_tiny.c has by hand.

Written from the equations, for batches (B, T, width), in whatever float type the weights have. tests/train_step.py compares logits
with the numpy definitions beside this file and with the numbers of the reference libraries in tests/golden.

Weights are named as in the GGUF file (doc/format.md; llama.cpp's names for qwen35, mamba2, rwkv6, rwkv7) and stored as the trainer
keeps them: matrices (out, in), convolutions (taps, channels), ssm_a as ln of the rate, ssm_p as the argument of its sigmoid. What a
layer is, and which of its parts are there, is seen from the names. A new mixer is a row of FAMILY, and the few lines that say what it
passes to recurrence().
"""
from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import torch
import torch.nn.functional as F


# ---- small pieces ----

def rms(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def layer_norm(x, w, b, eps):
    x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w + b


def l2(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


def same(x):
    return x


def elu1(x):
    return F.elu(x) + 1


def heads(x, width):
    """(B, T, heads width) -> (B, T, heads, width)."""
    return x.unflatten(-1, (-1, width))


def rope(x, n_rot, base=10000.0):
    """x (B, T, heads, n): the first n_rot dims turn in pairs (i, i + n_rot / 2)."""
    half = n_rot // 2
    freq = base ** (-2.0 * torch.arange(half, dtype=torch.float64) / n_rot)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * freq
    c, s = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
    a, b = x[..., :half], x[..., half:n_rot]
    return torch.cat([a * c - b * s, b * c + a * s, x[..., n_rot:]], -1)


def conv(x, w, bias=None, act=F.silu):
    """Each channel against its own taps: w (taps, channels), the last tap meets the current token."""
    y = F.conv1d(F.pad(x.transpose(1, 2), (w.shape[0] - 1, 0)), w.T[:, None], bias, groups=w.shape[1])
    return act(y.transpose(1, 2))


def project(w, h, name, narrow="-"):
    """name.weight, or where there is narrow_a.weight two matrices with a narrow middle; with their bias, if any. None: not there."""
    if narrow + "_a.weight" in w:
        h, name = h @ w[narrow + "_a.weight"].T, narrow + "_b"
    return F.linear(h, w[name + ".weight"], w.get(name + ".bias")) if name + ".weight" in w else None


def within(p, prefix):
    return {n[len(prefix):]: x for n, x in p.items() if n.startswith(prefix)}


# ---- the recurrence ----

def recurrence(q, k, v, d=None, c=None, e=None, rho=None, w=None, u=None):
    """One matrix S per head, token by token from zero.
        r = S'e                                                what is stored under e, before anything fades
        S <- Diag(d) S Diag(c) + k (v - rho r)'                or, with w:  + w r' + k v'
        o = S'q                                                or, with u, from the S before:  S'q + (q . u k) v
    q (B, T, H, dk), k, e, w (B, T n, H, dk), v (B, T n, H, dv), rho (B, T n, H, 1) or None for 1: n writes per token, all of them before it is
    read, and S fades with the first. d (B, T, H, dk or 1), c (B, T, H, dv or 1), u (H, dk). Whoever erases from the faded S passes
    e = d k, for (d k)'S = k'(Diag(d) S)."""
    B, T, H, dk = q.shape
    n = k.shape[1] // T
    S, out = q.new_zeros(B, H, dk, v.shape[-1]), []
    for t in range(T):
        before = S
        for i in range(n * t, n * t + n):
            value = v[:, i]
            r = None if e is None else torch.einsum("bhij,bhi->bhj", S, e[:, i])
            if i == n * t and d is not None:
                S = S * d[:, t, :, :, None]
            if i == n * t and c is not None:
                S = S * c[:, t, :, None, :]
            if w is not None:
                S = S + w[:, i, :, :, None] * r[:, :, None, :]
            elif e is not None:
                value = value - (r if rho is None else rho[:, i] * r)
            S = S + k[:, i, :, :, None] * value[:, :, None, :]
        o = torch.einsum("bhij,bhi->bhj", S if u is None else before, q[:, t])
        out.append(o if u is None else o + (q[:, t] * u * k[:, t]).sum(-1, keepdim=True) * v[:, t])
    return torch.stack(out, 1)


# ---- decays ----
# x: what inputs() below made, w: the weights of the layer, c: the sizes. x.d is made of the rows x.f; and so is x.share, the weight of
# what is written, in mixers that write as much as they forget.

def fixed(x, w, c):
    x.d = w["ssm_decay"][:, None].expand(*x.v.shape[:2], -1, 1)


def sigmoid(x, w, c):
    x.d = torch.exp(F.logsigmoid(x.f) / c["divisor"])
    x.share = 1 - x.d


def softplus(x, w, c):
    x.step = F.softplus(x.f + w["ssm_dt.bias"].reshape(x.f.shape[2:]))
    x.d = torch.exp(-w["ssm_a"].reshape(-1, 1).exp() * x.step)


def forget(x, w, c):
    low = w["ssm_f_low"].reshape(x.f.shape[2:]) if "ssm_f_low" in w else 0
    x.d = low + (1 - low) * torch.sigmoid(x.f)
    x.share = 1 - x.d


def running_sum(x, w, c):
    """z the logarithm of the sum of all e^f so far: what came before keeps e^(z before - z), e^(f - z) is new."""
    z = torch.logcumsumexp(x.f, 1)
    x.share = torch.exp(x.f - z)
    x.d = torch.cat([torch.zeros_like(z[:, :1]), torch.exp(z[:, :-1] - z[:, 1:])], 1)


# ---- what each mixer passes to the recurrence ----

def strength(x, c):
    return c.get("beta_scale", 1) * torch.sigmoid(x.b)


def add(x, w, c):
    return c["recurrence"](x.q, x.k, x.v, x.d)


def add_share(x, w, c):                                    # the key is what the decay leaves free
    return c["recurrence"](x.q, x.share, x.v, x.d)


def add_step(x, w, c):                                     # Mamba-2: the step size is the strength of the write; and past the memory
    return c["recurrence"](x.q, x.k, x.step * x.v, x.d) + w["ssm_d"].reshape(-1, 1) * x.v


def delta(x, w, c):
    beta = strength(x, c)
    return c["recurrence"](x.q, x.k, beta * x.v, x.d, e=x.k if x.d is None else x.d * x.k, rho=beta)


def delta_per_channel(x, w, c):
    return c["recurrence"](x.q, x.k, torch.sigmoid(x.w) * x.v, x.d, e=x.d * strength(x, c) * x.k)


def delta_product(x, w, c):
    """Several delta rules per token: k, v, b hold the first writes of all heads, then the second ... Only the first meets a faded S."""
    B, T, H, dk = x.q.shape
    k, v, beta = (y.flatten(2).reshape(B, -1, H, n) for y, n in ((x.k, dk), (x.v, c["dv"]), (strength(x, c), 1)))
    e = k
    if x.d is not None:
        e = k.unflatten(1, (T, -1))
        e = torch.cat([e[:, :, :1] * x.d[:, :, None], e[:, :, 1:]], 2).flatten(1, 2)
    return c["recurrence"](x.q, k, beta * v, x.d, e=e, rho=beta)


def comba(x, w, c):
    """Erases along p, from the S before it fades, and takes p out of the query. The norms come after that."""
    beta, p = strength(x, c), torch.sigmoid(w["ssm_p"])[:, None] * x.k
    q = l2(x.q - w["ssm_d"][:, None] * p) * c["dk"] ** -0.5
    return c["recurrence"](q, l2(x.k), beta * x.v, x.d, e=l2(p), rho=beta)


def delta_scaled(x, w, c):
    """The key that is written shrinks in channels that were written much: A <- fade A + share k^2, by how far ln A is above a level, at most
    1.5 times either way. What is erased is under the whole key."""
    fade = torch.exp(-w["ssm_m_a"].exp() * F.softplus(x.g[..., 0] + w["ssm_m_dt.bias"]))[..., None]
    added, A, moments = torch.sigmoid(x.s) * x.k.square(), 0.0, []
    for t in range(x.k.shape[1]):
        A = fade[:, t] * A + added[:, t]
        moments.append(A)
    level = torch.log(torch.stack(moments, 1) + 1e-6) - w["ssm_m_scale"][:, None]
    beta, k = strength(x, c), x.k * 1.5 ** (-level / (1 + level.abs()))
    return c["recurrence"](x.q, k, beta * x.v, x.d, e=x.d * x.k, rho=beta)


def slots(x, w, c):
    """Keys are written into slots, and read out as a softmax over them; then values, read out with that."""
    scores = recurrence(x.q, x.k, x.share, c=x.d)
    return recurrence(scores.softmax(-1), x.share, x.v, x.d)


def silu_slots(x, w, c):
    x.v = F.silu(x.v)
    return slots(x, w, c)


# ---- output norms ----

def each_head(o, w, eps):
    return rms(o, w, eps)


def all_heads(o, w, eps):
    return rms(o.flatten(2), w, eps)


def silu_all_heads(o, w, eps):
    return rms(F.silu(o).flatten(2), w, eps)


# silu: on q, k, v; "conv" behind a short convolution only, "always" without one, too. map, norm: of q and k. scale: the exponent of dk
# in the factor of q. out: norm of the readout. gate: y act(z), where the file has a gate. eps: of that norm, where it is not the
# model's. rotate: q and k, by their position.
Row = namedtuple("Row", "silu map norm scale decay mix out gate eps rotate", defaults=(None, False))
FAMILY = {
    #                          silu      map     norm  scale  decay        mix                out             gate
    "linear_attn":        Row("never",  elu1,   same, -0.5,  None,        add,               each_head,      same),
    "retnet":             Row("never",  same,   same, -0.5,  fixed,       add,               each_head,      F.silu, rotate=True),
    "lightning_attn":     Row("conv",   same,   same, -0.5,  fixed,       add,               each_head,      F.silu),
    "simple_gla":         Row("conv",   same,   same, -0.5,  sigmoid,     add,               each_head,      F.silu),
    "gla":                Row("conv",   same,   same, -0.5,  sigmoid,     add,               each_head,      F.silu),
    "hgrn2":              Row("never",  F.silu, same, -0.5,  forget,      add_share,         all_heads,      same, 1e-5),
    "lightnet":           Row("never",  F.silu, same, -0.5,  running_sum, add_share,         all_heads,      F.silu, 1e-6),
    "mamba2":             Row("always", same,   same,  0.0,  softplus,    add_step,          None,           None),
    "gsa":                Row("conv",   F.silu, same,  0.0,  sigmoid,     silu_slots,        silu_all_heads, same, 1e-5),
    "abc":                Row("conv",   same,   same, -0.5,  running_sum, slots,             each_head,      F.silu, rotate=True),
    "delta_net":          Row("always", same,   l2,   -0.5,  None,        delta,             each_head,      F.silu),
    "gated_deltanet":     Row("always", same,   l2,   -0.5,  softplus,    delta,             each_head,      F.silu),
    "gated_deltaproduct": Row("always", same,   l2,   -0.5,  softplus,    delta_product,     each_head,      F.silu),
    "comba":              Row("always", same,   same,  0.0,  softplus,    comba,             each_head,      torch.sigmoid),
    "kda":                Row("always", same,   l2,   -0.5,  softplus,    delta,             each_head,      torch.sigmoid),
    "gdn2":               Row("always", same,   l2,   -0.5,  softplus,    delta_per_channel, each_head,      torch.sigmoid),
}
for name in ("gated_deltanet", "kda"):
    FAMILY["precond_" + name] = FAMILY[name]._replace(mix=delta_scaled)
FAMILY["qwen35"] = FAMILY["gated_deltanet"]


# ---- layers: h is the normed input, w the weights of the layer ----

def inputs(w, h, c, row):
    """q, k, v by heads, after convolution and activation, and what decay (f), erase (b), write (w) and output gate (z) are made of."""
    H, dk, dv, n = c["heads"], c["dk"], c["dv"], c.get("k_heads", c["heads"])
    K, V = n * dk, H * dv
    x = SimpleNamespace(q=None, k=None, v=None, f=None, b=None, w=None, z=None, d=None, g=None, s=None)
    act = same if row.silu == "never" else F.silu
    if "attn_qkv.weight" in w:                                             # one convolution over all three
        x.q, x.k, x.v = conv(project(w, h, "attn_qkv"), w["ssm_conv1d.weight"]).split([K, K, V], -1)
    elif "ssm_in.weight" in w:
        x.z, u, x.f = project(w, h, "ssm_in").split([V, V + 2 * K, H], -1)
        x.v, x.k, x.q = conv(u, w["ssm_conv1d.weight"], w.get("ssm_conv1d.bias")).split([V, K, K], -1)
    for letter, name, narrow in (("q", "attn_q", "-"), ("k", "attn_k", "-"), ("v", "attn_v", "-"), ("f", "ssm_alpha", "ssm_f"),
                                 ("b", "ssm_beta", "-"), ("w", "ssm_w", "-"), ("z", "attn_gate", "ssm_g"), ("g", "ssm_m_alpha", "-"), ("s", "ssm_m_beta", "-")):
        y, taps = project(w, h, name, narrow), w.get(f"ssm_conv1d_{letter}.weight")
        if y is None:
            continue
        if taps is not None:
            y = conv(y, taps, act=act)
        elif letter in "qkv" and row.silu == "always":
            y = F.silu(y)
        setattr(x, letter, y)
    x.q, x.k = (None if y is None else heads(y, dk) for y in (x.q, x.k))
    if n < H:                                                              # key heads that several value heads share
        spread = (lambda y: y.repeat(1, 1, H // n, 1)) if c["arch"] == "qwen35" else (lambda y: y.repeat_interleave(H // n, 2))
        x.q, x.k = spread(x.q), spread(x.k)
    x.v = heads(x.v, dv)
    x.w, x.z = (None if y is None else heads(y, dv) for y in (x.w, x.z))
    x.f, x.b, x.g, x.s = (None if y is None else y.unflatten(-1, (H, -1)) for y in (x.f, x.b, x.g, x.s))
    return x


def linear_layer(w, h, c):
    row = FAMILY[c["arch"]]
    x = inputs(w, h, c, row)
    x.q, x.k = row.norm(row.map(x.q)) * c["dk"] ** row.scale, None if x.k is None else row.norm(row.map(x.k))
    if row.rotate:
        x.q, x.k = rope(x.q, c["dk"]), rope(x.k, c["dk"])
    if row.decay is fixed or x.f is not None:
        row.decay(x, w, c)
    o = row.mix(x, w, c)
    if row.out is None:                                                    # Mamba-2: the gate comes first, and the norm spans groups
        o = (o * F.silu(x.z)).flatten(2)
        norm = w["ssm_norm.weight"]
        return project(w, rms(o.unflatten(-1, norm.shape), norm, c["eps"]).flatten(2), "ssm_out")
    y = row.out(o, w.get("ssm_norm.weight", 1.0), c.get("o_eps") or row.eps or c["eps"])
    if x.z is not None:
        y = y * row.gate(x.z.reshape(y.shape))
    return project(w, y.reshape(*h.shape[:2], -1), "ssm_out" if "ssm_out.weight" in w else "attn_output")


def attention(w, h, c):
    """Causal softmax attention. Qwen3.5 norms q and k and gates the output: its rows of q hold query and gate of each head."""
    B, T, _ = h.shape
    H, G, d = c["q_heads"], c["kv_heads"], c["head_dim"]
    q, k, v = (project(w, h, name) for name in ("attn_q", "attn_k", "attn_v"))
    if "attn_conv1d.weight" in w:
        k, v = conv(torch.cat([k, v], -1), w["attn_conv1d.weight"], act=same).split(G * d, -1)
    gated = q.shape[-1] == 2 * H * d
    q, gate = heads(q, 2 * d).split(d, -1) if gated else (heads(q, d), None)
    k, v = heads(k, d), heads(v, d)
    if "attn_q_norm.weight" in w:
        q, k = rms(q, w["attn_q_norm.weight"], c["eps"]), rms(k, w["attn_k_norm.weight"], c["eps"])
    q, k = rope(q, c["n_rot"], c["rope_base"]), rope(k, c["n_rot"], c["rope_base"])
    k, v = (x.repeat_interleave(H // G, 2).transpose(1, 2) for x in (k, v))
    o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True).transpose(1, 2)
    return project(w, (o * torch.sigmoid(gate) if gated else o).reshape(B, T, -1), "attn_output")


def feed_forward(w, h):
    return project(w, F.silu(project(w, h, "ffn_gate")) * project(w, h, "ffn_up"), "ffn_down")


# ---- RWKV ----

def shift(x):
    """What to add to x to get the x of the token before, zero before the first."""
    return F.pad(x, (0, 0, 1, 0))[:, :-1] - x


def narrow(w, x, letter, act=same):
    y = act(x @ w[f"time_mix_{letter}1.weight"].T) @ w[f"time_mix_{letter}2.weight"].T
    return y + w[f"time_mix_{letter}0.weight"] if letter != "g" else y


def rwkv_norm(w, o, eps):
    shape = o.shape[2:]
    return layer_norm(o, w["time_mix_ln.weight"].reshape(shape), w["time_mix_ln.bias"].reshape(shape), eps).flatten(2)


def rwkv6(w, h, c):
    """Every projection reads its own mix of h and the h before, in shares that h itself decides."""
    D, H = h.shape[-1], c["heads"]
    before = shift(h)
    y = torch.tanh((h + before * w["time_mix_lerp_x.weight"].flatten()) @ w["time_mix_w1.weight"].T).unflatten(-1, (5, -1))
    lerp = w["time_mix_lerp_fused.weight"] if "time_mix_lerp_fused.weight" in w else torch.stack([w[f"time_mix_lerp_{x}.weight"].flatten() for x in "wkvrg"])
    shares = torch.einsum("btnr,ndr->nbtd", y, w["time_mix_w2.weight"].reshape(5, D, -1)) + lerp.reshape(5, 1, 1, D)
    xw, xk, xv, xr, xg = h + before * shares
    r, k, v = (project(w, x, "time_mix_" + name).unflatten(-1, (H, -1)) for x, name in ((xr, "receptance"), (xk, "key"), (xv, "value")))
    log_rate = torch.tanh(xw @ w["time_mix_decay_w1.weight"].T) @ w["time_mix_decay_w2.weight"].T + w["time_mix_decay.weight"].flatten()
    d = torch.exp(-torch.exp(log_rate)).reshape(k.shape)
    o = recurrence(r, k, v, d, u=w["time_mix_first.weight"].reshape(k.shape[2:]))
    return project(w, rwkv_norm(w, o, c.get("o_eps") or c["eps"]) * F.silu(project(w, xg, "time_mix_gate")), "time_mix_output")


UNUSED = ("blk.0.time_mix_v0", "blk.0.time_mix_v1", "blk.0.time_mix_v2")     # files may have them, and the first layer has no use for them


def rwkv7(w, h, c, first):
    """first: a list that holds the values of the first layer, once that has been here."""
    D, H = h.shape[-1], c["heads"]
    xr, xw, xk, xv, xa, xg = h + shift(h) * w["time_mix_lerp_fused.weight"].reshape(6, 1, 1, D)
    r, k, v = (project(w, x, "time_mix_" + name) for x, name in ((xr, "receptance"), (xk, "key"), (xv, "value")))
    d = torch.exp(-0.6065306597126334 * torch.sigmoid(narrow(w, xw, "w", torch.tanh)))
    a = torch.sigmoid(narrow(w, xa, "a"))
    if first:
        v = v + torch.sigmoid(narrow(w, xv, "v")) * (first[0] - v)
    else:
        first.append(v)
    by_head = lambda x: x.unflatten(-1, (H, -1))
    erased = l2(by_head(k * w["time_mix_k_k.weight"].flatten()), c.get("k_eps", 1e-6))
    k = k * (1 + (a - 1) * w["time_mix_k_a.weight"].flatten())
    r, d, k, v, a = (by_head(x) for x in (r, d, k, v, a))
    o = recurrence(r, k, v, d, e=-erased, w=erased * a)
    bonus = (r * k * w["time_mix_r_k.weight"].reshape(r.shape[2:])).sum(-1, keepdim=True) * v
    return project(w, (rwkv_norm(w, o, c.get("o_eps") or r.shape[-1] * c["eps"]) + bonus.flatten(2)) * narrow(w, xg, "g", torch.sigmoid), "time_mix_output")


def channel_mix(w, h):
    before = shift(h)
    y = project(w, F.relu(project(w, h + before * w["channel_mix_lerp_k.weight"].flatten(), "channel_mix_key")).square(), "channel_mix_value")
    if "channel_mix_receptance.weight" in w:
        y = y * torch.sigmoid(project(w, h + before * w["channel_mix_lerp_r.weight"].flatten(), "channel_mix_receptance"))
    return y


# ---- the model ----

def logits(p, ids, c):
    """ids (B, T) -> (B, T, vocabulary)."""
    c = {"recurrence": recurrence, "rope_base": 10000.0} | c
    rwkv = c["arch"].startswith("rwkv")

    def norm(w, name, x):
        weight = w[name + ".weight"]
        return layer_norm(x, weight, w.get(name + ".bias", torch.zeros_like(weight)), c["eps"]) if rwkv else rms(x, weight, c["eps"])

    x, first = p["token_embd.weight"][ids], []
    if "token_embd_norm.weight" in p:
        x = norm(p, "token_embd_norm", x)
    for i in range(c["layers"]):
        w = within(p, f"blk.{i}.")
        h = norm(w, "attn_norm", x)
        if "time_mix_output.weight" in w:
            x = x + (rwkv7(w, h, c, first) if c["arch"] == "rwkv7" else rwkv6(w, h, c))
        else:
            x = x + (linear_layer if any(n.startswith("ssm_") for n in w) else attention)(w, h, c)
        if rwkv:
            x = x + channel_mix(w, norm(w, "attn_norm_2", x))
        elif "ffn_up.weight" in w:
            x = x + feed_forward(w, norm(w, "ffn_norm" if "ffn_norm.weight" in w else "post_attention_norm", x))
    return norm(p, "output_norm", x) @ p.get("output.weight", p["token_embd.weight"]).T


def loss(p, ids, targets, c):
    """Mean of -ln p over the targets that are not -1."""
    return F.cross_entropy(logits(p, ids, c).flatten(0, 1), targets.flatten(), ignore_index=-1)
