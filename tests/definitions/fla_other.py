"""Mamba, Mamba-2, log-linear Mamba-2, RWKV-6, RWKV-7, Forgetting Transformer, PaTH, Samba, Transformer; the GDN-2 layer.

A mixer maps the normed input x (T, D) of one unpadded sequence to (T, D); p holds its tensors, named relative to the
layer's slot. Per-token quantities are (T, heads, channels). Run as a program, the file compares the recurrences that no
checkpoint exercises with their definitions.
"""
import numpy as np

from common import (ACTIVATIONS, fla_attention, fla_decoder, fla_hybrid, l2norm, layernorm, linear, logsigmoid, model, recurrence, rmsnorm,
                    sdpa, short_conv, sigmoid, silu, softmax, softplus, within)


def proj(p, name, x):
    """Linear layer `name`, with its bias when there is one."""
    return linear(x, p[name + ".weight"], p.get(name + ".bias"))


def heads(x, n):
    """(T, n d) -> (T, n, d)."""
    return x.reshape(len(x), n, -1)


def scan(T, H, dk, dv, step):
    """step(t, h, S) -> (S', o) over tokens and heads from zero states; o (T, H, dv)."""
    S, o = np.zeros((H, dk, dv)), np.zeros((T, H, dv))
    for t in range(T):
        for h in range(H):
            S[h], o[t, h] = step(t, h, S[h])
    return o


# Softmax attention

def qkv(p, x, H, Hkv):
    return heads(proj(p, "q_proj", x), H), heads(proj(p, "k_proj", x), Hkv), heads(proj(p, "v_proj", x), Hkv)


def forgetting_attention(p, x, H, Hkv):
    """logit_tj = q_t.k_j d^-1/2 + c_t - c_j, c = running sum of logsigmoid(f_proj x) per query head; no RoPE. Optional:
    q and k norm per head with one weight per channel of the full width (eps 1e-5); o = sigmoid(g_proj x) * o."""
    q, k, v = qkv(p, x, H, Hkv)
    if "q_norm.weight" in p:
        q, k = rmsnorm(q, p["q_norm.weight"].reshape(H, -1), 1e-5), rmsnorm(k, p["k_norm.weight"].reshape(Hkv, -1), 1e-5)
    c = np.cumsum(logsigmoid(proj(p, "f_proj", x)), 0).T
    o = sdpa(q, k, v, bias=c[:, :, None] - c[:, None]).reshape(len(x), -1)
    if "g_proj.weight" in p:
        o = sigmoid(proj(p, "g_proj", x)) * o
    return proj(p, "o_proj", o)


def path(q, k, v, w, beta, c):
    """At token t every older key becomes k_j - beta_t (k_j.w_t) w_t; logit_j = d^-1/2 (q_t.k_j + c_t - c_j).
    q (T, H, d), k, v, w (T, Hkv, d), beta (T, Hkv), c (T, H) -> (T, H, d)."""
    k, g, o = k.copy(), q.shape[1] // k.shape[1], np.zeros(q.shape)
    for t in range(len(q)):
        k[:t] -= beta[t][:, None] * (k[:t] * w[t]).sum(-1, keepdims=True) * w[t]
        s = (q[t] * np.repeat(k[:t + 1], g, 1)).sum(-1) + c[t] - c[:t + 1]
        o[t] = (softmax(s * q.shape[-1] ** -0.5, 0)[..., None] * np.repeat(v[:t + 1], g, 1)).sum(0)
    return o


def path_attention(p, x, H, Hkv):
    """PaTH with w = l2(silu(conv(w_proj x))), beta = 2 sigmoid(bt_proj x) per kv head, and c = running sum of
    logsigmoid(g_proj x) per query head, zero without forget gate; w_proj may have rank 32 and no convolution."""
    w = proj(p, "w_proj", x) if "w_proj.weight" in p else proj(p, "w_proj.1", proj(p, "w_proj.0", x))
    if "w_conv1d.weight" in p:
        w = short_conv(w, p["w_conv1d.weight"])
    c = np.cumsum(logsigmoid(proj(p, "g_proj", x)), 0) if "g_proj.weight" in p else np.zeros((len(x), H))
    o = path(*qkv(p, x, H, Hkv), l2norm(heads(w, Hkv)), 2 * sigmoid(proj(p, "bt_proj", x)), c)
    return proj(p, "o_proj", o.reshape(len(x), -1))


