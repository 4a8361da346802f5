"""Instruction tuning in two minutes: what does this part of Python's standard library do?

    jaxlm train --config=instruct_smoke:runs/quickstart --workdir=runs/answers     # from the quickstart's model
    jaxlm train --config=instruct_smoke --workdir=runs/answers                     # from random weights

It learns what an answer looks like, and where it ends; what it says is made up.
Hardware: any CPU with two cores. Result (2026-11-26, from random weights): held-out answer loss 5.30, 1m09s.
"""

from jaxlm import run


def get_config(init_from: str | None = None):
    cfg = run.default_config()
    cfg.objective = "instruct"
    cfg.init_from = init_from or None
    cfg.data.sources.questions = dict(path="embedded:questions", on_exhausted="repeat")
    cfg.data.seq_len = 128
    cfg.data.global_batch_size = 16
    cfg.instruct.template = "alpaca"

    if not init_from:
        cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads = 192, 4, 4
        cfg.model.scan_layers = False

    cfg.optimizer.learning_rate = 5e-4 if init_from else 2e-3
    cfg.optimizer.warmup_steps = 20
    cfg.train.num_steps = 200
    cfg.train.eval_every_steps = 50
    cfg.checkpoint.every_steps = 100
    return cfg
