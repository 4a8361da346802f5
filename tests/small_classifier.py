"""A run as a classification leaves it, with random weights, made in the test."""

import json

import jax
from small_tokenizers import level

from jaxlm import run as run_lib
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.models.build import build
from jaxlm.run_data import with_classes
from jaxlm.train.config import CheckpointConfig

LABELS = ("cat", "dog", "উট")


def make_run(
    folder,
    labels=LABELS,
    *,
    task="single_label",
    pooling="last",
    objective="classify",
    seq_len=48,
    tokenizer=None,
    **keys,
):
    """A workdir; labels=None: of a language model. keys: of its ModelConfig."""
    cfg = run_lib.default_config()
    cfg.objective = objective
    cfg.data.sources = {"texts": {"path": "embedded:kinds" if labels is not None else "embedded:topics"}}
    cfg.data.seq_len = seq_len
    cfg.classify.task, cfg.classify.pooling = task, pooling
    cfg.model.update(
        {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32, "scan_layers": False, **keys}
    )
    cfg = run_lib.resolve(cfg)
    tokenizer = tokenizer or HFTokenizer(level())
    folder.mkdir(parents=True)
    run_lib.save_config(folder / run_lib.CONFIG_FILE, cfg)
    tokenizer.save(folder)
    model = with_classes(run_lib.with_vocabulary(cfg, tokenizer), labels).model
    params = jax.jit(lambda key: jax.tree.map(lambda w: 8.0 * w, build(model, seq_len).init(key)))(
        jax.random.key(0)
    )
    extra = {} if labels is None else {"labels": list(labels)}
    with Checkpoints(folder / run_lib.CHECKPOINTS, CheckpointConfig()) as checkpoints:
        checkpoints.save({"params": params}, Meta(3, tokenizer_sha256=tokenizer.sha256, extra=extra))
    return folder


def write_records(path, records):
    """A JSONL file; texts are lines as they are."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path
