"""Runs a job: tunes its runs, measures their prompts, and writes results as they come."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wayward_jax.jobs.experiment import Experiment, Measure
from wayward_jax.jobs.folder import InFlight, JobFolder, Plans, shard_of
from wayward_jax.jobs.inputs import Inputs, read_inputs, read_starts
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.loader import Loader
from wayward_jax.jobs.object_stores import Mirror
from wayward_jax.jobs.preemption import Interruption
from wayward_jax.jobs.probes import ProbeContext
from wayward_jax.jobs.processes import all_or_error, check_alike, is_primary
from wayward_jax.jobs.profiler import Profiler
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import SHOWN, Measured
from wayward_jax.jobs.reuse import read_earlier, select_reused
from wayward_jax.jobs.settings import Settings
from wayward_jax.jobs.throughput import ThroughputMeter, curve, outcome
from wayward_jax.runs import RunRecord
from wayward_jax.sharding import on_host
from wayward_jax.training.memory import row_grain
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.progress import StepMetrics, TrainProgress
from wayward_jax.training.trainer import score_unprompted, tune_population, with_unprompted


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedJob:
    """The results of a job.

    Attributes:
        records: of the runs that were asked for, without prompts.
        measured: what was measured of their prompts.
        layout: the job's folder, or that of its shard.
    """

    records: list[RunRecord]
    measured: Measured
    layout: JobLayout


def run_job(
    settings: Settings,
    experiment: Experiment,
    out_dir: Path,
    watch: ProgressReporter,
    mirror: Mirror | None = None,
) -> FinishedJob:
    """Tunes and evaluates every run of an experiment, and measures their prompts.

    Writes into `out_dir` (see `JobLayout`) once all input has been found good. What an earlier
    process with the same flags finished there is not done again, and what it began continues from
    the last checkpoint: the records are the same as if nothing had come between, but for `seconds`.
    Runs that the jobs of `settings.reuse` have finished are copied from there.

    Args:
        settings: of the job.
        experiment: lists the runs and measurements.
        out_dir: new or empty, or of an earlier start with the same flags; of a shard, the folder
            that all shards share.
        watch: is told how far the job has come.
        mirror: of `out_dir`, if it is a copy.

    Raises:
        InputError: something given cannot be used, and nothing is written then; or `out_dir` can no
            longer be written, and what was written stays.
        KeyboardInterrupt: the job was asked to stop, and has saved its progress.
    """
    check_alike(settings.shared)
    layout = JobLayout(out_dir)
    if settings.shard is not None:
        layout = shard_of(layout, settings.shard)
    folder = JobFolder(layout, settings, mirror)
    folder.validate()
    kept = folder.meshes()
    with all_or_error():
        loader = Loader(settings, kept=kept)
    starts, earlier = read_starts(settings), read_earlier(settings)
    with all_or_error():
        inputs = read_inputs(settings, experiment, loader, starts, watch)
    reused = select_reused(earlier, settings, inputs, loader.dtype.name)

    work = _Work(settings, out_dir, loader, inputs, folder, watch, Interruption())
    with folder.lock(work.decisive, watch.note), work.interruption.heed():
        folder.take_over(reused)
        work.write_shown()
        work.tune(work.plans())
        records = [each for each in folder.records().values() if each.id in inputs.runs]
        if experiment.measure is not None:
            for model in inputs.models:
                work.measure(experiment.measure, model, records)
        measured = folder.measured()
    return FinishedJob(records, measured, layout)


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """The parts of a job, and what they take."""

    settings: Settings
    out_dir: Path
    loader: Loader
    inputs: Inputs
    folder: JobFolder
    watch: ProgressReporter
    interruption: Interruption

    @property
    def decisive(self) -> dict[str, str]:
        """Names what decides the results beside the flags, which may name files and devices."""
        return {"content": self.inputs.content, "dtype": self.loader.dtype.name}

    def plans(self) -> Plans:
        """The populations of the job; those that are finished may be among them."""
        meshes, population = self.loader.meshes, self.settings.population

        def make(left: set[str]) -> Plans:
            return [
                (each.runs[0].task, each)
                for name, model in self.inputs.models.items()
                for each in plan_populations(
                    {task: own.train for task, own in model.tasks.items()},
                    [run for runs in model.runs.values() for run in runs if run.id in left],
                    population=population,
                    pack_tokens=min(model.pack_tokens.values()),
                    mesh=meshes[name],
                    row_grain=row_grain(meshes[name]),
                )
            ]

        sizes = {name: dict(mesh.shape) for name, mesh in meshes.items()}
        made_for = {**self.decisive, "population": population, "meshes": sizes}
        return self.folder.plans(made_for, self.inputs.runs, make)

    def write_shown(self) -> None:
        """Writes the examples that a report shows, for each digest that rows name them by."""
        done = self.folder.measured().get(SHOWN, {})
        tasks = [task for model in self.inputs.models.values() for task in model.tasks.values()]
        shown = {digest: task.shown for task in tasks for digest in task.digests.values()}
        for digest, examples in shown.items():
            if digest not in done:
                self.folder.add_measurement(SHOWN, digest, examples.to_json())

    def tune(self, plans: Plans) -> None:
        """Tunes the populations that are not finished, and writes the results of each."""
        done = self.folder.records().keys()
        left = [(task, each) for task, each in plans if not {run.id for run in each.runs} <= done]
        self.watch.planned(sum(each.runs[0].steps for _, each in left))
        if not left:
            return
        meter = ThroughputMeter(self.loader.dtype, next(iter(self.loader.meshes.values())))
        profiler = Profiler(self.folder.layout, self.settings.profile if is_primary() else 0)
        # Whichever populations are left, the same one's program scores no prompt, to the same bits.
        first = {_model_and_task(planned): planned[1] for planned in reversed(plans)}
        for (name, task), own in itertools.groupby(left, _model_and_task):
            populations = [each for _, each in own]
            model, encoded = self.loader.model(name), self.inputs.models[name].tasks[task]
            seconds = sum(meter.expected_seconds(model, encoded, each) for each in populations)
            count = sum(len(each.runs) for each in populations)
            self.watch.expected(f"{name}, {task}, {count} prompts", seconds)
            unprompted = functools.cache(
                functools.partial(self._score_unprompted, task, first[name, task])
            )
            for each in populations:
                self._tune(task, each, meter, profiler, unprompted)

    def _score_unprompted(self, task: str, plan: PopulationPlan) -> np.ndarray:
        name = plan.runs[0].model
        self.watch.doing(f"{name}, {task}, without a prompt")
        encoded = self.inputs.models[name].tasks[task]
        return score_unprompted(self.loader.model(name), encoded, plan, self.loader.meshes[name])

    def _tune(
        self,
        task: str,
        each: PopulationPlan,
        meter: ThroughputMeter,
        profiler: Profiler,
        unprompted: Callable[[], np.ndarray],
    ) -> None:
        name = each.runs[0].model
        model, inputs = self.loader.model(name), self.inputs.models[name]
        self.watch.doing(f"{name}, {task}, {len(each.runs)} prompts")
        self.watch.begun(f"{Path(task).name}-{each.runs[0].id}")
        meter.begin(model, inputs.tasks[task], each)

        def on_steps(steps: StepMetrics) -> None:
            self.watch.stepped(len(steps.task_loss), meter.steps(steps))

        with self.folder.in_flight(task, each) as in_flight, profiler.of(each):

            def on_progress(progress: TrainProgress) -> None:
                self._save(in_flight, progress)
                profiler.see(progress)

            tuned = tune_population(
                model,
                inputs.tasks[task],
                each,
                self.loader.meshes[name],
                starts=inputs.starts,
                constraints=inputs.constraints,
                device_bytes=self.loader.free_bytes,
                resume_from=in_flight.restore(self._on_broken),
                on_steps=on_steps,
                on_progress=on_progress,
            )
            finished = with_unprompted(tuned, inputs.tasks[task], unprompted())
            self.folder.add(finished)
        self.watch.tuned(curve(finished), outcome(finished))

    def _save(self, in_flight: InFlight, progress: TrainProgress) -> None:
        """Saves progress if it is time to, and stops the job if it was asked to stop."""
        before = progress.step - len(progress.losses[-1].task)
        every = self.settings.checkpoint_every
        asked = self.interruption.asked()
        if asked or progress.step // every > before // every:
            in_flight.save_progress(on_host(progress))
        if asked:
            self._stop()

    def _on_broken(self, step: int) -> None:
        self.watch.note(
            f"the checkpoint of step {step} is broken: continuing from the one before it"
        )

    def measure(self, measure: Measure, model: str, records: list[RunRecord]) -> None:
        """Takes the measurements with a model that were not taken before."""
        experiment = self.settings.experiment
        done = self.folder.measured().get(experiment, {})
        context = ProbeContext(
            self.loader.model(model),
            self.loader.meshes[model],
            self.inputs.models[model].tasks,
            records,
            self.settings.select,
            self.folder.load_prompt,
            self.inputs.models[model].starts,
            self.inputs.models[model].readings,
        )
        left = [(key, take) for key, take in measure(context) if key not in done]
        for number, (key, take) in enumerate(left, start=1):
            self.watch.doing(f"{model}, measuring, {number} of {len(left)}")
            self.folder.add_measurement(experiment, key, take())
            if self.interruption.asked():
                self._stop()

    def _stop(self) -> None:
        raise KeyboardInterrupt(f": the same command with --out_dir={self.out_dir} continues it")


def _model_and_task(planned: tuple[str, PopulationPlan]) -> tuple[str, str]:
    """The names of a population's model and task."""
    task, plan = planned
    return plan.runs[0].model, task
