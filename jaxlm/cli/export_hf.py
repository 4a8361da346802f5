"""Write a model as a folder that transformers, vLLM and llama.cpp load.

jaxlm export-hf --run=runs/mine exported                      the latest step, in the dtype of its checkpoint
jaxlm export-hf --run=runs/mine --step=400 --dtype=bfloat16 exported
jaxlm export-hf --run=runs/tuned --adapter exported           the adapters of a LoRA run alone, for PEFT

With config.json, tokenizer, safetensors, a model card, and artifact.json: `jaxlm artifact verify exported`.
"""

from __future__ import annotations

import argparse

from jaxlm.types import UserError

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--run", required=True, help="workdir of a training, or a folder of import-hf")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as in the checkpoint)")
    parser.add_argument("--max-shard-bytes", type=int, default=None, help="of one file (default: 5 GB)")
    parser.add_argument("--adapter", action="store_true", help="of a LoRA run the adapters alone, for PEFT")
    parser.add_argument("out", metavar="OUT", help="folder to make")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Exports."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: export-hf takes its config from --run.")
    if args.max_shard_bytes is not None and args.max_shard_bytes < 1:
        raise UserError(f"--max-shard-bytes={args.max_shard_bytes} must be positive.")
    if args.adapter:
        if args.dtype or args.max_shard_bytes:
            raise UserError("--adapter writes one file in float32: leave out --dtype and --max-shard-bytes.")
        from jaxlm.run_lora import export_adapter

        export_adapter(args.run, args.out, step=args.step)
        return 0
    from jaxlm.run_interop import export_hf

    export_hf(args.run, args.out, step=args.step, dtype=args.dtype, max_shard_bytes=args.max_shard_bytes)
    return 0
