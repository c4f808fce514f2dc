"""The launchers for Cloud TPU and Slurm, with stand-ins for `gcloud`, `srun` and `scontrol` that record their calls."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"

RECORD = """#!/bin/bash
{ printf '%s\\x1f' "${0##*/}" "$@"; printf '\\x1e'; } >>"$STAND_IN/calls"
"""

GCLOUD = """
# `state` is that of the queued resource. A run takes a line of `plan`: its status, and the state after it.
cd "$STAND_IN"
case "$*" in
  *'queued-resources create'*) if [ -e refused ]; then exit 1; fi; echo "${QUEUED:-WAITING_FOR_RESOURCES}" >state ;;
  *'queued-resources delete'*) if [ -n "$OFFLINE" ]; then exit 1; fi; rm state ;;
  *'queued-resources describe'*)
    if ! [ -e state ]; then echo "ERROR: (gcloud) ${OFFLINE:-NOT_FOUND: Resource was not found}" >&2; exit 1; fi
    cat state
    if [ "$(cat state)" = WAITING_FOR_RESOURCES ]; then echo ACTIVE >state; fi ;;
  *wsal_jax.main*)
    read -r status state <plan
    sed -i 1d plan
    if [ "$status" = hang ]; then echo hanging; sleep 60; fi
    if [ "$state" = GONE ]; then rm state; else echo "$state" >state; fi
    exit "$status" ;;
esac
"""

SRUN = """
trap 'kill "$!"; touch "$STAND_IN/saved"; exit 143' TERM
read -r status <"$STAND_IN/plan"
echo "$JAX_PLATFORMS $SRUN_CPUS_PER_TASK"
if [ "$status" = wait ]; then sleep 60 & wait; fi
exit "$status"
"""

SCONTROL = """
if [ "$1" = show ]; then echo "JobId=$3 JobName=wsal_jax"; echo "   JobState=${STATE:-RUNNING} Reason=None"; fi
"""


@pytest.fixture
def stand_in(tmp_path):
    """A folder with stand-ins, and the environment that has them first on its PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"gcloud": GCLOUD, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(RECORD + text)
        (folder / name).chmod(0o755)
    (folder / "git").symlink_to("/bin/true")  # the checkout may belong to another user
    slurm = {name for name in os.environ if name.startswith(("SLURM", "SRUN", "JAX_PLATFORMS"))}
    environment = {name: value for name, value in os.environ.items() if name not in slurm}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "STAND_IN": str(tmp_path), "PAUSE": "0"}
    return tmp_path, environment


def run(stand_in, script, *arguments, **environment):
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env=stand_in[1] | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(stand_in, *words):
    """The recorded calls that have all these words in them, as lists of arguments."""
    path = stand_in[0] / "calls"
    found = [call.split("\x1f")[:-1] for call in path.read_text().split("\x1e")[:-1]] if path.exists() else []
    return [call for call in found if all(word in " ".join(call) for word in words)]


SPOT = ("tpu_spot.sh", "my-run", "us-west4-a", "v5litepod-16", "v2-alpha-tpuv5-lite", "--config=configs/maan.py")


