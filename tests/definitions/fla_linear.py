"""Linear-state mixers of the fla library inside its decoder (fla_decoder in common.py): one function per model_type.

Every mixer maps the normed input x (T, D) of one unpadded sequence to (T, D). c is the configuration, w the weights named
relative to the layer's attn. prefix (model-level tensors keep their full name), l the layer index. Per-token quantities
are (T, heads, channels): H heads, keys of dk and values of dv channels.
"""
import math

import numpy as np

from common import (ACTIVATIONS, fla_decoder, gelu_tanh, l2norm, linear, logsigmoid, model, recurrence, rmsnorm, rope, short_conv, sigmoid, silu,
                    softmax, softplus)


def mlp_width(c):
    """The width of the feed-forward: intermediate_size, or 2/3 of hidden_ratio * D rounded up to a multiple of 256."""
    return c.get("intermediate_size") or 256 * -(-int(c["hidden_size"] * (c.get("hidden_ratio") or 4) * 2 / 3) // 256)


def decode(c, weights, tokens, f):
    """The decoder around a mixer f(c, w, x, l)."""
    assert len(weights["model.layers.0.mlp.gate_proj.weight"]) == mlp_width(c)
    return fla_decoder(c, weights, tokens, lambda l, w, x: f(c, w, x, l))


def mixer(name):
    """Register f(c, w, x, l) as the mixer of model_type name."""
    def add(f):
        model(name)(lambda c, weights, tokens: decode(c, weights, tokens, f))
        return f
    return add


# Pieces shared by the mixers

def elu1(z):
    """elu(z) + 1: z + 1 above zero, e^z below."""
    return np.where(z > 0, z + 1, np.exp(np.minimum(z, 0)))


MAPS = ACTIVATIONS | {None: lambda z: z, "identity": lambda z: z, "elu": elu1}
# RetNet looks its names up in the table of transformers, whose gelu is the exact one.
RETNET_MAPS = MAPS | {"gelu": lambda z: 0.5 * z * (1 + np.vectorize(math.erf)(z / np.sqrt(2))), "gelu_new": gelu_tanh, "gelu_accurate": gelu_tanh, "gelu_fast": gelu_tanh,
                      "relu2": MAPS["sqrelu"], "tanh": np.tanh, "linear": MAPS["identity"]}


def feature_map(kind, w, z, name="feature_map"):
    """The feature map of fla modules/feature_map.py on each head of z (T, H, d); the learned maps read the tensors name.*"""
    layer = lambda n: linear(z, w[f"{name}.{n}.weight"], w.get(f"{name}.{n}.bias"))
    if kind == "elementwise_product":
        return layer("layer1") * layer("layer2")
    if kind == "t2r":
        return np.maximum(layer("layer"), 0)
    if kind == "hedgehog":
        y = 2 * layer("layer")
        return softmax(np.concatenate([y, -y], -1))
    if kind == "dpfp":
        p = np.maximum(z, 0)
        p = np.concatenate([p, -p], -1)
        return np.concatenate([p * np.roll(p, j, -1) for j in (1, 2, 3, 4)], -1)
    return MAPS[kind](z)


def heads(z, n):
    """(T, n d) -> (T, n, d): channel h d + i is channel i of head h."""
    return z.reshape(len(z), n, -1)


def expand(z, n):
    """Repeat each head of (T, heads, ...) in a row until there are n: head h reads source head h div (n / heads)."""
    return np.repeat(z, n // z.shape[1], 1)


def lowrank(w, x, name):
    """Two linear layers name.0 and name.1 (the second may have a bias) with nothing between them."""
    return linear(linear(x, w[name + ".0.weight"]), w[name + ".1.weight"], w.get(name + ".1.bias"))


def proj(w, x, name, n):
    """Projection name_proj split into n heads: (T, n, d)."""
    return heads(linear(x, w[name + "_proj.weight"]), n)


def conv_proj(c, w, x, name, n, act=silu, plain=None):
    """proj() through its convolution with activation act if use_short_conv, through the activation plain if not."""
    if c["use_short_conv"]:
        return heads(short_conv(linear(x, w[name + "_proj.weight"]), w[name + "_conv1d.weight"], act=act), n)
    return plain(proj(w, x, name, n)) if plain else proj(w, x, name, n)


def mamba_gate(w, x, a="a_proj", kind=""):
    """Log decay -exp(A_log) softplus(a x + dt_bias), (T, H)."""
    return -np.exp(w["A_log" + kind]) * softplus(linear(x, w[a + ".weight"]) + w["dt_bias" + kind])


def write_strength(c, w, x):
    """beta = sig(b_proj x), doubled by allow_neg_eigval; sig gives way to 1 without use_beta. (T, H)"""
    beta = sigmoid(linear(x, w["b_proj.weight"])) if c.get("use_beta", True) else np.ones((len(x), c["num_heads"]))
    return beta * (2 if c["allow_neg_eigval"] else 1)


def scan(q, k, v, d=None, e=None, rho=None):
    """recurrence() over all tokens and heads from a zero state, readout scale dk^-1/2. q, k, e (T, H, dk), v (T, H, dv),
    d (T, H) or (T, H, dk), rho (T, H). Returns o (T, H, dv)."""
    T, H, dk = q.shape
    q = q * dk ** -0.5
    S, o = np.zeros((H, dk, v.shape[2])), np.zeros(v.shape)
    at = lambda z, t, h: None if z is None else z[t, h]
    for t in range(T):
        for h in range(H):
            S[h], o[t, h] = recurrence(S[h], d=at(d, t, h), e=at(e, t, h), rho=at(rho, t, h), k=k[t, h], v=v[t, h], q=q[t, h])
    return o


def delta_rule(q, k, v, beta, a=None, write=None):
    """S = decay(S); S += write (beta (v - S^T k))^T; o = S^T q dk^-1/2. beta (T, H), decay a (T, H) or (T, H, dk), q and k
    already normed, write (T, H, dk) is k unless given."""
    e = k if a is None else k * (a[..., None] if a.ndim == 2 else a)
    return scan(q, k if write is None else write, beta[..., None] * v, a, e, beta)


def slot_attention(q, k, v, a, w, scale):
    """Two passes over M slots with decay a and write weight w (T, H, M):
    Hk = Hk Diag(a) + k w^T; p = softmax(Hk^T q scale); Hv = Diag(a) Hv + w v^T; o = Hv^T p."""
    T, H, dk = q.shape
    o = np.zeros(v.shape)
    for h in range(H):
        hk, hv = np.zeros((dk, a.shape[2])), np.zeros((a.shape[2], v.shape[2]))
        for t in range(T):
            hk, s = recurrence(hk, c=a[t, h], k=k[t, h], v=w[t, h], q=q[t, h] * scale)
            hv, o[t, h] = recurrence(hv, d=a[t, h], k=w[t, h], v=v[t, h], q=softmax(s))
    return o


def output(w, o, norm, eps, gate=None, act=silu):
    """RMSNorm of o over its last axis (weight optional), * act(gate) if there is a gate, heads joined, o_proj: (T, D)."""
    y = rmsnorm(o, w.get(norm + ".weight"), eps)
    if gate is not None:
        y = y * act(gate.reshape(y.shape))
    return linear(y.reshape(len(y), -1), w["o_proj.weight"])


def gated(c, w, x, o, norm="o_norm", on=True, act=silu):
    """output() with the gate g_proj x when on and eps norm_eps."""
    return output(w, o, norm, c["norm_eps"], linear(x, w["g_proj.weight"]) if on else None, act)


# Decay without erase

@mixer("linear_attn")
def linear_attention(c, w, x, l):
    """S += phi(k) v^T; o = S^T phi(q) f^-1/2, f the feature width; norm_feature_map divides by s phi(q).z + 1e-10."""
    H = c["num_heads"]
    n = c.get("num_kv_heads") or H
    q, k, v = proj(w, x, "q", H), expand(proj(w, x, "k", n), H), expand(proj(w, x, "v", n), H)
    names = ["feature_map_q", "feature_map_k"]
    if c["tie_feature_map_qk"]:  # one map under one of the names
        names = [next((m for m in names if any(n.startswith(m) for n in w)), names[0])] * 2
    q, k = (feature_map(c["feature_map"], w, z, name) for z, name in zip((q, k), names))
    if c["norm_q"]:
        q = q / (q.sum(-1, keepdims=True) + 1e-4)
    if c["norm_k"]:
        k = k / (k.sum(-1, keepdims=True) + 1e-4)
    o = scan(q, k, v)
    if c["norm_feature_map"]:
        o = o / ((q * k.cumsum(0)).sum(-1, keepdims=True) * q.shape[-1] ** -0.5 + 1e-10)
    return output(w, o, "norm", c["norm_eps"])


@mixer("retnet")
def retnet(c, w, x, l):
    """S = gamma_h S + k v^T, gamma_h = 1 - 2^(-5-h); q and k rotated; never a convolution."""
    H = c["num_heads"]
    n = c.get("num_kv_heads") or H
    phi = RETNET_MAPS[c["feature_map"]]
    q, k, v = rope(phi(proj(w, x, "q", H)), 10000.0), rope(phi(proj(w, x, "k", n)), 10000.0), proj(w, x, "v", n)
    gamma = np.tile(1 - 2.0 ** (-5 - np.arange(H)), (len(x), 1))
    return gated(c, w, x, scan(q, expand(k, H), expand(v, H), gamma), g_norm(w), c["use_output_gate"])


def g_norm(w):
    """The output norm's name: g_norm_swish_gate when norm and gate are fused, else g_norm; the arithmetic is the same."""
    return "g_norm_swish_gate" if "g_norm_swish_gate.weight" in w else "g_norm"


def mapped_qkv(c, w, x):
    """Heads of queries, of keys and values, and the three (T, heads, d) with the feature map on queries and keys."""
    H = c["num_heads"]
    n = c.get("num_kv_heads") or H
    phi = MAPS[c["feature_map"]]
    return H, n, phi(conv_proj(c, w, x, "q", H)), phi(conv_proj(c, w, x, "k", n)), conv_proj(c, w, x, "v", n)


@mixer("gla")
def gla(c, w, x, l):
    """S = Diag(e^g) S + k v^T, g = lsig(gk_proj x) / 16 per key channel, not below clamp_min."""
    H, n, q, k, v = mapped_qkv(c, w, x)
    g = heads(logsigmoid(lowrank(w, x, "gk_proj")) / 16, n)
    if c["clamp_min"] is not None:
        g = np.maximum(g, c["clamp_min"])
    o = scan(q, expand(k, H), expand(v, H), np.exp(expand(g, H)))
    return gated(c, w, x, o, g_norm(w), c["use_output_gate"])


def forget(c, w, z, l):
    """f = lb + (1 - lb) sig(z), lb the sum of rows 1..l of the softmax over layers of lower_bounds, 0 in layer 0 or without."""
    if not c["use_lower_bound"] or l == 0:
        return sigmoid(z)
    lb = softmax(w["model.lower_bounds"], 0)[1:l + 1].sum(0).reshape(z.shape[1:])
    return lb + (1 - lb) * sigmoid(z)


@mixer("hgrn")
def hgrn(c, w, x, l):
    """h = f h + silu(i) (1 - f) elementwise over D * expand_ratio channels."""
    i, f = (conv_proj(c, w, x, s, 1, act=None)[:, 0] for s in "if")
    f = forget(c, w, f, l)
    o, h = np.zeros(i.shape), 0
    for t in range(len(x)):
        o[t] = h = f[t] * h + silu(i[t]) * (1 - f[t])
    return gated(c, w, x, o, "g_norm")


@mixer("hgrn2")
def hgrn2(c, w, x, l):
    """S = Diag(f) S + (1 - f) v^T; o = S^T silu(q) dk^-1/2; RMSNorm over the whole width, eps 1e-5, no gate."""
    H = c["hidden_size"] // c["expand_ratio"] if c["expand_ratio"] else c["num_heads"]
    q, f, v = (conv_proj(c, w, x, s, H, act=None) for s in "qfi")
    f = forget(c, w, f, l)
    o = scan(silu(q), 1 - f, v, f)
    return output(w, o.reshape(len(x), -1), "g_norm", 1e-5)


def running_softmax(s):
    """(e^(z' - z), e^(s - z)), decay and write weight, with z = logaddexp(z', s) over tokens and z' = -inf at first."""
    z = np.logaddexp.accumulate(s)
    return np.exp(np.concatenate([np.full_like(z[:1], -np.inf), z[:-1]]) - z), np.exp(s - z)


def lightnet(c, w, x, l):
    """S = Diag(a) S + k' v^T with decay a and key k' the running softmax of k; o = S^T silu(q) dk^-1/2; RMSNorm over the
    whole width, eps 1e-6, * silu(g)."""
    H = c["num_heads"] or c["hidden_size"] // c["expand_ratio"]
    q, k, v = (conv_proj(c, w, x, s, H, act=None) for s in "qkv")
    a, k = running_softmax(k)
    return output(w, scan(silu(q), k, v, a).reshape(len(x), -1), "g_norm", 1e-6, lowrank(w, x, "g_proj"))


@model("lightnet")
def lightnet_model(c, weights, tokens):
    """The decoder of lightnet: its hybrid layers keep the base 10000 whatever rope_theta says."""
    specs = [c["attn"]] if isinstance(c["attn"], dict) else c["attn"] or []
    return decode({**c, "attn": [{**s, "rope_theta": 10000.0} for s in specs]}, weights, tokens, lightnet)


@mixer("gsa")
def gsa(c, w, x, l):
    """slot_attention with a = e^f, f = lsig(f_proj x) / gate_logit_normalizer, weight 1 - a, scale 1; then silu and a
    RMSNorm over the whole width, eps 1e-5. silu comes on top of the convolution's."""
    H = c["num_heads"]
    n = c.get("num_kv_heads") or H
    phi = lambda z: feature_map(c["feature_map"], w, z)
    q, k, v = phi(conv_proj(c, w, x, "q", H)), phi(conv_proj(c, w, x, "k", n)), silu(conv_proj(c, w, x, "v", n))
    a = np.exp(heads(logsigmoid(linear(x, w["f_proj.weight"])) / c["gate_logit_normalizer"], n))
    o = slot_attention(q, *(expand(z, H) for z in (k, v, a, 1 - a)), 1)
    return output(w, silu(o).reshape(len(x), -1), "g_norm", 1e-5)


@mixer("abc")
def abc(c, w, x, l):
    """slot_attention with decay and write weight from the running softmax of the clamped slot logits."""
    H = c["num_heads"]
    q, k, v = (conv_proj(c, w, x, s, H) for s in "qkv")
    if c["use_rope"]:
        q, k = rope(q, 10000.0), rope(k, 10000.0)
    s = np.clip(heads(linear(x, w["s_proj.weight"]), H), c["clamp_min"], c["clamp_max"])
    return gated(c, w, x, slot_attention(q, k, v, *running_softmax(s), q.shape[2] ** -0.5), "g_norm")


# Delta rules

@mixer("delta_net")
def delta_net(c, w, x, l):
    """S += k (beta (v - S^T k))^T; q and k through qk_activation, then l2 norm or division by their sum."""
    H, phi = c["num_heads"], MAPS[c["qk_activation"]]
    norm = l2norm if c["qk_norm"] == "l2" else lambda z: z / z.sum(-1, keepdims=True)
    q, k = (norm(phi(conv_proj(c, w, x, s, H, act=None))) for s in "qk")
    v = conv_proj(c, w, x, "v", H, plain=silu)
    return gated(c, w, x, delta_rule(q, k, v, write_strength(c, w, x)), on=c["use_gate"])


def delta_qkv(c, w, x, n=1):
    """q (T, HV, dk), k (T n, HV, dk), v (T n, HV, dv) for n writes per token (the outermost index of the k and v channels);
    q and k l2-normed and expanded to the value heads."""
    H, rows = c["num_heads"], len(x) * n
    HV = c.get("num_v_heads") or H
    q, k, v = (conv_proj(c, w, x, s, m, plain=silu) for s, m in (("q", H), ("k", n * H), ("v", n * HV)))
    return expand(l2norm(q), HV), expand(l2norm(k.reshape(rows, H, -1)), HV), v.reshape(rows, HV, -1)


@mixer("gated_deltanet")
def gated_deltanet(c, w, x, l):
    """S = e^g S; S += k (beta (v - S^T k))^T; g per value head."""
    q, k, v = delta_qkv(c, w, x)
    return gated(c, w, x, delta_rule(q, k, v, write_strength(c, w, x), np.exp(mamba_gate(w, x))), on=c["use_gate"])


@mixer("gated_deltaproduct")
def gated_deltaproduct(c, w, x, l):
    """n delta rule sub-steps per token, the decay in the first, the readout after the last: a scan over T n rows."""
    n, H = c["num_householder"], c["num_heads"]
    q, k, v = delta_qkv(c, w, x, n)
    beta = write_strength(c, w, x).reshape(-1, H)
    a = np.ones((len(x), n, H))
    if c["use_forget_gate"]:
        a[:, 0] = np.exp(mamba_gate(w, x))
    o = delta_rule(np.repeat(q, n, 0), k, v, beta, a.reshape(-1, H))[n - 1::n]
    return gated(c, w, x, o, on=c["use_output_gate"])


def kda_decay(c, w, x):
    """e^g per key channel of each value head (T, HV, dk): g = -exp(A_log) sp(f + dt_bias), or with lower_bound
    g = lower_bound sig(exp(A_log) (f + dt_bias))."""
    A = np.exp(w["A_log"].reshape(-1, 1))
    f = heads(lowrank(w, x, "f_proj") + w["dt_bias"], len(A))
    return np.exp(-A * softplus(f) if c.get("lower_bound") is None else c["lower_bound"] * sigmoid(A * f))


@mixer("kda")
def kda(c, w, x, l):
    """S = Diag(e^g) S; S += k (beta (v - S^T k))^T; sigmoid gate of rank dv."""
    q, k, v = delta_qkv(c, w, x)
    o = delta_rule(q, k, v, write_strength(c, w, x), kda_decay(c, w, x))
    return output(w, o, "o_norm", c["norm_eps"], lowrank(w, x, "g_proj"), sigmoid)


@mixer("comba")
def comba(c, w, x, l):
    """r = S^T p; S = e^g S + k (beta (v - r))^T: the read precedes the decay. p = l2(sig(decay) k),
    q = l2(q - D sig(decay) k); sigmoid output gate."""
    H = c["num_heads"]
    q, k, v = (conv_proj(c, w, x, s, H, plain=silu) for s in "qkv")
    p = sigmoid(w["decay"])[:, None] * k
    q = q - w["D"][:, None] * p
    a, beta = np.exp(mamba_gate(w, x)), sigmoid(linear(x, w["b_proj.weight"]))
    o = scan(l2norm(q), l2norm(k), beta[..., None] * v, a, l2norm(p), beta)
    return gated(c, w, x, o, on=c["use_output_gate"], act=sigmoid)


def precondition(c, w, k, g, beta):
    """k M (T, heads, dk): A = e^g A + beta k * k; r = ln(A + squash_eps) - log_atk_scale; M = squash_x^(-r / (1 + |r|))."""
    A, m = 0, np.zeros(k.shape)
    for t in range(len(k)):
        A = np.exp(g[t])[:, None] * A + beta[t][:, None] * k[t] ** 2
        r = np.log(A + c["squash_eps"]) - w["log_atk_scale"][:, None]
        m[t] = c["squash_x"] ** (-r / (1 + abs(r)))
    return k * m


@mixer("precond_gated_deltanet")
def precond_gated_deltanet(c, w, x, l):
    """gated_deltanet whose write key is preconditioned per key head."""
    q, k, v = delta_qkv(c, w, x)
    HV, G = v.shape[1], v.shape[1] // c["num_heads"]
    write = precondition(c, w, k[:, ::G], mamba_gate(w, x, "a_atk_proj", "_atk"), sigmoid(linear(x, w["b_atk_proj.weight"])))
    o = delta_rule(q, k, v, write_strength(c, w, x), np.exp(mamba_gate(w, x)), expand(write, HV))
    return gated(c, w, x, o, on=c["use_gate"])


@mixer("precond_kda")
def precond_kda(c, w, x, l):
    """kda whose write key is preconditioned per value head; beta is per query head and a_proj belongs to the preconditioner."""
    q, k, v = delta_qkv(c, w, x)
    write = precondition(c, w, k, mamba_gate(w, x, "a_proj", "_atk"), sigmoid(linear(x, w["b_atk_proj.weight"])))
    o = delta_rule(q, k, v, expand(write_strength(c, w, x), v.shape[1]), kda_decay(c, w, x), write)
    return output(w, o, "o_norm", c["norm_eps"], lowrank(w, x, "g_proj"), sigmoid)


@mixer("mom")
def mom(c, w, x, l):
    """Gated delta rule memories, topk of them per token by softmax(gate x), mixed by their renormalised scores, plus a
    shared memory that sees every token. A memory's convolutions and state run over the tokens routed to it alone."""
    H = c["num_heads"]

    def memory(x, k, v, a, b):
        q, k, v = (heads(short_conv(linear(x, w[p + ".weight"]), w[s + "_conv1d.weight"]), H)
                   for s, p in (("q", "q_proj"), ("k", k), ("v", v)))
        return delta_rule(l2norm(q), l2norm(k), v, sigmoid(linear(x, w[b + ".weight"])), np.exp(mamba_gate(w, x, a)))

    shared = ("shared_k", "shared_v", "shared_a", "shared_b")
    p = softmax(linear(x, w["gate.weight"]))
    p = np.where(p >= np.sort(p)[:, [-c["topk"]]], p, 0)
    p = p / p.sum(-1, keepdims=True)
    o = memory(x, *shared) if c["shared_mem"] else 0
    for m in range(c["num_memories"]):
        names = shared if c["single_kv_proj"] else [f"{s}_proj.{m}" for s in "kvab"]
        on = p[:, m] > 0
        y = np.zeros((len(x), H, len(w["v_conv1d.weight"]) // H))
        y[on] = memory(x[on], *names)
        o = o + p[:, m, None, None] * y
    return gated(c, w, x, o, on=c["use_output_gate"])


# Linear solve

@mixer("mesa_net")
def mesa_net(c, w, x, l):
    """Hkk = e^g Hkk + beta k k^T; Hkv = e^g Hkv + beta k v^T; (Hkk + Diag(L)) y = q by conjugate gradient; o = Hkv^T y.
    v has neither convolution nor activation."""
    H = c["num_heads"]
    q, k = (l2norm(heads(short_conv(linear(x, w[s + "_proj.weight"]), w[s + "_conv1d.weight"]), H)) for s in "qk")
    v = proj(w, x, "v", H)
    a, beta = (sigmoid(linear(x, w[s + "_proj.weight"], w[s + "_proj.bias"])) for s in "ab")
    L = (softplus(w["lambda_params"]) + c["lambda_lower_bound"]).reshape(H, -1)
    o = np.zeros(v.shape)
    for h in range(H):
        hkk, hkv = np.zeros((k.shape[2],) * 2), np.zeros((k.shape[2], v.shape[2]))
        for t in range(len(x)):
            write = dict(d=a[t, h], k=beta[t, h] * k[t, h])
            hkk, _ = recurrence(hkk, v=k[t, h], **write)
            y = conjugate_gradient(hkk + np.diag(L[h]), q[t, h], c["max_cg_step_training"])
            hkv, o[t, h] = recurrence(hkv, v=v[t, h], q=y, **write)
    return gated(c, w, x, o, on=c["use_output_gate"])


def conjugate_gradient(A, q, steps):
    """y of A y = q from y = 0 with guarded divisions and a fixed number of steps; the guards limit how far it converges."""
    y, p, res = 0, q, q
    d = res @ res
    for _ in range(steps):
        Ap = A @ p
        al = d / (p @ Ap + 1e-5)
        y, res = y + al * p, res - al * Ap
        dn = res @ res
        p, d = res + dn / (d + 1e-5) * p, dn
    return y


# Layers of the library without a model of their own: the decoder of gla around them

@mixer("simple_gla")
def simple_gla(c, w, x, l):
    """S = e^g S + k v^T, g = lsig(gk_proj x) / 16 per query head."""
    H, _, q, k, v = mapped_qkv(c, w, x)
    a = np.exp(logsigmoid(linear(x, w["gk_proj.weight"], w["gk_proj.bias"])) / c["gate_logit_normalizer"])
    return gated(c, w, x, scan(q, expand(k, H), expand(v, H), a), g_norm(w), c["use_output_gate"])


@mixer("lightning_attn")
def lightning_attn(c, w, x, l):
    """S = e^g S + k v^T, g = -(8 / H) (1 - l / L) h for head h of layer l."""
    H, _, q, k, v = mapped_qkv(c, w, x)
    a = np.tile(np.exp(-8 / H * (1 - l / c["num_hidden_layers"]) * np.arange(H)), (len(x), 1))
    return gated(c, w, x, scan(q, expand(k, H), expand(v, H), a), g_norm(w), c["use_output_gate"])
