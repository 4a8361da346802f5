"""MeshConfig: how many chips along each axis. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.types import UserError

AXES = ("data", "fsdp", "expert", "tensor")
"""Outermost first: the further in, the more a layer has to say along it, and the nearer its devices should be. Along
`fsdp` travel weights, which can be fetched ahead; along `expert` and `tensor` tokens, for which a layer waits."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices. One of them may be -1: all that are left."""

    data: int = 1
    """Replicas of the weights; each sees other rows of the batch."""
    fsdp: int = -1
    """Weights, gradients and optimizer state split; each sees other rows of the batch (ZeRO-3)."""
    expert: int = 1
    """Experts split; each sees other rows of the batch, which meet their experts inside a layer."""
    tensor: int = 1
    """Heads, MLP and vocabulary split; all see the same rows."""

    def __post_init__(self):
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
