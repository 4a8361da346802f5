"""Makes what the tests of the project share importable here, and has programs compiled as they do."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fast_xla  # noqa: E402

fast_xla.set_environment(num_devices=1)
# Tests run in as many processes as there are cores. torch's threads, as many in each, would wait for each other: on
# two cores eight minutes instead of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
