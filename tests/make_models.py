"""Random checkpoints in HuggingFace layout, with the logits that an independent definition computes for them.

transformers_case  Qwen3.5, Qwen3, Qwen2, Llama, Mistral, Gemma 3, Mamba, Falcon Mamba, Mamba-2 by transformers in float32, the gated delta rule token by token
gla_case           GLA by gla_logits below: float64, written from the equations, one token at a time
tokenizer_case     a small tokenizer trained here, around a model just large enough to load
"""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Ids = np.ndarray
LOGIT_STD = 1.4  # like the goldens'


def spread(name: str, t: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Random values at a scale where every term matters: matrices keep the variance of their input, constants get a spread,
    so that no norm, bias or gate is tested at 0 or 1 only."""
    noise = torch.randn(t.shape, generator=rng)
    if "embed" in name or "lm_head" in name:
        return noise * LOGIT_STD / math.sqrt(t.shape[-1])
    if name.endswith("A_log"):
        return torch.rand(t.shape, generator=rng) * 3 - 1
    return t + 0.2 * noise if t.ndim == 1 else noise / math.sqrt(t.shape[-1])


def save(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """config.json and model.safetensors, or shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {n: t.contiguous() for n, t in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# ---- transformers ----------------------------------------------------------------------------------------------------

QWEN35 = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, head_dim=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
              linear_num_value_heads=4, max_position_embeddings=512,
              rope_parameters=dict(rope_type="default", rope_theta=1e5, partial_rotary_factor=0.25, mrope_section=[1, 1, 0]))
QWEN3 = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, head_dim=10, max_position_embeddings=512,
             rope_parameters=dict(rope_type="default", rope_theta=1e4))
LLAMA = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=3, max_position_embeddings=512, rope_parameters=dict(rope_type="default", rope_theta=1e4))
QWEN2 = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
             max_position_embeddings=512, rope_parameters=dict(rope_type="default", rope_theta=1e4))
MISTRAL = LLAMA | dict(sliding_window=None)
GEMMA3 = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2,
              head_dim=16, max_position_embeddings=512, query_pre_attn_scalar=16, sliding_window=9, bos_token_id=1, eos_token_id=2)
MAMBA = dict(vocab_size=131, hidden_size=48, num_hidden_layers=3, state_size=16)
MAMBA2 = MAMBA | dict(head_dim=12, num_heads=8, n_groups=2, chunk_size=16)
L, F, S = "linear_attention", "full_attention", "sliding_attention"
YARN = dict(rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=64)

