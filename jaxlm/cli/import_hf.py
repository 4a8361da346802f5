"""Turn a Hugging Face checkpoint into one of jaxlm.

jaxlm import-hf path/to/SmolLM2-135M runs/smollm2             a folder with config.json and safetensors
jaxlm import-hf HuggingFaceTB/SmolLM2-135M runs/smollm2       a name on the hub (pip install 'jaxlm[hf]')
jaxlm import-hf SOURCE DIR --mesh=fsdp:4,tensor:2             spread over a mesh while it is read

One process is enough. Several, started like those of `jaxlm train` with the JAX_... variables or by a launcher, read
what their own devices hold, and write DIR together: it must be on a shared disk or in an object store.

DIR is then a run of no steps: --run=DIR for generate, next-token and export-hf; init_from=DIR to train on from it.
"""

from __future__ import annotations

import argparse

from jaxlm.parallel.config import read_mesh
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("source", metavar="SOURCE", help="folder of a checkpoint, or its name on the hub")
    parser.add_argument("out", metavar="DIR", help="folder to make")
    parser.add_argument("--tokenizer", metavar="PATH", help="where SOURCE has none, or another than it has")
    parser.add_argument("--mesh", metavar="AXIS:SIZE,...", help="default: fsdp over all devices")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Imports."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: import-hf takes its config from SOURCE.")
    mesh = read_mesh(args.mesh)
    from jaxlm import processes
    from jaxlm.parallel import distributed
    from jaxlm.run_interop import import_hf

    try:
        distributed.connect()
        import_hf(args.source, args.out, tokenizer_path=args.tokenizer, mesh=mesh)
    except BaseException as error:
        if distributed.is_abandoned() or not processes.is_alone():
            distributed.leave(error)
        raise
    return 0
