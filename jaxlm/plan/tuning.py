"""What `tune` leaves to train: which weights have gradients, and how many FLOPs that takes. No arrays, no JAX."""

from __future__ import annotations

from jaxlm.models.config import ModelConfig
from jaxlm.plan.flops import FlopsPerToken, Weight, flops_per_token, matmul_params, weights
from jaxlm.train.config import TuneConfig


def adapters(table: list[Weight], tune: TuneConfig) -> list[Weight]:
    """The two matrices of each adapter that lora adds to the weights of the table."""
    added = []
    for w in table:
        if w.part in ("attention", "mlp") and w.name in tune.targets:
            cut = 3 if w.name == "o" else 2  # layers, and the input dims
            added += [
                w._replace(shape=(*w.shape[:cut], tune.lora_rank), axes=(*w.axes[:cut], "rank")),
                w._replace(
                    shape=(w.shape[0], tune.lora_rank, *w.shape[cut:]), axes=("layers", "rank", *w.axes[cut:])
                ),
            ]
    return added


def trained_weights(table: list[Weight], tune: TuneConfig) -> list[Weight]:
    """Of all weights those that have gradients and moments, as jaxlm/train/tuning.py splits them."""
    if tune.train == "all":
        return table
    trained = [w for w in table if w.name == "classifier"]
    if tune.train == "last_blocks":
        n = tune.num_blocks
        trained += [w for w in table if w.name == "head" or w.name.startswith("final_norm")]
        trained += [w._replace(shape=(n, *w.shape[1:])) for w in table if w.axes[0] == "layers"]
    if tune.train == "lora":
        trained += adapters(table, tune)
    return trained


def tuned_flops_per_token(
    model: ModelConfig, seq_len: int, tune: TuneConfig, *, causal_halved: bool = True
) -> FlopsPerToken:
    """Model FLOPs per token of a training step that trains what `tune` says; see `flops_per_token`.

    A product costs 2 FLOPs per parameter forward, 2 for the gradient of what it multiplies, 2 for the weight's own.
    What is frozen has none of its own, and blocks below everything that is trained have no backward pass:

    - lora: 4 M + 6 A, with A the parameters of the adapters; attention as ever.
    - last_blocks: 2 M + 4 times those of the last n blocks; their attention 12 N H keys, the others' 4 N H keys. A
      language head takes 4 more where it is trained, 2 where it is tied to the frozen embedding.
    - head: 2 M and 4 N H keys.

    A classifier's own product is one per text, and not counted.
    """
    whole = flops_per_token(model, seq_len, causal_halved=causal_halved)
    if tune.train == "all":
        return whole
    forward = flops_per_token(model, seq_len, causal_halved=causal_halved, backward=False)
    M, share = (
        matmul_params(model),
        {"head": 0.0, "lora": 1.0}.get(tune.train, tune.num_blocks / model.num_layers),
    )
    more, what = 0.0, "forward alone"
    if tune.train == "lora":
        A = sum(w.num_params for w in adapters(weights(model, seq_len), tune))
        more, what = (
            2.0 * M + 6.0 * A,
            f"and backward, without gradients of frozen weights; adapters A = {A:,}",
        )
    if tune.train == "last_blocks":
        head = 0 if model.num_classes is not None else model.embed_dim * (model.vocab_size or 0)
        more = 4.0 * share * (M - head) + (2.0 if model.tie_embeddings else 4.0) * head
        what = f"and backward through the last {tune.num_blocks} of {model.num_layers} blocks"
    return FlopsPerToken(
        weights=forward.weights + more,
        attention=forward.attention * (1 + 2 * share),
        formula=f"forward {forward.formula}; {what}",
    )
