"""Promises of jaxlm/checkpoint.py: what was saved comes back bit for bit, on any mesh, or not at all."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import KEEP_ALL, abstract, assert_same_bits, flip, make_state, save_steps, shardings

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint import Checkpoints, array_specs
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.checkpoint_meta import Meta
from jaxlm.train.config import CheckpointConfig
from jaxlm.types import UserError


@pytest.fixture
def warnings():
    return []


# What comes back.


def test_restored_equals_saved_bit_for_bit(tmp_path):
    state = make_state()
    meta = Meta(
        step=40, config={"model": {"embed_dim": 16}}, tokenizer_sha256="ab", corpus_sha256={"topics": "cd"},
        tokens=12345, epochs={"topics": 0.1 + 0.2}, wall_time_s=3.5, eval_loss=2.7182818284, extra={"a": [1]},
    )  # fmt: skip
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, meta)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(state))
    assert_same_bits(restored.state, state)
    assert [x.sharding for x in jax.tree.leaves(restored.state)] == [
        x.sharding for x in jax.tree.leaves(state)
    ]
    for name in ("step", "config", "tokenizer_sha256", "corpus_sha256", "tokens", "epochs", "wall_time_s"):
        assert getattr(restored.meta, name) == getattr(meta, name)
    assert restored.meta.eval_loss == meta.eval_loss
    assert restored.meta.extra == meta.extra
    assert restored.meta.arrays == array_specs(state)
    assert restored.meta.num_params == sum(x.size for x in jax.tree.leaves(state.params))


def test_restores_on_any_number_of_devices(tmp_path):  # pain 18
    """8 -> 1 -> 4 -> 8, each saved again by those who restored it."""
    original = state = make_state(8)
    for step, num_devices in enumerate((1, 4, 8), start=1):
        save_to = tmp_path / str(num_devices)
        with Checkpoints(save_to, KEEP_ALL) as checkpoints:
            checkpoints.save(state, Meta(step))
            checkpoints.wait()
            state = checkpoints.restore(abstract(state, num_devices)).state
        assert len(state.params["embed"].sharding.device_set) == num_devices
        assert_same_bits(state, original)


def test_arrays_larger_than_a_chunk_and_a_checksum_block(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.checkpoint.CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 1 << 12)
    state = make_state(width=256)
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        checkpoints.save(state, Meta(1))
        checkpoints.wait()
        assert max(len(s.checksums) for s in integrity.read_seal(tmp_path / "1").values()) > 20
        assert_same_bits(checkpoints.restore(abstract(state, 4)).state, state)
    largest = max((p for p in (tmp_path / "1").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(largest, 5 << 12)
    with pytest.raises(DamagedCheckpoint, match=r"from byte 20,480 on"):
        integrity.verify(tmp_path / "1")


def test_params_alone_without_the_optimizer_state(tmp_path):
    states = save_steps(tmp_path, [3])
    params = states[3].params
    checkpoints = Checkpoints(tmp_path)
    asked = {}
    real = checkpoints._open_orbax()

    class Spy:
        def restore(self, folder, args):
            asked.update(args.state.item)
            return real.restore(folder, args=args)

    checkpoints._orbax = Spy()
    restored = checkpoints.restore_params(abstract(params, 1))
    assert list(asked) == ["params"]
    assert_same_bits(restored.state, params)
    half = checkpoints.restore_params(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    )
    np.testing.assert_array_equal(half.state["embed"], params["embed"].astype(jnp.bfloat16))
    real.close()


def test_a_step_that_is_on_disk_is_not_saved_twice(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.save(state, Meta(1))
        assert not checkpoints.save(state, Meta(1))


@pytest.mark.parametrize("num_devices", [1, 8])
def test_saved_is_the_state_at_save_time_though_training_donates_it(tmp_path, num_devices):
    """Steps run, each taking over the memory of the one before, while the save is being written."""
    state = {"params": jnp.arange(4 << 20, dtype=jnp.float32).reshape(64, -1), "step": jnp.int32(0)}
    place = shardings(state, num_devices)
    train = jax.jit(
        lambda s: jax.tree.map(lambda x: x + 1, s),
        donate_argnums=0,
        in_shardings=(place,),
        out_shardings=place,
    )
    state = train(jax.device_put(state, place))
    expected = {}
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        for step in range(1, 31):
            if step % 10 == 1:
                expected[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
                checkpoints.save(state, Meta(step))
            state = train(state)
            assert int(state["step"]) == step + 1
    checkpoints = Checkpoints(tmp_path)
    for step, values in expected.items():
        restored = checkpoints.restore(abstract(state), step=step).state
        assert_same_bits(restored, values)
        assert int(restored["step"]) == step
    checkpoints.close()


def test_training_on_from_a_restored_state_equals_training_on(tmp_path):
    """The restored arrays are donated at once; they must own their memory."""
    state = make_state()
    place = jax.tree.map(lambda x: x.sharding, state)
    train = jax.jit(
        lambda s: jax.tree.map(lambda x: x * jnp.asarray(3, x.dtype) + jnp.asarray(1, x.dtype), s),
        donate_argnums=0, in_shardings=(place,), out_shardings=place,
    )  # fmt: skip
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        checkpoints.save(state, Meta(1))
        checkpoints.wait()
        again = checkpoints.restore(abstract(state)).state
        for _ in range(5):
            state, again = train(state), train(again)
        assert_same_bits(again, state)
        del again
        assert_same_bits(train(checkpoints.restore(abstract(state)).state), train(make_state()))


# What is kept.


def test_keeps_the_last_every_nth_and_the_best():
    losses = {100: 5.0, 200: 3.0, 300: 2.0, 400: 2.5, 500: None, 600: float("nan"), 700: 4.0}
    kept = integrity.reasons_kept(losses, keep_last=2, keep_every_steps=200, keep_best=True)
    assert kept == {
        100: [], 200: ["every 200"], 300: ["best"], 400: ["every 200"], 500: [], 600: ["last", "every 200"],
        700: ["last"],
    }  # fmt: skip
    kept = integrity.reasons_kept(losses, keep_last=1, keep_every_steps=None, keep_best=False)
    assert [step for step, why in kept.items() if why] == [700]
    assert integrity.reasons_kept({}, keep_last=1, keep_every_steps=None, keep_best=True) == {}


def test_deletes_what_need_not_be_kept_once_the_next_is_on_disk(tmp_path):
    policy = CheckpointConfig(every_steps=1, keep_last=1, keep_every_steps=4, keep_best=True)
    state = make_state()
    with Checkpoints(tmp_path, policy) as checkpoints:
        for step, loss in {1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 2.0, 6: None}.items():
            checkpoints.save(state, Meta(step, eval_loss=loss))
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 4, 6]
        assert checkpoints.read_meta(4).eval_loss is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "6"]


def test_a_damaged_newer_step_never_displaces_the_last_good_one(tmp_path, warnings):
    policy = CheckpointConfig(every_steps=1, keep_last=1)
    state = make_state()
    with Checkpoints(tmp_path, policy, warn=warnings.append) as checkpoints:
        checkpoints.save(state, Meta(1))
        checkpoints.wait()
        shutil.copytree(tmp_path / "1", tmp_path / "9")
        (tmp_path / "9" / integrity.SEAL).unlink()
        checkpoints._delete_old()
        assert checkpoints.all_steps() == [1, 9]
        assert_same_bits(checkpoints.restore(abstract(state)).state, state)


# What does not belong.


def test_another_tokenizer_is_refused_with_both_hashes(tmp_path):  # pain 27
    states = save_steps(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(abstract(states[1]), tokenizer_sha256="b" * 64)
    assert "a" * 64 in str(error.value)
    assert "b" * 64 in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: make_state(width=24),
            r"params/embed is \(64, 16\) in the checkpoint and \(64, 24\) in the model",
        ),
        (
            lambda s: s._replace(params={**s.params, "extra": jnp.ones(3)}),
            r"params/extra \(3,\) of the model is not",
        ),
        (
            lambda s: s._replace(params={k: v for k, v in s.params.items() if k != "head"}),
            r"params/head \(7, 3\) is in the checkpoint only",
        ),
        (
            lambda s: s._replace(num_bad=jnp.float32(0)),
            "num_bad is int32 in the checkpoint and float32 in the model",
        ),
        (
            lambda s: s._replace(opt_state=optax.sgd(0.1).init(s.params)),
            r"opt_state/.* is in the checkpoint only",
        ),
    ],
)
def test_another_model_is_refused_naming_the_first_difference(tmp_path, change, message, monkeypatch):
    state = save_steps(tmp_path, [1])[1]
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(
        checkpoints, "_open_orbax", lambda: pytest.fail("read arrays of a foreign checkpoint")
    )
    with pytest.raises(UserError, match=message) as error:
        checkpoints.restore(abstract(jax.tree.map(jnp.asarray, change(state))))
    assert "\n" not in str(error.value)


def test_a_later_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="Upgrade jaxlm"):
        Meta.from_json({**Meta(1).to_json(), "format": 99})
    assert Meta.from_json({**Meta(1).to_json(), "unheard_of": 1}).step == 1


def test_damaged_marks_are_put_aside_and_end_no_run(tmp_path):
    warnings = []
    with Checkpoints(tmp_path, CheckpointConfig(), warn=warnings.append) as checkpoints:
        checkpoints.save({"w": jnp.zeros(2)}, Meta(3))
        checkpoints.wait()
        (tmp_path / integrity.MARKS).write_text('{"3": {"ev')
        assert not checkpoints.marked(3, "evaluated")
        checkpoints.mark(3, "evaluated")
        assert checkpoints.marked(3, "evaluated")
    assert len(warnings) == 1
    assert "marks.json is no JSON of marks" in warnings[0]
    assert (tmp_path / "marks.json.damaged").exists()


def test_marks_tell_a_rerun_what_was_completed(tmp_path):
    save_steps(tmp_path, [1, 2])
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert not checkpoints.marked(2, "eval")
        checkpoints.mark(1, "eval")
        checkpoints.mark(2, "eval")
        checkpoints.mark(2, "export")
        shutil.rmtree(tmp_path / "1")
    with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
        assert checkpoints.marked(2, "eval")
        checkpoints.mark(2, "report")
        assert set(integrity.read_marks(tmp_path)) == {2}
        assert checkpoints.marked(2, "export")


def test_importing_it_costs_nothing():
    code = "import sys, jaxlm.checkpoint; print([m for m in ('jax', 'orbax', 'numpy') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