TRANSFORMERS_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen35": ("qwen35", {}),
    "qwen35-one-key-head": ("qwen35", dict(linear_num_key_heads=1, linear_num_value_heads=3, num_key_value_heads=1)),
    "qwen35-three-per-key": ("qwen35", dict(linear_num_key_heads=2, linear_num_value_heads=6, tie_word_embeddings=True)),
    "qwen35-equal-heads": ("qwen35", dict(linear_num_key_heads=3, linear_num_value_heads=3, num_key_value_heads=4)),
    "qwen35-dk-dv": ("qwen35", dict(linear_key_head_dim=12, linear_value_head_dim=20, linear_conv_kernel_dim=3)),
    "qwen35-irregular": ("qwen35", dict(layer_types=[F, L, F, L, L], num_hidden_layers=5, rms_norm_eps=1e-5)),
    "qwen35-three-linear": ("qwen35", dict(layer_types=[L, L, L], num_hidden_layers=3, hidden_size=36)),
    "qwen35-all-full": ("qwen35", dict(layer_types=[F, F], num_hidden_layers=2)),
    "qwen35-period-two": ("qwen35", dict(layer_types=[L, F, L], num_hidden_layers=3)),
    "qwen35-odd-sizes": ("qwen35", dict(hidden_size=52, intermediate_size=77, vocab_size=97, head_dim=24, num_attention_heads=3,
                         num_key_value_heads=3, linear_key_head_dim=9, linear_value_head_dim=7)),
    "qwen35-half-rotary": ("qwen35", dict(rope_parameters=dict(rope_type="default", rope_theta=5e3, partial_rotary_factor=0.5,
                                                               mrope_section=[2, 1, 1]))),
    "qwen35-bias": ("qwen35", dict(attention_bias=True)),
    "qwen3": ("qwen3", {}),
    "qwen3-bias": ("qwen3", dict(attention_bias=True, num_key_value_heads=3)),
    "qwen3-tied": ("qwen3", dict(tie_word_embeddings=True, num_key_value_heads=6, rms_norm_eps=1e-5)),
    "qwen3-one-kv": ("qwen3", dict(num_key_value_heads=1, head_dim=32, num_hidden_layers=2)),
    "qwen3-linear-rope": ("qwen3", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4))),
    "llama": ("llama", {}),
    "llama-tied": ("llama", dict(tie_word_embeddings=True, num_key_value_heads=6)),
    "llama-wide-heads": ("llama", dict(head_dim=14, num_key_value_heads=2)),
    "llama-linear-rope": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=2e4))),
    "llama-3-rope": ("llama", dict(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, rope_parameters=dict(
        rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))),
    "llama-bias": ("llama", dict(attention_bias=True)),
    "llama-all-biases": ("llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-yarn": ("llama", dict(rope_parameters=YARN)),
    "llama-yarn-all": ("llama", dict(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, rope_parameters=YARN | dict(
        beta_fast=8.0, beta_slow=2.0, attention_factor=1.25))),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True, num_key_value_heads=6, rms_norm_eps=1e-5)),
    "qwen2-upper-window": ("qwen2", dict(use_sliding_window=True, sliding_window=11, max_window_layers=1)),
    "qwen2-all-window": ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=0)),
    "qwen2-window-switched-off": ("qwen2", dict(use_sliding_window=False, sliding_window=7, max_window_layers=0)),
    "qwen2-layer-types": ("qwen2", dict(use_sliding_window=True, sliding_window=12, layer_types=[S, F, S])),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN | dict(mscale=0.8, mscale_all_dim=0.5))),
    "qwen2-linear-rope": ("qwen2", dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=1e6))),
    "qwen3-upper-window": ("qwen3", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", dict(sliding_window=10, head_dim=14, tie_word_embeddings=True)),
    "gemma3": ("gemma3", {}),
    "gemma3-scale": ("gemma3", dict(query_pre_attn_scalar=30, head_dim=20, num_key_value_heads=1, sliding_window=16)),
    "gemma3-softcap": ("gemma3", dict(final_logit_softcapping=2.0, attn_logit_softcapping=5.0, num_hidden_layers=3)),
    "gemma3-linear-rope": ("gemma3", dict(num_hidden_layers=6, rope_parameters={F: dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                                          S: dict(rope_type="default", rope_theta=5e3)})),
    "gemma3-yarn": ("gemma3", dict(num_hidden_layers=6, rope_parameters={F: YARN, S: dict(rope_type="default", rope_theta=1e4)})),
    "gemma3-irregular": ("gemma3", dict(layer_types=[F, S, S, F, S], num_hidden_layers=5, attention_bias=True, rms_norm_eps=1e-5)),
    "gemma3-no-window": ("gemma3", dict(layer_types=[F, F, F], num_hidden_layers=3, tie_word_embeddings=False)),
    "gemma3-all-window": ("gemma3", dict(layer_types=[S] * 6, num_hidden_layers=6, hidden_activation="silu")),
    "mamba": ("mamba", {}),
    "mamba-biases": ("mamba", dict(use_bias=True, use_conv_bias=False, tie_word_embeddings=False, conv_kernel=3, time_step_rank=5)),
    "mamba-inner": ("mamba", dict(expand=16, intermediate_size=80, layer_norm_epsilon=1e-3)),
    "falcon_mamba": ("falcon_mamba", {}),
    "falcon_mamba-biases": ("falcon_mamba", dict(use_bias=True, use_conv_bias=False, tie_word_embeddings=False, conv_kernel=3, time_step_rank=5)),
    "falcon_mamba-inner": ("falcon_mamba", dict(expand=16, intermediate_size=72, state_size=9, mixer_rms_eps=0.01)),
    "mamba2": ("mamba2", {}),
    "mamba2-one-group": ("mamba2", dict(n_groups=1, tie_word_embeddings=True, conv_kernel=3)),
    "mamba2-eight-groups": ("mamba2", dict(n_groups=8, layer_norm_epsilon=1e-3, state_size=8)),
    "mamba2-biases-limits": ("mamba2", dict(use_bias=True, use_conv_bias=False, time_step_limit=(0.4, 0.9), n_groups=4)),
    "mamba2-wider": ("mamba2", dict(expand=3, head_dim=24, num_heads=6, n_groups=3)),
    # rows that fill blocks of 32, for the quantised types
    "qwen35-wide": ("qwen35", dict(hidden_size=128, intermediate_size=256, vocab_size=320, head_dim=32, linear_key_head_dim=32,
                                   linear_value_head_dim=32)),
    "qwen3-wide": ("qwen3", dict(hidden_size=128, intermediate_size=256, vocab_size=320, head_dim=32)),
    "llama-wide": ("llama", dict(hidden_size=128, intermediate_size=256, vocab_size=320, num_attention_heads=4,
                                 num_key_value_heads=2)),
    "qwen2-wide": ("qwen2", dict(hidden_size=128, intermediate_size=256, vocab_size=320, num_attention_heads=4)),
    "gemma3-wide": ("gemma3", dict(hidden_size=128, intermediate_size=256, vocab_size=320, head_dim=32)),
}


