"""Shared pieces of the executable reference: norms, activations, convolution, rotary, softmax attention.

Everything works on float64 numpy arrays and one sequence of T tokens; weights are stored [out, in]; x is (T, width).
Plain and slow on purpose: each function is the equation.
"""
import numpy as np

MODELS = {}  # config.json's model_type -> function(config: dict, weights: dict, tokens: (T,) int) -> logits (T, vocab)


def model(*names):
    """Register a forward function for these model_type values."""
    def add(f):
        for n in names:
            MODELS[n] = f
        return f
    return add


def sigmoid(z):
    return 0.5 * (1 + np.tanh(0.5 * z))


def silu(z):
    return z * sigmoid(z)


def softplus(z):
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def logsigmoid(z):
    return -softplus(-z)


def gelu_tanh(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z ** 3)))


# The library's own activations by name; its gelu is the tanh approximation.
ACTIVATIONS = {"relu": lambda z: np.maximum(z, 0), "sqrelu": lambda z: np.maximum(z, 0) ** 2, "swish": silu, "silu": silu, "sigmoid": sigmoid,
               "logsigmoid": logsigmoid, "gelu": gelu_tanh}


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def rmsnorm(x, w=None, eps=1e-6):
    """x / rms(x) * w over the last axis; w None means no weight."""
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if w is None else y * w


def layernorm(x, w, b=None, eps=1e-5):
    m = x.mean(-1, keepdims=True)
    y = (x - m) / np.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + eps) * w
    return y if b is None else y + b


def l2norm(x, eps=1e-6):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)


def linear(x, w, b=None):
    y = x @ w.T
    return y if b is None else y + b


def short_conv(x, w, b=None, act=silu):
    """Depthwise causal convolution: x (T, C), w (C, K) or (C, 1, K); tap K-1 is the current token. act None: identity."""
    w = w.reshape(w.shape[0], -1)
    k = w.shape[1]
    p = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
    y = sum(p[i:i + len(x)] * w[:, i] for i in range(k))
    if b is not None:
        y = y + b
    return act(y) if act else y


