"""Random checkpoints of the fla library's models in configurations of our own, and the float64 logits that definitions/ gives them.

CASES: name -> model_type and what differs from its base configuration. mixer_case writes the checkpoint and returns ids and
logits. A model_type needs a base configuration, the shapes of its mixer's tensors, and a definition registered under it.
"""
from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "definitions"))
import common
import fla_linear  # noqa: F401  (they register their models)
import fla_other  # noqa: F401
from make_models import Ids, save, spread

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

DECODER: Config = dict(vocab_size=113, hidden_size=48, num_hidden_layers=3, hidden_act="swish", hidden_ratio=4, intermediate_size=72, norm_eps=1e-6,
                       attn=None, tie_word_embeddings=False, attnres_block_size=None, fuse_norm=True, max_position_embeddings=512)
CONV = dict(use_short_conv=True, conv_size=4)
WINDOWED = dict(layers=[1], num_heads=4, num_kv_heads=2, qkv_bias=True, window_size=9, rope_theta=5000.0)
HEADS = DECODER | dict(num_heads=4, num_kv_heads=None, expand_k=1.0, expand_v=1.0, elementwise_affine=True)
# With decays this strong and heads this narrow a readout may nearly vanish; norm_eps keeps the norm from magnifying its rounding.
DELTA = DECODER | CONV | dict(norm_eps=1e-5, head_dim=12, num_heads=4, num_v_heads=None, expand_v=1.0, allow_neg_eigval=False)
ATK = dict(squash_x=1.5, squash_eps=1e-6)
MAMBA2 = DECODER | dict(state_size=16, head_dim=12, expand=2, n_groups=1, conv_kernel=4, use_bias=False, use_conv_bias=True, rmsnorm=True, intermediate_size=None,
                        norm_before_gate=False, D_has_hdim=False, dt_limit=[0.0, {"__float__": "Infinity"}], norm_eps=1e-5, hidden_act="silu")
def without(c: Config, *names: str) -> Config:
    return {n: v for n, v in c.items() if n not in names}


MAMBA = DECODER | dict(state_size=16, expand=2, conv_kernel=4, use_bias=False, use_conv_bias=True, dt_rank=4, intermediate_size=None, norm_eps=1e-5, hidden_act="silu")
SOFTMAX = without(DECODER, "attn") | dict(num_heads=4, num_kv_heads=None, qk_norm=False, qkv_bias=False, window_size=None, elementwise_affine=True)


RWKV = without(DECODER, "attnres_block_size") | dict(hidden_act="sqrelu", norm_eps=1e-5, norm_bias=True, norm_first=True, intermediate_size=None)
BASES: dict[str, Config] = {
    "linear_attn": HEADS | dict(feature_map="elementwise_product", tie_feature_map_qk=False, norm_q=False, norm_k=False, norm_feature_map=False),
    "retnet": HEADS | CONV | dict(expand_v=2.0, feature_map=None, use_output_gate=True, use_short_conv=False),
    "simple_gla": HEADS | CONV | dict(feature_map=None, use_output_gate=True, gate_logit_normalizer=16),
    "lightning_attn": HEADS | CONV | dict(feature_map=None, use_output_gate=True),
    "gla": HEADS | CONV | dict(expand_k=0.5, feature_map=None, use_output_gate=True, clamp_min=None),
    "hgrn": without(HEADS, "num_heads", "num_kv_heads", "expand_k", "expand_v") | CONV | dict(use_short_conv=False, use_lower_bound=True, expand_ratio=1),
    "hgrn2": without(HEADS, "num_kv_heads", "expand_k", "expand_v") | CONV | dict(use_short_conv=False, use_lower_bound=True, expand_ratio=12),
    "gsa": HEADS | CONV | dict(use_short_conv=False, num_slots=10, feature_map="swish", gate_logit_normalizer=8),
    "delta_net": without(HEADS, "num_kv_heads", "elementwise_affine") | CONV | dict(qk_activation="silu", qk_norm="l2", use_beta=True, use_gate=False, allow_neg_eigval=False),
    "gated_deltanet": DELTA | dict(use_gate=True),
    "gated_deltaproduct": DELTA | dict(num_householder=2, use_forget_gate=True, use_output_gate=True),
    "comba": DELTA | dict(use_output_gate=True),
    "kda": DELTA | dict(lower_bound=None),
    "gdn2": DELTA,
    "precond_gated_deltanet": DELTA | ATK | dict(use_gate=True),
    "precond_kda": DELTA | ATK | dict(lower_bound=None),
    "mamba2": without(MAMBA2, "hidden_ratio", "intermediate_size"),
    "mamba": without(MAMBA, "hidden_ratio"), "samba": without(MAMBA, "dt_rank") | dict(time_step_rank=5, hidden_act="swish", attn=WINDOWED | dict(qkv_bias=False)),
    "lightnet": without(HEADS, "num_kv_heads", "expand_k", "expand_v") | CONV | dict(use_short_conv=False, num_heads=None, expand_ratio=12, gate_low_rank_dim=10),
    "abc": without(HEADS, "num_kv_heads") | CONV | dict(expand_k=0.5, use_short_conv=False, num_slots=10, clamp_min=-32, clamp_max=32, use_rope=True),
    # At norm_eps 1e-6 the first case is ill-conditioned: weights moved by half a float32 ulp move its float64 logits by 2.5e-4 (here: 2.5e-5).
    "mesa_net": DECODER | CONV | dict(norm_eps=1e-5, num_heads=4, head_dim=12, lambda_lower_bound=0.25, max_cg_step_training=30, max_cg_step_decoding=30, use_output_gate=False),
    "transformer": SOFTMAX | dict(rope_theta=10000.0), "forgetting_transformer": SOFTMAX | dict(use_output_gate=False),
    "path_attn": without(SOFTMAX, "qk_norm", "qkv_bias", "window_size") | dict(use_forget_gate=False, use_w_shortconv=True, use_low_rank_w=True),
    "mamba3": without(MAMBA2, "hidden_ratio", "intermediate_size", "conv_kernel", "use_conv_bias", "rmsnorm", "norm_before_gate", "D_has_hdim", "dt_limit", "attn", "attnres_block_size")
              | dict(rope_fraction=0.5, A_floor=1e-4, is_outproj_norm=False, is_mimo=False, attn=None, attnres_block_size=None),
    "wall_transformer": SOFTMAX | dict(use_output_gate=False, use_scalar_gate=False, gate_init_bias=8.0),
    "log_linear_mamba2": MAMBA2,
    "rwkv6": RWKV | dict(hidden_ratio=3.5, num_heads=4, expand_k=0.5, expand_v=1.0, proj_low_rank_dim=8, gate_low_rank_dim=16),
    "rwkv7": without(RWKV, "attn") | dict(head_dim=12, num_heads=4, value_dim=None, decay_low_rank_dim=16, gate_low_rank_dim=20, a_low_rank_dim=12, v_low_rank_dim=8),
}

