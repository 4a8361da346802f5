"""The promises of conftest.py, on which other tests rely."""

import os
import socket

import jax
import jax.numpy as jnp
import pytest


def test_tests_have_eight_cpu_devices():
    assert len(jax.devices("cpu")) == len(jax.devices()) == 8


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_is_refused_without_being_tried(connect):
    with socket.socket() as sock, pytest.raises(AssertionError, match="192.0.2.1"):
        getattr(sock, connect)(("192.0.2.1", 80))


def test_a_connection_within_this_machine_works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_the_cache_is_a_fresh_folder(tmp_path):
    assert os.environ["JAXLM_CACHE"].startswith(str(tmp_path.parent))
