"""What `model.remat` keeps in the memory of the host (`name@host`): where it goes on TPUs, and what other platforms do.

Those that ask the compiler of TPUs are skipped without libtpu; they take some 10 s each.
"""

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from slow import slow

sys.path.insert(0, str(Path(__file__).parent / "train"))
import tiny

from jaxlm import run, run_compile
from jaxlm.data.config import DataConfig
from jaxlm.models import sizes
from jaxlm.parallel.config import MeshConfig
from jaxlm.plan import topology
from jaxlm.runconfig import RunConfig
from jaxlm.types import UserError

L, D, T, ROWS, F = 2, 256, 256, 16, 512
BFLOAT16, FLOAT32 = 2, 4
HEADS, EXPERTS, CHOSEN = 2, 8, 2
SMALL = dict(
    embed_dim=D,
    num_layers=L,
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=D // HEADS,
    mlp_dim=F,
    vocab_size=512,
    dtype="bfloat16",
)
WIDTH = BFLOAT16 * D  # bytes of a token
ATTENTION = WIDTH + FLOAT32 * HEADS  # and the logsumexps
EXPERT_UP = CHOSEN * BFLOAT16 * F


def config(name, remat, scan_layers, mesh):
    model = dataclasses.replace(sizes.size(name), **SMALL, remat=remat, scan_layers=scan_layers)
    data = DataConfig(seq_len=T, global_batch_size=ROWS)
    return dataclasses.replace(RunConfig(), model=model, data=data, mesh=MeshConfig(**mesh))


@pytest.mark.parametrize(
    ("on", "name", "remat", "scan_layers", "mesh", "token_bytes"),
    [
        ("v5e:2x4", "llama3.2-1b", "q,attention@host,input@host", True, {"fsdp": 8}, ATTENTION + WIDTH),
        ("v6e:2x4", "llama3.2-1b", "attention,input@host", False, {"fsdp": 8}, WIDTH),
        # Half of each token's width on a device of a pair; every device meets the tokens of its pair of experts.
        ("v6e:2x4", "mixtral-8x7b", "input@host,up@host", True, {"fsdp": 2, "expert": 2, "tensor": 2},
         WIDTH / 2 + 2 * EXPERT_UP / 2),
    ],
    ids=["scan-v5e", "unrolled-v6e", "experts-v6e"],
)  # fmt: skip
@pytest.mark.usefixtures("tpu_compiler")
def test_it_lies_in_the_memory_of_the_host_of_tpus(on, name, remat, scan_layers, mesh, token_bytes):
    step = run_compile.lower_step(
        config(name, remat, scan_layers, {"data": 1} | mesh), run_compile.devices_of(topology.parse(on))
    )
    compiled = run_compile.compile_step(step)
    num_tokens = ROWS * T // (8 // mesh.get("tensor", 1))  # of a device
    needed = L * num_tokens * token_bytes
    assert needed <= compiled.memory.host_bytes <= 1.15 * needed  # as the compiler packs it
    on_host = re.compile(r"\{[^{}]*S\(5\)\}")  # XLA's number of that memory
    assert compiled.hlo is not None
    starts = [line for line in compiled.hlo.splitlines() if re.search(r"(copy|slice)-start", line)]
    assert any(on_host.search(line) for line in starts), "nothing is copied there"


@pytest.mark.parametrize("scan_layers", [True, slow(False)])
def test_a_cpu_trains_the_same_with_it(scan_layers):
    model = dataclasses.replace(tiny.MODEL, remat="q@host,input@host", scan_layers=scan_layers)
    found = tiny.losses(2, model=model, sizes={"fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(found, tiny.losses(2, sizes={"fsdp": 2, "tensor": 2}), rtol=1e-6)


@pytest.mark.parametrize(
    ("remat", "instead"), [("q,attention@host,input@host", "q"), ("attention@host", "full")]
)
def test_a_platform_without_such_memory_is_refused(remat, instead):
    device = SimpleNamespace(platform="npu", addressable_memories=lambda: [SimpleNamespace(kind="device")])
    with pytest.raises(UserError, match=rf"'pinned_host'.*npu, only device\. Try model\.remat={instead}\."):
        run.check_host_memory(config("llama3.2-1b", remat, True, {"fsdp": 8}), device)
    run.check_host_memory(config("llama3.2-1b", instead, True, {"fsdp": 8}), device)
