"""The temporary memory of steps: kept where the process is a run's own, and in huge pages."""

import json
import os
import subprocess
import sys

import pytest
from small_run import small, write_squares

from jaxlm import run, step_memory
from jaxlm.cli import main as cli
from jaxlm.step_memory import CHOICE, TUNABLES, environment

ON_REQUEST = "always [madvise] never"


def test_the_tunable_is_added_to_what_the_user_has_set():
    assert environment({"A": "b"}, mode=ON_REQUEST, libc="glibc 2.36") == {
        "A": "b",
        TUNABLES: "glibc.malloc.hugetlb=1",
    }
    mine = {TUNABLES: "glibc.malloc.check=1"}
    assert environment(mine, mode=ON_REQUEST, libc="glibc 2.36") == {
        TUNABLES: "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    }


@pytest.mark.parametrize(
    ("env", "mode", "libc"),
    [
        ({TUNABLES: "glibc.malloc.hugetlb=0"}, ON_REQUEST, "glibc 2.36"),  # the user's choice
        ({}, "[always] madvise never", "glibc 2.36"),
        ({}, "always madvise [never]", "glibc 2.36"),
        ({}, ON_REQUEST, "glibc 2.31"),
        ({}, ON_REQUEST, "musl 1.2"),
        ({}, ON_REQUEST, ""),
    ],
)
def test_nothing_is_started_again_where_it_would_not_help(env, mode, libc):
    assert environment(env, mode=mode, libc=libc) is None


@pytest.fixture
def replaced(monkeypatch, tmp_path):
    """What the process would be replaced by."""
    calls = []
    (tmp_path / "enabled").write_text(ON_REQUEST)
    monkeypatch.setattr(step_memory, "_MODE", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxlm", "train", "--nope"])
    monkeypatch.setattr(sys, "argv", ["jaxlm", "train", "--nope"])
    for name in (TUNABLES, CHOICE):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return calls


def test_train_starts_again_with_its_own_command_line_once(replaced, monkeypatch, capsys):
    cli.start()
    [(program, argv, env)] = replaced
    assert program == sys.executable
    assert argv == ["python", "-m", "jaxlm", "train", "--nope"]
    assert env[CHOICE] == "keep"
    monkeypatch.setenv(TUNABLES, env[TUNABLES])
    assert cli.start() == 2
    assert len(replaced) == 1
    assert "Unknown flag --nope" in capsys.readouterr().err


def test_other_commands_and_kernels_without_huge_pages_go_on_as_they_are(
    replaced, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", ["jaxlm", "--version"])
    assert cli.start() == 0
    assert CHOICE not in os.environ
    monkeypatch.setattr(sys, "argv", ["jaxlm", "train", "--nope"])
    monkeypatch.setattr(step_memory, "_MODE", tmp_path / "none")
    assert cli.start() == 2
    assert not replaced


def test_the_users_choice_stays(replaced, monkeypatch):
    monkeypatch.setenv(CHOICE, "release")
    cli.start()
    [(_, _, env)] = replaced
    assert env[CHOICE] == "release"


class Libc:
    """Remembers what it is told, and does as it is told or not."""

    def __init__(self, answer=1):
        self.told, self.answer = {}, answer

    def mallopt(self, option, value):
        self.told[option] = value
        return self.answer


def test_memory_is_kept_only_where_that_is_chosen_and_possible(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    libc = Libc()
    monkeypatch.setenv(CHOICE, "release")
    assert not step_memory.keep(libc)
    monkeypatch.delenv(CHOICE)  # a process of somebody else's, which imports jaxlm
    assert not step_memory.keep(libc)
    monkeypatch.setenv(CHOICE, "keep")
    assert not step_memory.keep(Libc(answer=0))
    assert not step_memory.keep(object())  # musl
    assert not libc.told
    assert step_memory.keep(libc)
    # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of glibc's malloc.h
    assert libc.told == {-1: -1, -4: 0, -8: 1}
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not step_memory.keep(libc)


def test_threads_share_a_heap_where_there_are_only_cpus(monkeypatch):
    import importlib.util

    import jax

    changes = []
    monkeypatch.setattr(type(jax.config), "update", lambda self, *change: changes.append(change))
    monkeypatch.setattr(sys, "platform", "linux")
    libc = Libc()
    monkeypatch.setenv(CHOICE, "release")
    step_memory.before_devices(libc)
    assert not libc.told
    assert not changes
    monkeypatch.setenv(CHOICE, "keep")  # and $JAX_PLATFORMS is "cpu" in tests
    step_memory.before_devices(object())  # nor where nothing can be kept: steps are dispatched ahead there
    assert not changes
    step_memory.before_devices(libc)
    assert libc.told == {-8: 1}
    assert changes == [("jax_cpu_enable_async_dispatch", False)]
    assert step_memory.may_have_accelerators("tpu,cpu")
    for installed in (["libtpu"], ["jax_plugins"], []):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: name in found)
        assert step_memory.may_have_accelerators(None) == bool(installed)


def test_memory_is_not_kept_where_a_later_jax_has_no_steps_one_at_a_time(monkeypatch):
    import jax

    def unknown(self, *change):
        raise AttributeError("Unrecognized config option")

    monkeypatch.setattr(type(jax.config), "update", unknown)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(CHOICE, "keep")
    libc = Libc()
    step_memory.before_devices(libc)
    assert not step_memory.keep(libc)
    assert not libc.told


STEPS = """
import json, os, resource
import jax, jax.numpy as jnp
from jaxlm import step_memory
step_memory.before_devices()
x = jnp.ones((8192, 8)).block_until_ready()
step_memory.keep()
step_of = jax.jit(lambda x: (x @ x[:2048].T @ x[:2048]).sum())  # a table of 64 MiB: the C library keeps 32 by itself
at_once, faults = [], []
for step in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    out = step_of(x)
    at_once.append(out.is_ready())
    out.block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"faults": faults[20:], "at_once": all(at_once)}))
"""


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="memory is kept by the GNU C library")
def test_a_step_takes_no_new_memory_where_it_is_kept_and_does_where_it_is_not():
    def steps(choice):
        # Small pages, to count them; one device, as XLA runs several on threads of their own.
        one = {"XLA_FLAGS": "", CHOICE: choice, TUNABLES: "glibc.malloc.hugetlb=0"}
        done = subprocess.run(
            [sys.executable, "-c", STEPS], env=os.environ | one, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    kept, released = steps("keep"), steps("release")
    assert kept["at_once"]
    assert not released["at_once"]
    table = 14_000  # 64 MiB in pages of 4 KiB: 16,384
    assert min(released["faults"]) > table, released
    # Now and then something small is put where the table was, and the next one lies elsewhere: jax 0.12.
    few = [faults for faults in kept["faults"] if faults < table]
    assert len(few) >= 15, kept
    assert sum(few) < 1_000, kept


def test_a_run_goes_step_by_step_before_it_has_devices_and_keeps_memory_before_it_compiles(
    monkeypatch, tmp_path
):
    from jaxlm.parallel import distributed

    order = []

    def noted(name, call):
        def noting(*args, **kwargs):
            order.append(name)
            return call(*args, **kwargs)

        return noting

    for module, name in (
        (step_memory, "before_devices"), (distributed, "connect"), (step_memory, "keep"), (run, "start_state"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    run.train(small(write_squares(tmp_path / "text.txt")), tmp_path / "run")
    assert order == ["before_devices", "connect", "keep", "start_state"]
