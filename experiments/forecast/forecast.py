"""The forecast of a job on a machine that is not there."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from experiments.forecast.estimates import estimate, gpu_traffic
from experiments.forecast.loading import ShapeLoader
from experiments.forecast.machines import Machine, find
from experiments.forecast.programs import Compiled, compile_scoring, compile_training
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.inputs import ModelInputs, read_inputs, read_starts
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import ForecastSettings
from wayward_jax.models import LanguageModel
from wayward_jax.shapes import PackedShape
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.flops import StepCost, needed_flops
from wayward_jax.training.memory import row_grain
from wayward_jax.training.meshes import write_mesh
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.scoring import plan_for_runs

# The mix of shapes, the work and the host's time of so many calls stand for those of all.
SAMPLE_CALLS = 10


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The compiler's estimates for equal populations of one model and task.

    Attributes:
        model, task: their names.
        mesh: its axes and sizes.
        populations: how many there are.
        runs: of each.
        steps: of each.
        programs: that are compiled for them.
        device_memory: bytes that programs can use on each device.
        step_memory: bytes of the largest step, weights included; 0 if it does not fit.
        evaluation_memory: bytes of evaluation.
        refusal: what the compiler said if something does not fit. There are no estimates then.
        step_seconds: of a step.
        shares: of a step's time, by kind of operation.
        utilization: needed FLOPs over the FLOPs of all devices at their peak in that time.
        traffic: bytes that the kernels of a GPU read and write in a step; 0 for a TPU.
        host_seconds: that this machine takes to lay out the examples of a step.
        evaluation_seconds: of all evaluations of a population.
        compile_seconds: of all programs, see `_compile_seconds`.
        seconds: of all populations, without compiling.
    """

    model: str
    task: str
    mesh: str
    populations: int
    runs: int
    steps: int
    programs: int
    device_memory: float
    step_memory: int
    evaluation_memory: int
    refusal: str
    step_seconds: float = 0.0
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    utilization: float = 0.0
    traffic: float = 0.0
    host_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    compile_seconds: float = 0.0
    seconds: float = 0.0


def forecast(
    settings: ForecastSettings, experiment: Experiment, topology: str, watch: ProgressReporter
) -> tuple[int, list[Forecast]]:
    """Forecasts the parts of a job on a topology, and counts its devices.

    Raises:
        InputError: something given cannot be used.
    """
    machine, devices = find(topology)
    loader = ShapeLoader(settings, machine, devices)
    inputs = read_inputs(settings, experiment, loader, read_starts(settings), watch)
    found = []
    for name, each in inputs.models.items():
        model = loader.model(name)
        for plans in _alike(settings, each, model.mesh):
            task = plans[0].runs[0].task
            watch.doing(f"{topology}, {name}, {task}: compiling")
            found.append(_forecast(model, each, plans, machine, task))
    return len(devices), found


def fits(parts: Sequence[Forecast]) -> bool:
    """Tells whether all parts of a job fit into memory."""
    return not any(part.refusal for part in parts)


def total_seconds(parts: Sequence[Forecast]) -> float:
    """The seconds of all parts of a job, without compiling."""
    return sum(part.seconds for part in parts)


def _alike(
    settings: ForecastSettings, inputs: ModelInputs, mesh: Mesh
) -> list[list[PopulationPlan]]:
    """The populations of a model, those of a task together that take the same programs."""
    plans = plan_populations(
        {task: own.train for task, own in inputs.tasks.items()},
        [run for runs in inputs.runs.values() for run in runs],
        population=settings.population,
        pack_tokens=min(inputs.pack_tokens.values()),
        mesh=mesh,
        row_grain=row_grain(mesh),
    )

    def programs(plan: PopulationPlan) -> Any:
        run = plan.runs[0]
        constraints = tuple(sorted({each.constraint for each in plan.runs}))
        return (
            *(run.task, dataclasses.replace(plan, runs=(), call_shapes=()), constraints),
            *(run.optimizer, run.steps, run.warmup, run.weight_decay),
        )

    groups = collections.defaultdict(list)
    for plan in plans:
        groups[programs(plan)].append(plan)
    return list(groups.values())


