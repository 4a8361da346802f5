"""`python -m jaxlm` is `jaxlm`."""

import signal
import sys


def start() -> int:
    """The command `jaxlm`. While it cannot say "interrupted" itself, Ctrl-C ends it as it ends any program.

    That is while its modules are imported, and while the interpreter goes: they would show a traceback.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jaxlm.cli import main

    signal.signal(signal.SIGINT, interrupt)
    try:
        return main.start()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(start())
