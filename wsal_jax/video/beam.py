"""The same extraction as an Apache Beam pipeline (extra `[beam]`): many machines with one file system in common."""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from wsal_jax.video import features, folder
from wsal_jax.video.labels import Job


class Extract(beam.DoFn):
    """Extracts one video after the other; the networks are loaded with the first that needs them."""

    def __init__(self, target: folder.Target):
        self._target = target
        self._run: features.Run | None = None

    def _make_run(self) -> features.Run:
        if self._run is None:
            self._run = features.make_run(self._target.extractor, self._target.options.batch)
        return self._run

    def process(self, job: tuple[str, str, str]):
        """Yields (id, done, lines, truncated) as JSON."""
        id, path, split = job
        if not self._target.options.batch:  # it depends on the machine that does the work
            options = self._target.options._replace(batch=features.default_batch())
            self._target = self._target._replace(options=options)
        outcome = folder.extract_one(Job(id, Path(path), split), self._target, self._make_run)
        yield json.dumps([id, outcome.done, outcome.lines, outcome.truncated])


def extract_many(jobs: list[Job], target: folder.Target, arguments: Sequence[str] = ()) -> list[folder.Outcome]:
    """All for many videos. `arguments` are Beam's own, such as `--runner=FlinkRunner`.

    Videos and the target's folder must have the same paths on all machines.
    """
    target = target._replace(root=target.root.resolve())
    scratch = target.root / f".beam-{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            _ = (
                pipeline
                | beam.Create([(job.id, str(job.path.resolve()), job.split) for job in jobs])
                | beam.Reshuffle()  # or one worker would get them all
                | beam.ParDo(Extract(target))
                | beam.io.WriteToText(str(scratch / "outcomes"))
            )
        told = [json.loads(line) for file in scratch.glob("outcomes*") for line in file.read_text().splitlines()]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    by_id = {id: (done, tuple(lines), truncated) for id, done, lines, truncated in told}
    return [folder.Outcome(job, *by_id[job.id]) for job in jobs]
