"""Renews tests/interop/golden: tiny models as transformers saves them, and what it computes with them.

make golden      (or, where torch and transformers are installed: python parity/make_golden.py)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_models as tiny
import torch
import transformers

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "interop" / "golden"


def main() -> None:
    """Writes a folder for each model."""
    tokens_BT, lengths_B = tiny.texts()
    for name in tiny.CONFIGS:
        model, folder = tiny.make(name), GOLDEN / name
        arrays = {
            "tokens": tokens_BT,
            "lengths": lengths_B,
            "logits": tiny.logits(model, tokens_BT, lengths_B),
        }
        if name in tiny.GRADIENTS:
            found = tiny.gradients(model, tokens_BT, lengths_B)
            arrays |= {f"grad:{key}": value for key, value in found.items()}
        tiny.save(model, folder, torch.bfloat16)
        np.savez_compressed(folder / "expected.npz", **arrays)
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(name, sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (GOLDEN / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
