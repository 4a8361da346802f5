"""Makes what the tests of the project share importable here, and has programs compiled as they do."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fast_xla import xla_flags  # noqa: E402

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{xla_flags(1)} {os.environ.get('XLA_FLAGS', '')}".strip()
# Tests run in as many processes as there are cores. torch's threads, as many in each, would wait for each other: on
# two cores eight minutes instead of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
