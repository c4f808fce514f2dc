"""SIGTERM and SIGINT: a preempted run saves its state, then exits with the usual status 143 or 130."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the run to end. Like KeyboardInterrupt, it is not an Exception, so error handlers do not catch
    it."""

    def __init__(self, number: int, where: str = "", together: bool = False):
        """`together`: whether all processes of the run end by it."""
        super().__init__(f"stopped by {signal.Signals(number).name}{where}: the same command continues the run")
        self.status, self.together = 128 + number, together


@contextmanager
def _handled(handler: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)  # None: set by C code


@contextmanager
def raised() -> Iterator[None]:
    """Context in which a signal raises `Stopped` at once."""

    def stop(number, frame):
        raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Context in which a signal is only recorded; a second SIGINT raises `Stopped` at once.

    Yields a function that returns the number of a signal that this or another process has received, or 0. With several
    processes (`jax.distributed`) all must call it equally often; all get the same answer.
    """
    got = []

    def note(number, frame):
        if number == signal.SIGINT in got:
            raise Stopped(number)
        got.append(number)

    def agreed() -> int:
        mine = got[0] if got else 0
        if jax.process_count() == 1:
            return mine
        return int(multihost_utils.process_allgather(np.int32(mine)).max())

    with _handled(note):
        yield agreed
