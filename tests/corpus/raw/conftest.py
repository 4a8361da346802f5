"""Fixtures of the tests of raw sources."""

import os
import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a socket fails."""

    def refuse(*args, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A build waits for the disk after every file, on a busy machine longer than it works; no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
