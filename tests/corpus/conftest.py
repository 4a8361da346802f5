"""Fixtures of the tests of this folder."""

import pytest
from corpora import write_raw

from jaxlm.corpus import build, inputs


@pytest.fixture
def small_units(monkeypatch):
    """Cuts every input into units of a few kilobytes."""
    monkeypatch.setattr(build, "plan_units", lambda files, options: inputs.plan_units(files, options, 20_000))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"))
