"""A small Llama-like model on English prose that ships with Python; the loss falls within minutes.

    make quickstart
    jaxlm train --config=quickstart --workdir=runs/quickstart

Four sources, weighted so that none is read more than about four times. Hardware: any CPU with two cores.
Result (2026-11-24): held-out loss 4.69 on topics
(1.96 bits per byte), 5.03 on docstrings (2.06), after 2m 10s.
"""

from jaxlm import run

WEIGHTS = {"topics": 0.2, "docstrings": 0.55, "comments": 0.24, "licences": 0.01}  # shares of the tokens


def get_config():
    cfg = run.default_config()

    for name, weight in WEIGHTS.items():
        cfg.data.sources[name] = dict(path=f"embedded:{name}", weight_tokens=weight, on_exhausted="repeat")
    cfg.data.eval_split = "tail"  # the end of every document: whole documents would be too few to hold out
    cfg.data.eval_fraction = 0.05
    cfg.data.seq_len = 128
    cfg.data.global_batch_size = 16
    cfg.tokenizer.vocab_size = 4096

    cfg.model.embed_dim = 192
    cfg.model.num_layers = 4
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2
    cfg.model.scan_layers = False

    cfg.optimizer.learning_rate = 3e-3
    cfg.optimizer.warmup_steps = 50
    cfg.train.num_steps = 600
    cfg.train.eval_every_steps = 200
    return cfg
