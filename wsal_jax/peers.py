"""Several processes (`jax.distributed`): they agree before they train, and none waits for ever for another.

They tell each other by the key-value store of JAX's coordination service, which process 0 runs: what they were started
with, that they live, and that they have failed. A thread of each process looks there every second or so, for the main
thread may be waiting for a peer that never comes. It knows three ends: a peer says that it has failed, a peer has not
been heard of for `timeout` seconds, process 0 is gone. (Of the last, JAX's own threads may tell first; they abort the
process too.)
"""

import hashlib
import importlib.metadata
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from wsal_jax.types import InputError, some

PERIOD = 1.0
"""Seconds between two looks; more with many processes."""
PREFIX = "wsal_jax"
DAY = 86_400_000
"""Milliseconds to wait for a living peer, which may have data to build; the watch ends the wait for a dead one."""


def code() -> dict[str, str]:
    """What must be equal where the versions of packages are: this package's own files, and those of JAX."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return {"wsal_jax's files": digest, "jaxlib": importlib.metadata.version("jaxlib")}


def agree(what: str, mine: dict[str, Any]) -> None:
    """Makes sure that all processes have the same values; at once if there is only one process.

    Raises:
      InputError: another process has other values; says which process, and what differs.
    """
    if jax.process_count() == 1:
        return
    client, me = _client(), jax.process_index()
    mine = json.loads(json.dumps(mine))
    client.key_value_set(f"{PREFIX}/agree/{what}/{me}", json.dumps(mine))
    for other in range(jax.process_count()):
        theirs = json.loads(client.blocking_key_value_get(f"{PREFIX}/agree/{what}/{other}", DAY))
        names = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
        if names:
            differ = some((f"{name}: {theirs.get(name)} there, {mine.get(name)} here" for name in names), 5, "; ")
            raise InputError(f"process {other} has other {what} than this process, {me} ({differ}): start all alike")


@contextmanager
def joined(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    timeout: float,
    told: Callable[[BaseException], int],
) -> Iterator[None]:
    """Context of a process among others. An error in it, or in another process, ends this process at once.

    Args:
      coordinator: host:port of process 0; None, as the next two, where the cluster knows.
      processes: how many there are.
      process: which this is.
      timeout: seconds to wait for all to start, and for a sign of life of any of them.
      told: tells the user of an error of this process; returns the exit status.

    Raises:
      BaseException: an error with an attribute `together` that is true: all processes end by it.
    """
    _initialize(coordinator, processes, process, timeout)
    over = threading.Event()
    watch = _Watch(_client(), jax.process_index(), jax.process_count(), timeout, over)
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        yield
        watch.end_together()
    except BaseException as error:
        if getattr(error, "together", False):
            raise
        watch.fail(error, told)
    finally:
        over.set()


def _client() -> Any:
    from jax._src import distributed  # JAX has no public access to its store

    return distributed.global_state.client


def _initialize(coordinator: str | None, processes: int | None, process: int | None, timeout: float) -> None:
    """`jax.distributed.initialize`, which would abort without naming anybody if a process never starts."""
    arrived = threading.Event()

    def wait() -> None:
        if arrived.wait(timeout):
            return
        if not process or _answers(coordinator):
            others = "process 1" if processes == 2 and process == 0 else "one of the other processes"
        else:
            others = "process 0"
        leave(f"{others} has not come to {coordinator or 'the coordinator'} within {timeout:.0f} s")

    threading.Thread(target=wait, daemon=True).start()
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=int(timeout) + 60,
        heartbeat_timeout_seconds=int(timeout) + 60,  # after ours, which names the process
        shutdown_timeout_seconds=60,
    )
    arrived.set()


def _answers(address: str | None) -> bool:
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except (OSError, ValueError):
        return False
    return True


def leave(why: str, status: int = 1) -> None:
    """Ends the process from any thread, whatever the main one waits for."""
    print(f"error: {why}: this process ends too; the same command continues the run", file=sys.stderr, flush=True)
    os._exit(status)


class _Watch:
    """What the thread of `joined` shares with the main thread."""

    def __init__(self, client: Any, me: int, count: int, timeout: float, over: threading.Event):
        self.client, self.me, self.timeout, self.over = client, me, timeout, over
        self.period = max(PERIOD, count / 32)
        self.heard = {i: ("", time.monotonic()) for i in range(count) if i != me}
        """The last sign of life of each other process, and when it came."""

    def run(self) -> None:
        beat = 0
        while not self.over.wait(self.period):
            beat += 1
            try:
                self.client.key_value_set(f"{PREFIX}/beat/{self.me}", str(beat), allow_overwrite=True)
                found = dict(self.client.key_value_dir_get(f"{PREFIX}/"))
            except Exception as error:  # of gRPC
                if not self.over.is_set():
                    leave(f"process 0, which coordinates the others, does not answer ({error!r:.200})")
                return
            now = time.monotonic()
            for other, (last, when) in self.heard.items():
                sign = found.get(f"{PREFIX}/beat/{other}", "")
                if sign != last:
                    self.heard[other] = sign, now
                if self.over.is_set() or f"{PREFIX}/end/{other}" in found:
                    continue
                if text := found.get(f"{PREFIX}/failed/{other}"):
                    leave(f"process {other} has ended ({text})")
                if sign == last and now - when > self.timeout:
                    leave(f"process {other} has not been heard of for {now - when:.0f} s")

    def silent(self, seconds: float) -> list[int]:
        """The others that have not been heard of for so long."""
        return [i for i, (_, when) in self.heard.items() if time.monotonic() - when > seconds]

    def end_together(self) -> None:
        """Waits until process 0 is at its end, too, which may evaluate longer than JAX's own end waits."""
        self.client.key_value_set(f"{PREFIX}/end/{self.me}", "1", allow_overwrite=True)
        self.client.blocking_key_value_get(f"{PREFIX}/end/0", DAY)

    def fail(self, error: BaseException, told: Callable[[BaseException], int]) -> None:
        """Tells the user and the other processes of an error, and ends the process."""
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and not isinstance(error, InputError):
            time.sleep(
                6 * self.period
            )  # a peer that broke off is silent, or says why: then the watch ends this process
            if lost := self.silent(4 * self.period):
                leave(f"process {lost[0]} does not answer any more ({error!r:.200})")
        status = told(error)
        self.over.set()
        try:
            self.client.key_value_set(f"{PREFIX}/failed/{self.me}", str(error)[:2000], allow_overwrite=True)
            time.sleep(3 * self.period)  # process 0 runs the store that the others read this in
        except Exception:  # process 0 is gone as well
            pass
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
