"""Parameters and FLOPs against independent formulas from the papers."""

import dataclasses

import pytest

from jaxlm.models import sizes
from jaxlm.models.config import ModelConfig
from jaxlm.plan import flops
from jaxlm.types import UserError


def chinchilla_forward_flops(*, T, V, D, F, N, H, L):
    """Appendix F of arXiv:2203.15556, line by line, for one sequence; without embeddings and softmax."""
    attention = 2 * 3 * T * D * (N * H)  # key, query and value projections
    attention += 2 * T * T * (N * H)  # key @ query logits
    attention += 2 * T * T * (N * H)  # softmax @ value reductions
    attention += 2 * T * (N * H) * D  # final linear
    dense_block = 2 * T * (D * F + D * F)
    final_logits = 2 * T * D * V
    return L * (attention + dense_block) + final_logits


@pytest.mark.parametrize("name", ["gpt3-125m", "gpt3-13b", "gpt3-175b", "gpt2-1.5b"])
def test_forward_flops_are_chinchillas_appendix_f(name):
    model, T = sizes.size(name), 2048
    expected = chinchilla_forward_flops(
        T=T,
        V=model.vocab_size,
        D=model.embed_dim,
        F=model.mlp_width,
        N=model.num_heads,
        H=model.head_width,
        L=model.num_layers,
    )
    ours = flops.flops_per_token(model, T, causal_halved=False, backward=False)
    assert ours.total * T == pytest.approx(expected, rel=1e-12)


def test_training_flops_are_palms_appendix_b():
    """6 N + 12 L H Q T, N without the embedding (Llama 3 8B: untied, so N is all but it, norms aside)."""
    model, T = sizes.size("llama3-8b"), 8192
    count = flops.count_params(model)
    N = count.total - count.embedding - count.norms
    ours = flops.flops_per_token(model, T, causal_halved=False)
    assert ours.weights == 6 * N
    assert ours.attention == 12 * model.num_layers * T * model.num_heads * model.head_width


@pytest.mark.parametrize("name", ["gpt3-125m", "llama3-8b"])
def test_training_is_three_forward_passes(name):
    forward = flops.flops_per_token(sizes.size(name), 1024, backward=False)
    assert flops.flops_per_token(sizes.size(name), 1024).total == 3 * forward.total


def test_causal_halving_halves_global_attention_only():
    model = sizes.size("llama3-8b")
    whole = flops.flops_per_token(model, 4096, causal_halved=False)
    half = flops.flops_per_token(model, 4096, causal_halved=True)
    assert half.attention == whole.attention / 2
    assert half.weights == whole.weights


@pytest.mark.parametrize("window", [1, 7, 32, 64])
def test_mean_keys_of_a_window_are_those_of_its_mask(window):
    T = 64
    visible = [min(t + 1, window) for t in range(T)]
    ours = flops.mean_keys("l", T, window, causal_halved=True)
    # Halving T x T leaves out half of the diagonal, which the mask keeps: W / 2 of W x T entries.
    assert ours + window / (2 * T) == pytest.approx(sum(visible) / T)
    assert flops.mean_keys("l", T, window, causal_halved=False) == window
    assert flops.mean_keys("g", T, window, causal_halved=False) == T


def test_sliding_windows_are_counted_layer_by_layer():
    model, T = sizes.size("gemma3-1b"), 8192
    assert model.layer_kinds.count("g") == 4
    N, H = model.num_heads, model.head_width
    expected = 12 * N * H * (4 * T + 22 * 512)
    assert flops.flops_per_token(model, T, causal_halved=False).attention == expected


def test_tied_head_is_counted_once_and_the_lookup_never():
    tied = ModelConfig(vocab_size=1000, tie_embeddings=True)
    untied = dataclasses.replace(tied, tie_embeddings=False)
    assert flops.matmul_params(tied) == flops.matmul_params(untied)
    assert flops.count_params(untied).total - flops.count_params(tied).total == 1000 * tied.embed_dim


def test_non_embedding_params_are_kaplans_12_l_d_squared():
    model = sizes.size("gpt3-175b")
    assert flops.count_params(model).non_embedding == pytest.approx(12 * 96 * 12288**2, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 12.9), ("mixtral-8x22b", 39), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22)],
)
def test_active_params_are_those_of_the_papers(name, billions):
    """arXiv:2401.04088, table 2; Mistral AI's announcement of 8x22B; Qwen3, arXiv:2505.09388, section 1."""
    assert flops.count_params(sizes.size(name)).active / 1e9 == pytest.approx(billions, rel=0.02)


def test_a_token_is_multiplied_by_the_experts_it_meets_and_by_the_router():
    dense = ModelConfig(vocab_size=1000, embed_dim=64, mlp_dim=96)
    sparse = dataclasses.replace(dense, num_experts=8, num_experts_per_token=2)
    router = dense.num_layers * 64 * 8
    mlp = flops.count_params(dense).mlp
    count = flops.count_params(sparse)
    assert flops.matmul_params(sparse) == flops.matmul_params(dense) + mlp + router
    assert (count.mlp, count.experts, count.idle_experts) == (0, 2 * mlp + router, 6 * mlp)
    assert count.total == flops.count_params(dense).total + 7 * mlp + router == count.active + 6 * mlp


def test_gpt3_training_compute_is_the_papers():
    """Table D.1 of arXiv:2005.14165: 3.14e23 FLOPs for 174,600M parameters and 300B tokens."""
    assert flops.training_flops(174.6e9, 300e9) == pytest.approx(3.14e23, rel=2e-3)


def test_formula_says_what_was_counted():
    model = sizes.size("gpt3-125m")
    assert "not the causal half" in flops.flops_per_token(model, 2048, causal_halved=False).formula
    assert f"{flops.matmul_params(model):,}" in flops.flops_per_token(model, 2048).formula


def test_mfu_is_one_at_the_peak():
    per_token = flops.flops_per_token(sizes.size("gpt3-125m"), 2048)
    assert flops.mfu(1e15 / per_token.total, per_token, 1e15) == pytest.approx(1.0)


def test_what_cannot_be_counted_is_said():
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        flops.count_params(ModelConfig())
    learned = ModelConfig(vocab_size=100, positions="learned")
    with pytest.raises(UserError, match=r"model\.max_seq_len"):
        flops.count_params(learned)
    assert flops.count_params(learned, seq_len=128).positions == 128 * learned.embed_dim
