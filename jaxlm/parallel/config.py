"""MeshConfig: how many chips along each axis. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxlm.config import check_choice
from jaxlm.types import UserError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""Outermost first: the further in, the more a layer has to say along it, and the nearer its devices should be. Along
`fsdp` travel weights, which can be fetched ahead; along `expert` tokens, along `sequence` keys and values, which its
attention computes with as they come, and along `tensor` all that a block adds to its input, for which a layer waits."""
SEQUENCE_ATTENTIONS = ("gather", "ring")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices. One of them may be -1: all that are left."""

    data: int = 1
    """Replicas of the weights; each sees other rows of the batch."""
    fsdp: int = -1
    """Weights, gradients and optimizer state split; each sees other rows of the batch (ZeRO-3)."""
    expert: int = 1
    """Experts split; each sees other rows of the batch, which meet their experts inside a layer."""
    sequence: int = 1
    """The length of every row split (context parallelism): each device has two pieces of it."""
    tensor: int = 1
    """Heads, MLP and vocabulary split; all see the same rows."""
    sequence_attention: str = "gather"
    """How queries meet the keys of other pieces: `gather`: each device collects all keys and values; `ring`: they go
    round, a device's share at a time, which takes less memory."""

    def __post_init__(self):
        check_choice("mesh.sequence_attention", self.sequence_attention, SEQUENCE_ATTENTIONS)
        wild = [name for name, size in self.sizes.items() if size == -1]
        if len(wild) > 1:
            raise UserError(f"Only one of mesh.{', mesh.'.join(wild)} may be -1 (the devices that are left).")
        for name, size in self.sizes.items():
            if size == 0 or size < -1:
                raise UserError(
                    f"mesh.{name}={size} must be a positive number of devices, or -1 for all left."
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Axis name -> size, outermost first."""
        return {axis: getattr(self, axis) for axis in AXES}


def read_mesh(text: str | None) -> MeshConfig | None:
    """`fsdp:4,tensor:2` -> sizes of the axes. Errors: UserError for anything else."""
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition(":"))
        check_choice("--mesh", axis, AXES)
        if axis in sizes or not size.lstrip("-").isdecimal():
            reason = "names an axis twice" if axis in sizes else "is not AXIS:SIZE"
            raise UserError(f"--mesh={text}: {part!r} {reason}. Try --mesh=fsdp:4,tensor:2.")
        sizes[axis] = int(size)
    return replace(MeshConfig(), **sizes)