def test_a_spot_machine_is_replaced_until_the_run_is_done(stand_in):
    """Told to stop; a host has vanished and another says so; all have; even their request has; no connection; done."""
    plan = ["143 ACTIVE", "1 SUSPENDING", "255 SUSPENDED", "255 GONE", "75 ACTIVE", "0 ACTIVE"]
    (stand_in[0] / "plan").write_text("\n".join([*plan, ""]))
    done = run(stand_in, *SPOT, "--workdir=/mnt/a run", SETUP="mount /mnt")
    assert done.returncode == 0, done.stderr
    kinds = {"create": "c", "delete": "d", "scp": "s", "wsal_jax.main": "r"}
    order = [letter for call in calls(stand_in) for word, letter in kinds.items() if word in " ".join(call)]
    assert "".join(order) == "csrd" * 6
    assert not (stand_in[0] / "state").exists()
    create = calls(stand_in, "create")[0]
    assert create[:7] == "gcloud compute tpus queued-resources create my-run --zone=us-west4-a".split()
    machine = {"--node-id=my-run", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"}
    assert machine | {"--spot"} <= set(create)
    hosts = calls(stand_in, "tpu-vm", "my-run")
    assert len(hosts) == 4 * 6 and all("--worker=all" in call for call in hosts)
    setups = [call[-1] for call in calls(stand_in, "mount /mnt")]  # what has vanished holds no lock any more
    assert setups == ["--command=mount /mnt", *["--command={ mount /mnt; } && rm -f /mnt/a\\ run/lock"] * 5]


def test_a_machine_that_cannot_be_deleted_is_told(stand_in):
    (stand_in[0] / "plan").write_text("0 ACTIVE\n")
    done = run(stand_in, *SPOT, "--workdir=/mnt/run", OFFLINE="no network")
    assert done.returncode == 0 and "was not deleted and may cost money" in done.stderr
    assert len(calls(stand_in, "delete")) == 5


@pytest.mark.parametrize("status", ["1", "255"])
def test_a_failure_on_machines_that_are_there_stops(stand_in, status):
    (stand_in[0] / "plan").write_text(f"{status} ACTIVE\n0 ACTIVE\n")
    done = run(stand_in, *SPOT, "--workdir=/mnt/run")
    assert done.returncode == int(status) and f"failed with status {status}" in done.stderr
    assert len(calls(stand_in, "create")) == len(calls(stand_in, "delete")) == 1


def test_a_request_that_is_refused_stops_and_leaves_nothing(stand_in):
    done = run(stand_in, *SPOT, "--workdir=/mnt/run", QUEUED="FAILED")
    assert done.returncode == 1 and "was refused" in done.stderr
    assert len(calls(stand_in, "delete")) == 1 and not calls(stand_in, "ssh")
    (stand_in[0] / "refused").touch()
    done = run(stand_in, *SPOT, "--workdir=/mnt/run")
    assert done.returncode == 1 and len(calls(stand_in, "delete")) == 1  # nothing was made that could be deleted


def test_a_name_that_is_there_is_left_alone(stand_in):
    (stand_in[0] / "state").write_text("ACTIVE\n")
    done = run(stand_in, *SPOT, "--workdir=/mnt/run")
    assert done.returncode == 1 and "there already" in done.stderr
    assert len(calls(stand_in)) == len(calls(stand_in, "describe")) == 1


# A shell that starts the tests in the background lets them inherit that SIGINT is ignored; this undoes it.
HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_told_to_stop_deletes_the_machine(stand_in, number):
    (stand_in[0] / "plan").write_text("hang ACTIVE\n")
    command = [sys.executable, "-c", HEEDING, LAUNCH / SPOT[0], *SPOT[1:], "--workdir=/mnt/run"]
    with subprocess.Popen(command, env=stand_in[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "hanging\n"
        job.send_signal(number)
        job.communicate(timeout=30)
    assert job.returncode == 128 + number
    assert len(calls(stand_in, "delete")) == 1 and not (stand_in[0] / "state").exists()


def test_a_command_that_gcloud_starts_anew_does_not_run_twice(stand_in):
    """Runs what a host would run. The options arrive as they were given."""
    folder = stand_in[0]
    (folder / "plan").write_text("0 ACTIVE\n")
    run(stand_in, "tpu_vm.sh", "my-run", "us-west4-a", "--config=configs/maan.py", "--workdir=/mnt/it's a run")
    command = calls(stand_in, "wsal_jax.main")[0][-1].removeprefix("--command=")
    python = folder / "home/wsal_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    first, second = (
        subprocess.run(["bash", "-c", command], cwd=folder / "home", capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    flags = ["--distributed", "--config=configs/maan.py", "--workdir=/mnt/it's a run"]
    assert first.stdout.splitlines() == ["-m", "wsal_jax.main", *flags]
    assert second.returncode == 75 and not second.stdout


@pytest.fixture
def job(stand_in):
    """What Slurm sets, in a checkout that is installed."""
    python = stand_in[0] / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    stand_in[1].update(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(stand_in[0] / "checkout"))
    return stand_in


FLAGS = ("--config=configs/maan.py", "--workdir=run")


def test_a_job_goes_back_into_the_queue_until_it_is_done(job):
    """Two interruptions, then the end; on the way, a lock is left by a node that died."""
    lock = job[0] / "checkout/run/lock"
    lock.parent.mkdir()
    lock.touch()
    for count, status in enumerate((143, 143, 0)):
        (job[0] / "plan").write_text(f"{status}\n")
        done = run(job, "slurm.sh", *FLAGS, SLURM_RESTART_COUNT=str(count), SLURM_CPUS_PER_TASK="8")
        assert done.returncode == 0, done.stderr
        assert lock.exists() == (count == 0)
        assert len(calls(job, "scontrol requeue 7")) == min(count + 1, 2)
        assert done.stdout == "cuda 8\n"
    command = ["srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-m", "wsal_jax.main", *FLAGS]
    assert calls(job, "srun") == [command] * 3


def test_a_job_that_fails_or_is_cancelled_does_not_come_back(job):
    (job[0] / "plan").write_text("1\n")
    assert run(job, "slurm.sh", *FLAGS).returncode == 1
    (job[0] / "plan").write_text("143\n")
    assert run(job, "slurm.sh", *FLAGS, STATE="CANCELLED").returncode == 143
    assert not calls(job, "requeue")


@pytest.mark.parametrize("several", [{"SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2"}, {"SLURM_JOB_NUM_NODES": "2"}])
def test_several_tasks_join(job, several):
    (job[0] / "plan").write_text("0\n")
    assert run(job, "slurm.sh", *FLAGS, **several).returncode == 0
    assert calls(job, "wsal_jax.main --distributed --config")


def test_a_preempted_job_outlives_its_tasks(job):
    """Slurm sends SIGTERM to the script and to its tasks."""
    (job[0] / "plan").write_text("wait\n")
    with subprocess.Popen(
        [LAUNCH / "slurm.sh", *FLAGS], env=job[1], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as script:
        assert script.stdout.readline()
        os.killpg(script.pid, signal.SIGTERM)
        script.communicate(timeout=30)
    assert script.returncode == 0
    assert (job[0] / "saved").exists() and calls(job, "scontrol requeue 7")


@pytest.mark.parametrize(
    "command",
    [
        ["tpu_spot.sh"],
        ["tpu_spot.sh", "my-run", "us-west4-a", "--config=configs/maan.py", "--workdir=/mnt/run"],
        [*SPOT, "--workdir=relative"],
        ["tpu_vm.sh", "my-run", "--config=configs/maan.py", "--workdir=/mnt/run"],
        ["slurm.sh", *FLAGS],
        ["gpu.sh"],
        ["local_processes.sh", "--config=configs/maan.py"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_wrong_arguments_give_the_usage(stand_in, command):
    done = run(stand_in, *command)
    assert done.returncode == 2 and "usage: " in done.stderr
    assert not calls(stand_in)
