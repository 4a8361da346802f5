"""Any named size, pretrained as GPT-3 was, on five corpora of your own.

    jaxlm train --config=pretrain_size:llama3-8b --workdir=gs://BUCKET/runs/llama3-8b
    jaxlm train --config=pretrain_size --workdir=runs/gpt3-125m --config.tokenizer.path=my.model

The argument is one of `jaxlm.models.sizes.SIZES`; without it, gpt3-125m. The sources stand for those of GPT-3,
with its weights (table 2.2; they sum to 101, so each is normalised). Their paths are placeholders: put folders
made by `jaxlm corpus build` there, or point each elsewhere, for example
`--config.data.sources.wikipedia.path=gs://BUCKET/wikipedia`; `--config.data.sources.books2=None` drops one.

Batch, learning rate and schedule follow GPT-3 (arXiv:2005.14165, table 2.1 and appendix B): 300B tokens,
warm-up over 375M, cosine to 10% over 260B. Sizes that are not GPT-3's take the row nearest in parameters. The
vocabulary is the published one: give the tokenizer that belongs to it, or let one of that size be trained.

Hardware: from one host (gpt3-125m) to a pod. Where a step does not fit, raise `train.num_microbatches`: less
memory, the same result. Result: not run yet.
"""

import math

from jaxlm import run
from jaxlm.models import sizes
from jaxlm.plan.flops import count_params

SOURCES = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}  # percent of tokens

# Table 2.1: size -> (tokens in a batch, peak learning rate).
RECIPES = {
    "gpt3-125m": (0.5e6, 6.0e-4),
    "gpt3-350m": (0.5e6, 3.0e-4),
    "gpt3-760m": (0.5e6, 2.5e-4),
    "gpt3-1.3b": (1.0e6, 2.0e-4),
    "gpt3-2.7b": (1.0e6, 1.6e-4),
    "gpt3-6.7b": (2.0e6, 1.2e-4),
    "gpt3-13b": (2.0e6, 1.0e-4),
    "gpt3-175b": (3.2e6, 0.6e-4),
}


def nearest_recipe(size):
    """The GPT-3 row nearest in parameters, as a ratio."""
    ratio = {row: count_params(sizes.size(size)).total / sizes.published_params(row) for row in RECIPES}
    return RECIPES[min(ratio, key=lambda row: abs(math.log(ratio[row])))]


def get_config(size="gpt3-125m"):
    cfg = run.default_config()
    sizes.apply(cfg.model, size)
    batch_tokens, cfg.optimizer.learning_rate = nearest_recipe(size)

    for name, percent in SOURCES.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = min(2048, cfg.model.max_seq_len or 2048)
    # The power of two nearest to the paper's batch, so that it divides over any mesh; 3.2M tokens are 1536
    # rows.
    rows = batch_tokens / cfg.data.seq_len
    cfg.data.global_batch_size = 1536 if batch_tokens == 3.2e6 else 2 ** round(math.log2(rows))
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    tokens_per_step = cfg.data.global_batch_size * cfg.data.seq_len
    cfg.train.num_steps = round(300e9 / tokens_per_step)
    cfg.optimizer.warmup_steps = round(375e6 / tokens_per_step)
    cfg.optimizer.decay_steps = round(260e9 / tokens_per_step) - cfg.optimizer.warmup_steps
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000

    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "full"
    return cfg
