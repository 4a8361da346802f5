"""A decoder of 16B parameters, MaxText's 16B class, on a TPU v5e pod.

    jaxlm train --config=pretrain_16b_v5e256 --workdir=gs://BUCKET/runs/16b_v5e256 \\
        --config.tokenizer.path=gs://BUCKET/tokenizer.model
    jaxlm compile --config=pretrain_16b_v5e256 --topology=v5e:16x16

32 layers, width 4,096, 64 heads of 128, gated MLP of 28,672, vocabulary 32,000: the model of MaxText's recipe, at its
6 rows of 2,048 tokens a chip. 320B tokens, about 20 a parameter (arXiv:2203.15556).
The sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: TPU v5e-256 (16 GB a chip), fsdp 256.
Predicted: 8.75 s a step in the compiler's cycles, MFU 69%, 8.7 of 15.8 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run


def get_config():
    cfg = run.default_config()
    cfg.model.update(
        vocab_size=32000, embed_dim=4096, num_layers=32, num_heads=64, head_dim=128, mlp_dim=28672
    )
    cfg.model.tie_embeddings = False
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "full"
    cfg.mesh.fsdp = 256

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 2048
    cfg.data.global_batch_size = 1536
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 3e-4
    cfg.optimizer.warmup_steps = 2000
    cfg.train.num_steps = 102_000
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
