"""Many videos: worker processes decode, compute flow and send clips; this process owns the devices and the networks.

Each video's clips are batched by themselves, so features do not depend on how many workers there are. A worker that
dies (a file may crash a decoder) costs its video only.
"""

import math
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, cast

from wsal_jax.types import InputError
from wsal_jax.video.extractor import Extractor
from wsal_jax.video.features import Batch, Gather, Options, Run, prepare


class Failure(NamedTuple):
    """Why there are no features of a video."""

    reason: str


def reason(error: Exception) -> str:
    """An error as one line; with its type where it is none that was foreseen."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _work(connection: Connection, extractor: Extractor, options: Options) -> None:
    """A worker: receives paths, sends what `prepare` yields, or a Failure. Ends with the other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side ends it
    try:
        while (path := connection.recv()) is not None:
            try:
                for message in prepare(path, extractor, options):
                    connection.send(message)
            except (BrokenPipeError, ConnectionError):
                return
            except Exception as error:
                connection.send(Failure(reason(error)))
    except (EOFError, OSError):
        return


class _Worker:
    """One worker process and the video that it is at."""

    def __init__(self, extractor: Extractor, options: Options):
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, extractor, options), daemon=True)
        self.process.start()
        other.close()
        self.free = True

    def begin(self, path: Path, run: Run) -> None:
        """Sends it to a video."""
        self.path, self.gather, self.started, self.free = path, Gather(run), time.monotonic(), False
        self.connection.send(path)

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def extract_all(
    paths: list[Path], extractor: Extractor, options: Options, run: Run, workers: int
) -> Iterator[tuple[Path, tuple[dict[str, Any], dict[str, Any]] | Failure, float]]:
    """Of each video, in the order in which they finish: (features, sidecar) or a Failure; and the seconds it took.

    Tells on stderr how far each is.
    """
    waiting, progress = deque(paths), _Progress()
    busy: dict[Connection, _Worker] = {}
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker(extractor, options)
                worker.begin(waiting.popleft(), run)
                busy[worker.connection] = worker
            for connection in cast(list[Connection], wait(list(busy))):
                result = _receive(busy[connection], progress)
                if result is None:
                    continue
                worker = busy.pop(connection)
                if worker.free:
                    idle.append(worker)
                else:
                    worker.stop()
                progress.clear()
                yield worker.path, result, time.monotonic() - worker.started
    finally:
        for worker in (*busy.values(), *idle):
            worker.stop()


def _receive(worker: _Worker, progress: "_Progress") -> tuple[dict[str, Any], dict[str, Any]] | Failure | None:
    """Takes one message of a worker; the result of its video, if that is the end of it."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return Failure(f"{worker.path}: reading it ended a process with exit code {worker.process.exitcode}")
    try:
        if isinstance(message, Batch):
            worker.gather.add(message)
            progress.tell(worker.path.name, message, time.monotonic() - worker.started)
            return None
        worker.free = True
        return message if isinstance(message, Failure) else worker.gather.finish(message, worker.path)
    except Exception as error:
        return Failure(reason(error))


class _Progress:
    """One line on stderr: on a terminal rewritten every second, elsewhere a new one every minute."""

    def __init__(self):
        self._terminal, self._last = sys.stderr.isatty(), time.monotonic()

    def tell(self, name: str, batch: Batch, seconds: float) -> None:
        """How far a video is: frames, their rate, and the time left."""
        if time.monotonic() - self._last < (1 if self._terminal else 60):
            return
        self._last = time.monotonic()
        rate = batch.frames / seconds
        expected = "?" if math.isnan(batch.expected) else f"{batch.expected:.0f}"
        left = "" if math.isnan(batch.expected) else f", {max(0, batch.expected - batch.frames) / rate:.0f} s left"
        line = f"{name}: {batch.frames} of {expected} frames, {rate:.1f} frames/s{left}"
        print(
            f"\r\033[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        """Makes room for a line that stays."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
