"""Carries out a job: tunes its runs, measures their prompts, and writes results as they come."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from experiments.flags import Settings, as_flags
from wayward_jax import checkpoints
from wayward_jax.checkpoints import ProgressCheckpoints
from wayward_jax.jobs.experiment import Experiment, Measure
from wayward_jax.jobs.folder import JobFolder, Plans, of_shard
from wayward_jax.jobs.inputs import Inputs, Loader, read, read_starts, reused
from wayward_jax.jobs.object_stores import Mirror
from wayward_jax.jobs.preemption import Interruption
from wayward_jax.jobs.probes import ProbeContext
from wayward_jax.jobs.processes import all_or_error, first, is_primary, primary_context
from wayward_jax.jobs.profiler import Profiler
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import FinishedRun, Measured, read_jobs
from wayward_jax.jobs.throughput import ThroughputMeter, curve, outcome
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.runs import RunRecord
from wayward_jax.sharding import on_host
from wayward_jax.training.memory import row_grain
from wayward_jax.training.planning import PopulationPlan, plan_populations
from wayward_jax.training.progress import StepMetrics, TrainProgress
from wayward_jax.training.trainer import tune_population


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """What came of a job.

    Attributes:
        records: the runs that were asked for.
        measured: of their prompts.
        tokenizers: by model.
        folder: where it all is.
    """

    records: list[RunRecord]
    measured: Measured
    tokenizers: dict[str, Tokenizer]
    folder: Path


def run_job(
    settings: Settings,
    experiment: Experiment,
    out_dir: Path,
    watch: ProgressReporter,
    mirror: Mirror | None = None,
) -> Finished:
    """Tunes and evaluates every run of an experiment, and measures what it measures of them.

    Writes into `out_dir`, see `JobFolder`, once all input has been found good. What an earlier
    process with the same flags finished there is not done again, and what it had begun goes on from
    the last checkpoint: the rows are the same as if nothing had come between, but for `seconds`.
    What the jobs of `settings.reuse` have finished is taken over from there.

    Args:
        settings: of the job.
        experiment: lists the runs and measurements.
        out_dir: new or empty, or of an earlier job with the same flags; of shards, the folder that
            their own are in.
        watch: is told how far the job has come.
        mirror: of `out_dir`, if it is a copy.

    Raises:
        InputError: something given cannot be used, and nothing is written then; or `out_dir` can no
            longer be written, and what was written stays.
        KeyboardInterrupt: it was asked to stop, and has kept how far it had come.
    """
    loader = Loader(settings)
    own = out_dir if settings.shard is None else first(lambda: of_shard(out_dir, settings.shard))
    folder = JobFolder(own, as_flags(settings), mirror)
    first(folder.look)
    starts = first(lambda: read_starts(settings))
    earlier = first(lambda: read_jobs(settings.reuse))
    with all_or_error():
        inputs = read(settings, experiment, loader, starts, watch)
    taken = first(lambda: reused(earlier, settings, inputs))
    work = _Work(settings, out_dir, loader, inputs, starts, folder, watch, Interruption())
    with primary_context(folder.claimed(watch.note)), work.interruption.heed():
        first(lambda: _take_over(folder, taken))
        plans = first(lambda: _plans(settings, folder, inputs, loader.mesh))
        work.tune(plans)
        asked_for = {run.id for each in inputs.values() for run in each.all_runs}
        rows = first(folder.rows)
        records = [RunRecord.from_json(row) for id_, row in rows.items() if id_ in asked_for]
        if experiment.measure is not None:
            for model in inputs:
                work.measure(experiment.measure, model, records)
        measured = first(folder.measured)
    tokenizers = {name: each.tokenizer for name, each in inputs.items()}
    return Finished(records, measured, tokenizers, own)


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """The two parts of a job, and what both take."""

    settings: Settings
    out_dir: Path
    loader: Loader
    inputs: Mapping[str, Inputs]
    starts: Mapping[str, np.ndarray]
    folder: JobFolder
    watch: ProgressReporter
    interruption: Interruption

    def tune(self, plans: Plans) -> None:
        """Tunes populations, and writes what came of each."""
        self.watch.planned(sum(each.runs[0].steps for _, each in plans))
        if not plans:
            return
        meter = ThroughputMeter(self.loader.dtype, self.loader.mesh)
        trace = Profiler(self.folder.path, self.settings.profile if is_primary() else 0)
        for name, each in plans:
            self._tune(name, each, meter, trace)

    def _tune(
        self, name: str, each: PopulationPlan, meter: ThroughputMeter, trace: Profiler
    ) -> None:
        model = each.runs[0].model
        task = self.inputs[model].tasks[name]
        self.watch.doing(f"{model}, {name}, {len(each.runs)} prompts")
        self.watch.begun(f"{Path(name).name}-{each.runs[0].id}")
        meter.begin(self.loader.model(model))

        def on_steps(steps: StepMetrics) -> None:
            self.watch.stepped(len(steps.task_loss), meter.steps(steps))

        def on_progress(kept: ProgressCheckpoints | None, progress: TrainProgress) -> None:
            self._keep(kept, progress)
            trace.see(progress)

        with primary_context(self.folder.in_flight(name, each)) as kept, trace.of(each):
            found = tune_population(
                self.loader.model(model),
                task,
                each,
                self.loader.mesh,
                starts=self.starts,
                resume_from=first(lambda: kept.restore(self._on_broken)),
                on_steps=on_steps,
                on_progress=functools.partial(on_progress, kept),
            )
            rows = [record.to_json() for record in found]
            prompts = {record.id: record.prompt for record in found}
            first(lambda: self.folder.add(rows, prompts.__getitem__))
        self.watch.tuned(curve(found), outcome(found))

    def _keep(self, kept: ProgressCheckpoints | None, progress: TrainProgress) -> None:
        before = progress.step - len(progress.losses[-1].task)
        every = self.settings.checkpoint_every
        asked = self.interruption.asked()
        if asked or progress.step // every > before // every:
            progress = on_host(progress)
            first(lambda: self.folder.keep(kept, progress))
        if asked:
            self._stop()

    def _on_broken(self, step: int) -> None:
        self.watch.note(f"the checkpoint of step {step} is broken: going on from the one before it")

    def measure(self, measure: Measure, model: str, records: list[RunRecord]) -> None:
        """Takes the measurements with a model that were not taken before."""
        experiment = self.settings.experiment
        done = first(self.folder.measured).get(experiment, {})
        context = ProbeContext(
            self.loader.model(model),
            self.loader.mesh,
            self.inputs[model].tasks,
            records,
            self.settings.select,
            lambda run: first(lambda: checkpoints.load_prompt(self.folder.checkpoint(run))),
        )
        left = [(key, take) for key, take in measure(context) if key not in done]
        for number, (key, take) in enumerate(left, start=1):
            self.watch.doing(f"{model}, measuring, {number} of {len(left)}")
            found = take()
            first(functools.partial(self.folder.add_measurement, experiment, key, found))
            if self.interruption.asked():
                self._stop()

    def _stop(self) -> None:
        raise KeyboardInterrupt(f": the same command with --out_dir={self.out_dir} goes on")


def _take_over(folder: JobFolder, finished: Sequence[FinishedRun]) -> None:
    """Copies runs that other jobs have finished."""
    paths = {run.record.id: run.checkpoint for run in finished}
    rows = [run.record.to_json() for run in finished]
    folder.add(rows, lambda run: checkpoints.load_prompt(paths[run]))


def _plans(
    settings: Settings, folder: JobFolder, inputs: Mapping[str, Inputs], mesh: Mesh
) -> Plans:
    """What is left of an earlier process's plans or, if those do not suit any more, new ones.

    Plans depend on the memory that is free and on what else is planned. Only with the same ones do
    populations go on from their checkpoints, and come to the very same numbers.
    """
    made_for = {"population": settings.population, "mesh": dict(mesh.shape)}
    runs = {run.id: run for each in inputs.values() for run in each.all_runs}
    plans = folder.read_plans(made_for, runs)
    done = folder.rows().keys()
    if plans is None:
        plans = [
            (name, each)
            for of_model in inputs.values()
            for name, of_task in of_model.runs.items()
            for each in plan_populations(
                of_model.tasks[name].train,
                [run for run in of_task if run.id not in done],
                population=settings.population,
                pack_tokens=of_model.pack_tokens[name],
                mesh=mesh,
                row_grain=row_grain(mesh),
            )
        ]
        folder.write_plans(made_for, plans)
    return [(name, each) for name, each in plans if not {run.id for run in each.runs} <= done]
