"""GPT-2 124M from scratch on one TPU v5e host: the first run on real hardware.

    jaxlm corpus build --input=gs://BUCKET/openwebtext --output=gs://BUCKET/openwebtext-tokens ...
    jaxlm train --config=pretrain_gpt2_124m_v5e8 --workdir=gs://BUCKET/runs/gpt2 \
        --config.data.sources.webtext.path=gs://BUCKET/openwebtext-tokens
    jaxlm compile --config=pretrain_gpt2_124m_v5e8 --topology=v5e:2x4

Settings of nanoGPT's reproduction (480 x 1024 = 0.49M tokens a step, peak 6e-4, no dropout), which reaches a
held-out loss of about 2.85 on OpenWebText after 300B tokens.

Hardware: TPU v5e-8, data parallel.
Predicted: 0.74 s a step in the compiler's cycles, MFU 34%, 6.1 of 15.8 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "gpt2-124m")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "save_attention"

    cfg.data.sources.webtext = dict(path="corpora/webtext", on_exhausted="repeat")
    cfg.data.seq_len = 1024
    cfg.data.global_batch_size = 480
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 6e-4
    cfg.optimizer.warmup_steps = 2000
    cfg.train.num_steps = 600_000
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000

    # 1.5 GB of weights and optimizer state fit on every chip: copies are cheaper than gathering.
    cfg.mesh.data = -1
    cfg.mesh.fsdp = 1
    return cfg
