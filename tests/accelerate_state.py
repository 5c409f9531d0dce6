"""Accelerate's state made fresh, for tests that open several runs in one process."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def fresh_accelerate_state() -> Iterator[Callable[[], None]]:
    """Runs in one process would share Accelerate's singletons; and a run takes the signals over.

    Yields a function that resets the state between two runs; it is reset at the beginning and at the end, where
    the handlers of signals are put back too.
    """
    from accelerate.state import AcceleratorState, GradientState

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()
    for number, handler in handlers.items():
        signal.signal(number, handler)