CASES: dict[str, tuple[str, Config]] = {
    **{f"linear_attn {m}": ("linear_attn", dict(feature_map=m)) for m in ("elementwise_product", "t2r", "hedgehog", "dpfp", "elu", "relu")},
    "linear_attn identity": ("linear_attn", dict(feature_map="identity", norm_eps=1e-3)),  # q.k may cancel: the norm must not amplify what is left
    "linear_attn tied, kv heads": ("linear_attn", dict(tie_feature_map_qk=True, num_kv_heads=2, expand_v=1.5)),
    "linear_attn tied hedgehog, normaliser": ("linear_attn", dict(feature_map="hedgehog", tie_feature_map_qk=True, norm_feature_map=True)),
    "linear_attn norms": ("linear_attn", dict(feature_map="elu", norm_q=True, norm_k=True, norm_feature_map=True, num_kv_heads=1)),
    "linear_attn dpfp, one norm, hybrid": ("linear_attn", dict(feature_map="dpfp", norm_k=False, norm_q=False, attn=WINDOWED)),
    "retnet": ("retnet", {}),
    "retnet kv heads": ("retnet", dict(num_kv_heads=2, expand_k=0.5, expand_v=1.0, hidden_ratio=2, intermediate_size=None)),
    "retnet relu, no gate, hybrid": ("retnet", dict(feature_map="relu", use_output_gate=False, num_heads=2, attn=WINDOWED)),
    "retnet head width 24, residual attention": ("retnet", dict(num_heads=2, elementwise_affine=False, attnres_block_size=2)),
    "simple_gla": ("simple_gla", {}),
    "simple_gla kv heads, map": ("simple_gla", dict(num_kv_heads=2, feature_map="sqrelu", use_short_conv=False)),
    "simple_gla no gate, hybrid": ("simple_gla", dict(use_output_gate=False, attn=WINDOWED, expand_k=0.5)),
    "lightning_attn": ("lightning_attn", {}),
    "lightning_attn kv heads, swish": ("lightning_attn", dict(num_kv_heads=2, feature_map="swish", use_short_conv=False, num_hidden_layers=2)),
    "hgrn": ("hgrn", {}),
    "hgrn convolutions, wider": ("hgrn", dict(use_short_conv=True, use_lower_bound=False, expand_ratio=2)),
    "hgrn hybrid": ("hgrn", dict(attn=WINDOWED, use_short_conv=True, conv_size=3, elementwise_affine=False)),
    "hgrn2": ("hgrn2", {}),
    "hgrn2 by heads, no bounds": ("hgrn2", dict(expand_ratio=None, num_heads=3, use_lower_bound=False, norm_eps=1e-3)),
    "hgrn2 convolutions, hybrid": ("hgrn2", dict(use_short_conv=True, expand_ratio=24, attn=WINDOWED, num_hidden_layers=4)),
    "gsa": ("gsa", {}),
    "gsa t2r, convolutions": ("gsa", dict(feature_map="t2r", use_short_conv=True, num_slots=33)),
    "gsa kv heads, relu": ("gsa", dict(feature_map="relu", num_kv_heads=2, num_slots=7, gate_logit_normalizer=4, expand_k=0.5)),
    "gsa hybrid": ("gsa", dict(attn=WINDOWED, elementwise_affine=False)),
    "delta_net": ("delta_net", {}),
    "delta_net gate, negative": ("delta_net", dict(use_gate=True, allow_neg_eigval=True, expand_k=0.5, expand_v=1.5)),
    "delta_net no beta": ("delta_net", dict(use_beta=False, use_short_conv=False)),
    "delta_net no beta, negative": ("delta_net", dict(use_beta=False, allow_neg_eigval=True, num_heads=2)),
    "delta_net relu, sum": ("delta_net", dict(qk_activation="relu", qk_norm="sum")),
    "delta_net elu, sum, no convolution": ("delta_net", dict(qk_activation="elu", qk_norm="sum", use_short_conv=False)),
    "delta_net identity, hybrid": ("delta_net", dict(qk_activation="identity", attn=WINDOWED)),
    "gated_deltanet": ("gated_deltanet", dict(expand_v=2.0)),
    "gated_deltanet value heads": ("gated_deltanet", dict(num_heads=2, num_v_heads=6, allow_neg_eigval=True, head_dim=24)),
    "gated_deltanet no gate, no convolution": ("gated_deltanet", dict(use_gate=False, use_short_conv=False, attnres_block_size=1)),
    "gated_deltanet hybrid": ("gated_deltanet", dict(attn=[WINDOWED, dict(layers=[0], num_heads=3)], num_hidden_layers=4, tie_word_embeddings=True, hidden_act="powlu")),
    "gated_deltaproduct": ("gated_deltaproduct", {}),
    "gated_deltaproduct three, no forgetting": ("gated_deltaproduct", dict(num_householder=3, use_forget_gate=False, allow_neg_eigval=True, head_dim=17)),
    "gated_deltaproduct one, no gate": ("gated_deltaproduct", dict(num_householder=1, use_output_gate=False, use_short_conv=False, attn=WINDOWED)),
    "comba": ("comba", dict(expand_v=2.0)),
    "comba no gate": ("comba", dict(use_output_gate=False, use_short_conv=False, head_dim=24, num_heads=2)),
    "comba hybrid": ("comba", dict(attn=WINDOWED, conv_size=3)),
    "kda": ("kda", {}),
    "kda value heads, negative": ("kda", dict(num_heads=2, num_v_heads=4, allow_neg_eigval=True, head_dim=24)),
    "kda bounded": ("kda", dict(lower_bound=-5.0, safe_gate=True, expand_v=1.5)),
    "kda no convolution, hybrid": ("kda", dict(use_short_conv=False, attn=WINDOWED, norm_eps=1e-5)),
    "gdn2": ("gdn2", {}),
    "gdn2 value heads, negative": ("gdn2", dict(num_heads=2, num_v_heads=6, allow_neg_eigval=True, expand_v=2.0)),
    "gdn2 no convolution, hybrid": ("gdn2", dict(use_short_conv=False, attn=WINDOWED, head_dim=24, num_heads=2)),
    "precond_gated_deltanet": ("precond_gated_deltanet", dict(expand_v=2.0)),
    "precond_gated_deltanet value heads": ("precond_gated_deltanet", dict(num_heads=2, num_v_heads=4, allow_neg_eigval=True, squash_x=2.5, squash_eps=1e-4)),
    "precond_gated_deltanet no gate": ("precond_gated_deltanet", dict(use_gate=False, use_short_conv=False, attn=WINDOWED)),
    "precond_kda": ("precond_kda", {}),
    "precond_kda value heads": ("precond_kda", dict(num_heads=2, num_v_heads=4, lower_bound=-3.0, head_dim=24)),
    "mamba2": ("mamba2", {}),
    "mamba2 groups": ("mamba2", dict(n_groups=2, head_dim=24, state_size=24)),
    "mamba2 biases, limits": ("mamba2", dict(use_bias=True, use_conv_bias=False, dt_limit=[0.2, 0.9], conv_kernel=3)),
    "mamba2 norm first, channels": ("mamba2", dict(norm_before_gate=True, D_has_hdim=True, n_groups=4, tie_word_embeddings=True)),
    "mamba2 no norm": ("mamba2", dict(rmsnorm=False, head_dim=16)),
    "log_linear_mamba2": ("log_linear_mamba2", {}),
    "mamba": ("mamba", {}),
    "mamba biases, automatic rank": ("mamba", dict(use_bias=True, use_conv_bias=False, state_size=9, dt_rank="auto", conv_kernel=3, tie_word_embeddings=True)),
    "mamba wide": ("mamba", dict(expand=3, dt_rank=7, state_size=32, num_hidden_layers=2)),
    "samba": ("samba", {}),
    "samba all recurrent, residual attention": ("samba", dict(attn=None, use_bias=True, attnres_block_size=2, state_size=5)),
    "samba other widths": ("samba", dict(hidden_ratio=2, expand=1, attn=WINDOWED | dict(layers=[0, 2], window_size=None), time_step_rank=3)),
    "lightnet": ("lightnet", {}),
    "lightnet by heads, convolutions": ("lightnet", dict(expand_ratio=None, num_heads=3, use_short_conv=True, elementwise_affine=False)),
    "lightnet wide keys, hybrid": ("lightnet", dict(expand_ratio=20, num_heads=4, attn=WINDOWED, tie_word_embeddings=True)),
    "abc": ("abc", {}),
    "abc clamped, convolutions, no rotation": ("abc", dict(use_short_conv=True, use_rope=False, clamp_min=-1.0, clamp_max=0.5, expand_v=1.5)),
    "abc many slots, hybrid": ("abc", dict(num_slots=33, num_heads=2, expand_k=1.0, attn=WINDOWED, elementwise_affine=False)),
    "mesa_net": ("mesa_net", {}),
    "mesa_net gate, few steps": ("mesa_net", dict(use_output_gate=True, max_cg_step_training=5, lambda_lower_bound=0.5, num_heads=2, head_dim=24)),
    "mesa_net hybrid": ("mesa_net", dict(attn=WINDOWED, conv_size=3, head_dim=17, max_cg_step_decoding=7)),
    "transformer": ("transformer", {}),
    "transformer norms, biases, window": ("transformer", dict(qk_norm=True, qkv_bias=True, window_size=11, num_kv_heads=2, rope_theta=500.0)),
    "transformer one key head, residual attention": ("transformer", dict(num_heads=2, num_kv_heads=1, attnres_block_size=2, tie_word_embeddings=True, hidden_act="powlu")),
    "forgetting_transformer": ("forgetting_transformer", {}),
    "forgetting_transformer pro": ("forgetting_transformer", dict(qk_norm=True, use_output_gate=True, qkv_bias=True, num_kv_heads=2, window_size=5)),
    "forgetting_transformer wide heads, residual attention": ("forgetting_transformer", dict(num_heads=2, num_kv_heads=1, use_output_gate=True, attnres_block_size=1)),
    "path_attn": ("path_attn", {}),
    "path_attn forgetting, key heads": ("path_attn", dict(use_forget_gate=True, num_kv_heads=2, use_low_rank_w=False)),
    "path_attn no convolution, one key head": ("path_attn", dict(num_heads=2, num_kv_heads=1, use_w_shortconv=False, tie_word_embeddings=True)),
    "path_attn head width 17, residual attention": ("path_attn", dict(hidden_size=51, num_heads=3, use_forget_gate=True, attnres_block_size=2, num_hidden_layers=2)),
    "wall_transformer": ("wall_transformer", {}),
    "wall_transformer norms, biases, gates, key heads": ("wall_transformer", dict(qk_norm=True, qkv_bias=True, num_kv_heads=2, use_output_gate=True, use_scalar_gate=True)),
    "wall_transformer window, one key head": ("wall_transformer", dict(num_heads=2, num_kv_heads=1, window_size=23, tie_word_embeddings=True, attnres_block_size=2)),
    "mamba3": ("mamba3", {}),
    "mamba3 norm, groups, biases": ("mamba3", dict(is_outproj_norm=True, n_groups=2, use_bias=True, head_dim=24, state_size=18, tie_word_embeddings=True)),
    "mamba3 turned whole, slow": ("mamba3", dict(rope_fraction=1.0, A_floor=0.5, state_size=24, expand=1, num_hidden_layers=2)),
    "rwkv6": ("rwkv6", {}),
    "rwkv6 wider, no biases, no first norm": ("rwkv6", dict(num_heads=3, expand_k=1.0, expand_v=2.0, proj_low_rank_dim=5, gate_low_rank_dim=7, norm_bias=False, norm_first=False)),
    "rwkv6 hybrid, tied": ("rwkv6", dict(attn=WINDOWED, num_heads=2, intermediate_size=72, tie_word_embeddings=True)),
    "rwkv7": ("rwkv7", {}),
    "rwkv7 wide values, no biases": ("rwkv7", dict(head_dim=24, num_heads=None, value_dim=[96] * 3, norm_bias=False, intermediate_size=72, tie_word_embeddings=True)),
    "rwkv7 by heads, plain norm": ("rwkv7", dict(head_dim=None, num_heads=3, fuse_norm=False, norm_first=False, hidden_ratio=2, norm_eps=1e-4)),
    "rwkv7 one head, shares in one tensor": ("rwkv7", dict(head_dim=48, num_heads=1)),
    "log_linear_mamba2 no norm": ("log_linear_mamba2", dict(rmsnorm=False, head_dim=24, state_size=8, use_bias=True, hidden_act="swish")),
    "rwkv6 swish in the channel mix": ("rwkv6", dict(hidden_act="swish", expand_k=1.0, num_heads=2)),
    "rwkv7 gelu in the channel mix": ("rwkv7", dict(hidden_act="gelu", head_dim=24, num_heads=6)),  # num_heads does not count
    "samba biased whatever the switch says": ("samba", dict(use_conv_bias=False, attn=None, num_hidden_layers=2)),
    "retnet tanh": ("retnet", dict(feature_map="tanh", num_hidden_layers=2)),
    "retnet gelu, another spelling": ("retnet", dict(feature_map="gelu_fast", num_heads=2, num_hidden_layers=2)),
    "kda bounded from far below": ("kda", dict(lower_bound=-8.0, num_hidden_layers=2)),
    "gsa nothing said": ("gsa", dict(num_slots=None, elementwise_affine=None, hidden_ratio=None, use_short_conv=None, num_hidden_layers=2)),
    "retnet nothing said": ("retnet", dict(use_output_gate=None, hidden_ratio=None, intermediate_size=None, hidden_size=112, num_hidden_layers=2)),
}
LONG = {"mamba3", "wall_transformer norms, biases, gates, key heads", "wall_transformer window, one key head", "path_attn", "path_attn forgetting, key heads", "path_attn no convolution, one key head", "rwkv6", "rwkv7", "linear_attn tied, kv heads", "retnet kv heads", "gsa kv heads, relu", "delta_net", "gated_deltanet value heads", "gated_deltaproduct", "kda value heads, negative",
        "hgrn", "hgrn2", "mamba2 groups", "mamba", "samba", "lightnet", "abc", "mesa_net", "transformer norms, biases, window", "forgetting_transformer pro", "log_linear_mamba2", "comba", "gdn2", "simple_gla", "precond_gated_deltanet value heads"}  # beyond a chunk of 64


