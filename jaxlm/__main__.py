"""`python -m jaxlm` is `jaxlm`."""

import sys

from jaxlm.cli.main import start

sys.exit(start())