def _forecast(
    model: LanguageModel,
    inputs: ModelInputs,
    plans: Sequence[PopulationPlan],
    machine: Machine,
    name: str,
) -> Forecast:
    plan, steps, mesh = plans[0], plans[0].runs[0].steps, model.mesh
    largest = plan.shapes[-1]
    task = inputs.tasks[name]
    training = compile_training(model, plan, largest, mesh, inputs.constraints)
    scoring = compile_scoring(model, plan, task.test, mesh)
    found = Forecast(
        model=model.name,
        task=name,
        mesh=write_mesh(mesh.shape),
        populations=len(plans),
        runs=len(plan.runs),
        steps=steps,
        programs=len(plan.shapes) + 1,
        device_memory=machine.memory,
        step_memory=training.memory,
        evaluation_memory=scoring.memory,
        refusal=training.refusal or scoring.refusal or _too_large(machine, training, scoring),
        compile_seconds=_compile_seconds(plan, mesh, training, scoring),
    )
    if not (training.hlo and scoring.hlo):
        return found

    costs, cost, host_seconds = _sample(task, plan)
    of_call = estimate(training, machine)
    largest_seconds = sum(of_call.values()) / plan.steps_per_call
    of_largest = costs / largest.cost
    step_seconds = of_largest * largest_seconds
    of_part = sum(estimate(scoring, machine).values())
    evaluation_seconds = of_part * _evaluated_parts(task, plan)
    return dataclasses.replace(
        found,
        step_seconds=step_seconds,
        shares={kind: seconds / sum(of_call.values()) for kind, seconds in of_call.items()},
        utilization=needed_flops(model, cost) / (mesh.size * machine.flops * step_seconds),
        traffic=of_largest * gpu_traffic(training) / plan.steps_per_call if machine.gpu else 0.0,
        host_seconds=host_seconds,
        evaluation_seconds=evaluation_seconds,
        seconds=len(plans) * (steps * step_seconds + evaluation_seconds),
    )


def _compile_seconds(
    plan: PopulationPlan, mesh: Mesh, training: Compiled, scoring: Compiled
) -> float:
    """The time that this machine takes to compile the programs of a population.

    A job that is one process compiles them side by side, each on a core of its own. A job of
    several processes compiles one after the other.
    """
    if mesh.is_multi_process:
        return len(plan.shapes) * training.seconds + scoring.seconds
    return max(training.seconds, scoring.seconds)


def _too_large(machine: Machine, *programs: Compiled) -> str:
    most = max(each.memory for each in programs)
    return "" if most <= machine.memory else f"takes {most / 2**30:.1f} GiB"


def _sample(task: EncodedTask, plan: PopulationPlan) -> tuple[float, StepCost, float]:
    """The mean `PackedShape.cost`, work and seconds of the host of a step, from the first calls."""
    costs, work, calls = 0.0, StepCost(), 0
    began = time.perf_counter()
    steps = 0
    for call in itertools.islice(iter_calls(task.train, plan), SAMPLE_CALLS):
        rows, slots = call.packs.ids.shape[-2:]
        costs += PackedShape(rows, slots, 0, 0, 0).cost
        work += call.cost
        calls, steps = calls + 1, steps + call.steps
    host_seconds = (time.perf_counter() - began) / steps
    mean = StepCost(*(round(x / steps) for x in dataclasses.astuple(work)))
    return costs / calls, mean, host_seconds


def _evaluated_parts(task: EncodedTask, plan: PopulationPlan) -> int:
    """The calls of the scoring program that a population takes."""

    subset, dev, test = (
        len(plan_for_runs(sets, plan).parts) for sets in (task.dev_subset, task.dev, task.test)
    )
    return len(plan.eval_steps) * subset + dev + test
