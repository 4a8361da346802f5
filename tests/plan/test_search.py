"""The trials of a search: what its flags say, what is left out and why, in which order, and under which key."""

import dataclasses
import functools

import pytest
from small_config import get_config

from jaxlm.plan import placement, search, search_axes, topology
from jaxlm.plan.search_axes import Axes
from jaxlm.run import resolve, resolve_mesh
from jaxlm.types import UserError

V5E8 = topology.parse("v5e:2x4")
VERSIONS = {"jax": "1", "libtpu": "2"}
FSDP = {"data": 1, "fsdp": 8, "expert": 1, "sequence": 1, "tensor": 1}


@functools.cache
def config(**keys):
    cfg = get_config()
    cfg.model.vocab_size = 4096
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return resolve(cfg)


def grid(run, axes, on=V5E8, margin=0.25, keeps_batch=False):
    return search.make_grid(
        run,
        on,
        axes,
        margin=margin,
        keeps_batch=keeps_batch,
        check=lambda run: resolve_mesh(run, on.num_devices),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full,minimal", ["full", "minimal"]),
        ("full,minimal,q,k,attention", ["full", "minimal", "q,k,attention"]),  # what a shell leaves of quotes
        ("full,minimal,'q,k,attention'", ["full", "minimal", "q,k,attention"]),
        ("q+attention,q+k+v,full", ["q,attention", "q,k,v", "full"]),
        ("q,k,full,attention", ["q,k", "full", "attention"]),
        ("attention,input@host,none", ["attention,input@host", "none"]),
        ("full, full", ["full"]),
    ],
)
def test_policies_are_told_from_the_names_of_one(text, expected):
    assert search_axes.parse_remats(text, config().model) == expected


def test_a_mesh_names_its_axes_and_the_rest_has_one_device():
    found = search_axes.parse_meshes("fsdp:8,fsdp:-1/tensor:2,tensor:4/data:2, fsdp:8", V5E8)
    assert [search_axes.mesh_text(mesh) for mesh in found] == ["fsdp:8", "fsdp:4/tensor:2", "data:2/tensor:4"]


def test_blocks_are_written_with_x():
    found = search_axes.parse_blocks("default,512x256x128,1024x512x256x512x256x256")
    assert found == [None, "512,256,128", "1024,512,256,512,256,256"]


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        ("rows", "2,x", "--search-rows=2,x must be rows of a device at a time, such as 2,4,8"),
        ("rows", "0", "each at least 1"),
        ("remats", "fullx", "did you mean 'full'?"),
        (
            "meshes",
            "fdsp:8",
            "axis='fdsp' is not one of data, fsdp, expert, sequence, tensor; did you mean 'fsdp'?",
        ),
        ("meshes", "fsdp:4", "does not fill 8 devices"),
        ("meshes", "fsdp", "'fsdp' must be AXIS:DEVICES, such as fsdp:64/tensor:4"),
        ("meshes", "fsdp:-1/data:-1", "only one axis of a mesh may be -1"),
        ("blocks", "1024,512,256", "'1024' must be default, or QUERIESxKEYSxDIAGONAL"),
        ("blocks", "1000x512x256", "1000 must be a multiple of 128"),
    ],
)
def test_a_flag_that_no_trial_can_follow_is_one_line_with_the_choices(parse, text, said):
    more = {"remats": (config().model,), "meshes": (V5E8,)}.get(parse, ())
    with pytest.raises(UserError) as caught:
        getattr(search_axes, f"parse_{parse}")(text, *more)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--search-")
    assert "\n" not in str(caught.value)


def test_between_slices_are_only_copies():
    two = topology.parse("v5e:2x4", 2)
    with pytest.raises(UserError, match=r"data:1 must be a multiple of the 2 slices.*Try data:2/fsdp:-1"):
        search_axes.parse_meshes("fsdp:16", two)
    assert all(mesh["data"] % 2 == 0 for mesh in search_axes.default_meshes(config(), two))


