"""A small Llama-like model on English prose that ships with Python; the loss falls within minutes.

    make quickstart
    jaxlm train --config=quickstart --workdir=runs/quickstart

Hardware: any CPU with two cores. Result: not run yet.
"""

from jaxlm import run


def get_config():
    cfg = run.default_config()

    cfg.data.sources.topics = dict(path="embedded:topics", weight_tokens=0.5, on_exhausted="repeat")
    cfg.data.sources.docstrings = dict(path="embedded:docstrings", weight_tokens=0.4, on_exhausted="repeat")
    cfg.data.sources.licences = dict(path="embedded:licences", weight_tokens=0.1, on_exhausted="repeat")
    cfg.data.seq_len = 128
    cfg.data.global_batch_size = 16
    cfg.tokenizer.vocab_size = 4096

    cfg.model.embed_dim = 192
    cfg.model.num_layers = 4
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2

    cfg.optimizer.learning_rate = 2e-3
    cfg.optimizer.warmup_steps = 50
    cfg.train.num_steps = 600
    return cfg
