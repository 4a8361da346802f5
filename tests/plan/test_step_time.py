"""The parts of a predicted step: what remat, meshes, networks and fine-tuning do to FLOPs, bytes and seconds."""

import dataclasses

import pytest

from jaxlm import run
from jaxlm.cli._plan_run import completed
from jaxlm.plan import step_passes, step_products, step_time, step_wire
from jaxlm.plan.flops import flops_per_token, weights
from jaxlm.plan.hardware import CHIPS

FSDP = {"data": 1, "fsdp": 256, "expert": 1, "tensor": 1}
BLOCK = 202_375_168
"""Parameters of the matrices of one block of Llama 2 7B."""
DOWN = 11_008 * 4_096


def config(*flags):
    return completed(run.resolve(run.parse(list(flags))))[0]


@pytest.fixture(scope="module")
def llama():
    return config("--config=pretrain_llama2_7b_v5e256")


def with_model(run, **fields):
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **fields))


def predict(run, mesh=FSDP, chip="v5e", shape=(16, 16), num_slices=1):
    return step_time.predict_step(run, CHIPS[chip], mesh, shape, num_slices)


def test_nothing_computed_again_is_what_the_model_needs(llama):
    plain = with_model(llama, remat="none")
    tokens = step_products.device_tokens(plain, FSDP)
    found = step_products.products(plain, FSDP)
    per_token = flops_per_token(plain.model, plain.data.seq_len)
    assert found.weights.flops == pytest.approx(tokens * per_token.weights)
    # 7 products in place of 6, and the halves of blocks on the diagonal.
    assert found.attention.flops == pytest.approx(tokens * per_token.attention * 7 / 6 * (1 + 256 / 4096))


@pytest.mark.parametrize(
    ("remat", "again"),
    [
        ("full", BLOCK - DOWN),  # nobody needs what the last product gave
        ("save_attention", BLOCK - DOWN),
        ("q,k,attention,gate,up", 2 * 4096 * 4096),  # v and o
        ("minimal", 0),
    ],
)
def test_the_backward_pass_computes_again_what_is_not_kept(llama, remat, again):
    plain, kept = (
        step_products.products(with_model(llama, remat=name), FSDP).weights.flops for name in ("none", remat)
    )
    tokens = step_products.device_tokens(llama, FSDP)
    assert kept - plain == pytest.approx(2 * tokens * 32 * again, rel=1e-6, abs=1.0)


def test_attention_is_computed_again_unless_it_is_kept(llama):
    full, kept = (
        step_products.products(with_model(llama, remat=name), FSDP).attention.flops
        for name in ("full", "save_attention")
    )
    assert full / kept == pytest.approx(9 / 7)


@pytest.mark.parametrize(
    ("seq_len", "window", "keys"),
    [
        (4096, None, 2048 + 128),
        (8192, None, 4096 + 128),
        (4096, 1024, (640 + 3 * 1664) / 4),
        (512, None, (512 + 256) / 2),
    ],
)
def test_keys_of_a_query_come_in_whole_blocks(seq_len, window, keys):
    assert step_products.block_keys(seq_len, window) == keys


def test_frozen_weights_have_no_gradient(llama):
    lora = dataclasses.replace(llama, tune=dataclasses.replace(llama.tune, train="lora", lora_rank=8))
    lora = with_model(lora, remat="none")
    whole = with_model(llama, remat="none")
    frozen, trained = (step_products.products(one, FSDP).weights.flops for one in (lora, whole))
    assert 2 / 3 * trained < frozen < 0.75 * trained
    assert (
        step_wire.wire(lora, FSDP, torus=True).scatters
        < 0.01 * step_wire.wire(whole, FSDP, torus=True).scatters
    )


def test_weights_are_gathered_twice_and_gradients_scattered_once(llama):
    sent = step_wire.wire(llama, FSDP, torus=True)
    tables = 2 * 32_000 * 4_096
    assert sent.gathers == 255 / 256 * 2 * (2 * 32 * BLOCK + tables)
    assert sent.scatters == 255 / 256 * 2 * (32 * BLOCK + tables)
    assert (sent.sums, sent.activations, sent.across_slices) == (0, 0, 0)


def test_a_tied_table_is_gathered_twice_where_it_comes_by_rows(llama):
    """As one that is not tied: embedding and head."""

    def tables(vocab_size, **model):
        few, many = (
            step_wire.wire(with_model(llama, embed_dim=5120, vocab_size=V, **model), FSDP, torus=True).gathers
            for V in (256, vocab_size)
        )
        return (many - few) / (255 / 256 * 2 * 5120)

    tied = {"tie_embeddings": True}
    assert tables(2**15, tie_embeddings=False) == pytest.approx(2 * (2**15 - 256))
    assert tables(2**15, **tied) == pytest.approx(2 * 2**15 - 256)  # of 20 channels on each device
    assert tables(2**15, **tied, num_classes=3) == pytest.approx(2**15 - 256)  # looked up only
    assert tables(2**15 - 256, **tied) == pytest.approx(2**15 - 2 * 256)


