"""What custom calls of a compiled step cost: as they say, as attention is known to, or nobody knows what."""

# ruff: noqa: E501 (a line of HLO is one line)

import pytest
from hlo_texts import cost

from jaxlm.plan.step_cost import KERNEL_EFFICIENCY


def kernel(call, operands=""):
    return cost(f"{operands}\n  ROOT {call}")


def test_a_kernel_that_says_what_it_costs_is_believed():
    found = kernel(
        '%gmm.1 = f32[8] custom-call(), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":'
        '{"cost_estimate":{"flops":"197000000","transcendentals":"0","bytes_accessed":"819"}}}'
    )
    assert (found.flops, found.kernel_flops, found.kernel_bytes) == (197e6, 197e6, 819)
    assert found.kernels == {"tpu_custom_call gmm.1": 1}
    assert found.compute_s == pytest.approx(1e-6)
    assert found.kernel_s == pytest.approx(1e-6 / KERNEL_EFFICIENCY)


def test_a_kernel_that_only_moves_bytes_keeps_them():
    found = kernel(
        '%sort.1 = f32[8] custom-call(), custom_call_target="tpu_custom_call", backend_config={'
        '"cost_estimate":{"flops":"0","bytes_accessed":"819000"}}'
    )
    assert (found.kernel_flops, found.kernel_bytes, found.uncosted) == (0, 819000, {})
    assert found.kernel_s == found.memory_s == pytest.approx(1e-6)


def test_custom_calls_that_cost_nobody_knows_what_are_named():
    found = cost("""
  %a = f32[8] custom-call(), custom_call_target="AllocateBuffer"
  %b = f32[8] custom-call(), custom_call_target="mystery", metadata={op_name="jit(f)/kernel"}
  ROOT %c = f32[8] custom-call(), custom_call_target="sc", backend_config={"estimated_cycles":"40"}""")
    assert found.uncosted == {"mystery jit(f)/kernel": 1}
    assert (found.cycles, found.matmul_cycles) == (40, 0)


SPLASH = """
  %next = s8[1,{q_blocks},{kv_blocks}] parameter(0)
  %q = bf16[{heads},4096,{width}] parameter(1)
  %kv = bf16[2,4096,{width}] parameter(2)
  ROOT %{name} = {results} custom-call(%next, %next, %q, %kv, %kv), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{{fields}}}"
}}}}, metadata={{op_name="jit(f)/static_sparsity_splash/pallas_call"}}"""
OUT = "(f32[512,128], bf16[8,4096,128])"
FWD = '\\"block_q\\": 512, \\"block_kv\\": 1024, \\"q_layout\\": 1'
DQ = '\\"block_q_dq\\": 512, \\"block_kv_dq\\": 1024, \\"q_layout\\": 1'
DKV = '\\"block_q_dkv\\": 512, \\"block_kv_dkv\\": 512'
KERNELS = [
    # Causal, 8 x 4 blocks of 512 x 1024: rows of 1 1 2 2 3 3 4 4 = 20 of 32 blocks.
    ("splash_mha_fwd_residuals.3", OUT, FWD, (8, 4), 2, 20 * 512 * 1024),
    ("splash_mha_dq_no_residuals.1", OUT, DQ, (8, 4), 3, 20 * 512 * 1024),
    # 8 x 8 blocks: 36 of 64.
    ("splash_mha_dkv_no_residuals", f"{OUT[:-1]}, bf16[8,4096,128])", DKV, (8, 8), 4, 36 * 512 * 512),
    # Fused with dq: it also returns a part of dq for each of the 8 blocks of keys.
    (
        "splash_mha_dkv_segmented_no_residuals",
        f"{OUT[:-1]}, bf16[8,8,4096,128])",
        DKV,
        (8, 8),
        5,
        36 * 512 * 512,
    ),
    # A window of 1,024: no row has more than two blocks of 1,024 keys, and the first two have one.
    ("splash_mha_fwd_no_residuals", OUT, FWD, (8, 2), 2, 14 * 512 * 1024),
    # In blocks of 512 a key is seen from three blocks of queries, the last two have fewer: 6 x 3 + 2 + 1.
    ("splash_mha_dkv_no_residuals", OUT, DKV, (3, 8), 4, 21 * 512 * 512),
]


@pytest.mark.parametrize(("name", "results", "fields", "grid", "products", "pairs"), KERNELS)
def test_an_attention_kernel_costs_the_blocks_that_it_computes(name, results, fields, grid, products, pairs):
    text = SPLASH.format(
        name=name, results=results, fields=fields, q_blocks=grid[0], kv_blocks=grid[1], heads=8, width=128
    )
    found = cost(text)
    assert found.flops == found.kernel_flops == 2 * products * 8 * 128 * pairs
    assert found.uncosted == {}


@pytest.mark.parametrize("window", [None, 1024, 1000])
@pytest.mark.parametrize("blocks", [(512, 1024), (512, 512), (1024, 512)])
def test_blocks_are_those_that_splash_attention_does_not_skip(blocks, window):
    masks = pytest.importorskip("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask")
    info = pytest.importorskip("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info")
    shape = (4096, 4096)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    for phase, process in (("fwd", info.process_mask), ("dkv", info.process_mask_dkv)):
        made, _ = process(masks.MultiHeadMask([mask]), blocks, head_shards=1, q_seq_shards=1)
        suffix = "_dkv" if phase == "dkv" else ""
        fields = f'\\"block_q{suffix}\\": {blocks[0]}, \\"block_kv{suffix}\\": {blocks[1]}'
        _, q_blocks, kv_blocks = made.data_next.shape
        found = cost(
            SPLASH.format(
                name=f"splash_mha_{phase}",
                results=OUT,
                fields=fields,
                q_blocks=q_blocks,
                kv_blocks=kv_blocks,
                heads=1,
                width=128,
            )
        )
        pairs = int((made.block_mask > 0).sum()) * blocks[0] * blocks[1]
        assert found.flops == 2 * (4 if suffix else 2) * 128 * pairs


def test_queries_that_are_split_over_devices_meet_the_mean_of_the_blocks():
    text = SPLASH.format(
        name="splash_mha_fwd", results=OUT, fields=FWD, q_blocks=8, kv_blocks=4, heads=8, width=128
    )
    whole, part = cost(text), cost(text.replace("bf16[8,4096,128] parameter", "bf16[8,1024,128] parameter"))
    assert part.flops == whole.flops / 4
