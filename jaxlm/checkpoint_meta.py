"""What a checkpoint says about itself, and whether it belongs to this model and tokenizer. Imports no JAX."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxlm import __version__
from jaxlm.types import UserError

FORMAT = 1


class ArraySpec(NamedTuple):
    """Shape and dtype of one array of the state."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size in memory; the name of a dtype holds its bits (bfloat16, float8_e4m3fn), but for bool."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits.group()) if bits else 8) // 8


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself, beside the arrays."""

    step: int
    """Steps taken; also the whole position in the data: a batch follows from config, seed and step."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config of the run."""
    tokenizer_sha256: str = ""
    corpus_sha256: Mapping[str, str] = field(default_factory=dict)
    """Source -> hash of its manifest."""
    tokens: int = 0
    """Tokens trained on so far."""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """Source -> how often it has been read."""
    wall_time_s: float = 0.0
    """Spent training, over all restarts."""
    eval_loss: float | None = None
    """Held-out loss at this step, in nats; None when it was not evaluated. `keep_best` keeps the lowest."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that is JSON."""
    version: str = __version__
    saved_at: float = 0.0
    """Unix time; filled in by `Checkpoints.save`."""
    arrays: Mapping[str, ArraySpec] = field(default_factory=dict)
    """Path in the state, such as `params/layers/q` -> shape and dtype; filled in by `Checkpoints.save`."""

    @property
    def num_params(self) -> int:
        """Weights of the model, without the optimizer's state."""
        return sum(math.prod(a.shape) for name, a in self.arrays.items() if name.split("/")[0] == "params")

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold; a loss that is not finite becomes None: it can never be the best."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.eval_loss is not None and not math.isfinite(self.eval_loss):
            fields["eval_loss"] = None
        fields["arrays"] = {name: [list(spec.shape), spec.dtype] for name, spec in self.arrays.items()}
        return {"format": FORMAT, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Meta:
        """The inverse; keys that this version does not know are left out.

        Errors: UserError for a checkpoint of a later format.
        """
        if data["format"] > FORMAT:
            raise UserError(
                f"This checkpoint has format {data['format']}, written by jaxlm {data.get('version')}; "
                f"this is jaxlm {__version__}, which reads up to format {FORMAT}. Upgrade jaxlm."
            )
        known = {f.name for f in dataclasses.fields(cls)}
        fields = {key: value for key, value in data.items() if key in known}
        arrays = {name: ArraySpec(tuple(shape), dtype) for name, (shape, dtype) in data["arrays"].items()}
        return cls(**{**fields, "arrays": arrays})


def check_tokenizer(where: str, meta: Meta, tokenizer_sha256: str | None) -> None:
    """Errors: UserError when the checkpoint was trained with another tokenizer: its ids mean other text.

    Args:
      tokenizer_sha256: "" for a run that has none. A checkpoint that says none goes with any.
    """
    if tokenizer_sha256 is None or meta.tokenizer_sha256 in ("", tokenizer_sha256):
        return
    if not tokenizer_sha256:
        raise UserError(
            f"{where} was trained with the tokenizer {meta.tokenizer_sha256} (SHA-256), but its file is missing in "
            "the folder of the run. Put it back."
        )
    if meta.tokenizer_sha256 != tokenizer_sha256:
        raise UserError(
            f"{where} was trained with the tokenizer {meta.tokenizer_sha256}, but this run has "
            f"{tokenizer_sha256} (SHA-256 of the tokenizer files): the same ids would mean other text. Set "
            "tokenizer.path to that run's workdir: it holds its tokenizer."
        )


def check_corpus(
    where: str, meta: Meta, corpus_sha256: Mapping[str, str] | None, tokenizer_sha256: str | None = None
) -> None:
    """Errors: UserError that names the first source whose tokens are not those the checkpoint was trained on.

    Comes before `check_tokenizer`: a tokenizer trained on the sources changes with their text.
    """
    if corpus_sha256 is None or dict(corpus_sha256) == dict(meta.corpus_sha256):
        return
    then, now = meta.corpus_sha256, corpus_sha256
    name = next(name for name in sorted({*then, *now}) if then.get(name) != now.get(name))
    also = ""
    if tokenizer_sha256 not in (None, meta.tokenizer_sha256):
        also = f" The tokenizer was {meta.tokenizer_sha256[:12]} and is {tokenizer_sha256[:12]}, too."
    raise UserError(
        f"{where} was trained on other data: source {name} was {then.get(name, 'absent')[:12]} and is "
        f"{now.get(name, 'absent')[:12]} (SHA-256 of its tokens): the rest of the run would read other "
        f"batches.{also} Set the text back to what it was, or train in another "
        "--workdir (init_from takes the weights along)."
    )


def check_fit(where: str, meta: Meta, expected: Mapping[str, ArraySpec], group: str | None = None) -> None:
    """Compares a checkpoint with what a model expects, before any array is read.

    Args:
      expected: specs by path, as `array_specs` gives them.
      group: the part of the state that is wanted, such as `params`, for which another dtype is allowed too.

    Errors: UserError that names the first array that differs and both shapes.
    """
    saved = {k: spec for k, spec in meta.arrays.items() if group is None or k.split("/")[0] == group}
    differences = []
    for name, spec in expected.items():
        if name not in saved:
            differences.append(f"{name} {spec.shape} of the model is not in the checkpoint")
            continue
        ours, theirs = (spec.shape, saved[name].shape)
        if ours == theirs and group is None:
            ours, theirs = (spec.dtype, saved[name].dtype)
        if ours != theirs:
            differences.append(f"{name} is {theirs} in the checkpoint and {ours} in the model")
    differences += [
        f"{name} {saved[name].shape} is in the checkpoint only" for name in saved if name not in expected
    ]
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise UserError(
            f"{where} does not fit the model: {differences[0]}{more}. A checkpoint is loaded whole or not at "
            "all; use the config.json of its run, or another --workdir."
        )
