"""What a search tries on each axis: as its flags say, or by default from the config and the topology."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxlm.config import check_choice, divisors
from jaxlm.models.config import KEPT, ModelConfig, check_blocks
from jaxlm.parallel.config import AXES
from jaxlm.plan import memory, placement
from jaxlm.plan.topology import Topology
from jaxlm.types import UserError

DEFAULT = "default"
"""In --search-blocks: the blocks of the kernel itself."""

MOST_EXPERTS = 8
"""Devices along `expert` in a default mesh, at most."""

TENSORS = (1, 2, 4)
"""Devices along `tensor` in default meshes."""

REMATS_TRIED = ("none", "minimal", "q,k,v,attention", "q,attention", "save_attention", "full")
"""Policies that are tried by default, the one that keeps most first."""


class Axes(NamedTuple):
    """What is tried, by axis."""

    rows: Sequence[int]
    remats: Sequence[str]
    meshes: Sequence[dict[str, int]]
    blocks: Sequence[str | None]


def mesh_text(mesh: dict[str, int]) -> str:
    """As --search-mesh is written: fsdp:64/tensor:4."""
    return "/".join(f"{axis}:{size}" for axis, size in mesh.items() if size > 1) or f"{AXES[0]}:1"


def shards(mesh: dict[str, int]) -> int:
    """Devices that see different rows of a batch."""
    return mesh["data"] * mesh["fsdp"] * mesh["expert"]


def changed_run(
    run: Any, batch: int, num_microbatches: int, remat: str, mesh: dict[str, int], blocks: str | None
) -> Any:
    """The run of one trial."""
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, global_batch_size=batch),
        train=dataclasses.replace(run.train, num_microbatches=num_microbatches),
        model=dataclasses.replace(run.model, remat=remat, attention_blocks=blocks),
        mesh=dataclasses.replace(run.mesh, **mesh),
    )


def parse_rows(text: str) -> list[int]:
    """--search-rows=2,4,8"""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 0 < int(word) <= 2**20 for word in words):
        raise UserError(
            f"--search-rows={text} must be rows of a device at a time, such as 2,4,8; each at least 1."
        )
    return list(dict.fromkeys(map(int, words)))


def parse_remats(text: str, model: ModelConfig) -> list[str]:
    """--search-remat=full,minimal,q+k+attention: names of one list are joined by +, or stand side by side.

    So `full,q,k,attention` is two policies: a shell takes away quotes that may have been around the second.
    """
    found: list[str] = []
    names_only = False  # whether the last policy is a list of names that the next name joins
    for word in (word.strip().strip("'\"").strip() for word in text.split(",")):
        is_name = word.partition("@")[0] in (*KEPT, "input")
        if is_name and names_only:
            found[-1] += f",{word}"
        else:
            found.append(word.replace("+", ","))
        names_only = is_name
    for remat in found:
        try:
            dataclasses.replace(model, remat=remat)
        except UserError as error:
            raise UserError(f"--search-remat={text}: {error}") from None
    return list(dict.fromkeys(found))


def parse_meshes(text: str, on: Topology) -> list[dict[str, int]]:
    """--search-mesh=fsdp:256,fsdp:64/tensor:4: an axis without a name has one device, and -1 is all that are left."""
    found = []
    for word in text.split(","):
        sizes: dict[str, int] = dict.fromkeys(AXES, 1)
        for part in word.strip().split("/"):
            axis, colon, size = (piece.strip() for piece in part.partition(":"))
            check_choice(f"--search-mesh={text}: axis", axis, AXES)
            if not colon or not (size == "-1" or size.isdecimal() and int(size) > 0):
                raise UserError(
                    f"--search-mesh={text}: {part!r} must be AXIS:DEVICES, such as fsdp:64/tensor:4."
                )
            sizes[axis] = int(size)
        if [*sizes.values()].count(-1) > 1:
            raise UserError(
                f"--search-mesh={text}: only one axis of a mesh may be -1 (the devices that are left)."
            )
        try:
            mesh = memory.resolve_mesh(sizes, on.num_devices)
        except UserError as error:
            raise UserError(f"--search-mesh={text}: {error}") from None
        if mesh["data"] % on.num_slices:
            raise UserError(
                f"--search-mesh={text}: data:{mesh['data']} must be a multiple of the {on.num_slices} slices, between "
                f"which only copies of the weights lie. Try data:{on.num_slices}/fsdp:-1."
            )
        found.append(mesh)
    return [mesh for i, mesh in enumerate(found) if mesh not in found[:i]]


def parse_blocks(text: str) -> list[str | None]:
    """--search-blocks=default,1024x512x256: model.attention_blocks with x in place of commas."""
    found: list[str | None] = []
    for word in (word.strip() for word in text.split(",")):
        if word == DEFAULT:
            found.append(None)
            continue
        if "x" not in word:
            raise UserError(
                f"--search-blocks={text}: {word!r} must be {DEFAULT}, or QUERIESxKEYSxDIAGONAL such as 1024x512x256."
            )
        sizes = word.replace("x", ",")
        check_blocks(f"--search-blocks={text}: model.attention_blocks", sizes)
        found.append(sizes)
    return list(dict.fromkeys(found))


def default_rows(run: Any, mesh: dict[str, int]) -> list[int]:
    """Powers of two up to four times the rows of the config, and these."""
    own = max(run.data.global_batch_size // (shards(mesh) * run.train.num_microbatches), 1)
    return sorted({own, *(2**power for power in range((4 * own).bit_length()))})


def default_remats(model: ModelConfig) -> list[str]:
    """That of the config, and the usual ones."""
    return list(dict.fromkeys((model.remat, *REMATS_TRIED)))


def default_meshes(run: Any, on: Topology) -> list[dict[str, int]]:
    """That of the config; weights split over all devices, with and without tensor and expert parallelism; only copies.

    Copies, no split, are there for models that fit on a device as they are.
    """
    found = [placement.own_mesh(run, on.num_devices)]
    experts = [size for size in divisors(run.model.num_experts or 1) if size <= MOST_EXPERTS]
    for expert, tensor in itertools.product({1, experts[-1]}, TENSORS):
        rest, left = divmod(on.num_devices, expert * tensor * on.num_slices)
        if left:
            continue
        fsdp = next(size for size in reversed(divisors(rest)) if run.model.embed_dim % size == 0)
        sizes = {"data": on.num_devices // (expert * tensor * fsdp), "fsdp": fsdp}
        found.append(dict.fromkeys(AXES, 1) | sizes | {"expert": expert, "tensor": tensor})
    found.append(dict.fromkeys(AXES, 1) | {"data": on.num_devices})
    usable = [mesh for mesh in found if mesh is not None and mesh["data"] % on.num_slices == 0]
    return [mesh for i, mesh in enumerate(usable) if mesh not in usable[:i]]


def usable_meshes(
    run: Any, meshes: Sequence[dict[str, int]], check: Callable[[Any], Any], flag: str | None
) -> list[dict[str, int]]:
    """Those that divide the model.

    Args:
      flag: that named them: then each has to.

    Errors: UserError where none, or not each, does.
    """
    found, why = [], ""
    for mesh in meshes:
        batch = shards(mesh) * run.train.num_microbatches
        try:
            check(changed_run(run, batch, run.train.num_microbatches, run.model.remat, mesh, None))
            found.append(mesh)
        except UserError as error:
            why = why or f"{mesh_text(mesh)}: {error}"
            if flag is not None:
                raise UserError(f"{flag}: {error}") from None
    if not found:
        raise UserError(f"No mesh of these devices divides the model. {why}")
    return found


def default_blocks(model: ModelConfig) -> list[str | None]:
    """Those of the config alone: the time of a kernel is estimated by its FLOPs, which does not tell blocks apart."""
    return [model.attention_blocks]
