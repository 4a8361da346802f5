"""Named model sizes, as published, with the parameter count each source states. Imports no JAX.

`size("llama3-8b")` is a ModelConfig whose every field is what the published config says; how it is run
(dtype, remat, attention kernel, dropout) is left at its default. Contexts of models with RoPE are not part of
a size: `data.seq_len` is the run's choice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxlm.config import check_choice
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

RUN_FIELDS = (
    "dropout", "dtype", "remat", "scan_layers", "attention", "attention_blocks", "balance_loss", "router_z_loss",
)  # fmt: skip
"""Fields of ModelConfig that say how a model is run, not what it is: `apply` leaves them alone."""


@dataclass(frozen=True)
class Published:
    """A parameter count as its source states it."""

    num_params: int
    source: str
    rounding: float = 0.0
    """Largest relative difference the source's rounding allows; 0: the count is exact."""


# Families: what all their sizes share.

_GPT: dict[str, Any] = dict(
    vocab_size=50257,
    activation="gelu_tanh",
    norm="layernorm",
    norm_eps=1e-5,
    bias="all",
    positions="learned",
    tie_embeddings=True,
)
"""GPT-2 (config.json on Hugging Face: activation gelu_new, layer_norm_epsilon 1e-05) and GPT-3, which keeps
GPT-2's architecture and tokenizer (arXiv:2005.14165, section 2.1)."""

_LLAMA: dict[str, Any] = dict(activation="swiglu", norm="rmsnorm", norm_eps=1e-5, tie_embeddings=False)

_LLAMA3: dict[str, Any] = _LLAMA | dict(vocab_size=128256, num_kv_heads=8, rope_theta=500_000.0)

_QWEN25: dict[str, Any] = dict(
    activation="swiglu", norm="rmsnorm", norm_eps=1e-6, bias="qkv", rope_theta=1_000_000.0
)

_QWEN3: dict[str, Any] = dict(
    vocab_size=151936,
    num_kv_heads=8,
    head_dim=128,
    activation="swiglu",
    norm="rmsnorm",
    norm_eps=1e-6,
    qk_norm=True,
    rope_theta=1_000_000.0,
)

_MIXTRAL: dict[str, Any] = _LLAMA | dict(
    vocab_size=32000, num_kv_heads=8, rope_theta=1_000_000.0, num_experts=8, num_experts_per_token=2
)

_QWEN3_MOE: dict[str, Any] = _QWEN3 | dict(
    num_kv_heads=4, num_experts=128, num_experts_per_token=8, tie_embeddings=False
)

_GEMMA: dict[str, Any] = dict(
    activation="geglu",
    norm="rmsnorm_plus_one",
    norm_eps=1e-6,
    post_norm=True,
    tie_embeddings=True,
    scale_embeddings=True,
)

_GEMMA2: dict[str, Any] = _GEMMA | dict(
    vocab_size=256_000,
    layer_pattern="lg",
    sliding_window=4096,
    attention_softcap=50.0,
    logits_softcap=30.0,
)

_GEMMA3: dict[str, Any] = _GEMMA | dict(
    qk_norm=True, rope_theta=1_000_000.0, rope_local_theta=10_000.0, layer_pattern="lllllg"
)


def _make(family: dict[str, Any], **fields: Any) -> ModelConfig:
    return ModelConfig(**(family | fields))


def _gpt(context: int, num_layers: int, embed_dim: int, num_heads: int, **fields: Any) -> ModelConfig:
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    return _make(_GPT | shape, max_seq_len=context, mlp_dim=4 * embed_dim, **fields)


def _llama(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, **fields: Any) -> ModelConfig:
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    return _make(_LLAMA | shape | fields, mlp_dim=mlp_dim)


def _llama3(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, factor=1.0, **fields: Any):
    """factor: 1 for Llama 3 (8K context), 8 for Llama 3.1, 32 for Llama 3.2 (both 128K)."""
    scaled: dict[str, Any] = dict(rope_scaling_factor=factor)
    if factor > 1:
        scaled |= dict(rope_scaling="llama3", rope_original_len=8192)
    return _llama(num_layers, embed_dim, num_heads, mlp_dim, **(_LLAMA3 | scaled | fields))


def _qwen25(num_layers, embed_dim, num_heads, num_kv_heads, mlp_dim, **fields: Any) -> ModelConfig:
    # Below 7B the embedding is tied and has 151936 rows; from 7B on it is not and has 152064.
    tied = embed_dim < 3584
    family = _QWEN25 | dict(vocab_size=151936 if tied else 152064, tie_embeddings=tied) | fields
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    return _make(family | shape, num_kv_heads=num_kv_heads, mlp_dim=mlp_dim)


