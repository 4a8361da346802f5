"""A signal ends a run after a whole step, which is saved; a second signal does not wait."""

import os
import signal

import pytest

from jaxlm.train import hooks
from jaxlm.train.hooks import StopOnSignal, Stopped


@pytest.fixture
def saved():
    return []


@pytest.fixture
def stop(saved):
    return StopOnSignal(num_steps=9)


@pytest.fixture
def hook(stop, saved):
    return stop.after(lambda step, state, scores: saved.append((step, state)), None)


def test_without_a_signal_nothing_happens(stop, hook, saved):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop:
        hook(1, "state", {})
    assert saved == []
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_step_is_finished_and_saved(stop, hook, saved, number):
    with stop:
        os.kill(os.getpid(), number)
        assert saved == []
        with pytest.raises(Stopped, match=f"{number.name} after step 3, which is saved") as raised:
            hook(3, "state", {})
    assert raised.value.signal == number
    assert saved == [(3, "state")]


def test_the_last_step_needs_no_stop(stop, hook, saved):
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        hook(9, "state", {})
    assert saved == []


def test_a_sigterm_that_comes_twice_at_once_is_one(stop, hook, saved, monkeypatch):
    """Slurm and systemd tell every process of a job, and its supervisor passes it on besides."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            hook(3, "state", {})
        assert (saved, ended) == ([(3, "state")], [])
        monkeypatch.setattr(hooks, "SAME_SIGNAL_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [True]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_second_ctrl_c_interrupts_at_once(stop):
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
