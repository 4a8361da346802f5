"""Tiny random models of every family, made and run by transformers: what jaxlm is compared with.

Needs torch and transformers (`make parity` installs them into an environment of its own).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB_SIZE, NUM_TOKENS = 96, 24
"""Of every model; of every text that is scored. Longer than the windows below, so that they matter."""
_SHAPE: dict[str, Any] = dict(
    vocab_size=VOCAB_SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    initializer_range=0.3,
)  # fmt: skip
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
_GEMMA: dict[str, Any] = _SHAPE | dict(head_dim=8, query_pre_attn_scalar=12)

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        dict(
            vocab_size=VOCAB_SIZE, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2,
        ),
    ),
    "llama": ("LlamaConfig", _SHAPE),
    "llama3": (
        "LlamaConfig",
        _SHAPE | dict(rope_theta=500_000.0, rope_scaling=_LLAMA3_ROPE, tie_word_embeddings=True, head_dim=8),
    ),
    "llama-yarn": ("LlamaConfig", _SHAPE | dict(rope_scaling=_YARN)),
    "llama-linear": ("LlamaConfig", _SHAPE | dict(rope_scaling=dict(rope_type="linear", factor=2.0))),
    "llama-bias": ("LlamaConfig", _SHAPE | dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("MistralConfig", _SHAPE | dict(sliding_window=7)),
    "qwen2": ("Qwen2Config", _SHAPE | dict(rope_theta=1_000_000.0, tie_word_embeddings=True)),
    "qwen2-window": (
        "Qwen2Config",
        _SHAPE | dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "qwen3": ("Qwen3Config", _SHAPE | dict(head_dim=8, rope_theta=1_000_000.0)),
    "gemma": (
        "GemmaConfig",
        _SHAPE | dict(head_dim=8, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh"),
    ),
    "gemma2": (
        "Gemma2Config",
        _GEMMA | dict(sliding_window=7, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        _GEMMA
        | dict(
            num_hidden_layers=7, sliding_window=7, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0,
            rope_scaling=dict(rope_type="linear", factor=8.0),
        ),
    ),
    "mixtral": ("MixtralConfig", _SHAPE | dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        _SHAPE | dict(head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True),
    ),
}  # fmt: skip
"""Name -> (class of its config, its arguments)."""
GRADIENTS = ("llama", "gemma2", "mixtral")


def make(name: str) -> Any:
    """The model with random weights, in float32; the same on every machine."""
    kind, arguments = CONFIGS[name]
    config = getattr(transformers, kind)(**arguments)
    config._attn_implementation = "eager"  # the only one that caps attention's logits
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # norms and biases start as ones and zeros, where a mistake would not be seen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            # What bfloat16 holds exactly, so that golden files may store it so.
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def texts() -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BT, lengths_B): the second row is padded on the right."""
    tokens_BT = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, NUM_TOKENS))
    lengths_B = np.array([NUM_TOKENS, NUM_TOKENS - 9])
    tokens_BT[1, lengths_B[1] :] = 0
    return tokens_BT, lengths_B


def logits(model: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of a batch that is padded on the right."""
    mask_BT = np.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
    with torch.no_grad():
        found = model(
            torch.tensor(tokens_BT), attention_mask=torch.tensor(mask_BT.astype(np.int64)), use_cache=False
        )
    return found.logits.float().numpy()


def logits_with_cache(model: Any, tokens_T: np.ndarray, num_prefill: int) -> np.ndarray:
    """Logits [T, V] of one text: a first part at once, then token by token through the KV cache."""
    pieces, cache = [tokens_T[:num_prefill]], None
    pieces += [tokens_T[i : i + 1] for i in range(num_prefill, len(tokens_T))]
    found = []
    with torch.no_grad():
        for piece in pieces:
            out = model(torch.tensor(piece[None]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits[0].float().numpy())
    return np.concatenate(found)


def gradients(model: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> dict[str, np.ndarray]:
    """Of the summed next-token loss over what is no padding, by name of the parameter as it is saved."""
    model.zero_grad()
    out = model(torch.tensor(tokens_BT), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        out[:, :-1].reshape(-1, out.shape[-1]), torch.tensor(tokens_BT[:, 1:]).reshape(-1), reduction="none"
    )
    weights = torch.tensor((np.arange(1, tokens_BT.shape[1])[None] < lengths_B[:, None]).reshape(-1))
    (losses * weights).sum().backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """`save_pretrained`, as everybody does it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    model.to(torch.float32)
