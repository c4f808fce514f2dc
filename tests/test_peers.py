"""Several processes: none trains with another that was started differently, and none waits for ever."""

import re
import socket
import subprocess
import sys
import time

import pytest

from wsal_jax import peers
from wsal_jax.types import InputError

SCRIPT = """
import os, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
from wsal_jax import peers
from wsal_jax.types import InputError

def told(error):
    print("told:", error, file=sys.stderr)
    return 7

address, me, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
initialize = peers._initialize
if mode != "alone":  # a busy machine may start one long before the other
    peers._initialize = lambda *args: initialize(*args[:-1], 100.0)
with peers.joined(address, 2, me, 4.0 if mode in ("alone", "killed 1") else 100.0, told):
    print("joined", flush=True)
    if mode == "differ":
        peers.agree("options", {"seed": 0, "rate": me / 10})
    elif mode == "error" and me == 0:
        raise InputError("this file is wrong")
    elif mode == f"killed {me}":
        os.kill(os.getpid(), 9)
    elif mode == "late" and me == 0:
        time.sleep(2)
    if mode != "late":
        peers.agree("data", {"digest": "x"})
print("done", flush=True)
"""


def start(mode, processes=(0, 1)):
    """What each process says and its status, in a second or so of the other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SCRIPT, address]
    runs = [
        subprocess.Popen([*command, str(i), mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in processes
    ]
    try:
        texts = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [(run.returncode, out, errors) for run, (out, errors) in zip(runs, texts)]


def test_alike_processes_end_together():
    """The first has more to do, and the others wait for it."""
    for status, out, errors in start("late"):
        assert status == 0 and out == "joined\ndone\n", errors


def test_other_options_are_refused_on_both_sides():
    (first, _, a), (second, _, b) = start("differ")
    assert {first, second} <= {1, 7} and 7 in (first, second)
    told = {
        7: r"process (\d) has other options than this process, (\d) \(rate: 0.\d there, 0.\d here\): start all alike",
        1: r"process (\d) has ended \(process (\d) has other options",  # the other was faster
    }
    for status, text in ((first, a), (second, b)):
        assert {*re.search(told[status], text).groups()} == {"0", "1"} and "seed" not in text


def test_an_error_of_one_ends_the_other():
    begun = time.monotonic()
    (first, _, a), (second, _, b) = start("error")
    assert first == 7 and "told: this file is wrong" in a
    assert second == 1 and "process 0 has ended (this file is wrong): this process ends too" in b
    assert time.monotonic() - begun < 60  # JAX alone waits for 300 s


@pytest.mark.parametrize("gone", [0, 1])
def test_a_killed_process_ends_the_other(gone):
    results = start(f"killed {gone}")
    assert results[gone][0] == -9
    status, out, errors = results[1 - gone]
    assert status in (1, -6) and "done" not in out
    # of process 0, which runs the store, JAX may tell first
    assert f"process {gone} " in errors or (gone == 0 and "leader" in errors)


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_starts_is_named(there):
    ((status, out, errors),) = start("alone", (there,))
    assert status == 1 and out == "" and f"process {1 - there} has not come to localhost:" in errors


def test_a_single_process_agrees_with_itself():
    peers.agree("options", {"a": object()})  # which is not even looked at


def test_our_files_have_one_digest():
    assert peers.code() == peers.code() and InputError.__module__.startswith("wsal_jax")
