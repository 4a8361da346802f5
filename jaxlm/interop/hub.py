"""Checkpoints of the Hugging Face hub, fetched into its own cache."""

from __future__ import annotations

import functools
from pathlib import Path

from jaxlm.types import UserError

DESCRIPTION = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.*", "vocab.json", "merges.txt",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""No code, no pickles, no weights of other frameworks."""
IGNORED = ("consolidated*", "original/*", "*/*")
"""The same weights once more, in the layout of their makers."""


@functools.cache
def fetch(name: str, *, weights: bool) -> Path:
    """The folder of `owner/model` or `owner/model@revision`, fetched where the cache does not have it.

    The hub is asked once in the life of a process: config, tokenizer and weights of a run are those of one commit.
    $HF_TOKEN opens gated models; with $HF_HUB_OFFLINE=1 only the cache is used.

    Args:
      weights: too; else what describes them, and the tokenizer.

    Errors: UserError when the package is missing, the model does not exist, or the hub cannot be reached.
    """
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise UserError(
            f"{name} is no folder here; a model of the Hugging Face hub needs a package that is not installed. Install "
            "it: pip install 'jaxlm[hf]'."
        ) from None
    repository, _, revision = name.partition("@")
    if weights:
        revision = fetch(name, weights=False).name
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[*DESCRIPTION, *(WEIGHTS if weights else ())],
            ignore_patterns=list(IGNORED),
        )
    except Exception as error:  # of the network, of the hub, of the cache: each has its own
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{name} is no folder here, and not in the cache of the Hugging Face hub ({constants.HF_HUB_CACHE}); "
                "HF_HUB_OFFLINE forbids to fetch it. Check its name, or unset HF_HUB_OFFLINE."
            ) from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} is no folder here, and could not be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{reason}). Check its name, the network, and $HF_TOKEN for gated models."
        ) from None
    return Path(folder)