def _qwen3(num_layers, embed_dim, num_heads, mlp_dim, *, tied: bool, **fields: Any) -> ModelConfig:
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    return _make(_QWEN3 | shape | fields, mlp_dim=mlp_dim, tie_embeddings=tied)


def _moe(family, num_layers, embed_dim, num_heads, mlp_dim, **fields: Any) -> ModelConfig:
    """mlp_dim: of each expert."""
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    return _make(family | shape | fields, mlp_dim=mlp_dim)


def _gemma(family, num_layers, embed_dim, num_heads, num_kv_heads, head_dim, mlp_dim, **fields: Any):
    shape: dict[str, Any] = dict(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    heads: dict[str, Any] = dict(num_kv_heads=num_kv_heads, head_dim=head_dim)
    return _make(family | shape | heads | fields, mlp_dim=mlp_dim)


_GEMMA3_SMALL: dict[str, Any] = _GEMMA3 | dict(vocab_size=262_144, sliding_window=512, query_scale_dim=256)
# The multimodal sizes have 64 more rows, for image tokens, and global layers stretched from 32K to 128K.
_GEMMA3_LARGE: dict[str, Any] = _GEMMA3 | dict(
    vocab_size=262_208, sliding_window=1024, rope_scaling="linear", rope_scaling_factor=8.0
)

_SIZES: dict[str, ModelConfig] = {
    # GPT-3, table 2.1 (layers, d_model, heads), context 2048. Two rows contradict themselves:
    # - 1.3B gives 24 heads of width 128 for d_model 2048, which makes 1.52B parameters. Here 16 x 128 = 2048,
    #   which makes the 1.32B of its name, as in its reproductions.
    # - 13B gives d_model 5140 beside 40 heads of 128. Here 5120 = 40 x 128.
    # The paper's alternating sparse layers (which do not change the counts) are dense here: their band width
    # was never published.
    "gpt3-125m": _gpt(2048, 12, 768, 12),
    "gpt3-350m": _gpt(2048, 24, 1024, 16),
    "gpt3-760m": _gpt(2048, 24, 1536, 16),
    "gpt3-1.3b": _gpt(2048, 24, 2048, 16),
    "gpt3-2.7b": _gpt(2048, 32, 2560, 32),
    "gpt3-6.7b": _gpt(2048, 32, 4096, 32),
    "gpt3-13b": _gpt(2048, 40, 5120, 40),
    "gpt3-175b": _gpt(2048, 96, 12288, 96),
    # Hugging Face openai-community/gpt2, gpt2-medium, gpt2-large, gpt2-xl.
    "gpt2-124m": _gpt(1024, 12, 768, 12),
    "gpt2-350m": _gpt(1024, 24, 1024, 16),
    "gpt2-774m": _gpt(1024, 36, 1280, 20),
    "gpt2-1.5b": _gpt(1024, 48, 1600, 25),
    # Hugging Face meta-llama, config.json of each.
    "llama2-7b": _llama(32, 4096, 32, 11008, vocab_size=32000),
    "llama2-13b": _llama(40, 5120, 40, 13824, vocab_size=32000),
    "llama2-70b": _llama(80, 8192, 64, 28672, vocab_size=32000, num_kv_heads=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    "llama3.1-8b": _llama3(32, 4096, 32, 14336, factor=8.0),
    "llama3.1-70b": _llama3(80, 8192, 64, 28672, factor=8.0),
    "llama3.1-405b": _llama3(126, 16384, 128, 53248, factor=8.0),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, factor=32.0, head_dim=64, tie_embeddings=True),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, factor=32.0, head_dim=128, tie_embeddings=True),
    # Hugging Face google/gemma-2-*. Queries are scaled by head_dim, except in 27B: 4608 / 32 = 144 (9B's
    # config first said 224; corrected to 256 in July 2024).
    "gemma2-2b": _gemma(_GEMMA2, 26, 2304, 8, 4, 256, 9216, query_scale_dim=256),
    "gemma2-9b": _gemma(_GEMMA2, 42, 3584, 16, 8, 256, 14336, query_scale_dim=256),
    "gemma2-27b": _gemma(_GEMMA2, 46, 4608, 32, 16, 128, 36864, query_scale_dim=144),
    # Hugging Face google/gemma-3-*: the language model, without the vision tower of 4B and larger.
    "gemma3-270m": _gemma(_GEMMA3_SMALL, 18, 640, 4, 1, 256, 2048),
    "gemma3-1b": _gemma(_GEMMA3_SMALL, 26, 1152, 4, 1, 256, 6912),
    "gemma3-4b": _gemma(_GEMMA3_LARGE, 34, 2560, 8, 4, 256, 10240, query_scale_dim=256),
    "gemma3-12b": _gemma(_GEMMA3_LARGE, 48, 3840, 16, 8, 256, 15360, query_scale_dim=256),
    "gemma3-27b": _gemma(_GEMMA3_LARGE, 62, 5376, 32, 16, 128, 21504, query_scale_dim=168),
    # Hugging Face Qwen/Qwen2.5-* (base); sliding windows are switched off in all of them.
    "qwen2.5-0.5b": _qwen25(24, 896, 14, 2, 4864),
    "qwen2.5-1.5b": _qwen25(28, 1536, 12, 2, 8960),
    "qwen2.5-3b": _qwen25(36, 2048, 16, 2, 11008),
    "qwen2.5-7b": _qwen25(28, 3584, 28, 4, 18944),
    "qwen2.5-14b": _qwen25(48, 5120, 40, 8, 13824, norm_eps=1e-5),
    "qwen2.5-32b": _qwen25(64, 5120, 40, 8, 27648, norm_eps=1e-5),
    "qwen2.5-72b": _qwen25(80, 8192, 64, 8, 29568, norm_eps=1e-5),
    # Hugging Face Qwen/Qwen3-*, the dense ones.
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288, tied=False),
    "qwen3-14b": _qwen3(40, 5120, 40, 17408, tied=False),
    "qwen3-32b": _qwen3(64, 5120, 64, 25600, tied=False),
    # Hugging Face HuggingFaceTB/SmolLM2-135M; mistralai/Mistral-7B-v0.1 (later versions dropped the window).
    "smollm2-135m": _llama(
        30, 576, 9, 1536, vocab_size=49152, num_kv_heads=3, rope_theta=100_000.0, tie_embeddings=True
    ),
    "mistral-7b": _llama(
        32, 4096, 32, 14336, vocab_size=32000, num_kv_heads=8, layer_pattern="l", sliding_window=4096
    ),
    # Hugging Face mistralai/Mixtral-8x*-v0.1 (8x22B's later versions have 32768 ids); no sliding window in either.
    "mixtral-8x7b": _moe(_MIXTRAL, 32, 4096, 32, 14336),
    "mixtral-8x22b": _moe(_MIXTRAL, 56, 6144, 48, 16384),
    # Hugging Face Qwen/Qwen3-*-A*: every layer has experts, none of them shared; norm_topk_prob is true.
    "qwen3-30b-a3b": _moe(_QWEN3_MOE, 48, 2048, 32, 768),
    "qwen3-235b-a22b": _moe(_QWEN3_MOE, 94, 4096, 64, 1536),
    # For tests: a few ten thousand parameters that exercise every feature of a family. Widths of heads are free
    # (heads x width != embed_dim), windows short; tiny-gemma3 is two periods of its pattern and a remainder.
    "tiny-gpt": _gpt(64, 3, 32, 4, vocab_size=320),
    "tiny-llama": _llama3(
        3, 32, 4, 96, factor=8.0, vocab_size=320, num_kv_heads=2, head_dim=16, rope_original_len=16
    ),
    "tiny-qwen2": _qwen25(3, 32, 4, 2, 96, vocab_size=320),
    "tiny-qwen3": _qwen3(3, 32, 4, 96, tied=True, vocab_size=320, num_kv_heads=1, head_dim=16),
    "tiny-mixtral": _moe(_MIXTRAL, 2, 32, 4, 32, vocab_size=320, num_kv_heads=2, head_dim=16),
    "tiny-qwen3-moe": _moe(
        _QWEN3_MOE, 3, 32, 4, 16, vocab_size=320, num_kv_heads=1, head_dim=16, num_experts=8, num_experts_per_token=4
    ),
    "tiny-gemma2": _gemma(
        _GEMMA2, 4, 32, 4, 2, 16, 96, vocab_size=320, sliding_window=5, query_scale_dim=24,
        attention_softcap=2.0, logits_softcap=0.5,
    ),
    "tiny-gemma3": _gemma(
        _GEMMA3_LARGE, 7, 32, 4, 1, 16, 64, vocab_size=320, sliding_window=5, layer_pattern="llg",
        query_scale_dim=24,
    ),
}  # fmt: skip

