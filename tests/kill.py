"""A run that is killed again and again ends as one that is not.

    python tests/kill.py [--kills 20] [--steps 2000] [--processes 1 2] [--seed 0]

Trains on the small built-in data, once without a pause, then killed at random moments: by SIGTERM or SIGKILL, while it
starts, trains, saves or builds the data; of several processes (launch/local_processes.sh), one or all. The same command
goes on each time. In the end the checkpoints must be equal in all bytes of all arrays, `metrics.jsonl`, `results.json`
and `detections.json` as files. The moments are drawn from the seed, but what they hit depends on the machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def command(folder: Path, processes: int, steps: int) -> list[str]:
    """Trains one model, saving every 40 steps."""
    options = {"streams": ("rgb",), "fusion": (1.0,), "steps": steps, "log_every": 20, "checkpoint_every": 40}
    options |= {"batch_size": 8, "plots": 0, "report": False, "evaluation.bootstrap": 0}
    flags = ["--config=maan:dataset=synthetic_untrimmed/tiny", f"--workdir={folder / 'run'}"]
    flags += [f"--config.{name}={value}" for name, value in {**options, "data.dir": folder / "data"}.items()]
    main = [sys.executable, "-m", "wsal_jax.main"] if processes == 1 else ["launch/local_processes.sh", str(processes)]
    return [*main, *flags]


def start(folder: Path, processes: int, steps: int) -> subprocess.Popen:
    """The run, in a group of processes of its own."""
    with (folder / "log").open("ab") as log:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "TQDM_DISABLE": "1"}
        return subprocess.Popen(
            command(folder, processes, steps), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def reached(folder: Path) -> int:
    """The last step of which metrics are written."""
    try:
        return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


def workers(run: subprocess.Popen) -> dict[int, str]:
    """The training processes: their ids, and which process of the run each is."""
    if "wsal_jax.main" in run.args:
        return {run.pid: "0"}
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(run.pid):
                line = (stat.parent / "cmdline").read_text()
                if "wsal_jax.main" in line:
                    found[int(stat.parent.name)] = line.partition("--process=")[2].partition("\0")[0]
        except OSError:  # ended meanwhile
            pass
    return found


def kill(run: subprocess.Popen, folder: Path, steps: int, most: int, rng: np.random.Generator) -> str:
    """Waits for a random moment and kills; says what was done, "" if the run ended before."""
    goal = reached(folder) + int(rng.integers(1, most)) if rng.random() < 0.8 else 0  # else while it starts
    pause = rng.random() * (0.2 if goal else 6)
    while run.poll() is None and reached(folder) < min(goal, steps):
        time.sleep(0.005)
    end = time.monotonic() + pause
    while run.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    number = signal.SIGTERM if rng.random() < 0.5 else signal.SIGKILL
    while not (ids := workers(run)):  # the launcher may not have started them yet
        if run.poll() is not None:
            return ""
        time.sleep(0.05)
    chosen = list(ids) if rng.random() < 0.3 else [list(ids)[rng.integers(len(ids))]]
    for pid in chosen:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    run.wait(timeout=400)
    return f"{number.name} to {'all' if len(chosen) == len(ids) else f'process {ids[chosen[0]]}'}"


def killed(folder: Path, processes: int, steps: int, kills: int, seed: int) -> Counter:
    """Kills the run so often, and lets it end; counts what was done."""
    rng, done = np.random.default_rng(seed), Counter()
    while done.total() < kills:
        run = start(folder, processes, steps)
        what = kill(run, folder, steps, max(2 * steps // kills, 2), rng)
        if not what:
            if run.wait(timeout=1200) == 0:
                break
            continue
        done[what] += 1
        print(f"  kill {done.total()}: {what} after step {reached(folder)}, status {run.returncode}", flush=True)
    finish(folder, processes, steps)
    return done


def finish(folder: Path, processes: int, steps: int) -> None:
    """Lets a run go on to its end."""
    if start(folder, processes, steps).wait(timeout=1200):
        raise SystemExit(f"failed:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs that have ended."""
    from flax.traverse_util import flatten_dict

    from wsal_jax import checkpoint

    found = []
    for model in sorted(path.name for path in (a / "run" / "checkpoints").iterdir()):
        folders = [folder / "run" / "checkpoints" / model for folder in (a, b)]
        if checkpoint.latest(folders[0]) != checkpoint.latest(folders[1]):
            found.append(f"the last step of {model}")
            continue
        states = [flatten_dict(checkpoint.restore(folder), sep="/") for folder in folders]
        names = {*states[0], *states[1]}
        found += [name for name in sorted(names) if _bytes(states[0], name) != _bytes(states[1], name)]
    for name in ("metrics.jsonl", "results.json", "detections.json"):
        if (a / "run" / name).read_bytes() != (b / "run" / name).read_bytes():
            found.append(name)
    return found


def _bytes(state: dict[str, np.ndarray], name: str) -> tuple | None:
    return (state[name].dtype, state[name].shape, state[name].tobytes()) if name in state else None


def test(folder: Path, processes: int, steps: int, kills: int, seed: int) -> tuple[Counter, list[str]]:
    """What was done and what differs in the end."""
    for name in ("whole", "killed"):
        (folder / name).mkdir(parents=True)
    finish(folder / "whole", processes, steps)
    done = killed(folder / "killed", processes, steps, kills, seed)
    return done, differences(folder / "whole", folder / "killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = False
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            print(f"{processes} process{'es' if processes > 1 else ''}, {args.steps} steps", flush=True)
            done, different = test(Path(folder), processes, args.steps, args.kills, args.seed)
            what = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
            print(f"  {done.total()} kills in {time.monotonic() - begun:.0f} s ({what}): ", end="")
            print(f"differs in {', '.join(different)}" if different else "the same bytes", flush=True)
            failed |= bool(different) or done.total() < args.kills
    sys.exit(failed)


if __name__ == "__main__":
    main()
