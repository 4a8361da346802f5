"""A small model on the corpora of `jaxlm corpus build --config`, with the weights they were planned with.

    jaxlm train --config=pretrain_corpus:corpora --workdir=runs/corpus

The argument is the folder that was built. Its corpus.json names the sources, their weights and the tokens of the run;
none of it is code. Hardware: any CPU with two cores. Result: not run yet.
"""

import json
import math
import os

from jaxlm import run


def get_config(folder="corpora"):
    cfg = run.default_config()
    with open(os.path.join(folder, "corpus.json"), encoding="utf-8") as file:
        corpus = json.load(file)
    for name, source in corpus["sources"].items():
        path = os.path.join(folder, source["path"])
        cfg.data.sources[name] = dict(path=path, weight_tokens=source["weight_tokens"], on_exhausted="repeat")
    cfg.data.seq_len = 256
    cfg.data.global_batch_size = 16

    cfg.model.embed_dim = 192
    cfg.model.num_layers = 4
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2
    cfg.model.scan_layers = False

    cfg.optimizer.learning_rate = 3e-3
    cfg.optimizer.warmup_steps = 50
    tokens = corpus["budget_tokens"] or 2e6
    cfg.train.num_steps = max(100, math.ceil(tokens / (cfg.data.seq_len * cfg.data.global_batch_size)))
    cfg.train.eval_every_steps = cfg.train.num_steps
    return cfg
