"""What the fuzz tests share: values that nobody expects, damage to good files, and the promise that is tested.

The promise: a reader returns, or raises UserError (or what it documents), in bounded time and memory. CI runs the same
examples every time; JAXLM_FUZZ=20 runs 20 times as many, other ones each time (`make fuzz`).
"""

import contextlib
import copy
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jaxlm.types import UserError

SCALE = int(os.environ.get("JAXLM_FUZZ", "1"))
MAX_MESSAGE_CHARS = 20_000
NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "",
    ".",
    "\0",
    "\x1b[2J",
    "a" * 5000,
    "gs://b/c",
    "x\\y",
    "\ud800",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [2**31, 2**63, -(2**63), 10**30, 10**300, -1, 0.5, 1e308, -1e308, float("nan"), float("inf")]
    ),
    st.sampled_from(NAMES),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
"""Values of JSON, hostile ones often."""


def fuzz(examples, **options):
    """How many examples a property sees; the same ones in CI."""
    return settings(
        max_examples=examples * SCALE,
        derandomize=SCALE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def places(value, path=()):
    """The path of every value inside."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value, path, new):
    """A copy with another value at a path; `...` takes it away."""
    if not path:
        return new
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if new is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return value


@st.composite
def damaged_json(draw, base):
    """A good value of JSON with one to three places changed, doubled or gone."""
    value = base
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        new = draw(st.one_of(VALUES, st.just(...)))
        value = changed(value, path, None if new is ... and not path else new)
    return value


@st.composite
def damaged_bytes(draw, base):
    """Good bytes, cut short, with bytes changed, put in or doubled."""
    content = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(["cut", "change", "insert", "double"]))
        if how == "cut":
            del content[place:]
        elif how == "change" and place < len(content):
            content[place] = draw(st.integers(0, 255))
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        else:
            content[place:place] = content[place : place + draw(st.integers(0, 40))]
    return bytes(content)


def dumps(value):
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


@contextlib.contextmanager
def refused(*also):
    """Nothing leaves the block but a UserError, in a message of bounded length, and these."""
    try:
        yield
    except UserError as error:
        if len(str(error)) > MAX_MESSAGE_CHARS:
            raise AssertionError(
                f"a message of {len(str(error)):,} characters: {str(error)[:500]}"
            ) from error
    except also:
        pass


def child(code, *, memory_mb=1500, seconds=60, cwd=None):
    """Runs code in a process with limits; returns (exit code, output). It has `Path`, `UserError` and this module."""

    head = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({memory_mb} << 20, {memory_mb} << 20))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from pathlib import Path
from jaxlm.types import UserError
from hostile import *
"""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests"), str(Path(__file__).parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=seconds, cwd=cwd, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def damaged_files_crash_nothing(kind, count, folder, *, memory_mb):
    """`native.read_damaged_<kind>` reads or refuses `count` damaged files of its kind.

    In a process of its own, which tells how far it came: a crash there is a failure here.
    """
    code, output = child(
        f"""
        import random
        from native import read_damaged_{kind}
        for seed in range({SCALE * count}):
            print("seed", seed, flush=True)
            with refused():
                read_damaged_{kind}(Path({str(folder)!r}), random.Random(seed))
        """,
        memory_mb=memory_mb, seconds=60 * SCALE,
    )  # fmt: skip
    assert code == 0, output[-3000:]


def random_damage(rng: random.Random, base: bytes) -> bytes:
    """As `damaged_bytes`, for processes that may crash."""
    content = bytearray(base)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(content) + 1)
        how = rng.randrange(4)
        if how == 0 and rng.random() < 0.3:
            del content[place:]
        elif how == 1:
            content[place:place] = content[place : place + rng.randrange(40)]
        elif how == 2:
            content[place : place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        elif place < len(content):
            content[place] = rng.randrange(256)
    return bytes(content)
