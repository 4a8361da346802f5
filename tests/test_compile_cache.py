"""Promises of jaxlm/compile_cache.py: what comes from the cache is what was compiled, to the bit."""

import random

import jax
import jax.numpy as jnp
import pytest
from checkpoint_states import flip
from jax.experimental.compilation_cache import compilation_cache as public

from jaxlm import compile_cache


@pytest.fixture
def jit(tmp_path):
    """jit(x) compiles a function that no other test has, with its cache in tmp_path, and returns its value."""
    names = (
        "compilation_cache_dir",
        "persistent_cache_min_compile_time_secs",
        "persistent_cache_min_entry_size_bytes",
    )
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    public.reset_cache()
    compile_cache.use(str(tmp_path))

    def call(x):
        jax.clear_caches()
        return jax.jit(lambda x: jnp.tanh(x) * 3.0 + 0.25)(x)

    yield call
    for name, value in before.items():
        jax.config.update(name, value)
    public.reset_cache()


@pytest.fixture
def said(capfd):
    """said() -> what jaxlm has printed on stderr since; old versions of XLA say things, too."""
    return lambda: [line for line in capfd.readouterr().err.splitlines() if line.startswith("jaxlm")]


def entry(folder):
    (path,) = folder.glob("jit__lambda*-cache")
    return path


@pytest.mark.parametrize("part", ["program", "seal"])
def test_no_flipped_bit_of_a_compiled_program_goes_unnoticed(jit, tmp_path, part, said):
    """Without the seal more than half of them do."""
    x = jnp.arange(8.0)
    expected, path = jit(x), entry(tmp_path)
    rng = random.Random(0)
    assert said() == []
    for _ in range(4):
        size = path.stat().st_size  # of this entry: the same program compiled again may be some bytes shorter
        flip(
            path,
            rng.randrange(size - 9) if part == "program" else rng.randrange(size - 9, size),
            rng.randrange(8),
        )
        assert (jit(x) == expected).all()
        assert compile_cache.unsealed(path.read_bytes()) is not None  # mended
        assert said() == [f"jaxlm: note: {path} is damaged, or was not finished: compiled anew."]


def test_an_entry_that_a_killed_process_left_half_written_is_replaced(jit, tmp_path, said):
    x = jnp.arange(8.0)
    expected, path = jit(x), entry(tmp_path)
    content = path.read_bytes()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert (jit(x) == expected).all()
        assert compile_cache.unsealed(path.read_bytes()) is not None
    assert len(said()) == 4


def test_a_whole_entry_is_used(jit, tmp_path, said):
    x = jnp.arange(8.0)
    expected, path = jit(x), entry(tmp_path)
    written = path.stat().st_mtime_ns
    assert (jit(x) == expected).all()
    assert path.stat().st_mtime_ns == written
    assert said() == []
