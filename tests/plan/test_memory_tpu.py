"""Promise of the memory estimate on TPUs: what their compiler allots for the real train step, within 12 %.

Needs libtpu (pip install 'libtpu==0.0.42.*' for jax 0.10.2), which compiles for chips that are not there; without it
the tests are skipped. They take about 20 s each. Golden values of these and more steps: jaxlm/plan/memory.py.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxlm import run
from jaxlm.data.config import DataConfig
from jaxlm.models import build, sizes
from jaxlm.parallel import mesh as mesh_lib
from jaxlm.parallel.config import MeshConfig
from jaxlm.parallel.sharding import batch_sharding
from jaxlm.plan import memory
from jaxlm.runconfig import RunConfig
from jaxlm.train.config import TrainConfig

pytest.importorskip("libtpu")
ONE, FSDP = {"data": 1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}


@pytest.fixture(autouse=True)
def _no_metadata_server(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compiled_bytes(cfg, topology, num_devices, monkeypatch, dump):
    """Arguments and the one block of temporaries, in HBM, of one device."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:num_devices]

    def make_mesh(axes, _=None):
        grid = np.array(devices).reshape(tuple(axes.values()))
        return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))

    original = build.build
    monkeypatch.setattr(mesh_lib, "make_mesh", make_mesh)
    monkeypatch.setattr(build, "build", lambda *args, **kwargs: original(*args, platform="tpu", **kwargs))
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    pieces = run.build_pieces(cfg)
    shape, rows = (cfg.data.global_batch_size, cfg.data.seq_len), batch_sharding(pieces.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "weights" else jnp.int32, sharding=rows)
        for name in ("tokens", "targets", "weights", "segments", "positions")
    }
    lowered = pieces.steps.train.lower(run.abstract_state(pieces, cfg), batch)
    lowered.compile({"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True})
    (report,) = (name for name in os.listdir(dump) if re.search("jit_step.*memory-usage-report", name))
    found = re.match(r"Memory Space: default \(color=0\)\nTotal bytes: (\d+)", (dump / report).read_text())
    assert found
    return int(found[1])


@pytest.mark.parametrize(
    ("name", "mesh", "rows", "seq_len", "remat", "parts"),
    [
        pytest.param("gpt3-125m", ONE, 16, 1024, "full", 1, id="gpt-full"),
        pytest.param("gpt3-125m", ONE, 16, 1024, "dots", 1, id="gpt-dots"),
        pytest.param("gpt3-125m", ONE, 4, 1024, "none", 1, id="gpt-none"),
        pytest.param("llama3.2-1b", FSDP, 16, 2048, "full", 1, id="llama-full-fsdp8"),
        pytest.param("llama3.2-1b", {"data": 1, "fsdp": 4, "tensor": 2}, 16, 2048, "attention", 2,
                     id="llama-attention-fsdp4-tensor2-2-parts"),
        pytest.param("gemma3-270m", FSDP, 32, 2048, "full", 1, id="gemma-full-fsdp8"),
    ],
)  # fmt: skip
def test_the_estimate_is_what_the_compiler_allots(
    name, mesh, rows, seq_len, remat, parts, monkeypatch, tmp_path
):
    cfg = dataclasses.replace(
        RunConfig(),
        model=dataclasses.replace(sizes.size(name), dtype="bfloat16", remat=remat),
        data=DataConfig(seq_len=seq_len, global_batch_size=rows),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(num_microbatches=parts),
    )
    num_devices = math.prod(mesh.values())
    estimate = memory.predict(cfg, mesh, num_devices, platform="tpu")
    actual = compiled_bytes(cfg, "v5e:2x4", num_devices, monkeypatch, tmp_path)
    assert estimate.total == pytest.approx(actual, rel=0.12)