SIZES: tuple[str, ...] = tuple(_SIZES)
"""All names, published ones first, then those for tests."""

TINY_SIZES: tuple[str, ...] = tuple(name for name in SIZES if name.startswith("tiny-"))
"""The ones for tests."""


def _table(rows: dict[str, int], source: str, rounding: float = 0.0) -> dict[str, Published]:
    return {name: Published(count, source, rounding) for name, count in rows.items()}


# Gemma 3's checkpoints from 4B on also hold a SigLIP vision tower (27 layers of width 1152 on 4096 patches)
# and a projector: 1152 x embed_dim weights and a norm of 1152.
_SIGLIP = 416_866_032


def _gemma3_text(checkpoint_params: int, embed_dim: int) -> int:
    return checkpoint_params - _SIGLIP - 1152 * embed_dim - 1152


_PUBLISHED: dict[str, Published] = {
    **_table(
        {
            "gpt3-125m": 125_000_000,
            "gpt3-350m": 350_000_000,
            "gpt3-760m": 760_000_000,
            "gpt3-1.3b": 1_300_000_000,
            "gpt3-2.7b": 2_700_000_000,
            "gpt3-6.7b": 6_700_000_000,
            "gpt3-13b": 13_000_000_000,
            "gpt3-175b": 175_000_000_000,
        },
        "arXiv:2005.14165, table 2.1, column n_params (rounded)",
        rounding=0.02,
    ),
    **_table(
        {
            "gpt2-124m": 124_439_808,
            "gpt2-350m": 354_823_168,
            "gpt2-774m": 774_030_080,
            "gpt2-1.5b": 1_557_611_200,
        },
        "parameters of the Hugging Face checkpoints openai-community/gpt2*",
    ),
    **_table(
        {
            "llama2-7b": 6_738_415_616,
            "llama2-13b": 13_015_864_320,
            "llama2-70b": 68_976_648_192,
            "llama3-8b": 8_030_261_248,
            "llama3-70b": 70_553_706_496,
            "llama3.1-8b": 8_030_261_248,
            "llama3.1-70b": 70_553_706_496,
            "llama3.1-405b": 405_853_388_800,
            "llama3.2-1b": 1_235_814_400,
            "llama3.2-3b": 3_212_749_824,
        },
        "safetensors total of the Hugging Face checkpoints meta-llama/*",
    ),
    **_table(
        {"gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984, "gemma2-27b": 27_227_128_320},
        "safetensors total of the Hugging Face checkpoints google/gemma-2-*",
    ),
    **_table(
        {"gemma3-270m": 268_098_176, "gemma3-1b": 999_885_952},
        "safetensors total of the Hugging Face checkpoints google/gemma-3-*",
    ),
    **_table(
        {
            "gemma3-4b": _gemma3_text(4_300_079_472, 2560),
            "gemma3-12b": _gemma3_text(12_187_325_040, 3840),
            "gemma3-27b": _gemma3_text(27_432_406_640, 5376),
        },
        "safetensors total of the Hugging Face checkpoints google/gemma-3-*, less vision tower and projector",
    ),
    **_table(
        {
            "qwen2.5-0.5b": 494_032_768,
            "qwen2.5-1.5b": 1_543_714_304,
            "qwen2.5-3b": 3_085_938_688,
            "qwen2.5-7b": 7_615_616_512,
            "qwen2.5-14b": 14_770_033_664,
            "qwen2.5-32b": 32_763_876_352,
            "qwen2.5-72b": 72_706_203_648,
            "qwen3-0.6b": 596_049_920,
            "qwen3-1.7b": 1_720_574_976,
            "qwen3-4b": 4_022_468_096,
            "qwen3-8b": 8_190_735_360,
            "qwen3-14b": 14_768_307_200,
            "qwen3-32b": 32_762_123_264,
        },
        "safetensors total of the Hugging Face checkpoints Qwen/* (tied weights counted once)",
    ),
    **_table(
        {"smollm2-135m": 134_515_008},
        "safetensors total of the Hugging Face checkpoint HuggingFaceTB/SmolLM2-135M",
    ),
    **_table(
        {"mistral-7b": 7_241_732_096},
        "safetensors total of the Hugging Face checkpoint mistralai/Mistral-7B-v0.1",
    ),
    **_table(
        {"mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_620_634_112},
        "safetensors total of the Hugging Face checkpoints mistralai/Mixtral-8x*-v0.1",
    ),
    **_table(
        {"qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560},
        "safetensors total of the Hugging Face checkpoints Qwen/Qwen3-*-A*",
    ),
}


def size(name: str) -> ModelConfig:
    """The model of this name, for example `llama3-8b`; UserError with the nearest name for an unknown one."""
    check_choice("size", name, SIZES)
    return _SIZES[name]


def published(name: str) -> Published:
    """The parameter count that this size's source states; UserError for `tiny-*` sizes, which have none."""
    check_choice("size", name, SIZES)
    if name not in _PUBLISHED:
        raise UserError(
            f"size={name!r} has no published parameter count: it was made for tests. Count it with "
            "jaxlm.plan.flops.count_params."
        )
    return _PUBLISHED[name]


def published_params(name: str) -> int:
    """Number of parameters as published; `published(name)` also says where, and how far it was rounded."""
    return published(name).num_params


def apply(model: Any, name: str) -> None:
    """Writes the size's fields into a config's `model` section: `sizes.apply(cfg.model, "gpt3-125m")`.

    How the model is run (`RUN_FIELDS`) stays as the config has it.
    """
    fields = dataclasses.asdict(size(name))
    model.update({key: value for key, value in fields.items() if key not in RUN_FIELDS})
