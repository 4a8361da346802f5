"""`python -m jaxlm` is `jaxlm`."""

import signal
import sys
import threading
from typing import Any


def start() -> int:
    """The command `jaxlm`. While it cannot say "interrupted" itself, Ctrl-C ends it as it ends any program.

    That is while its modules are imported, and while the interpreter goes: they would show a traceback.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jaxlm.cli import main

    signal.signal(signal.SIGINT, interrupt)
    _interrupt_again_where_lost()
    try:
        return main.start()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt_again_where_lost() -> None:
    """Ctrl-C in a `__del__` or a callback of the garbage collector (JAX has one) would be printed and forgotten."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            main = threading.main_thread().ident
            again = threading.Timer(0.01, signal.pthread_kill, [main, signal.SIGINT])
            again.start()  # not now, when it would be lost once more
        else:
            before(unraisable)

    sys.unraisablehook = hook


if __name__ == "__main__":
    sys.exit(start())