# ---- shapes of the mixers' tensors, named relative to the layer's slot ------------------------------------------------

def rows(c: Config, **widths: int) -> Shapes:
    return {f"{n}_proj.weight": (w, c["hidden_size"]) for n, w in widths.items()}


def convs(c: Config, **channels: int) -> Shapes:
    return {f"{n}_conv1d.weight": (w, 1, c["conv_size"]) for n, w in channels.items()} if c["use_short_conv"] else {}


def by_heads(c: Config) -> tuple[int, int, int, int, int]:
    """Key and value width of all heads, of the shared ones, and the number of heads."""
    key, value = int(c["hidden_size"] * c["expand_k"]), int(c["hidden_size"] * c["expand_v"])
    share = c["num_heads"] // (c.get("num_kv_heads") or c["num_heads"])
    return key, value, key // share, value // share, c["num_heads"]


def gated(c: Config, value: int, width: int, name: str = "g_norm") -> Shapes:
    gate = c.get("use_output_gate", True)
    name = "g_norm_swish_gate" if gate and name == "g_norm" and c["fuse_norm"] else name
    return (rows(c, g=value) if gate else {}) | ({f"{name}.weight": (width,)} if c.get("elementwise_affine", True) else {}) | {"o_proj.weight": (c["hidden_size"], value)}


