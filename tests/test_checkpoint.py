"""Promises of jaxlm/checkpoint.py: what was saved comes back bit for bit, on any mesh, or not at all."""

import os
import random
import re
import resource
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint import Checkpoints, array_specs
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.checkpoint_meta import Meta
from jaxlm.train.config import CheckpointConfig
from jaxlm.train.step import TrainState
from jaxlm.types import UserError

KEEP_ALL = CheckpointConfig(every_steps=1, keep_last=100)


def make_mesh(num_devices):
    return Mesh(np.array(jax.devices()[:num_devices]), ("fsdp",), axis_types=(AxisType.Auto,))


def shardings(tree, num_devices):
    mesh = make_mesh(num_devices)

    def one(x):
        split = x.ndim > 0 and x.shape[0] % num_devices == 0
        return NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec())

    return jax.tree.map(one, tree)


def make_state(num_devices=8, width=16, seed=0):
    """A TrainState with a real optimizer state: named tuples, empty nodes, scalars, bfloat16."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    layers = {"q": draw(8, width, 4), "norm": draw(8, width).astype(jnp.bfloat16)}
    params = {"embed": draw(64, width), "layers": layers, "head": draw(7, 3)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    zero = jnp.int32(0)
    state = TrainState(zero, params, tx.init(params), zero, zero, jnp.float32(0.1))
    state = jax.tree.map(lambda x: np.asarray(x) + draw(*x.shape).astype(x.dtype), state)
    return jax.device_put(state, shardings(state, num_devices))


def abstract(state, num_devices=None):
    target = (
        jax.tree.map(lambda x: x.sharding, state) if num_devices is None else shardings(state, num_devices)
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, target)


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory, steps, policy=KEEP_ALL, **kwargs):
    """Saves one state per step, which differ; returns them."""
    states = {step: make_state(seed=step, **kwargs) for step in steps}
    with Checkpoints(directory, policy) as checkpoints:
        for step, state in states.items():
            assert checkpoints.save(state, Meta(step, tokenizer_sha256="a" * 64))
    return states


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
        assert max(len(s.crc32) for s in integrity.read_seal(tmp_path / "1").values()) > 20
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


# Damage.


def flip(path, offset=None, bit=0):
    content = bytearray(path.read_bytes())
    offset = len(content) // 2 if offset is None else offset
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def data_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGES = {
    "truncated": (lambda f: os.truncate(data_file(f), 1000), r"is truncated: 1,000 bytes instead of [\d,]+"),
    "missing": (lambda f: data_file(f).unlink(), "is missing"),
    "a flipped bit": (lambda f: flip(data_file(f)), "does not match its checksum"),
    "longer": (lambda f: data_file(f).write_bytes(data_file(f).read_bytes() + b"x"), "is longer than"),
    "unfinished": (
        lambda f: (f / integrity.SEAL).unlink(),
        "integrity.json is missing: the save was not finished",
    ),
    "half a seal": (lambda f: os.truncate(f / integrity.SEAL, 50), "integrity.json cannot be parsed"),
    "an edited seal": (
        lambda f: flip(f / integrity.SEAL, 60),
        "integrity.json (does not match|cannot be parsed)",
    ),
    "meta": (lambda f: flip(f / integrity.META), "meta/metadata does not match its checksum"),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "the save was not finished"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_step_is_named_and_the_one_before_it_used(tmp_path, damage, warnings):
    states = save_steps(tmp_path, [1, 2, 3])
    harm, reason = DAMAGES[damage]
    name = str(data_file(tmp_path / "3").relative_to(tmp_path / "3"))
    harm(tmp_path / "3")
    with Checkpoints(tmp_path, KEEP_ALL, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(states[2]))
        assert checkpoints.latest_step() == 2
        assert [p.name for p in checkpoints.damaged()] == ["3.damaged"]
    assert restored.meta.step == 2
    assert_same_bits(restored.state, states[2])
    (warning,) = warnings
    assert "Checkpoint 3" in warning
    assert "Using step 2 instead" in warning
    assert re.search(reason, warning)
    assert damage not in ("truncated", "missing", "a flipped bit", "longer") or name in warning


def test_no_flipped_byte_anywhere_goes_unnoticed(tmp_path):
    """Orbax itself returns wrong weights for most of these."""
    states = save_steps(tmp_path, [1])
    rng = random.Random(0)
    checkpoints = Checkpoints(tmp_path / "copy")
    files = [str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*") if p.is_file()]
    assert len(files) > 8
    for name in files:
        for _ in range(4):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "1", tmp_path / "copy" / "1")
            path = tmp_path / "copy" / "1" / name
            flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
            if name in integrity.UNSEALED:
                assert_same_bits(checkpoints.restore(abstract(states[1])).state, states[1])
            else:
                with pytest.raises(UserError, match="No good checkpoint is left"):
                    checkpoints.restore(abstract(states[1]))
    checkpoints.close()


def test_when_none_is_good_nothing_is_touched_and_the_error_stays(tmp_path):
    """Setting the last ones aside would let the next start train from scratch without a word."""
    states = save_steps(tmp_path, [1, 2])
    flip(data_file(tmp_path / "1"))
    (tmp_path / "2" / integrity.SEAL).unlink()
    for _ in range(2):
        with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
            assert checkpoints.latest_step() == 2
            with pytest.raises(
                UserError, match=r"No good checkpoint is left.*2: integrity.json.*1: state/.*"
            ) as e:
                checkpoints.restore(abstract(states[1]))
            assert "\n" not in str(e.value)
            assert checkpoints.damaged() == []
    with (
        Checkpoints(tmp_path / "none") as checkpoints,
        pytest.raises(UserError, match="There is no checkpoint in"),
    ):
        checkpoints.restore(abstract(states[1]))


def test_a_reader_renames_nothing(tmp_path, warnings):
    states = save_steps(tmp_path, [1, 2])
    flip(data_file(tmp_path / "2"))
    with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
        assert checkpoints.restore_params(abstract(states[1].params)).meta.step == 1
        assert checkpoints.all_steps() == [1, 2]
        with pytest.raises(UserError, match=r"2: .*does not match its checksum.*Try one of the steps \[1\]"):
            checkpoints.restore_params(abstract(states[1].params), step=2)
        with pytest.raises(UserError, match=r"no checkpoint of step 7.*\[1, 2\]"):
            checkpoints.restore_params(abstract(states[1].params), step=7)
    assert "left where it is" in warnings[0]


def test_a_second_damaged_copy_of_a_step_gets_another_name(tmp_path):
    for expected in ("5.damaged", "5.damaged-2", "5.damaged-3"):
        (tmp_path / "5").mkdir()
        assert integrity.set_aside(tmp_path / "5").name == expected


def test_hosts_that_share_the_checking_see_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 1 << 10)
    save_steps(tmp_path, [1])
    flip(data_file(tmp_path / "1"))
    noticed = 0
    for part in range(3):
        try:
            integrity.verify(tmp_path / "1", part=part, num_parts=3)
        except DamagedCheckpoint:
            noticed += 1
    assert noticed == 1


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


# Kills and full disks.


def run_python(code, **kwargs):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    prelude = """
        import os, sys, signal
        import jax, jax.numpy as jnp
        from jaxlm import checkpoint_integrity as integrity
        from jaxlm.checkpoint import Checkpoints
        from jaxlm.checkpoint_meta import Meta
        from jaxlm.train.config import CheckpointConfig
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(
    ("moment", "left", "warned"),
    [
        ("seal", ["1", "2.orbax-checkpoint-tmp"], True),
        ("reasons_kept", ["1", "2"], False),
        ("rmtree", ["1.deleting", "2"], False),
    ],
)
def test_killed_during_a_save_leaves_only_good_steps(tmp_path, moment, left, warned, warnings):
    """Before the commit, between the commit and the deletion of the old step, and during that deletion."""
    result = run_python(
        f"""
        state = {{"params": {{"w": jnp.arange(1000.0)}}}}
        checkpoints = Checkpoints({str(tmp_path)!r}, CheckpointConfig(every_steps=1, keep_last=1))
        checkpoints.save(state, Meta(1))
        checkpoints.wait()
        def kill(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        owner = type(checkpoints.directory) if {moment!r} == "rmtree" else integrity
        setattr(owner, {moment!r}, kill)
        checkpoints.save(jax.tree.map(lambda x: x + 1, state), Meta(2))
        checkpoints.wait()
        """
    )
    assert result.returncode == -9, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    step = 1 if warned else 2
    state = {"params": {"w": jnp.arange(1000.0) + step - 1}}
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1), warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(state))
        assert restored.meta.step == step
        assert_same_bits(restored.state, state)
        assert [("interrupted" in w and "2.orbax-checkpoint-tmp" in w) for w in warnings] == [True] * warned
        checkpoints.save(state, Meta(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3"]


@pytest.fixture
def file_size_limit():
    """A disk that takes no more: the kernel refuses to let any file grow past the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_spares_training_and_earlier_steps(tmp_path, file_size_limit, warnings):
    state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
    checkpoints = Checkpoints(tmp_path, KEEP_ALL, warn=warnings.append)
    checkpoints.save(state, Meta(1))
    checkpoints.wait()
    file_size_limit(1 << 20)
    checkpoints.save(state, Meta(2))
    with pytest.raises(
        UserError, match=r"Checkpoint 2 could not be saved.*File too large.*steps \[1\]"
    ) as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    checkpoints.save(state, Meta(3))
    assert checkpoints.save(state, Meta(4))
    assert "Checkpoint 3 could not be saved" in warnings[0]
    assert "Training goes on" in warnings[0]
    checkpoints._join()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    file_size_limit(resource.RLIM_INFINITY)
    state = jax.tree.map(lambda x: x + 1, state)
    assert checkpoints.save(state, Meta(5))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "5"]
    with Checkpoints(tmp_path) as reader:
        assert_same_bits(reader.restore(abstract(state)).state, state)


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small file system needs root"
)
def test_a_full_disk(tmp_path, warnings):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk]).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
        with Checkpoints(disk, KEEP_ALL, warn=warnings.append) as checkpoints:
            checkpoints.save(state, Meta(1))
            checkpoints.wait()
            checkpoints.save(state, Meta(2))
            with pytest.raises(
                UserError, match=r"Checkpoint 2.*No space left.*on disk are steps \[1\].*Free some"
            ):
                checkpoints.wait()
            assert [p.name for p in disk.iterdir()] == ["1"]
            shutil.rmtree(disk / "1")
            checkpoints.save(state, Meta(3))
            checkpoints.wait()
            assert_same_bits(checkpoints.restore(abstract(state)).state, state)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_bug_while_saving_is_raised_and_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, KEEP_ALL)

    def bug(folder):
        raise KeyError("a bug")

    monkeypatch.setattr(integrity, "seal", bug)
    checkpoints.save(make_state(), Meta(1))
    with pytest.raises(KeyError, match="a bug"):
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []


def test_marks_tell_a_rerun_what_was_completed(tmp_path):  # pain 21
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


def test_importing_it_costs_nothing():  # pain 20
    code = "import sys, jaxlm.checkpoint; print([m for m in ('jax', 'orbax', 'numpy') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
