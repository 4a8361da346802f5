"""How fast a checkpoint is imported, beside reading its file alone: `python bench/interop.py [FOLDER]`.

FOLDER: of a Hugging Face checkpoint; without one, SmolLM2-135M's shape with random weights is written to a temporary
folder. Best of three of each, in turns, in one process. Needs the package safetensors for the comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def seconds(run: Callable[[], object]) -> float:
    """Time of one call; what it returns is let go before the next."""
    begin = time.perf_counter()
    result = run()
    took = time.perf_counter() - begin
    del result
    return took


def peak_rss_bytes() -> int:
    """The most this process has held so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_checkpoint(folder: Path) -> Path:
    """SmolLM2-135M with random weights, as a checkpoint of Hugging Face."""
    import numpy as np

    from jaxlm.checkpoint import named_arrays
    from jaxlm.interop.families import family_for
    from jaxlm.interop.hf_export import export_weights
    from jaxlm.models.build import build
    from jaxlm.models.sizes import size

    folder.mkdir()
    model = size("smollm2-135m")
    family, lm = family_for(model), build(model, 2048)
    shapes, rng = lm.shapes, np.random.default_rng(0)
    arrays = {name: rng.standard_normal(s.shape, np.float32) for name, s in named_arrays(shapes).items()}
    export_weights(folder, family, arrays)
    (folder / "config.json").write_text(json.dumps({**family.write(model), "max_position_embeddings": 8192}))
    return folder


def compare(folder: Path, rounds: int = 3) -> None:
    """Prints one line."""
    import jax
    from safetensors.numpy import load_file

    from jaxlm.interop.hf_import import open_source, read_params
    from jaxlm.models.build import build

    files = sorted(folder.glob("*.safetensors"))
    source = open_source(folder)
    lm = build(source.model, source.model.max_seq_len or 2048)
    shapes = lm.shapes
    num_bytes = sum(path.stat().st_size for path in files)

    def read_alone() -> list:
        return [load_file(path) for path in files]

    def import_it() -> object:
        opened = open_source(folder)
        return jax.block_until_ready(read_params(opened, shapes))

    before = peak_rss_bytes()
    imports = [seconds(import_it)]
    grown = peak_rss_bytes() - before
    alone = [seconds(read_alone)]
    for _ in range(rounds - 1):
        imports.append(seconds(import_it))
        alone.append(seconds(read_alone))
    print(
        f"import {folder.name}: {num_bytes / 1e6:,.0f} MB in {min(imports):.2f} s; safetensors.numpy alone "
        f"{min(alone):.2f} s: {min(alone) / min(imports):.0%} of its speed; memory grew by {grown / 1e6:,.0f} MB"
    )


def main() -> None:
    """Runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    args = parser.parse_args()
    if args.folder is not None:
        compare(args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = random_checkpoint(Path(name) / "smollm2-135m")
        subprocess.run(
            [sys.executable, __file__, folder], check=True
        )  # whose memory holds nothing of the writing


if __name__ == "__main__":
    main()