@pytest.mark.parametrize("name", ["v4:2x2x2", "v5e:2x4", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1", "cpu:8"])
def test_default_meshes_fill_the_devices_of_every_chip(name):
    on, run = topology.parse(name), config(model__num_kv_heads=4)
    found = search_axes.default_meshes(run, on)
    assert len(found) > 2
    for mesh in found:
        assert resolve_mesh(dataclasses.replace(run, mesh=type(run.mesh)(**mesh)), on.num_devices) == mesh


def test_a_mesh_that_does_not_divide_the_model_is_left_out_unless_a_flag_names_it():
    meshes, check = search_axes.parse_meshes("tensor:4/data:2,fsdp:8", V5E8), lambda run: resolve_mesh(run, 8)
    assert search_axes.usable_meshes(config(), meshes, check, None) == [FSDP]
    with pytest.raises(
        UserError, match=r"--search-mesh=x: model\.num_kv_heads=2 must be a multiple of mesh\.tensor=4"
    ):
        search_axes.usable_meshes(config(), meshes, check, "--search-mesh=x")
    with pytest.raises(
        UserError, match=r"No mesh of these devices divides the model\. data:2/tensor:4: model"
    ):
        search_axes.usable_meshes(config(), meshes[:1], check, None)


def test_rows_make_the_batch_or_the_microbatches():
    run = config(data__global_batch_size=64, train__num_microbatches=2)
    axes = Axes([2, 4], ["full"], [FSDP, {**FSDP, "fsdp": 4, "tensor": 2}], [None])

    def sizes(**how):
        found = grid(run, axes, **how).trials
        batch = {(t.rows, t.mesh["tensor"]): t.run.data.global_batch_size for t in found}
        return batch, {(t.rows, t.mesh["tensor"]): t.run.train.num_microbatches for t in found}

    batch, parts = sizes()
    assert batch == {(2, 1): 32, (4, 1): 64, (2, 2): 16, (4, 2): 32}
    assert set(parts.values()) == {2}
    batch, parts = sizes(keeps_batch=True)
    assert set(batch.values()) == {64}
    assert parts == {(2, 1): 4, (4, 1): 2, (2, 2): 8, (4, 2): 4}


def test_rows_that_do_not_divide_a_batch_that_is_kept_are_named():
    found = grid(config(), Axes([3, 4], ["full"], [FSDP], [None]), keeps_batch=True)
    assert found.trials == []
    assert [left.why for left in found.left] == [
        "24 rows at a time do not divide the 16 of a step",
        "32 rows at a time do not divide the 16 of a step",
    ]


def test_what_is_predicted_far_too_large_is_left_out_and_named_with_the_margin():
    run = config(model__num_layers=16, model__embed_dim=4096, model__num_heads=32, model__num_kv_heads=32)
    axes = Axes([1, 4, 32, 64, 128, 512], ["full", "none"], [FSDP], [None])
    limit = placement.limit_bytes(V5E8.chip)
    found = grid(run, axes, margin=0.25)
    assert found.trials
    assert found.left
    assert len(found.trials) + len(found.left) == 12
    assert all(left.trial.predicted_bytes > 1.25 * limit for left in found.left)
    assert {left.why for left in found.left} == {"predicted to be more than 25% too large"}
    assert all(trial.predicted_bytes <= 1.25 * limit for trial in found.trials)
    assert not grid(run, axes, on=topology.parse("cpu:8")).left  # whose memory nobody knows
    wider = grid(run, axes, margin=9.0)
    assert len(wider.trials) > len(found.trials)


def test_what_is_predicted_to_fit_and_to_be_fast_comes_first():
    run = config(model__num_layers=16, model__embed_dim=4096, model__num_heads=32, model__num_kv_heads=32)
    limit = placement.limit_bytes(V5E8.chip)
    axes = Axes([1, 8, 16, 32, 48, 56, 64, 96], ["full", "save_attention", "minimal"], [FSDP], [None])
    trials = grid(run, axes).trials
    fits = [trial.predicted_bytes <= limit for trial in trials]
    assert fits == sorted(fits, reverse=True)
    assert True in fits
    assert False in fits
    first = [trial for trial in trials if trial.predicted_bytes <= limit]
    order = {(trial.rows, trial.remat): i for i, trial in enumerate(first)}
    assert order[16, "minimal"] < order[16, "save_attention"] < order[16, "full"]  # less is computed again
    assert order[8, "full"] < order[1, "full"]  # weights are fetched for more tokens


def test_the_key_of_a_result_is_all_that_decides_it(monkeypatch):
    first, second = grid(config(), Axes([1, 2], ["full"], [FSDP], [None])).trials
    key = search.digest(first, V5E8, VERSIONS)
    assert key == search.digest(first, V5E8, dict(reversed(VERSIONS.items())))
    others = {
        search.digest(second, V5E8, VERSIONS),
        search.digest(first, topology.parse("v6e:2x4"), VERSIONS),
        search.digest(first, topology.parse("v5e:2x4", 2), VERSIONS),
        search.digest(first, V5E8, VERSIONS | {"libtpu": "3"}),
        search.digest(first._replace(run=config(optimizer__name="lion")), V5E8, VERSIONS),
    }
    monkeypatch.setattr(search, "options_for", lambda kind, dtype: {"xla_tpu_scoped_vmem_limit_kib": 1})
    others.add(search.digest(first, V5E8, VERSIONS))
    monkeypatch.undo()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_latency_hiding_scheduler=false")
    others.add(search.digest(first, V5E8, VERSIONS))
    assert len(others | {key}) == 8


def test_the_options_of_a_cpu_are_part_of_the_key(monkeypatch):
    """They depend on the processor, which another machine that reads the result may not have."""
    first, cpu, keys = (
        grid(config(), Axes([1], ["full"], [FSDP], [None])).trials[0],
        topology.parse("cpu:8"),
        set(),
    )
    for options in ({}, {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}):
        monkeypatch.setattr(search, "options_for", lambda kind, dtype, options=options: options)
        keys.add(search.digest(first, cpu, VERSIONS))
    assert len(keys) == 2


def test_the_flags_of_a_trial_are_its_config():
    trial = grid(config(), Axes([3], ["q,attention"], [FSDP], ["512,256,128"])).trials[0]
    assert trial.flags == [
        "--config.data.global_batch_size=24",
        "--config.train.num_microbatches=1",
        "--config.model.remat=q,attention",
        "--config.model.attention_blocks=512,256,128",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=8",
        "--config.mesh.expert=1",
        "--config.mesh.sequence=1",
        "--config.mesh.tensor=1",
    ]


def test_a_trial_is_beaten_by_one_that_is_as_fast_in_no_more_memory():
    #        fastest    slower, less  slower, more  as fast, more  equal to the second
    points = [(10.0, 8), (9.0, 5), (8.0, 6), (10.0, 9), (9.0, 5), (1.0, 1)]
    assert search.beaten(points) == [None, None, 1, 0, 1, None]