def linear_attn(c: Config) -> Shapes:
    key, value, key_kv, value_kv, heads = by_heads(c)
    d, maps = key // heads, {}
    for p in "k" if c["tie_feature_map_qk"] else "qk":
        name = f"feature_map_{p}"
        maps |= {"elementwise_product": {f"{name}.layer{i}.{e}": (d, d) if e == "weight" else (d,) for i in (1, 2) for e in ("weight", "bias")},
                 "hedgehog": {f"{name}.layer.weight": (d, d), f"{name}.layer.bias": (d,)}, "t2r": {f"{name}.layer.weight": (d, d)}}.get(c["feature_map"], {})
    return rows(c, q=key, k=key_kv, v=value_kv) | maps | {"norm.weight": (value // heads,), "o_proj.weight": (c["hidden_size"], value)}


def scalar_decay(c: Config) -> Shapes:
    key, value, key_kv, value_kv, heads = by_heads(c)
    return rows(c, q=key, k=key_kv, v=value_kv) | convs(c, q=key, k=key_kv, v=value_kv) | gated(c, value, value // heads)


def simple_gla(c: Config) -> Shapes:
    return scalar_decay(c) | {"gk_proj.weight": (c["num_heads"], c["hidden_size"]), "gk_proj.bias": (c["num_heads"],)}


def hgrn(c: Config) -> Shapes:
    n = c["hidden_size"] * c["expand_ratio"]
    return rows(c, i=n, f=n) | convs(c, i=n, f=n) | gated(c | dict(fuse_norm=False), n, n)


def hgrn2(c: Config) -> Shapes:
    width = c["hidden_size"]
    keys = width // c["expand_ratio"] * c["expand_ratio"] if c["expand_ratio"] else width
    return rows(c, q=keys, f=keys, i=width) | convs(c, q=keys, f=keys, i=width) | gated(c | dict(use_output_gate=False), width, width)


def gsa(c: Config) -> Shapes:
    key, value, key_kv, value_kv, heads = by_heads(c)
    slots = (c["num_kv_heads"] or heads) * (c["num_slots"] or key // heads)
    t2r = {"feature_map.layer.weight": (key // heads, key // heads)} if c["feature_map"] == "t2r" else {}
    return rows(c, q=key, k=key_kv, v=value_kv, f=slots) | convs(c, q=key, k=key_kv, v=value_kv) | t2r | gated(c | dict(use_output_gate=False), value, value)


def delta_net(c: Config) -> Shapes:
    key, value, _, _, heads = by_heads(c)
    beta = rows(c, b=heads) if c["use_beta"] else {}
    return rows(c, q=key, k=key, v=value) | convs(c, q=key, k=key, v=value) | beta | gated(c | dict(use_output_gate=c["use_gate"]), value, value // heads, "o_norm")


def delta_rule(c: Config, writes: int = 1) -> tuple[Shapes, int, int, int, int]:
    """What all gated delta rules have, and heads, value heads, dk, dv."""
    H, dk, width = c["num_heads"], c["head_dim"], c["hidden_size"]
    HV, dv = c["num_v_heads"] or H, int(dk * c["expand_v"])
    widths = dict(q=H * dk, k=writes * H * dk, v=writes * HV * dv)
    return rows(c, **widths) | convs(c, **widths) | {"o_norm.weight": (dv,), "o_proj.weight": (width, HV * dv)}, H, HV, dk, dv


def low_rank(c: Config, name: str, middle: int, out: int, bias: bool) -> Shapes:
    return {f"{name}_proj.0.weight": (middle, c["hidden_size"]), f"{name}_proj.1.weight": (out, middle)} | ({f"{name}_proj.1.bias": (out,)} if bias else {})


def gated_deltanet(c: Config) -> Shapes:
    shapes, _, HV, _, dv = delta_rule(c, c.get("num_householder", 1))
    gate = rows(c, g=HV * dv) if c.get("use_gate", c.get("use_output_gate")) else {}
    decay = rows(c, a=HV) | {"A_log": (HV,), "dt_bias": (HV,)} if c.get("use_forget_gate", True) else {}
    return shapes | gate | decay | rows(c, b=HV * c.get("num_householder", 1))


def comba(c: Config) -> Shapes:
    return gated_deltanet(c) | {"decay": (c["num_heads"],), "D": (c["num_heads"],)}


def kda(c: Config) -> Shapes:
    shapes, _, HV, dk, dv = delta_rule(c)
    return shapes | low_rank(c, "f", dv, HV * dk, False) | low_rank(c, "g", dv, HV * dv, True) | rows(c, b=HV) | {"A_log": (HV,), "dt_bias": (HV * dk,)}


def gdn2(c: Config) -> Shapes:
    shapes, H, HV, dk, dv = delta_rule(c)
    return shapes | low_rank(c, "f", dv, H * dk, False) | low_rank(c, "g", dv, HV * dv, True) | rows(c, b=H * dk, w=HV * dv) | {"A_log": (H,), "dt_bias": (H * dk,)}


def moment(c: Config, heads: int) -> Shapes:
    return rows(c, b_atk=heads) | {f"{n}_atk": (heads,) for n in ("A_log", "dt_bias")} | {"log_atk_scale": (heads,)}


def precond_gated_deltanet(c: Config) -> Shapes:
    return gated_deltanet(c) | moment(c, c["num_heads"]) | rows(c, a_atk=c["num_heads"])


def precond_kda(c: Config) -> Shapes:
    HV = c["num_v_heads"] or c["num_heads"]
    return kda(c) | moment(c, HV) | rows(c, a=HV, b=c["num_heads"])


def mamba2(c: Config) -> Shapes:
    width, inner = c["hidden_size"], c["hidden_size"] * c["expand"]
    heads, group = inner // c["head_dim"], c["n_groups"] * c["state_size"]
    out = 2 * inner + 2 * group + heads + (15 * heads if c["model_type"] == "log_linear_mamba2" else 0)
    shapes: Shapes = {"in_proj.weight": (out, width), "conv1d.weight": (inner + 2 * group, 1, c["conv_kernel"]), "dt_bias": (heads,), "A_log": (heads,),
                      "D": (inner if c["D_has_hdim"] else heads,), "out_proj.weight": (width, inner)}
    shapes |= {"conv1d.bias": (inner + 2 * group,)} if c["use_conv_bias"] else {}
    shapes |= {"in_proj.bias": (out,), "out_proj.bias": (width,)} if c["use_bias"] else {}
    shapes |= {"norm.weight": (inner,)} if c["rmsnorm"] else {}
    return shapes | ({"L": (heads, 15)} if c["model_type"] == "log_linear_mamba2" else {})


def mamba3(c: Config) -> Shapes:
    width, inner, N = c["hidden_size"], c["hidden_size"] * c["expand"], c["state_size"]
    heads, out = inner // c["head_dim"], 2 * inner + 2 * c["n_groups"] * N + 3 * (inner // c["head_dim"]) + int(N * c["rope_fraction"]) // 2
    shapes: Shapes = {"in_proj.weight": (out, width), "dt_bias": (heads,), "B_norm.weight": (N,), "C_norm.weight": (N,), "B_bias": (heads, 1, N), "C_bias": (heads, 1, N),
                      "D": (heads,), "out_proj.weight": (width, inner)}
    shapes |= {"in_proj.bias": (out,), "out_proj.bias": (width,)} if c["use_bias"] else {}
    return shapes | ({"norm.weight": (inner,)} if c["is_outproj_norm"] else {})


def lightnet(c: Config) -> Shapes:
    width, low = c["hidden_size"], c["gate_low_rank_dim"]
    heads = c["num_heads"] or width // c["expand_ratio"]
    keys = heads * c["expand_ratio"] if c["expand_ratio"] else width
    return (rows(c, q=keys, k=keys, v=width) | convs(c, q=keys, k=keys, v=width) | gated(c | dict(use_output_gate=False), width, width)
            | low_rank(c, "g", low, width, False))


def abc(c: Config) -> Shapes:
    key, value, _, _, heads = by_heads(c)
    return rows(c, q=key, k=key, v=value, s=heads * c["num_slots"]) | convs(c, q=key, k=key, v=value) | gated(c | dict(fuse_norm=False), value, value // heads)


def mesa_net(c: Config) -> Shapes:
    H, n = c["num_heads"], c["num_heads"] * c["head_dim"]
    shapes = rows(c, q=n, k=n, v=n, a=H, b=H) | convs(c, q=n, k=n) | {"a_proj.bias": (H,), "b_proj.bias": (H,), "lambda_params": (n,), "o_norm.weight": (c["head_dim"],)}
    return shapes | (rows(c, g=n) if c["use_output_gate"] else {}) | {"o_proj.weight": (c["hidden_size"], n)}


def mamba(c: Config) -> Shapes:
    width, inner, N = c["hidden_size"], c["hidden_size"] * c["expand"], c["state_size"]
    rank = c.get("dt_rank") or c["time_step_rank"]
    rank = math.ceil(width / 16) if rank == "auto" else rank
    shapes: Shapes = {"in_proj.weight": (2 * inner, width), "conv1d.weight": (inner, 1, c["conv_kernel"]), "x_proj.weight": (rank + 2 * N, inner),
                      "dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,), "A_log": (inner, N), "D": (inner,), "out_proj.weight": (width, inner)}
    shapes |= {"conv1d.bias": (inner,)} if c["use_conv_bias"] or c["model_type"] == "samba" else {}
    return shapes | ({"in_proj.bias": (2 * inner,), "out_proj.bias": (width,)} if c["use_bias"] else {})


def softmax(c: Config) -> Shapes:
    width, d = c["hidden_size"], c["hidden_size"] // c["num_heads"]
    kv = d * (c["num_kv_heads"] or c["num_heads"])
    fox, own_norms = c["model_type"] == "forgetting_transformer", c["model_type"] in ("forgetting_transformer", "wall_transformer")
    shapes = rows(c, q=width, k=kv, v=kv, o=width) | (rows(c, f=c["num_heads"]) | {"f_proj.bias": (c["num_heads"],)} if fox else {})
    shapes |= {f"{n}_proj.bias": (r,) for n, r in (("q", width), ("k", kv), ("v", kv))} if c["qkv_bias"] else {}
    shapes |= {"q_norm.weight": (width if own_norms else d,), "k_norm.weight": (kv if own_norms else d,)} if c["qk_norm"] else {}
    return shapes | (rows(c, g=width) if c.get("use_output_gate") else {})


def path_attn(c: Config) -> Shapes:
    D, kv = c["hidden_size"], c["hidden_size"] // c["num_heads"] * (c["num_kv_heads"] or c["num_heads"])
    w = {"w_proj.0.weight": (32, D), "w_proj.1.weight": (kv, 32)} if c["use_low_rank_w"] else {"w_proj.weight": (kv, D)}
    shapes = rows(c, q=D, k=kv, v=kv, o=D, bt=c["num_kv_heads"] or c["num_heads"]) | w | {"bt_proj.bias": (c["num_kv_heads"] or c["num_heads"],)}
    shapes |= {"w_conv1d.weight": (kv, 1, 3)} if c["use_w_shortconv"] else {}
    return shapes | (rows(c, g=c["num_heads"]) | {"g_proj.bias": (c["num_heads"],)} if c["use_forget_gate"] else {})


def wall(c: Config) -> Shapes:
    D = c["hidden_size"]
    shapes = softmax(c | dict(use_output_gate=False)) | {"g_proj.weight": (D, D), "g_proj.bias": (D,)} | (rows(c, o_gate=D) if c["use_output_gate"] else {})
    return shapes | (rows(c, gs=c["num_heads"]) | {"gs_proj.bias": (c["num_heads"],)} if c["use_scalar_gate"] else {})


def rwkv_layer(c: Config, i: int) -> Shapes:
    """Mixer and channel mix of layer i; the norms are the decoder's."""
    D, seven = c["hidden_size"], c["model_type"] == "rwkv7"
    F = c["intermediate_size"] or 32 * math.ceil(int(D * c["hidden_ratio"]) / 32)
    if seven:
        H, V = D // c["head_dim"] if c["head_dim"] else c["num_heads"], (c["value_dim"] or [D])[0]
        shapes: Shapes = {f"attn.x_{x}": (1, 1, D) for x in "rwkvag"} | {"attn.k_k": (D,), "attn.k_a": (D,), "attn.r_k": (H, D // H)}
        shapes |= {f"attn.{n}_proj.weight": (o, D) for n, o in (("r", D), ("k", D), ("v", V))}
        for x, rank, out in (("w", "decay", D), ("a", "a", D), ("g", "gate", V)) + ((("v", "v", V),) if i else ()):
            r = c[rank + "_low_rank_dim"]
            shapes |= {f"attn.{x}_lora.lora.0.weight": (r, D), f"attn.{x}_lora.lora.2.weight": (out, r)} | ({} if x == "g" else {f"attn.{x}_lora.lora.2.bias": (out,)})
        shapes |= {"ffn.x_k": (D,), "ffn.key.weight": (F, D)}
    else:
        K, V, R, W = int(D * c["expand_k"]), int(D * c["expand_v"]), c["proj_low_rank_dim"], c["gate_low_rank_dim"]
        shapes = {"attn.x_proj.0.linear.weight": (5 * R, D), "attn.x_proj.0.mu": (D,), "attn.x_proj.2.weight": (D, 5 * R), "attn.x_bias": (5, D),
                  "attn.w_proj.linear.lora.0.weight": (W, D), "attn.w_proj.linear.lora.2.weight": (K, W), "attn.w_proj.linear.lora.2.bias": (K,),
                  "attn.bonus": (c["num_heads"], K // c["num_heads"])}
        shapes |= {f"attn.{n}_proj.linear.weight": (o, D) for n, o in (("r", K), ("k", K), ("v", V), ("g", V))}
        if common.fla_hybrid(c, i):
            shapes, V = {}, D
        shapes |= {"ffn.key.mu": (D,), "ffn.key.linear.weight": (F, D), "ffn.receptance.mu": (D,), "ffn.receptance.linear.weight": (D, D)}
    if not common.fla_hybrid(c, i):
        shapes |= {"attn.o_proj.weight": (D, V), "attn.g_norm.weight": (V,), "attn.g_norm.bias": (V,)}
    return shapes | {"ffn.value.weight": (D, F)}


def rwkv_shapes(c: Config) -> Shapes:
    D, ends = c["hidden_size"], ("weight", "bias") if c["norm_bias"] else ("weight",)
    shapes: Shapes = {"model.embeddings.weight": (c["vocab_size"], D)} | ({} if c["tie_word_embeddings"] else {"lm_head.weight": (c["vocab_size"], D)})
    norms = ["norm"] + (["layers.0.pre_norm"] if c["norm_first"] else [])
    for i in range(c["num_hidden_layers"]):
        norms += [f"layers.{i}.attn_norm", f"layers.{i}.ffn_norm"]
        part, spec = rwkv_layer(c, i), common.fla_hybrid(c, i)
        shapes |= {f"model.layers.{i}.{n}": s for n, s in (part | (softmax_shapes(D, spec, "attn") if spec else {})).items()}
    return shapes | {f"model.{n}.{end}": (D,) for n in norms for end in ends}


def softmax_shapes(width: int, spec: Config, slot: str) -> Shapes:
    kv = width // spec["num_heads"] * (spec.get("num_kv_heads") or spec["num_heads"])
    shapes: Shapes = {f"{slot}.{n}_proj.weight": (r, width) for n, r in (("q", width), ("k", kv), ("v", kv), ("o", width))}
    return shapes | ({f"{slot}.{n}_proj.bias": (r,) for n, r in (("q", width), ("k", kv), ("v", kv))} if spec.get("qkv_bias") else {})


SHAPES = {"mamba3": mamba3, "wall_transformer": wall, "path_attn": path_attn, "mesa_net": mesa_net, "lightnet": lightnet, "abc": abc, "mamba": mamba, "samba": mamba, "transformer": softmax, "forgetting_transformer": softmax, "linear_attn": linear_attn, "retnet": scalar_decay, "lightning_attn": scalar_decay, "simple_gla": simple_gla, "hgrn": hgrn, "hgrn2": hgrn2, "gsa": gsa,
          "delta_net": delta_net, "gated_deltanet": gated_deltanet, "gated_deltaproduct": gated_deltanet, "comba": comba, "kda": kda, "gdn2": gdn2,
          "precond_gated_deltanet": precond_gated_deltanet, "precond_kda": precond_kda, "mamba2": mamba2, "log_linear_mamba2": mamba2}
# model_type -> prefix, norm in front of the mixer, slot of the mixer, last norm, whether there is a feed-forward
NAMES = {"mamba3": ("backbone.", "norm", "mixer", "norm_f", False), "mamba": ("backbone.", "norm", "mixer", "norm_f", False), "samba": ("backbone.", "mixer_norm", "mixer", "norm_f", True),
         "mamba2": ("backbone.", "norm", "mixer", "norm_f", False), "log_linear_mamba2": ("backbone.", "mixer_norm", "mixer", "norm_f", True)}


def all_shapes(c: Config) -> Shapes:
    """Every tensor of the checkpoint and its shape."""
    prefix, norm, slot, final, mlp = NAMES.get(c["model_type"], ("model.", "attn_norm", "attn", "norm", True))
    width, vocab, block = c["hidden_size"], c["vocab_size"], c["attnres_block_size"]
    hidden = (c["model_type"] != "samba" and c.get("intermediate_size")) or 256 * math.ceil(int(width * (c.get("hidden_ratio") or 4) * 2 / 3) / 256)
    shapes: Shapes = {prefix + "embeddings.weight": (vocab, width), f"{prefix}{final}.weight": (width,)}
    shapes |= {} if c["tie_word_embeddings"] else {"lm_head.weight": (vocab, width)}
    shapes |= {prefix + "res_proj.weight": (1, width), prefix + "res_norm.weight": (width,)} if block else {}
    if c.get("use_lower_bound"):
        shapes["model.lower_bounds"] = (c["num_hidden_layers"], width)
    for i in range(c["num_hidden_layers"]):
        p, spec = f"{prefix}layers.{i}.", common.fla_hybrid(c, i)
        part: Shapes = {f"{norm}.weight": (width,)}
        if mlp:
            part |= {"mlp_norm.weight": (width,), "mlp.gate_proj.weight": (hidden, width), "mlp.up_proj.weight": (hidden, width), "mlp.down_proj.weight": (width, hidden)}
        if block:
            part |= {f"{kind}_res_{n}.weight": s for kind in ("attn", "mlp") for n, s in (("proj", (1, width)), ("norm", (width,)))}
        if spec:
            part |= softmax_shapes(width, spec, slot)
        else:
            part |= {f"{slot}.{n}": s for n, s in SHAPES[c["model_type"]](c).items()}
        shapes |= {p + n: s for n, s in part.items()}
    return shapes


def mixer_case(folder: Path, name: str, seed: int = 0) -> tuple[Ids, np.ndarray]:
    """Writes the checkpoint in bfloat16; returns ids (T,) and float64 logits (T, vocab)."""
    kind, changes = CASES[name]
    c = {"model_type": kind} | BASES[kind] | changes
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for n, shape in (rwkv_shapes if kind.startswith("rwkv") else all_shapes)(c).items():
        ones = "norm" in n or n.endswith((".D", "_atk_scale"))
        t = spread(n.replace("A_log_atk", "A_log"), torch.ones(shape) if ones else torch.zeros(shape), rng)
        if n.endswith(("_res_proj.weight", "backbone.res_proj.weight", "model.res_proj.weight")):
            t = torch.randn(shape, generator=rng) * 2 / math.sqrt(shape[-1])
        if n.endswith(("bias", "lower_bounds", "decay", ".L")):
            t = torch.randn(shape, generator=rng) * (0.5 if n.endswith("bias") else 1)
        if re.search(r"\.(x_.|x_bias|k_k|k_a|r_k|mu|bonus)$", n):
            t = torch.randn(shape, generator=rng) * 0.5 + 0.3
        tensors[n] = t.to(torch.bfloat16)
    stored = dict(tensors)
    if "one tensor" in name:  # as older files have it
        for i in range(c["num_hidden_layers"]):
            stored[f"model.layers.{i}.attn.x_x"] = torch.cat([stored.pop(f"model.layers.{i}.attn.x_{x}").reshape(1, -1) for x in "rwkvag"])
    save(folder, c, stored)
    length = 75 if name in LONG else 40
    ids = torch.randint(0, c["vocab_size"], (length,), generator=rng).numpy()
    return ids, common.MODELS[kind](c, {n: t.double().numpy() for n, t in tensors.items()}, ids)
