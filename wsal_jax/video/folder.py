"""Many videos to a feature folder: what is there is kept, what fails is told, all else is extracted and written."""

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from wsal_jax.types import InputError
from wsal_jax.video import features, pool, sidecar
from wsal_jax.video.extractor import Extractor
from wsal_jax.video.labels import Job


class Target(NamedTuple):
    """Where features go, and what makes them."""

    root: Path
    extractor: Extractor
    options: features.Options
    verify: bool = False
    """Whether the sha256 of a video decides that it is the same, instead of its size and time."""


class Outcome(NamedTuple):
    """What became of a video."""

    job: Job
    done: str
    """"extracted", "kept" (was there already) or "failed"."""
    lines: tuple[str, ...]
    """Why it failed, or what is wrong with it although it was used; each names the file."""
    truncated: bool = False


def kept(job: Job, target: Target) -> Outcome | None:
    """The outcome of a video that is extracted already, or may not be; None of one that is to be extracted."""
    wanted = {**target.options.record(), "extractor": target.extractor.identity}
    try:
        info = sidecar.done(target.root, job.split, job.id, job.path, wanted, target.verify)
        if info is not None:
            return outcome(job, "kept", info)
        sidecar.check_free(target.root, job.split, job.id)
        for split in sidecar.SPLITS:
            if split != job.split and (other := sidecar.path_of(target.root, split, job.id)).exists():
                what = f"was extracted for {split} before ({other})"
                raise InputError(f"{job.path}: {what}: remove its features there, or correct its split")
    except InputError as error:
        return failed(job, pool.reason(error))
    return None


def outcome(job: Job, done: str, info: dict[str, Any]) -> Outcome:
    """The outcome of a video that has features."""
    return Outcome(job, done, tuple(f"{job.path}: {what}" for what in features.warnings(info)), info["truncated"])


def failed(job: Job, reason: str) -> Outcome:
    """The outcome of a video that has none."""
    return Outcome(job, "failed", (reason if str(job.path) in reason else f"{job.path}: {reason}",))


def extract_one(job: Job, target: Target, make_run: Callable[[], features.Run]) -> Outcome:
    """All for one video, in this process. Whatever goes wrong with it is in the outcome."""
    if (found := kept(job, target)) is not None:
        return found
    try:
        made, info = features.extract_video(job.path, target.extractor, target.options, make_run())
        sidecar.write(target.root, job.split, job.id, made, info)
    except Exception as error:
        return failed(job, pool.reason(error))
    return outcome(job, "extracted", info)


def extract_many(jobs: list[Job], target: Target, workers: int) -> list[Outcome]:
    """All for many videos, with worker processes. Prints a line for each.

    Raises:
      InputError: the weights are not there, or not those of the extractor.
    """
    outcomes = {job.id: kept(job, target) for job in jobs}
    waiting = {job.path: job for job in jobs if outcomes[job.id] is None}
    tell = partial(_tell, total=len(jobs))
    for number, found in enumerate([one for one in outcomes.values() if one is not None], 1):
        tell(number, found, "")
    if not waiting:
        return list(outcomes.values())
    warn_of_tvl1(waiting, target, workers)
    options = target.options
    run = features.make_run(target.extractor, options.batch)
    results = pool.extract_all(list(waiting), target.extractor, options, run, workers)
    for number, (path, result, seconds) in enumerate(results, len(jobs) - len(waiting) + 1):
        job, detail = waiting[path], ""
        if isinstance(result, pool.Failure):
            outcomes[job.id] = failed(job, result.reason)
        else:
            try:
                sidecar.write(target.root, job.split, job.id, *result)
                outcomes[job.id] = outcome(job, "extracted", result[1])
                frames, snippets = result[1]["frames"], result[1]["num_features"]
                detail = f": {frames} frames, {snippets} snippets, {frames / seconds:.1f} frames/s"
            except (OSError, InputError) as error:
                outcomes[job.id] = failed(job, pool.reason(error))
        tell(number, outcomes[job.id], detail)
    return list(outcomes.values())


def _tell(number: int, outcome: Outcome, detail: str, total: int) -> None:
    print(f"[{number}/{total}] {outcome.job.path.name}: {outcome.done}{detail}", flush=True)
    for line in outcome.lines:
        print(f"  {'error' if outcome.done == 'failed' else 'warning'}: {line}", file=sys.stderr, flush=True)


def warn_of_tvl1(paths: Iterable[Path], target: Target, workers: int) -> None:
    """Says how long TV-L1 will take, before it begins, from the first two frames of a video.

    What moves much takes longer than what stands still, by up to a half.
    """
    if target.extractor.identity["flow"] != "tvl1":
        return
    from wsal_jax.video import decode, flow

    pairs, each, options = 0.0, None, target.options
    for path in paths:
        try:
            with decode.opened(path, options.max_pixels) as (container, stream, seen):
                rate = options.fps or stream.average_rate
                pairs += seen.stated * float(rate) if seen.stated > 0 and rate else 0
                if each is None:
                    timed = decode.pictures(path, container, stream, seen, target.extractor.size, options.max_pixels)
                    (_, first), (_, second) = islice(timed, 2)
                    first, second, start = first(), second(), time.monotonic()
                    flow.flow(first, second, "tvl1")
                    each = time.monotonic() - start
        except ValueError:  # will be told when its turn comes
            continue
    low, high = (pairs * (each or 0) * factor / workers / 60 for factor in (1, 1.5))
    print(f"TV-L1 flow of {pairs:,.0f} frames: about {low:.0f} to {high:.0f} minutes on {workers} cores", flush=True)


def summary(outcomes: list[Outcome]) -> str:
    """How many videos became what, and again what is wrong."""
    counts = {done: sum(one.done == done for one in outcomes) for done in ("extracted", "kept", "failed")}
    lines = [f"{len(outcomes)} videos: " + ", ".join(f"{count} {done}" for done, count in counts.items())]
    for one in outcomes:
        lines += [f"- {'failed' if one.done == 'failed' else 'warning'}: {line}" for line in one.lines]
    return "\n".join(lines)
