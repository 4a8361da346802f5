"""GPT-3 175B, its own recipe, on two slices of TPU v6e-256.

    jaxlm train --config=pretrain_gpt3_175b_v6e512 --workdir=gs://BUCKET/runs/gpt3_175b_v6e512 \\
        --config.tokenizer.path=gs://BUCKET/tokenizer.model
    jaxlm compile --config=pretrain_gpt3_175b_v6e512 --topology=v6e:16x16 --num-slices=2

arXiv:2005.14165, table 2.1 and appendix B: 300B tokens in batches of 2M here (3.2M there), peak 0.6e-4, cosine to 10 %.
The sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: two slices of TPU v6e-256 (32 GB a chip), data 2 x fsdp 256.
Predicted: 8.33 s a step in the compiler's cycles, MFU 57%, 25.5 of 31.2 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "gpt3-175b")
    cfg.model.vocab_size = 50_304  # 50,257 ids, padded to whole lanes
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "full"
    cfg.mesh.data = 2  # the slices
    cfg.mesh.fsdp = 256

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 2048
    cfg.data.global_batch_size = 1024
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = 50_257

    cfg.optimizer.learning_rate = 0.6e-4
    cfg.optimizer.warmup_steps = 180
    cfg.train.num_steps = 143_051
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
