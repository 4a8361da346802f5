"""nanoGPT's documented CPU run: characters, 4 layers of width 128, 2000 steps of 12 x 64, minutes on two cores.

    jaxlm train --config=nanogpt_char_cpu --workdir=runs/shakespeare --config.data.sources.text.path=input.txt

`input.txt` is any text; nanoGPT's is tiny Shakespeare (1.1 MB), on which its README reports a validation loss of
1.88. The last tenth is held out, as there. One thing is better: rotary positions, which cost nothing. For nanoGPT's
own model: `--config.model.positions=learned`.

Hardware: any CPU with two cores. Result (2026-11-24, 0.8 MB of inaugural addresses): held-out loss 1.567 in 80 s; with
learned positions 1.696 to 1.708 (two seeds), where the same model in PyTorch came to 1.677 to 1.691.
"""

from jaxlm import run


def get_config():
    cfg = run.default_config()
    cfg.data.sources.text = dict(path="input.txt", on_exhausted="repeat")
    cfg.data.eval_split, cfg.data.eval_fraction = "tail", 0.1
    cfg.data.seq_len, cfg.data.global_batch_size = 64, 12
    cfg.tokenizer.kind = "char"

    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads = 128, 4, 4
    cfg.model.norm, cfg.model.activation, cfg.model.positions = "layernorm", "gelu", "rope"
    cfg.model.scan_layers = False

    cfg.optimizer.learning_rate, cfg.optimizer.b2 = 1e-3, 0.99
    cfg.train.num_steps = 2000
    cfg.train.eval_every_steps, cfg.train.eval_batches = 250, 140  # about all that is held out
    cfg.checkpoint.every_steps = 1000
    return cfg
