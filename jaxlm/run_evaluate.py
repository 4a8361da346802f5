"""Opens a run to be evaluated: on one device, or spread over all with the rows of a batch.

Importing this module imports no JAX.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from jaxlm.parallel.config import read_mesh
from jaxlm.run_loading import LoadedRun, load_run
from jaxlm.runconfig import RunConfig, resolve_mesh
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.evaluate.loglikelihood import Placing


def open_run(
    workdir: str | os.PathLike, step: int | None = None, mesh: str | None = None
) -> tuple[LoadedRun, Placing | None]:
    """A run that writes text, and where batches go on its mesh.

    Args:
      step: of the checkpoint; None: the latest.
      mesh: `fsdp:4,tensor:2`, over all devices; None: one device.

    Errors: UserError for a classifier, and a mesh that does not fit the model or the devices.
    """
    wanted = read_mesh(mesh)
    if wanted is None:
        return check_writes(load_run(workdir, step), workdir), None
    if wanted.sequence > 1:
        raise UserError(
            f"--mesh={mesh}: evaluation cuts no rows. Leave out sequence; data, fsdp and tensor spread the work too."
        )
    made: list[Mesh] = []

    def make(cfg: RunConfig) -> Mesh:
        import jax

        from jaxlm.parallel.mesh import make_mesh

        count = jax.device_count()
        # A batch that any mesh divides: that of the training has nothing to say here.
        data = dataclasses.replace(cfg.data, global_batch_size=count)
        made.append(make_mesh(resolve_mesh(dataclasses.replace(cfg, mesh=wanted, data=data), count)))
        return made[-1]

    loaded = check_writes(load_run(workdir, step, make), workdir)
    return loaded, placing_on(made[-1])


def placing_on(mesh: Mesh) -> Placing:
    """Rows of a batch over the axes of the mesh that carry them."""
    import jax

    from jaxlm.evaluate.loglikelihood import Placing
    from jaxlm.parallel.sharding import batch_sharding

    sharding = batch_sharding(mesh)
    spec: Any = sharding.spec[0]
    num = 1
    for axis in spec if isinstance(spec, tuple) else (spec,):
        num *= mesh.shape[axis]
    return Placing(num, lambda batch: jax.device_put(batch, sharding))


def check_writes(loaded: LoadedRun, workdir: str | os.PathLike) -> LoadedRun:
    """The run. Errors: UserError for one that predicts labels and no text."""
    if loaded.config.model.num_classes is not None:
        raise UserError(
            f"--run={workdir} is a classifier, which predicts no text. Judge it with `jaxlm evaluate --run={workdir} "
            "--data=FILE`."
        )
    return loaded
