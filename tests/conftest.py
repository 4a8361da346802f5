"""Every test runs on eight fake CPU devices, with strict shapes, its own cache and no network."""

import os

import fast_xla

# Read when JAX is first imported, also by child processes; so set here, before any test module is.
fast_xla.set_environment(num_devices=8)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import gc  # noqa: E402
import socket  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import slow  # noqa: E402

# A busy machine is slow, not wrong; and a failure should print the line that repeats it.
hypothesis.settings.register_profile("jaxlm", deadline=None, print_blob=True)
hypothesis.settings.load_profile("jaxlm")

# Tracing makes many objects that stay: with Python's own limits a tenth of the time of tests was looking through them.
gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--share", metavar="K/N", help="run the K-th (from 1) of N shares of the tests")


def pytest_collection_modifyitems(config, items):
    if share := config.getoption("--share"):
        inside = slow.in_share(share)
        config.hook.pytest_deselected(items=[item for item in items if not inside(item.nodeid)])
        items[:] = [item for item in items if inside(item.nodeid)]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Corpora, tokenizers and compiled programs that tests make stay out of the user's cache."""
    os.environ["JAXLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _local_only(connect):
    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"Tests must not use the network, and one connects to {address[0]}.")
        return connect(self, address)

    return guarded


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        yield


@pytest.fixture
def tpu_compiler(monkeypatch):
    """Lets the compiler of TPUs, where it is installed, run without a TPU, and beside another one."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@pytest.fixture
def tpu_devices(tpu_compiler):
    """tpu_devices("v5e:2x2") -> devices that programs can be compiled for."""
    from jaxlm import run_compile
    from jaxlm.plan import topology

    return lambda *named: run_compile.devices_of(topology.parse(*named))


@pytest.fixture
def jaxlm(capsys):
    """jaxlm("generate", "--prompt=a") -> (exit code, stdout, stderr)."""
    from jaxlm.cli import main as cli

    def call(*argv):
        code = cli.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call