def test_without_rings_gradients_are_summed_everywhere(llama):
    ring, line = (step_wire.wire(llama, FSDP, torus=torus).scatters for torus in (True, False))
    assert line == 2 * ring
    assert step_wire.is_torus("v5e", (16, 16))
    assert not step_wire.is_torus("v6e", (8, 16))
    assert step_wire.is_torus("v5p", (4, 4, 8))
    assert not step_wire.is_torus("v5p", (2, 4, 4))


def test_slices_send_each_other_what_a_device_holds_of_the_gradients(llama):
    two = {**FSDP, "data": 2}
    sent = step_wire.wire(llama, two, torus=True, num_slices=2)
    held = 2 * sum(w.num_params for w in weights(llama.model) if w.is_matrix) / 256
    assert sent.across_slices == pytest.approx(held, rel=0.02)  # twice, half of it; norms are whole
    assert sent.sums == 0
    assert step_wire.wire(llama, two, torus=True).sums == sent.across_slices
    assert predict(llama, two, "v6e", num_slices=2).across_slices_s == sent.across_slices / 12.5e9


def test_a_step_is_no_shorter_than_its_network(llama):
    few = dataclasses.replace(llama, data=dataclasses.replace(llama.data, seq_len=128))
    step = predict(few)
    assert step.step_s == step.wire_s or step.step_s == step.on_chip_s + step.exposed_s
    slow = step._replace(across_slices_s=100.0)
    assert (slow.step_s, slow.bound) == (100.0, "DCN")
    assert step._replace(exposed_s=50.0, wire_s=60.0).bound == "ICI"
    assert step._replace(passes_s=70.0).bound == "HBM"
    assert predict(llama).bound == "compute"


def test_tensor_parallelism_pays_with_what_its_layers_exchange(llama):
    split = {**FSDP, "fsdp": 64, "tensor": 4}
    sent = step_wire.wire(llama, split, torus=True)
    tokens = 4 * 4 * 4096  # the four share their rows
    once = tokens * 4096 * 2 * 32 * 3 / 4
    assert sent.activations == pytest.approx(step_wire.exchanges(llama) * once)
    assert sent.gathers == pytest.approx(step_wire.wire(llama, FSDP, torus=True).gathers / 4, rel=0.02)
    assert step_wire.exchanges(with_model(llama, remat="minimal")) < step_wire.exchanges(llama)


def test_more_that_is_kept_moves_more_bytes_and_computes_less(llama):
    full, minimal = (with_model(llama, remat=name) for name in ("full", "minimal"))
    moved = [step_passes.moved_bytes(one, FSDP, num_dims=2) for one in (full, minimal)]
    assert moved[0] < moved[1]
    assert predict(full).products_s > predict(minimal).products_s


def test_dims_narrower_than_the_lanes_take_as_long_as_those():
    narrow, wide = (step_products.product(10, 4096, outputs) for outputs in (16, 256))
    assert narrow.padded_flops == 2 * 10 * 4096 * 128
    assert wide.padded_flops == wide.flops == 2 * 10 * 4096 * 256


def test_flops_are_counted_without_what_fills_lanes():
    assert step_products.product(10, 4096, 16).flops == 2 * 10 * 4096 * 16


def test_chips_that_were_not_compared_say_whose_efficiency_they_take():
    assert step_time.efficiency_of("v5e")[0] == "v5e"
    waits = step_time.EFFICIENCIES["v5p"]._replace(hidden_gathers=0, hidden_sums=0, hidden_activations=0)
    assert step_time.efficiency_of("v4") == ("v5p", waits)
    assert step_time.efficiency_of("tpu7x")[0] == "v6e"


def test_the_range_of_a_step_is_wider_than_either_error_alone(llama):
    step = predict(llama)
    seconds = step.step_s + step.latency_s
    shortest, longest = step_time.time_range(step)
    assert shortest < 0.88 * seconds < 1.07 * seconds < longest
    low, high = step_time.mfu_range(step, 1e15, 1e15)
    assert (low, high) == (pytest.approx(1 / longest), pytest.approx(1 / shortest))


def test_a_latency_is_paid_for_every_hop(llama):
    small, large = (predict(llama, shape=shape).latency_s for shape in ((4, 4), (16, 16)))
    assert large == 4 * small
    assert small == pytest.approx(3 * 7 * 32 * 4e-6)
    assert predict(llama, {**FSDP, "data": 256, "fsdp": 1}).latency_s == 0


def test_a_v4_waits_for_all_that_it_sends_and_a_v5p_for_next_to_nothing(llama):
    cube = {**FSDP, "fsdp": 64}
    v4, v5p = (predict(llama, cube, chip, (4, 4, 4)) for chip in ("v4", "v5p"))
    assert v4.exposed_s == v4.wire_s
    assert v5p.exposed_s < 0.05 * v5p.wire_s