def transformers_case(folder: Path, name: str, length: int = 75, dtype: torch.dtype = torch.bfloat16, seed: int = 0,
                      shards: int = 1, chunked: bool = False, **more: Any) -> tuple[Ids, np.ndarray]:
    """Writes the checkpoint; returns ids (T,) and float32 logits (T, vocab). The weights hold values of dtype exactly.
    more: further changes of the configuration. chunked: the library's chunked form of the gated delta rule instead of its token-by-token one."""
    import transformers
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module
    family, changes = TRANSFORMERS_CASES[name]
    base, config_class, model_class = {
        "qwen35": (QWEN35, transformers.Qwen3_5TextConfig, transformers.Qwen3_5ForCausalLM),
        "qwen3": (QWEN3, transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen2": (QWEN2, transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "mistral": (MISTRAL, transformers.MistralConfig, transformers.MistralForCausalLM),
        "gemma3": (GEMMA3, transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        "mamba": (MAMBA, transformers.MambaConfig, transformers.MambaForCausalLM),
        "falcon_mamba": (MAMBA, transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM),
        "mamba2": (MAMBA2, transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
        "llama": (LLAMA, transformers.LlamaConfig, transformers.LlamaForCausalLM)}[family]
    config = config_class(**{**base, **changes, **more}, attn_implementation="eager")
    rng = torch.Generator().manual_seed(seed)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(spread(n, p, rng).to(dtype).float())
    tensors = {n: p.detach().to(dtype) for n, p in model.named_parameters()}
    save(folder, {**config.to_dict(), "architectures": [model_class.__name__], "dtype": str(dtype)[6:]}, tensors, shards)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=rng)
    kept = module.torch_chunk_gated_delta_rule
    module.torch_chunk_gated_delta_rule = kept if chunked else module.torch_recurrent_gated_delta_rule
    try:
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0]
    finally:
        module.torch_chunk_gated_delta_rule = kept
    return ids[0].numpy(), logits.numpy()


# ---- the block for multi-token prediction --------------------------------------------------------------------------

def mtp_case(folder: Path, name: str = "qwen35", length: int = 40, seed: int = 0, **more: Any) -> dict[str, np.ndarray]:
    """Writes the checkpoint of transformers_case with a block that predicts the token after next, and runs that block in float64, from
    its equations around transformers' decoder layer: of the hidden rows and of the tokens behind them, and in the last row, as a draft
    goes on, of what stood for a hidden row and of the likeliest token. tokens (T,), hidden (T, dim), rows and logits of T pairs."""
    import transformers
    from safetensors.torch import load_file
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module
    ids, _ = transformers_case(folder, name, length, seed=seed, **more)
    fields = json.loads((folder / "config.json").read_text())
    config = transformers.Qwen3_5TextConfig(**fields, attn_implementation="eager")
    tensors = load_file(folder / "model.safetensors")
    width, rng = config.hidden_size, torch.Generator().manual_seed(seed + 1)
    shapes = {"fc": (width, 2 * width), "pre_fc_norm_embedding": (width,), "pre_fc_norm_hidden": (width,), "norm": (width,)}
    one_layer = transformers.Qwen3_5TextConfig(**fields | {"layer_types": [F], "num_hidden_layers": 1}, attn_implementation="eager")
    layer, rope = module.Qwen3_5DecoderLayer(one_layer, 0).double(), module.Qwen3_5TextRotaryEmbedding(one_layer)
    block = {f"mtp.{n}.weight": spread(n, torch.zeros(shape), rng) for n, shape in shapes.items()}
    block |= {f"mtp.layers.0.{n}": spread(n, p.detach().float(), rng) for n, p in layer.named_parameters()}
    block = {n: t.bfloat16() for n, t in block.items()}
    save(folder, fields | {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}, tensors | block)

    model = transformers.Qwen3_5ForCausalLM(config).eval()
    model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
    model.tie_weights()
    kept, module.torch_chunk_gated_delta_rule = module.torch_chunk_gated_delta_rule, module.torch_recurrent_gated_delta_rule
    with torch.no_grad():
        hidden = model.model(torch.tensor(ids)[None], use_cache=False).last_hidden_state[0].double()
        module.torch_chunk_gated_delta_rule = kept
        layer.load_state_dict({n.removeprefix("mtp.layers.0."): t.double() for n, t in block.items() if ".layers." in n})
        embed, head = (m.weight.double() for m in (model.model.embed_tokens, model.lm_head))

        def norm(x: torch.Tensor, which: str) -> torch.Tensor:
            return x * (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * (1 + block[f"mtp.{which}.weight"].double())

        def run(h: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pair = torch.cat([norm(embed[tokens], "pre_fc_norm_embedding"), norm(h, "pre_fc_norm_hidden")], -1)
            x = (pair @ block["mtp.fc.weight"].double().T)[None]
            n = x.shape[1]
            mask = torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)[None, None]
            turn = rope(x, torch.arange(n)[None])
            rows = norm(layer(x, position_embeddings=turn, attention_mask=mask)[0], "norm")
            return rows, rows @ head.T

        after = torch.tensor(ids[1:])
        rows, logits = run(hidden[:-1], after)
        rows, logits = run(torch.cat([hidden[:-1], rows[-1:]]), torch.cat([after, logits[-1:].argmax(-1)]))
    return {"tokens": ids, "hidden": hidden.numpy(), "rows": rows.numpy(), "logits": logits.numpy()}


# ---- GLA -------------------------------------------------------------------------------------------------------------

GLA = dict(architectures=["GLAForCausalLM"], model_type="gla", vocab_size=113, hidden_size=48, num_hidden_layers=3, num_heads=4,
           num_kv_heads=None, expand_k=0.5, expand_v=1.0, feature_map=None, use_short_conv=False, conv_size=4,
           use_output_gate=True, clamp_min=None, hidden_act="swish", hidden_ratio=4, intermediate_size=72,
           elementwise_affine=True, norm_eps=1e-6, attn=None, tie_word_embeddings=False, attnres_block_size=None,
           fuse_norm=True, max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
WINDOWED = dict(layers=[1], num_heads=4, num_kv_heads=2, qkv_bias=True, window_size=9, rope_theta=5000.0)

GLA_CASES: dict[str, dict[str, Any]] = {
    "gla": {},
    "gla-kv-heads": dict(num_kv_heads=2, use_short_conv=True),
    "gla-one-kv-head": dict(num_kv_heads=1, num_heads=6, expand_v=1.5),
    "gla-conv-3": dict(use_short_conv=True, conv_size=3, expand_k=1.0, expand_v=2.0),
    "gla-clamp": dict(clamp_min=-0.03, norm_eps=1e-5),
    "gla-clamp-zero": dict(clamp_min=0.0),
    "gla-no-gate": dict(use_output_gate=False),
    "gla-no-affine": dict(elementwise_affine=False),
    "gla-no-gate-no-affine": dict(use_output_gate=False, elementwise_affine=False, tie_word_embeddings=True),
    "gla-unfused": dict(fuse_norm=False, use_short_conv=True),
    "gla-wide-mlp": dict(intermediate_size=None, hidden_ratio=None),
    **{f"gla-map-{m}": dict(feature_map=m, use_short_conv=m == "relu")
       for m in ("relu", "sigmoid", "logsigmoid", "silu", "swish", "sqrelu", "gelu")},
    "gla-hybrid": dict(attn=dict(layers=[1], num_heads=4)),
    "gla-hybrid-window": dict(attn=WINDOWED, num_kv_heads=2, use_short_conv=True),
    "gla-hybrid-two-kinds": dict(num_hidden_layers=5, attn=[WINDOWED, dict(layers=[4, 0], num_heads=3, num_kv_heads=1)]),
    "gla-all-softmax-powlu": dict(attn=dict(layers=[0, 1, 2], num_heads=2, rope_theta=700), hidden_act="powlu"),
    "gla-attnres-1": dict(attnres_block_size=1),
    "gla-attnres-2": dict(attnres_block_size=2, tie_word_embeddings=True),
    "gla-attnres-4-hybrid": dict(attnres_block_size=4, num_hidden_layers=5, attn=WINDOWED, use_short_conv=True, num_kv_heads=1),
    "gla-attnres-long-block": dict(attnres_block_size=16),
    "gla-wide": dict(hidden_size=128, intermediate_size=256, vocab_size=320, use_short_conv=True),
}


def gla_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape."""
    width, vocab = c["hidden_size"], c["vocab_size"]
    hidden = c["intermediate_size"] or 256 * math.ceil(int(width * (c["hidden_ratio"] or 4) * 2 / 3) / 256)
    key, value = int(width * c["expand_k"]), int(width * c["expand_v"])
    share = (c["num_kv_heads"] or c["num_heads"]) / c["num_heads"]
    key_kv, value_kv = round(key * share), round(value * share)
    shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (vocab, width), "model.norm.weight": (width,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    if c["attnres_block_size"]:
        shapes |= {"model.res_proj.weight": (1, width), "model.res_norm.weight": (width,)}
    specs = c["attn"] or []
    specs = [specs] if isinstance(specs, dict) else specs
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "attn_norm.weight": (width,), p + "mlp_norm.weight": (width,), p + "mlp.gate_proj.weight": (hidden, width),
                   p + "mlp.up_proj.weight": (hidden, width), p + "mlp.down_proj.weight": (width, hidden)}
        if c["attnres_block_size"]:
            for kind in ("attn", "mlp"):
                shapes |= {f"{p}{kind}_res_proj.weight": (1, width), f"{p}{kind}_res_norm.weight": (width,)}
        spec = next((s for s in specs if i in s["layers"]), None)
        if spec:
            kv = width // spec["num_heads"] * (spec.get("num_kv_heads") or spec["num_heads"])
            for n, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
                shapes[f"{p}attn.{n}_proj.weight"] = (rows, width)
                if n != "o" and spec.get("qkv_bias"):
                    shapes[f"{p}attn.{n}_proj.bias"] = (rows,)
            continue
        rows = {"q": key, "k": key_kv, "v": value_kv}
        shapes |= {f"{p}attn.{n}_proj.weight": (r, width) for n, r in rows.items()}
        shapes |= {p + "attn.o_proj.weight": (width, value), p + "attn.gk_proj.0.weight": (16, width),
                   p + "attn.gk_proj.1.weight": (key_kv, 16), p + "attn.gk_proj.1.bias": (key_kv,)}
        if c["use_output_gate"]:
            shapes[p + "attn.g_proj.weight"] = (value, width)
        if c["use_short_conv"]:
            shapes |= {f"{p}attn.{n}_conv1d.weight": (r, 1, c["conv_size"]) for n, r in rows.items()}
        if c["elementwise_affine"]:
            fused = c["fuse_norm"] and c["use_output_gate"]
            shapes[p + ("attn.g_norm_swish_gate.weight" if fused else "attn.g_norm.weight")] = (value // c["num_heads"],)
    return shapes


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def log_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))


FEATURE_MAPS = {
    None: lambda z: z, "relu": lambda z: np.maximum(z, 0), "sigmoid": sigmoid, "logsigmoid": log_sigmoid,
    "silu": lambda z: z * sigmoid(z), "swish": lambda z: z * sigmoid(z), "sqrelu": lambda z: np.maximum(z, 0) ** 2,
    "gelu": lambda z: 0.5 * z * (1 + np.tanh(0.79788456 * z * (1 + 0.044715 * z * z))),
}


def gla_logits(c: dict[str, Any], w: dict[str, np.ndarray], ids: Ids) -> np.ndarray:
    """Logits (T, vocab) of a GLA checkpoint in float64: a plain definition, one token and one head at a time."""
    def norm(x: np.ndarray, weight: str | None) -> np.ndarray:
        y = x / np.sqrt(np.mean(x ** 2) + c["norm_eps"])
        return y * w[weight] if weight in w else y

    def mix(sources: list[np.ndarray], name: str) -> np.ndarray:
        """Residual attention: a softmax over what earlier blocks left in the residual stream."""
        scores = np.array([float((w[name + "_proj.weight"] @ norm(s, name + "_norm.weight"))[0]) for s in sources])
        weights = np.exp(scores - scores.max())
        return sum(p * s for p, s in zip(weights / weights.sum(), sources))

    specs = c["attn"] or []
    specs = [specs] if isinstance(specs, dict) else specs
    heads = c["num_heads"]
    kv_heads = c["num_kv_heads"] or heads
    dk, dv = int(c["hidden_size"] * c["expand_k"]) // heads, int(c["hidden_size"] * c["expand_v"]) // heads
    phi, block = FEATURE_MAPS[c["feature_map"]], c["attnres_block_size"]
    memory = [dict(S=np.zeros((heads, dk, dv)), q=[], k=[], v=[]) for _ in range(c["num_hidden_layers"])]

    def recurrent(p: str, m: dict[str, Any], x: np.ndarray) -> np.ndarray:
        rows = {}
        for n in "qkv":
            z = w[f"{p}{n}_proj.weight"] @ x
            if c["use_short_conv"]:  # the last tap meets the current token
                m[n].append(z)
                taps = w[f"{p}{n}_conv1d.weight"][:, 0, :]
                z = sum(taps[:, -1 - age] * m[n][-1 - age] for age in range(min(len(m[n]), taps.shape[1])))
                z = z * sigmoid(z)
            rows[n] = z
        log_decay = log_sigmoid(w[p + "gk_proj.1.weight"] @ (w[p + "gk_proj.0.weight"] @ x) + w[p + "gk_proj.1.bias"]) / 16
        if c["clamp_min"] is not None:
            log_decay = np.maximum(log_decay, c["clamp_min"])
        out = []
        for h in range(heads):
            g = h * kv_heads // heads
            q, k = phi(rows["q"][h * dk:h * dk + dk]), phi(rows["k"][g * dk:g * dk + dk])
            v, decay = rows["v"][g * dv:g * dv + dv], np.exp(log_decay[g * dk:g * dk + dk])
            m["S"][h] = decay[:, None] * m["S"][h] + np.outer(k, v)
            names = [p + "g_norm_swish_gate.weight", p + "g_norm.weight"]
            out.append(norm(m["S"][h].T @ q / math.sqrt(dk), next((n for n in names if n in w), None)))
        o = np.concatenate(out)
        if c["use_output_gate"]:
            z = w[p + "g_proj.weight"] @ x
            o = o * z * sigmoid(z)
        return w[p + "o_proj.weight"] @ o

    def softmax(p: str, m: dict[str, Any], x: np.ndarray, spec: dict[str, Any], t: int) -> np.ndarray:
        n, d = spec["num_heads"], len(x) // spec["num_heads"]
        groups = n // (spec.get("num_kv_heads") or n)
        angle = t * (spec.get("rope_theta") or 10000.0) ** (-np.arange(0, d, 2) / d)

        def rotated(z: np.ndarray) -> np.ndarray:
            a, b = z[:, :d // 2], z[:, d // 2:]
            return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)
        q, k, v = ((w[f"{p}{s}_proj.weight"] @ x + w.get(f"{p}{s}_proj.bias", 0)).reshape(-1, d) for s in "qkv")
        m["k"].append(rotated(k))
        m["v"].append(v)
        first = max(0, len(m["k"]) - (spec.get("window_size") or len(m["k"])))
        q, o = rotated(q), []
        for h in range(n):
            keys = np.array([row[h // groups] for row in m["k"][first:]])
            values = np.array([row[h // groups] for row in m["v"][first:]])
            s = keys @ q[h] / math.sqrt(d)
            weights = np.exp(s - s.max())
            o.append(weights @ values / weights.sum())
        return w[p + "o_proj.weight"] @ np.concatenate(o)

    def mlp(p: str, x: np.ndarray) -> np.ndarray:
        z = w[p + "gate_proj.weight"] @ x
        r = np.maximum(z, 1e-300)
        act = z * sigmoid(z) if c["hidden_act"] == "swish" else np.where(z > 0, r ** (3 / (np.sqrt(r) + 1)), z) * sigmoid(z)
        return w[p + "down_proj.weight"] @ (act * (w[p + "up_proj.weight"] @ x))

    logits = []
    for t, token in enumerate(ids):
        h, closed = w["model.embeddings.weight"][token], []  # the residual stream; with attnres: the open block's sum, and closed ones
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            spec = next((s for s in specs if i in s["layers"]), None)
            for half, kind in enumerate(("attn", "mlp")):
                x = h
                if block:
                    sources = closed + [h]
                    x = mix(sources, f"{p}{kind}_res")
                    if (2 * i + half) % block == 0:
                        closed, h = sources, np.zeros_like(h)
                x = norm(x, f"{p}{kind}_norm.weight")
                if kind == "mlp":
                    h = h + mlp(p + "mlp.", x)
                elif spec:
                    h = h + softmax(p + "attn.", memory[i], x, spec, t)
                else:
                    h = h + recurrent(p + "attn.", memory[i], x)
        h = mix(closed + [h], "model.res") if block else h
        logits.append(w.get("lm_head.weight", w["model.embeddings.weight"]) @ norm(h, "model.norm.weight"))
    return np.array(logits)


def gla_case(folder: Path, name: str, length: int = 40, dtype: torch.dtype = torch.bfloat16, seed: int = 0,
             shards: int = 1) -> tuple[Ids, np.ndarray]:
    config = GLA | GLA_CASES[name]
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for n, shape in gla_shapes(config).items():
        start = torch.ones(shape) if "norm" in n else torch.zeros(shape)
        tensors[n] = spread(n, start, rng).to(dtype)
        if n.endswith("_res_proj.weight") or n == "model.res_proj.weight":
            tensors[n] = (torch.randn(shape, generator=rng) * 2 / math.sqrt(shape[-1])).to(dtype)
        if n.endswith("gk_proj.1.bias"):
            tensors[n] = (tensors[n].float() * 5).to(dtype)  # decays from slow to fast
    save(folder, config, tensors, shards)
    ids = torch.randint(0, config["vocab_size"], (length,), generator=rng).numpy()
    return ids, gla_logits(config, {n: t.double().numpy() for n, t in tensors.items()}, ids)


# ---- tokenizers ------------------------------------------------------------------------------------------------------

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
SPLITS = {
    "qwen2": rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": None,
}
TRAINING_TEXT = ("The quick brown fox didn't jump over the lazy dog's 12345 bones; they've seen it, I'll say so, we're sure. "
                 "Der Fuchs springt \u00fcber den faulen Hund. \u041b\u0438\u0441\u0438\u0446\u0430 \u043f\u0440\u044b\u0433\u0430\u0435\u0442. "
                 "\u72d0\u72f8\u8df3\u8fc7\u4e86\u61d2\u72d7\u3002 def f(x):\n    return x ** 2\n\n\t\tif x == 10:\r\n        pass   # 3.14159 \n"
                 "naive caf\u00e9 r\u00e9sum\u00e9 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \U0001f98a\U0001f680 ... --- === !!! ??? ") * 3


def tokenizer_files(folder: Path, kind: str) -> int:
    """Everything about text that a released checkpoint of this family has next to its weights. Returns the number of tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>x"]
    if kind == "llama":
        tok = sentencepiece_like()
        bos, eos, add_bos = "<s>", "</s>", True
        tok.add_special_tokens(special[1:3])
    else:
        tok = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
        tok.normalizer = normalizers.NFC() if kind.startswith("qwen") else None
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt-2")
        tok.pre_tokenizer = byte_level if kind == "gpt-2" else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated"), byte_level])
        tok.decoder = decoders.ByteLevel()
        tok.train_from_iterator([TRAINING_TEXT], trainers.BpeTrainer(
            vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        tok.add_special_tokens(special)
        bos, eos, add_bos = ("<|endoftext|>", "<|im_end|>", kind == "llama-bpe")
        if add_bos:
            tok.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                                               special_tokens=[(bos, tok.token_to_id(bos))])
    tok.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("</think>", special=False, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos if add_bos else None, "eos_token": eos,
        "pad_token": {"content": "<|im_start|>", "special": True}}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "generation_config.json").write_text(json.dumps({
        "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.05,
        "eos_token_id": [tok.token_to_id(eos), tok.token_to_id("<|im_start|>")]}))
    return tok.get_vocab_size()


def tokenizer_case(folder: Path, kind: str) -> None:
    """A tokenizer and a tiny model around it, with more rows than tokens, as released models have."""
    rows = tokenizer_files(folder, kind) + 5
    transformers_case(folder, "llama", length=1, vocab_size=rows, num_hidden_layers=1, tie_word_embeddings=True)


def sentencepiece_like():
    """What a converted Llama-2 tokenizer looks like: a vocabulary by falling score, and as merges every way of splitting a
    token into two tokens, best token first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    normal = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normal
    trained.train_from_iterator(TRAINING_TEXT.split(" "), trainers.BpeTrainer(vocab_size=400, show_progress=False))
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    words = [p for p, _ in pieces if len(p) > 1] + ["\u2581\u2581", "\u2581\u2581\u2581\u2581"]
    letters = [p for p, _ in pieces if len(p) == 1 and p != "\u2581"]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words + ["\u2581"] + letters)}
    merges = [(t[:i], t[i:]) for t in words for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normal
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tok