@model("transformer")
def transformer(cfg, w, tokens):
    return fla_decoder(cfg, w, tokens, lambda l, p, x: fla_attention(cfg, p, "", x))


@model("forgetting_transformer")
def forgetting_transformer(cfg, w, tokens):
    H = cfg["num_heads"]
    return fla_decoder(cfg, w, tokens, lambda l, p, x: forgetting_attention(p, x, H, cfg.get("num_kv_heads") or H))


@model("path_attn")
def path_attn(cfg, w, tokens):
    H = cfg["num_heads"]
    return fla_decoder(cfg, w, tokens, lambda l, p, x: path_attention(p, x, H, cfg.get("num_kv_heads") or H))


def wall(q, k, v, g, gs, window=None):
    """logit_tj = d^-1/2 sum_c q_tc k_jc e^(P_tc - P_jc) + C_t - C_j, P and C running sums of g (T, H, d) and gs (T, H)."""
    (T, H, d), P, C, o = q.shape, np.cumsum(g, 0), np.cumsum(gs, 0), np.zeros(q.shape)
    k, v = np.repeat(k, H // k.shape[1], 1), np.repeat(v, H // v.shape[1], 1)
    for t in range(T):
        seen = slice(max(0, t + 1 - (window or T)), t + 1)
        s = (q[t] * k[seen] * np.exp(P[t] - P[seen])).sum(-1) * d ** -0.5 + C[t] - C[seen]
        o[t] = (softmax(s, 0)[..., None] * v[seen]).sum(0)
    return o


@model("wall_transformer")
def wall_transformer(cfg, w, tokens):
    """No RoPE. Gates of keys per query head and channel, optionally one more per query head; q and k norms with one weight per channel
    of the full width (eps 1e-5); o = sigmoid(o_gate_proj x) * o."""
    H = cfg["num_heads"]
    Hkv = cfg.get("num_kv_heads") or H

    def attention(l, p, x):
        q, k, v = qkv(p, x, H, Hkv)
        if "q_norm.weight" in p:
            q, k = rmsnorm(q, p["q_norm.weight"].reshape(H, -1), 1e-5), rmsnorm(k, p["k_norm.weight"].reshape(Hkv, -1), 1e-5)
        gs = logsigmoid(proj(p, "gs_proj", x)) if "gs_proj.weight" in p else np.zeros((len(x), H))
        o = wall(q, k, v, logsigmoid(heads(proj(p, "g_proj", x), H)), gs, cfg.get("window_size")).reshape(len(x), -1)
        if "o_gate_proj.weight" in p:
            o = sigmoid(proj(p, "o_gate_proj", x)) * o
        return proj(p, "o_proj", o)
    return fla_decoder(cfg, w, tokens, attention)


# Mamba

def mamba_mixer(p, x):
    """(u, z) = in_proj x; c = silu(conv(u)); (dt, B, C) = x_proj c; dt = softplus(dt_proj dt);
    h[i,n] = exp(-dt_i exp(A_log[i,n])) h[i,n] + dt_i c_i B_n;  y_i = sum_n h[i,n] C_n + D_i c_i;  out_proj(y * silu(z))."""
    u, z = np.split(proj(p, "in_proj", x), 2, -1)
    c = short_conv(u, p["conv1d.weight"], p.get("conv1d.bias"))
    N, R = p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    dt, B, C = np.split(proj(p, "x_proj", c), [R, R + N], -1)
    dt = softplus(proj(p, "dt_proj", dt))
    h, y = np.zeros(p["A_log"].shape), np.zeros(c.shape)
    for t in range(len(x)):
        h = np.exp(-dt[t][:, None] * np.exp(p["A_log"])) * h + np.outer(dt[t] * c[t], B[t])
        y[t] = h @ C[t] + p["D"] * c[t]
    return proj(p, "out_proj", y * silu(z))


def gated_norm(weight, y, z, groups, eps, norm_before_gate):
    """RMSNorm(y * silu(z)) within each of the groups of channels, times weight (full width); or RMSNorm(y) * weight * silu(z)."""
    n = heads(y if norm_before_gate else y * silu(z), groups)
    n = rmsnorm(n, weight.reshape(groups, -1), eps).reshape(y.shape)
    return n * silu(z) if norm_before_gate else n


def ssd(B, C, xs, dt, A_log):
    """S = exp(-dt exp(A_log)) S + B (dt x)^T;  y = S^T C. B, C (T, H, N), xs (T, H, P), dt (T, H) -> (T, H, P)."""
    a = np.exp(-dt * np.exp(A_log))
    return scan(*xs.shape[:2], B.shape[2], xs.shape[2],
                lambda t, h, S: recurrence(S, d=a[t, h], k=B[t, h], v=dt[t, h] * xs[t, h], q=C[t, h]))


def level(t, j):
    """Level at which position t >= j sees position j: the number of bits of t xor j."""
    return int(t ^ j).bit_length()


def log_linear(q, k, v, g, lam):
    """o_t = sum_{j <= t} lam_{t, level(t, j)} exp(g_{j+1} + .. + g_t) (q_t.k_j) v_j with one state per level: level b + 1 is
    read when bit b of t is set; afterwards the levels of the trailing ones of t and token t merge into the next level.
    q, k (T, H, N), v (T, H, P), g (T, H), lam (T, H, levels) -> (T, H, P)."""
    (T, H, N), P = q.shape, v.shape[2]
    M, o = np.zeros((lam.shape[2] + 1, H, N, P)), np.zeros((T, H, P))
    for t in range(T):
        M *= np.exp(g[t])[:, None, None]
        M[0] = k[t][:, :, None] * v[t][:, None]
        read = [0] + [b + 1 for b in range(t.bit_length()) if t >> b & 1]
        o[t] = sum(lam[t, :, l, None] * np.einsum("hnp,hn->hp", M[l], q[t]) for l in read)
        full = level(t, t + 1)
        M[full] = M[:full].sum(0)
        M[:full] = 0
    return o


def log_linear_ssd(B, C, xs, dt, dl, A_log, L):
    """ssd with one state per level, weighted by lam = softplus(L * dl). dl (T, H levels), L (H, levels)."""
    return log_linear(C, B, dt[..., None] * xs, -dt * np.exp(A_log), softplus(L * dl.reshape(dt.shape + (-1,))))


def limits(pair):
    """A range of time steps; JSON has no infinity, so a bound may be {"__float__": "Infinity"}."""
    return [float(v["__float__"] if isinstance(v, dict) else v) for v in pair]


def mamba2_mixer(cfg, p, x):
    """(z, x, B, C, dt, dl) = in_proj x, with silu(conv) over x, B and C, and dl in the log-linear form only; head h reads
    group h div (H/G) of B and C; dt = clip(softplus(dt + dt_bias)); y = ssd + D x; out_proj(gated_norm(y, z))."""
    H, I, G, T = len(p["dt_bias"]), p["out_proj.weight"].shape[1], cfg["n_groups"], len(x)
    GN = (len(p["conv1d.weight"]) - I) // 2
    z, xBC, dt, dl = np.split(proj(p, "in_proj", x), np.cumsum([I, I + 2 * GN, H]), -1)
    xs, B, C = np.split(short_conv(xBC, p["conv1d.weight"], p.get("conv1d.bias")), [I, I + GN], -1)
    xs, B, C = heads(xs, H), np.repeat(heads(B, G), H // G, 1), np.repeat(heads(C, G), H // G, 1)
    dt = np.clip(softplus(dt + p["dt_bias"]), *limits(cfg["dt_limit"]))
    y = log_linear_ssd(B, C, xs, dt, dl, p["A_log"], p["L"]) if "L" in p else ssd(B, C, xs, dt, p["A_log"])
    y = (y + p["D"].reshape(H, -1) * xs).reshape(T, I)
    if cfg["rmsnorm"]:
        y = gated_norm(p["norm.weight"], y, z, G, cfg["norm_eps"], cfg["norm_before_gate"])
    else:
        y = y * silu(z)
    return proj(p, "out_proj", y)


@model("mamba")
def mamba(cfg, w, tokens):
    return fla_decoder(cfg, w, tokens, lambda l, p, x: mamba_mixer(p, x), "backbone.", "norm", "mixer", "norm_f")


@model("samba")
def samba(cfg, w, tokens):
    return fla_decoder(cfg, w, tokens, lambda l, p, x: mamba_mixer(p, x), "backbone.", "mixer_norm", "mixer", "norm_f")


def trapezoid(C, B, x, dt, A, lam):
    """S = a S + (1 - lam) dt a B_{t-1} x_{t-1}^T + lam dt B x^T, a = e^(A dt); o = S^T C.   C, B (T, H, N), x (T, H, P), dt, A, lam (T, H)"""
    def step(t, h, S):
        a = np.exp(A[t, h] * dt[t, h])
        S = a * S + lam[t, h] * dt[t, h] * np.outer(B[t, h], x[t, h])
        if t:
            S = S + (1 - lam[t, h]) * dt[t, h] * a * np.outer(B[t - 1, h], x[t - 1, h])
        return S, S.T @ C[t, h]
    return scan(*B.shape, x.shape[2], step)


def turn(z, theta):
    """Pairs (2i, 2i + 1) of the first channels of z (T, H, N) by the angles theta (T, H, A)."""
    y, n = z.copy(), 2 * theta.shape[2]
    a, b = z[..., 0:n:2], z[..., 1:n:2]
    y[..., 0:n:2], y[..., 1:n:2] = a * np.cos(theta) - b * np.sin(theta), a * np.sin(theta) + b * np.cos(theta)
    return y


def mamba3_mixer(cfg, p, x):
    """in_proj rows z, x, B, C, dt, A, trap, angles; B and C normed per group, biased and turned per head; y silu(z), or the norm of y in between."""
    N, P, G, eps = cfg["state_size"], cfg["head_dim"], cfg["n_groups"], cfg["norm_eps"]
    inner = cfg["expand"] * cfg["hidden_size"]
    H, angles = inner // P, int(N * cfg["rope_fraction"]) // 2
    z, xs, B, C, dt, A, trap, angle = np.split(proj(p, "in_proj", x), np.cumsum([inner, inner, G * N, G * N, H, H, H]), 1)
    assert angle.shape[1] == angles
    dt, A, lam = softplus(dt + p["dt_bias"]), np.minimum(-softplus(A), -cfg["A_floor"]), sigmoid(trap)
    theta = np.cumsum(np.pi * np.tanh(angle)[:, None] * dt[..., None], 0)
    B, C = (turn(np.repeat(rmsnorm(v.reshape(len(x), G, N), p[f"{n}_norm.weight"], eps), H // G, 1) + p[f"{n}_bias"][:, 0], theta) for v, n in ((B, "B"), (C, "C")))
    xs = xs.reshape(len(x), H, P)
    y = trapezoid(C, B, xs, dt, A, lam) + p["D"][:, None] * xs
    if cfg["is_outproj_norm"]:
        y = rmsnorm(y, p["norm.weight"].reshape(H, P), eps)
    return proj(p, "out_proj", y.reshape(len(x), -1) * silu(z))


@model("mamba3")
def mamba3(cfg, w, tokens):
    return fla_decoder(cfg, w, tokens, lambda l, p, x: mamba3_mixer(cfg, p, x), "backbone.", "norm", "mixer", "norm_f")


@model("mamba2")
def mamba2(cfg, w, tokens):
    return fla_decoder(cfg, w, tokens, lambda l, p, x: mamba2_mixer(cfg, p, x), "backbone.", "norm", "mixer", "norm_f")


@model("log_linear_mamba2")
def log_linear_mamba2(cfg, w, tokens):
    """The mlp is silu whatever hidden_act says."""
    return fla_decoder(dict(cfg, hidden_act="swish"), w, tokens, lambda l, p, x: mamba2_mixer(cfg, p, x),
                       "backbone.", "mixer_norm", "mixer", "norm_f")


# RWKV

def token_shift(x):
    """x_{t-1} - x_t with x_{-1} = 0."""
    return np.concatenate([np.zeros((1, x.shape[1])), x[:-1]]) - x


def group_norm(p, o, eps):
    """LayerNorm of each head of o (T, H, dv), weight and bias per channel of the full width -> (T, H dv)."""
    return layernorm(o, p["g_norm.weight"].reshape(o.shape[1:]), p["g_norm.bias"].reshape(o.shape[1:]), eps).reshape(len(o), -1)


def lora(p, name, x, act=lambda z: z):
    """L2 act(L0 x) + b."""
    return proj(p, name + ".lora.2", act(proj(p, name + ".lora.0", x)))


def rwkv6_mixer(p, x, eps):
    """mu = A tanh(x_proj(x + delta mu_x)) + x_bias for each of r, w, k, v, g; each projection reads x + delta * mu;
    o = S^T r + (sum_i r_i u_i k_i) v;  S = Diag(exp(-exp(w))) S + k v^T;  o_proj(GroupNorm(o) * silu(g))."""
    H, delta = len(p["bonus"]), token_shift(x)
    y = np.tanh(proj(p, "x_proj.0.linear", x + delta * p["x_proj.0.mu"])).reshape(len(x), 5, -1)
    mu = np.einsum("tnr,dnr->ntd", y, p["x_proj.2.weight"].reshape(x.shape[1], 5, -1)) + p["x_bias"][:, None]
    xr, xw, xk, xv, xg = x + delta * mu
    r, k, v = (heads(proj(p, n + "_proj.linear", xn), H) for n, xn in zip("rkv", (xr, xk, xv)))
    a = np.exp(-np.exp(heads(lora(p, "w_proj.linear", xw, np.tanh), H)))
    o = scan(*k.shape, v.shape[2], lambda t, h, S: recurrence(S, d=a[t, h], k=k[t, h], v=v[t, h], q=r[t, h], u=p["bonus"][h]))
    return proj(p, "o_proj", group_norm(p, o, eps) * silu(proj(p, "g_proj.linear", xg)))


def rwkv6_channel_mix(p, x, act):
    """sigmoid(receptance) * value(act(key)), each on its own shifted input; act is max(z, 0)^2 unless hidden_act names another."""
    delta = token_shift(x)
    k = act(proj(p, "key.linear", x + delta * p["key.mu"]))
    return sigmoid(proj(p, "receptance.linear", x + delta * p["receptance.mu"])) * proj(p, "value", k)


def rwkv7_mixer(p, x, v_first, eps, norm):
    """S = Diag(exp(w)) S + (kk * a) (-kk)^T S + k v^T;  o = S^T r;  o_proj((GroupNorm(o) + (sum_i r_i k_i r_k,i) v) * g).
    v_first is None in layer 0, the value of layer 0 afterwards; norm is the l2 norm of kk. -> (T, D), v_first."""
    H, delta = len(p["r_k"]), token_shift(x)
    xr, xw, xk, xv, xa, xg = (x + delta * p["x_" + n].reshape(-1) for n in "rwkvag")
    r, k, v = proj(p, "r_proj", xr), proj(p, "k_proj", xk), proj(p, "v_proj", xv)
    w = np.exp(-np.exp(-0.5) * sigmoid(lora(p, "w_lora", xw, np.tanh)))
    a = sigmoid(lora(p, "a_lora", xa))
    if v_first is None:
        v_first = v
    else:
        v = v + sigmoid(lora(p, "v_lora", xv)) * (v_first - v)
    kk = norm(heads(k * p["k_k"], H))
    r, w, k, v, a = (heads(z, H) for z in (r, w, k * (1 + (a - 1) * p["k_a"]), v, a))
    o = scan(*k.shape, v.shape[2],
             lambda t, h, S: recurrence(S, d=w[t, h], e=-kk[t, h], w=kk[t, h] * a[t, h], k=k[t, h], v=v[t, h], q=r[t, h]))
    o = group_norm(p, o, k.shape[2] * eps) + ((r * k * p["r_k"]).sum(-1, keepdims=True) * v).reshape(len(x), -1)
    return proj(p, "o_proj", o * lora(p, "g_lora", xg, sigmoid)), v_first


def rwkv7_channel_mix(p, x, act):
    """value(act(key(x + delta x_k)))."""
    return proj(p, "value", act(proj(p, "key", x + token_shift(x) * p["x_k"])))


def rwkv_decoder(cfg, w, tokens, mixer, channel_mix):
    """As fla_decoder with LayerNorms and channel_mix(p, x, act) as mlp; the residual of layer 0 starts after pre_norm."""
    def norm(p, name, z):
        return layernorm(z, p[name + ".weight"], p.get(name + ".bias"), cfg["norm_eps"])
    table = w["model.embeddings.weight"]
    h = table[tokens]
    for l in range(cfg["num_hidden_layers"]):
        p = within(w, f"model.layers.{l}.")
        if "pre_norm.weight" in p:
            h = norm(p, "pre_norm", h)
        h = h + mixer(l, within(p, "attn."), norm(p, "attn_norm", h))
        h = h + channel_mix(within(p, "ffn."), norm(p, "ffn_norm", h), ACTIVATIONS[cfg["hidden_act"]])
    head = table if cfg.get("tie_word_embeddings") else w.get("lm_head.weight", table)
    return linear(norm(w, "model.norm", h), head)


@model("rwkv6")
def rwkv6(cfg, w, tokens):
    def mixer(l, p, x):
        spec = fla_hybrid(cfg, l)
        return fla_attention(spec, p, "", x) if spec else rwkv6_mixer(p, x, cfg["norm_eps"])
    return rwkv_decoder(cfg, w, tokens, mixer, rwkv6_channel_mix)


@model("rwkv7")
def rwkv7(cfg, w, tokens):
    def norm(z):
        return l2norm(z) if cfg["fuse_norm"] else z / np.maximum(np.sqrt((z * z).sum(-1, keepdims=True)), 1e-12)
    v_first = None

    def mixer(l, p, x):
        nonlocal v_first
        o, v_first = rwkv7_mixer(p, x, v_first, cfg["norm_eps"], norm)
        return o
    return rwkv_decoder(cfg, w, tokens, mixer, rwkv7_channel_mix)


# GDN-2 (a layer without a model class)

def gdn2(q, k, v, g, b, w):
    """S = Diag(e^g) S;  S = S + k (w * v - S^T (b * k))^T;  o = S^T q dk^-1/2. q, k, g, b (T, H, dk), v, w (T, H, dv)."""
    a, s = np.exp(g), q.shape[2] ** -0.5
    return scan(*k.shape, v.shape[2], lambda t, h, S: recurrence(
        S, d=a[t, h], e=a[t, h] * b[t, h] * k[t, h], rho=1, k=k[t, h], v=w[t, h] * v[t, h], q=q[t, h] * s))


def gdn2_mixer(p, x, dk, eps=1e-5, allow_neg_eigval=False):
    """q, k, v = silu(conv(proj x)), q and k l2-normed; g = -exp(A_log) softplus(f_proj x + dt_bias), b = sigmoid(b_proj x)
    (doubled by allow_neg_eigval) per qk channel, w = sigmoid(w_proj x) per value channel;
    o_proj(RMSNorm per head(gdn2) * sigmoid(g_proj x))."""
    H, dv = len(p["A_log"]), len(p["o_norm.weight"])
    HV = len(p["v_proj.weight"]) // dv

    def conv(n):
        y = proj(p, n + "_proj", x)
        return short_conv(y, p[n + "_conv1d.weight"], p.get(n + "_conv1d.bias")) if n + "_conv1d.weight" in p else silu(y)

    def low_rank(n):
        return proj(p, n + "_proj.1", proj(p, n + "_proj.0", x))
    g = -np.exp(p["A_log"])[:, None] * heads(softplus(low_rank("f") + p["dt_bias"]), H)
    b = heads(sigmoid(proj(p, "b_proj", x)), H) * (2 if allow_neg_eigval else 1)
    q, k = l2norm(conv("q").reshape(-1, H, dk)), l2norm(conv("k").reshape(-1, H, dk))
    q, k, g, b = (np.repeat(z, HV // H, 1) for z in (q, k, g, b))
    o = gdn2(q, k, heads(conv("v"), HV), g, b, heads(sigmoid(proj(p, "w_proj", x)), HV))
    o = rmsnorm(o, p["o_norm.weight"], eps) * sigmoid(heads(low_rank("g"), HV))
    return proj(p, "o_proj", o.reshape(len(x), -1))


@model("gdn2")
def gdn2_model(cfg, w, tokens):
    """The decoder of kda around it."""
    return fla_decoder(cfg, w, tokens, lambda l, p, x: gdn2_mixer(p, x, cfg["head_dim"], cfg["norm_eps"], cfg["allow_neg_eigval"]))


# The recurrences above against their definitions

def log_linear_definition(q, k, v, g, lam):
    """The sum in log_linear()'s docstring, term by term."""
    o, c = np.zeros(v.shape), np.cumsum(g, 0)
    for t in range(len(q)):
        for j in range(t + 1):
            o[t] += (lam[t, :, level(t, j)] * np.exp(c[t] - c[j]) * (q[t] * k[j]).sum(-1))[:, None] * v[j]
    return o


def gdn2_definition(q, k, v, g, b, w):
    """S_t = (I - k (b * k)^T) Diag(e^g) S_{t-1} + k (w * v)^T with full matrices; o = S^T q dk^-1/2."""
    def step(t, h, S):
        A = np.eye(q.shape[2]) - np.outer(k[t, h], b[t, h] * k[t, h])
        S = A @ np.diag(np.exp(g[t, h])) @ S + np.outer(k[t, h], w[t, h] * v[t, h])
        return S, S.T @ q[t, h] * q.shape[2] ** -0.5
    return scan(*k.shape, v.shape[2], step)


def small(rows):
    """(T, 1, channels) of one head."""
    return np.array(rows, float)[:, None]


def check_softmax():
    """Three tokens of one head worked out by hand."""
    q, k, v = small([(1, -.5), (-.5, 1), (.25, -1)]), small([(.5, -1), (1, .25), (-.75, .5)]), small([(1, 2), (-1, .5), (.5, -1.5)])
    w, beta, c = l2norm(small([(1, 0), (.6, .8), (0, 1)])), 2 * sigmoid(np.array([[0.], [1], [-1]])), np.cumsum(logsigmoid(np.array([[2.], [1], [-1]])), 0)
    print(f"path: max|d| {np.abs(path(q, k, v, w, beta, c) - small([(1, 2), (-.323072714, 1.00769546), (.203733744, .102087075)])).max():.1e}")
    g = logsigmoid(small([(2, -1), (.5, 1.5), (-.5, 0)]))
    print(f"wall: max|d| {np.abs(wall(q, k, v, g, np.zeros((3, 1))) - small([(1, 2), (-.250256127, 1.06230791), (.234074358, .775566998)])).max():.1e}")


def check_mamba3():
    """The same tokens as one head of Mamba-3."""
    q, k, v, n = small([(1, -.5), (-.5, 1), (.25, -1)]), small([(.5, -1), (1, .25), (-.75, .5)]), small([(1, 2), (-1, .5), (.5, -1.5)]), lambda *a: np.array(a, float)[:, None]
    dt = softplus(n(.3, -.2, .1) - 1)
    B, C = (turn(rmsnorm(z, None, 1e-5) + 1, np.cumsum(np.pi * np.tanh(n(.7, -.4, .2))[:, None] * dt[..., None], 0)) for z in (k, q))
    o = trapezoid(C, B, v, dt, -softplus(n(.2, -.3, .4)), sigmoid(n(.5, -.5, 1))) + 0.5 * v
    print(f"mamba3: max|d| {np.abs(o - small([(1.40347448, 2.80694896), (-.468457373, 1.28560503), (.282616412, .993506557)])).max():.1e}")


def main():
    check_softmax()
    check_mamba3()
    rng = np.random.default_rng(0)
    T, H, N, P = 70, 2, 4, 3
    n = lambda *shape: rng.standard_normal((T, H) + shape)
    a = n(N), n(N), n(P), -softplus(n()), softplus(n(8))
    print(f"log_linear: max|d| {np.abs(log_linear(*a) - log_linear_definition(*a)).max():.1e}")
    a = l2norm(n(N)), l2norm(n(N)), n(P), -softplus(n(N)), 2 * sigmoid(n(N)), sigmoid(n(P))
    print(f"gdn2: max|d| {np.abs(gdn2(*a) - gdn2_definition(*a)).max():.1e}")


if __name__ == "__main__":
    main()
