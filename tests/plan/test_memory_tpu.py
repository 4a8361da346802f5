"""Promise of the memory estimate on TPUs: what their compiler allots for the real train step, within 12 %.

Needs libtpu (pip install 'libtpu==0.0.42.*' for jax 0.10.2), which compiles for chips that are not there; without it
the tests are skipped. They take about 20 s each. Golden values of these and more steps: jaxlm/plan/memory.py.
"""

from __future__ import annotations

import dataclasses
import math

import pytest

from jaxlm import run_compile
from jaxlm.data.config import DataConfig
from jaxlm.models import sizes
from jaxlm.parallel.config import MeshConfig
from jaxlm.plan import memory, topology
from jaxlm.runconfig import RunConfig
from jaxlm.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("tpu_compiler")
ONE, FSDP = {"data": 1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}


def compiled_bytes(cfg, on, num_devices):
    """Arguments and the one block of temporaries, in HBM, of one device."""
    devices = run_compile.devices_of(topology.parse(on))[:num_devices]
    memory = run_compile.compile_step(run_compile.lower_step(cfg, devices)).memory
    assert memory.is_reported
    return memory.total_bytes


@pytest.mark.parametrize(
    ("name", "mesh", "rows", "seq_len", "remat", "parts"),
    [
        pytest.param("gpt3-125m", ONE, 16, 1024, "full", 1, id="gpt-full"),
        pytest.param("gpt3-125m", ONE, 16, 1024, "save_dots", 1, id="gpt-dots"),
        pytest.param("gpt3-125m", ONE, 4, 1024, "none", 1, id="gpt-none"),
        pytest.param("llama3.2-1b", FSDP, 16, 2048, "full", 1, id="llama-full-fsdp8"),
        pytest.param("llama3.2-1b", {"data": 1, "fsdp": 4, "tensor": 2}, 16, 2048, "save_attention", 2,
                     id="llama-attention-fsdp4-tensor2-2-parts"),
        pytest.param("gemma3-270m", FSDP, 32, 2048, "full", 1, id="gemma-full-fsdp8"),
    ],
)  # fmt: skip
def test_the_estimate_is_what_the_compiler_allots(name, mesh, rows, seq_len, remat, parts):
    cfg = dataclasses.replace(
        RunConfig(),
        model=dataclasses.replace(sizes.size(name), dtype="bfloat16", remat=remat),
        data=DataConfig(seq_len=seq_len, global_batch_size=rows),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(num_microbatches=parts),
    )
    num_devices = math.prod(mesh.values())
    estimate = memory.predict(cfg, mesh, num_devices, platform="tpu")
    actual = compiled_bytes(cfg, "v5e:2x4", num_devices)
    assert estimate.total == pytest.approx(actual, rel=0.12)
