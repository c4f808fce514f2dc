"""Takes out one guard against a fault at a time, and runs the tests that inject the fault, which should fail.

    python tests/guards.py                      all, about a quarter of an hour on two cores
    python tests/guards.py --only "full disk"   those whose fault has these words

The faults are the rows of the table in docs/reliability.md. A test that does not end without its guard counts as
failed. Only a copy of the checkout is changed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.mutate import copy_checkout

TIMEOUT = 150
"""Seconds for the tests of a guard, which take up to 70 with it."""


class Guard(NamedTuple):
    """A place of the code that stands between a fault and its harm."""

    fault: str
    """Of the table."""
    file: str
    old: str
    """Is there once."""
    new: str
    """The code without the guard."""
    tests: str


GUARDS = (
    Guard(
        "SIGTERM, Ctrl-C to one process, alone or of two",
        "wsal_jax/train.py",
        "if signal or steps.stop in saves or steps.stop == total:",
        "if steps.stop in saves or steps.stop == total:",
        "tests/test_train.py::test_a_signal_ends_training_after_the_dispatch_with_all_saved",
    ),
    Guard(
        "SIGTERM, Ctrl-C to one process, alone or of two",
        "wsal_jax/signals.py",
        "return int(multihost_utils.process_allgather(np.int32(mine)).max())",
        "return mine",
        "tests/test_launch.py::test_two_processes_equal_one_and_stop_together",
    ),
    Guard(
        "SIGKILL during a save",
        "wsal_jax/checkpoint.py",
        'directory.glob("*.orbax-checkpoint-tmp*")',
        "()",
        "tests/test_checkpoint.py::test_half_written",
    ),
    Guard(
        "SIGKILL during the building of data",
        "wsal_jax/data/builder.py",
        "                    shutil.rmtree(left)",
        "                    pass",
        "tests/test_store.py::test_a_killed_build_is_not_taken_for_whole",
    ),
    Guard(
        "every file of a checkpoint: a flipped bit, half of it, empty, missing",
        "wsal_jax/checkpoint.py",
        "if _describe(path, leaf) != check[path]]",
        "if False]",
        "tests/test_checkpoint.py::test_damage_to_any_file",
    ),
    Guard(
        "every file of a checkpoint: a flipped bit, half of it, empty, missing",
        "wsal_jax/train.py",
        "checkpoint.newest_whole(directory) or 0",
        "checkpoint.latest(directory) or 0",
        "tests/test_train.py::test_a_damaged_checkpoint_costs_the_steps_after_the_one_before",
    ),
    Guard(
        "all checkpoints damaged",
        "wsal_jax/checkpoint.py",
        "    if bad:\n        raise InputError(",
        "    if bad and False:\n        raise InputError(",
        "tests/test_checkpoint.py::test_where_all_are_damaged_nothing_changes",
    ),
    Guard(
        "brackets, stars, spaces in the path of `--workdir`",
        "wsal_jax/checkpoint.py",
        "use_ocdbt=False",
        "use_ocdbt=True",
        "tests/test_checkpoint.py::test_the_folder_may_have_any_name",
    ),
    Guard(
        "NaN in a loss or a gradient",
        "wsal_jax/train.py",
        "        if row.max() < config.patience:",
        "        if True:",
        "tests/test_train.py::test_training_stops_at_a_loss_or_gradient_that_is_not_finite",
    ),
    Guard(
        "NaN in a loss or a gradient",
        "wsal_jax/train.py",
        "if not np.isfinite(losses).all():  # rarely",
        "if False:  # rarely",
        "tests/test_train.py::test_a_step_that_is_not_finite_changes_nothing",
    ),
    Guard(
        "overflow of parameters, NaN in saved ones",
        "wsal_jax/train.py",
        "    if bad:\n        raise Diverged(",
        "    if False:\n        raise Diverged(",
        "tests/test_train.py::test_parameters_that_are_not_finite_are_neither_saved_nor_returned",
    ),
    Guard(
        "full disk or quota, at each kind of file",
        "wsal_jax/files.py",
        'aside = path.with_name(f"{path.name}.new")',
        "aside = path",
        "tests/test_full_disk.py::test_files_of_a_run_are_old_or_new",
    ),
    Guard(
        "full disk or quota, at each kind of file",
        "wsal_jax/main.py",
        "with writing(folder), lock(folder):",
        "with lock(folder):",
        "tests/test_full_disk.py::test_a_disk_that_is_full_during_training",
    ),
    Guard(
        "read-only folder",
        "wsal_jax/files.py",
        "errno.EROFS, errno.EACCES, errno.EPERM, ",
        "",
        "tests/test_full_disk.py::test_a_folder_without_the_right_to_write",
    ),
    Guard(
        "two runs in one folder; `config.resume=False` against a live one",
        "wsal_jax/workdir.py",
        "        except BlockingIOError:\n            free = False",
        "        except BlockingIOError:\n            free = True",
        "tests/test_workdir.py::test_two_runs_in_one_folder_are_refused",
    ),
    Guard(
        "the lock of a dead process",
        "wsal_jax/workdir.py",
        'if not free or holder.get("host", host) != host:',
        "if not free or holder:",
        "tests/test_workdir.py::test_the_lock_of_a_dead_process_is_taken_over_unless_it_may_live_elsewhere",
    ),
    Guard(
        "two that build the same data at once",
        "wsal_jax/data/builder.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX)\n",
        "",
        "tests/test_store.py::test_two_that_build_the_same_data_at_once",
    ),
    Guard(
        "data built anew while a run reads them",
        "wsal_jax/data/store.py",
        "if store.build and which_build(store.folder) != store.build:",
        "if False:",
        "tests/test_feature_folder.py::test_a_run_never_mixes_two_builds",
    ),
    Guard(
        "every file of built data: flipped bits, truncated, missing",
        "wsal_jax/data/store.py",
        'if (_crc32(features) != packed["crc32"]).any():',
        "if False:",
        "tests/test_store.py::test_a_damaged_file_is_named_whichever_it_is",
    ),
    Guard(
        "every file of built data: flipped bits, truncated, missing",
        "wsal_jax/data/store.py",
        "if not file.is_file() or _digest(file.read_bytes()) != digest:",
        "if not file.is_file():",
        "tests/test_store.py::test_a_damaged_file_is_named_whichever_it_is",
    ),
    Guard(
        "features replaced by others of the same size and time",
        "wsal_jax/data/builder.py",
        "stat.st_mtime_ns, _sample(path))",
        "stat.st_mtime_ns)",
        "tests/test_feature_folder.py::test_other_features_of_the_same_size_and_time_are_noticed",
    ),
    Guard(
        "two processes with other options, software or data",
        "wsal_jax/peers.py",
        "        if names:\n",
        "        if False:\n",
        "tests/test_peers.py::test_other_options_are_refused_on_both_sides",
    ),
    Guard(
        "an error of one process; one killed; one that never starts",
        "wsal_jax/peers.py",
        'if text := found.get(f"{PREFIX}/failed/{other}"):',
        'if (text := found.get(f"{PREFIX}/failed/{other}")) and False:',
        "tests/test_peers.py::test_an_error_of_one_ends_the_other",
    ),
    Guard(
        "an error of one process; one killed; one that never starts",
        "wsal_jax/peers.py",
        "if sign == last and now - when > self.timeout:",
        "if False:",
        "tests/test_peers.py::test_a_killed_process_ends_the_other",
    ),
    Guard(
        "an error of one process; one killed; one that never starts",
        "wsal_jax/peers.py",
        "        if arrived.wait(timeout):\n            return\n",
        "        return\n",
        "tests/test_peers.py::test_a_process_that_never_starts_is_named",
    ),
    Guard(
        "a spot machine or a Slurm job taken away, again and again",
        "launch/tpu_spot.sh",
        "for ((round = 1; ; round++)); do",
        "for ((round = 1; round < 2; round++)); do",
        "tests/test_launchers.py::test_a_spot_machine_is_replaced_until_the_run_is_done",
    ),
    Guard(
        "a spot machine or a Slurm job taken away, again and again",
        "launch/slurm.sh",
        '      scontrol requeue "$SLURM_JOB_ID"\n',
        "",
        "tests/test_launchers.py::test_a_job_goes_back_into_the_queue_until_it_is_done",
    ),
    Guard(
        "the connection to a TPU host breaks off",
        "launch/tpu_vm.sh",
        "{ mkdir $once || exit 75; }",
        "{ mkdir -p $once || exit 75; }",
        "tests/test_launchers.py::test_a_command_that_gcloud_starts_anew_does_not_run_twice",
    ),
    Guard(
        "SIGTERM or Ctrl-C to `launch/local_processes.sh`",
        "launch/local_processes.sh",
        '  kill "-$1" "${pids[@]}" 2>/dev/null || true\n',
        "",
        "tests/test_launch.py::test_the_launcher_passes_a_signal_on_and_waits",
    ),
    Guard(
        "SIGTERM or Ctrl-C to `launch/local_processes.sh`",
        "launch/local_processes.sh",
        'if [ -n "$signalled" ]; then tenths=0; fi',
        "",
        "tests/test_launch.py::test_the_launcher_passes_a_signal_on_and_waits",
    ),
    Guard(
        "options that are negative, NaN, too large, empty",
        "wsal_jax/options.py",
        "            if not low <= value <= high:",
        "            if False:",
        "tests/test_options.py::test_options_that_cannot_work_are_refused",
    ),
    Guard(
        "spoiled users' files of 44 kinds, 1,000 cases of each",
        "wsal_jax/formats/files.py",
        "    except Exception as error:  # a damaged file",
        "    except InputError as error:  # a damaged file",
        "tests/test_hostile.py::test_spoiled_files_are_read_or_named[array 0 .npy]",
    ),
    Guard(
        "a pipe or `/dev/zero` in place of each of these files",
        "wsal_jax/files.py",
        "    if not stat.S_ISREG(mode):\n",
        "    if False:\n",
        "tests/test_hostile.py::test_what_is_not_a_regular_file_is_not_waited_for[truth json]",
    ),
)


def without(guard: Guard, root: Path) -> str:
    """The file of a guard without it.

    Raises:
      ValueError: what is to be taken out is not there exactly once.
    """
    text = (root / guard.file).read_text(encoding="utf-8")
    if text.count(guard.old) != 1:
        raise ValueError(f"{guard.file} has {guard.old!r} {text.count(guard.old)} times: mend tests/guards.py")
    return text.replace(guard.old, guard.new)


def outcome(guard: Guard, copy: Path) -> str:
    """What the tests of a guard say without it: the last line of pytest, or that they did not end."""
    path = copy / guard.file
    original = path.read_text(encoding="utf-8")
    path.write_text(without(guard, copy), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", guard.tests]
    run = subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out = run.communicate(timeout=TIMEOUT)[0]
        return {0: "PASSED", 1: "failed"}.get(run.returncode, f"DID NOT RUN: {out[-500:]}")
    except subprocess.TimeoutExpired:
        return "failed (did not end)"
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        path.write_text(original, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of the fault")
    args = parser.parse_args()
    chosen = [guard for guard in GUARDS if args.only in guard.fault]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_checkout(Path(folder))
        for guard in chosen:
            said = outcome(guard, copy)
            failed += said.startswith("failed")
            print(f"{said}: {guard.fault} ({guard.file})", flush=True)
    print(f"{failed} of {len(chosen)} guards are missed by their tests")
    raise SystemExit(failed < len(chosen))


if __name__ == "__main__":
    main()