def rope(x, theta, dims=None, interleaved=False):
    """Rotary embedding of x (T, heads, d) at positions 0..T-1 over the first dims channels; pairs (i, i + dims/2),
    or (2i, 2i + 1) when interleaved."""
    d = dims or x.shape[-1]
    ang = np.arange(len(x))[:, None] * theta ** (-np.arange(0, d, 2) / d)
    c, s = np.cos(ang)[:, None], np.sin(ang)[:, None]
    y = x.copy()
    a, b = (x[..., 0:d:2], x[..., 1:d:2]) if interleaved else (x[..., :d // 2], x[..., d // 2:d])
    ra, rb = a * c - b * s, b * c + a * s
    if interleaved:
        y[..., 0:d:2], y[..., 1:d:2] = ra, rb
    else:
        y[..., :d // 2], y[..., d // 2:d] = ra, rb
    return y


def sdpa(q, k, v, scale=None, window=None, bias=None):
    """Causal softmax attention. q (T, H, d), k (T, Hkv, d), v (T, Hkv, dv) -> (T, H, dv). Query head h reads kv head
    h // (H / Hkv). window: number of visible keys including the current one. bias (H, T, T) is added to the scores."""
    T, H, d = q.shape
    g = H // k.shape[1]
    k, v = np.repeat(k, g, 1), np.repeat(v, g, 1)
    s = np.einsum("thd,shd->hts", q, k) * (d ** -0.5 if scale is None else scale)
    if bias is not None:
        s = s + bias
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    ok = j <= i
    if window:
        ok = ok & (j > i - window)
    return np.einsum("hts,shd->thd", softmax(np.where(ok, s, -np.inf)), v)


def fla_attention(spec, weights, prefix, x):
    """Softmax attention of fla layers/attn.py, as a hybrid layer or as the mixer of the transformer: x (T, D) -> (T, D).
    spec holds num_heads and optionally num_kv_heads, window_size, rope_theta; prefix ends in a dot ("model.layers.1.attn.").
    Head width D / num_heads. Biases (qkv_bias) and the per-head q and k norms (qk_norm, eps 1e-5) apply when stored."""
    p = lambda n: weights.get(prefix + n)
    d = x.shape[1] // spec["num_heads"]
    q, k, v = (linear(x, p(n + "_proj.weight"), p(n + "_proj.bias")).reshape(len(x), -1, d) for n in "qkv")
    if p("q_norm.weight") is not None:
        q, k = rmsnorm(q, p("q_norm.weight"), 1e-5), rmsnorm(k, p("k_norm.weight"), 1e-5)
    theta = spec.get("rope_theta") or 10000.0
    o = sdpa(rope(q, theta), rope(k, theta), v, window=spec.get("window_size"))
    return linear(o.reshape(len(x), -1), p("o_proj.weight"))


def within(weights, prefix):
    """The weights with prefix taken off the names that start with it; the others keep their full names, and give way."""
    return {**weights, **{n[len(prefix):]: t for n, t in weights.items() if n.startswith(prefix)}}


def fla_hybrid(cfg, layer):
    """The specification in the config's attn (null, one, or a list) that makes this layer softmax attention, or None."""
    specs = cfg.get("attn") or []
    return next((s for s in ([specs] if isinstance(specs, dict) else specs) if layer in s["layers"]), None)


def powlu(z):
    """z^(3 / (sqrt z + 1)) sigmoid(z) above zero, z sigmoid(z) below."""
    r = np.maximum(z, 0)
    return np.where(z > 0, r ** (3 / (np.sqrt(r) + 1)), z) * sigmoid(z)


def fla_mlp(cfg, w, x):
    """down_proj(act(gate_proj x) * up_proj x), (T, D) -> (T, D), act silu or powlu."""
    act = {"swish": silu, "powlu": powlu}[cfg["hidden_act"]]
    return linear(act(linear(x, w["gate_proj.weight"])) * linear(x, w["up_proj.weight"]), w["down_proj.weight"])


def attnres_mix(sources, w, name, eps):
    """Residual attention, arXiv 2603.15031: p = softmax_i(proj . RMSNorm(source_i)); sum_i p_i source_i, each (T, D)."""
    s = np.stack(sources)
    p = softmax(rmsnorm(s, w[name + "_norm.weight"], eps) @ w[name + "_proj.weight"].T, 0)
    return (p * s).sum(0)


def fla_decoder(cfg, weights, tokens, mixer, prefix="model.", norm="attn_norm", slot="attn", final="norm"):
    """The decoder of fla models/gla/modeling_gla.py and its neighbours: tokens (T,) -> logits (T, vocab).
    Per layer h += mixer(norm(h)), then h += mlp(mlp_norm(h)) where the layer has an mlp; lm_head(final(h)). Layers named in
    the config's attn use fla_attention; the others call mixer(layer, w, x) with the slot's weights and x (T, D).
    With attnres_block_size b a sub-layer reads a mix of the closed blocks and h instead of h, and every b-th closes h."""
    eps, b = cfg["norm_eps"], cfg.get("attnres_block_size")
    table = weights[prefix + "embeddings.weight"]
    h, closed = table[tokens], []
    for l in range(cfg["num_hidden_layers"]):
        p = f"{prefix}layers.{l}."
        w, spec = within(weights, p), fla_hybrid(cfg, l)
        for i, name in enumerate([norm, "mlp_norm"] if "mlp_norm.weight" in w else [norm]):
            x = h
            if b:
                sources = closed + [h]
                x = attnres_mix(sources, w, ("attn_res", "mlp_res")[i], eps)
                if (2 * l + i) % b == 0:
                    closed, h = sources, 0
            x = rmsnorm(x, w[name + ".weight"], eps)
            if i == 1:
                y = fla_mlp(cfg, within(w, "mlp."), x)
            elif spec:
                y = fla_attention(spec, weights, f"{p}{slot}.", x)
            else:
                y = mixer(l, within(w, slot + "."), x)
            h = h + y
    if b:
        h = attnres_mix(closed + [h], weights, prefix + "res", eps)
    head = table if cfg.get("tie_word_embeddings") else weights.get("lm_head.weight", table)
    return linear(rmsnorm(h, weights[f"{prefix}{final}.weight"], eps), head)


def recurrence(S, d=None, c=None, e=None, rho=None, w=None, r=None, k=None, v=None, q=None, u=None):
    """The one recurrence (recurrence_step in run.c), one token of one head: S (dk, dv) in, (S', o) out. d scalar or (dk,), c (dv,)."""
    r = S.T @ e if e is not None else r
    n = S if d is None else (S * d if np.ndim(d) == 0 else S * np.asarray(d)[:, None])
    if c is not None:
        n = n * c
    if w is not None:
        n = n + np.outer(w, r)
    add = np.zeros(S.shape[1]) if v is None else v
    if e is not None and w is None:
        add = add - rho * r
    if k is not None:
        n = n + np.outer(k, add)
    if q is None:
        return n, None
    o = n.T @ q if u is None else S.T @ q + (q * u * k).sum() * v
    return n, o
