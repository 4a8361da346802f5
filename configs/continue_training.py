"""Goes on training weights that are there: a run, an import, a checkpoint of Hugging Face, or its name on the hub.

    jaxlm train --config=continue_training:runs/smollm2 --workdir=runs/more \\
        --config.data.sources.mine.path=my_texts/ --config.data.sources.mine.on_exhausted=repeat

Model and tokenizer are those of the weights. Without a source of your own it reads the English that ships with Python.
SmolLM2-135M on 2 CPU cores, 100 steps: not run yet.
"""

from jaxlm import run


def get_config(init_from: str | None = None):
    cfg = run.default_config()
    cfg.init_from = init_from or None
    cfg.data.sources.topics = dict(path="embedded:topics", on_exhausted="repeat")
    cfg.data.eval_split = "tail"
    cfg.data.seq_len = 256
    cfg.data.global_batch_size = 4

    cfg.optimizer.learning_rate = 3e-5  # a tenth of what pretraining takes
    cfg.optimizer.warmup_steps = 10
    cfg.train.num_steps = 100
    cfg.train.eval_every_steps = 50
    cfg.train.eval_batches = 4
    cfg.train.log_every_steps = 5
    cfg.checkpoint.every_steps = 50
    return cfg
