"""The figures that a job shows: a few by name, however many runs are tuned at once."""

import functools
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from wayward_jax.models import LanguageModel
from wayward_jax.runs import RunRecord
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.flops import StepCost, matrix_peak, needed_flops, step_cost
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.progress import StepMetrics
from wayward_jax.training.scoring import EvaluationSet

# The share of the speed of a large matrix product that training usually attains.
USUAL_UTILIZATION = 0.6

# Measuring takes half a second, and every call of `wj.tune` needs the figure.
_peak_of_a_device = functools.cache(matrix_peak)

Figures = dict[str, float]
"""Figures by name. Values that differ between runs are `NAME/mean`, `NAME/p10` and `NAME/p90`."""


class ThroughputMeter:
    """Makes figures of the metrics of training steps."""

    def __init__(self, dtype: jnp.dtype, mesh: Mesh) -> None:
        """Measures how fast the devices multiply matrices of the weights' dtype."""
        size = 1024 if jax.default_backend() == "cpu" else 8192
        self._peak = _peak_of_a_device(dtype, size) * mesh.size
        self._device = mesh.local_devices[0]

    def expected_seconds(
        self, model: LanguageModel, task: EncodedTask, plan: PopulationPlan
    ) -> float:
        """About how long a population takes on these devices, without compiling its programs."""
        steps, batch_size, flops = plan.runs[0].steps, plan.runs[0].batch_size, 0.0
        # Runs that are alike in these take about as long, so a job of many costs no time here.
        alike = Counter((run.data_seed, run.input_length) for run in plan.runs)
        for (data_seed, length), runs in alike.items():
            train = task.train[data_seed]
            numbers = np.resize(
                np.arange(len(train)), (1, -(-len(train) // batch_size), batch_size)
            )
            a_step = needed_flops(model, step_cost(train, numbers, [length])) / numbers.shape[1]
            subsets = [task.dev_subset[data_seed]] * len(plan.eval_steps)
            scored = _scoring_cost((*subsets, task.dev[data_seed], task.test), [length])
            flops += runs * (steps * a_step + _scoring_flops(model, scored))
        return flops / (USUAL_UTILIZATION * self._peak)

    def begin(self, model: LanguageModel, task: EncodedTask, plan: PopulationPlan) -> None:
        """Begins another population."""
        self._model, self._eval_steps, self._evaluation = model, plan.eval_steps, StepCost()
        for data_seed in plan.data_seeds:
            lengths = [run.input_length for run in plan.runs if run.data_seed == data_seed]
            self._evaluation += _scoring_cost([task.dev_subset[data_seed]], lengths)
        self._last: float | None = None
        self._evaluated = False

    def steps(self, steps: StepMetrics) -> Figures:
        """The losses of the last step, the speed since the steps before, and the memory in use.

        `mfu` is the FLOPs of real tokens over the peak. An evaluation that came before the steps
        counts with them. The first steps of a population have no speed, because programs are
        compiled for them.
        """
        figures = {
            **_spread("task_loss", steps.task_loss[-1]),
            **_spread("distance", steps.distance[-1]),
            "memory_gib": self._memory() / 2**30,
        }
        now = time.perf_counter()
        if self._last is not None:
            seconds = now - self._last
            tokens, flops = steps.cost.tokens, needed_flops(self._model, steps.cost)
            if self._evaluated:
                tokens += self._evaluation.tokens
                flops += _scoring_flops(self._model, self._evaluation)
            figures["tokens_per_second"] = tokens / seconds
            figures["mfu"] = flops / seconds / self._peak
        # Steps that an earlier process took cost nothing here, and it made their evaluation, too.
        self._last, self._evaluated = now, steps.step in self._eval_steps and steps.cost.tokens > 0
        return figures

    def _memory(self) -> int:
        """The bytes in use on the first device or, on a CPU, in this process."""
        stats = self._device.memory_stats()
        return stats["bytes_in_use"] if stats else psutil.Process().memory_info().rss


def _scoring_cost(sets: Iterable[EvaluationSet], lengths: Sequence[int]) -> StepCost:
    """The cost of scoring prompts of these lengths on sets of examples."""
    cost = StepCost()
    for examples in sets:
        numbers = np.tile(np.arange(len(examples.segments)), (len(lengths), 1, 1))
        cost += step_cost(examples.segments, numbers, lengths)
    return cost


def _scoring_flops(model: LanguageModel, cost: StepCost) -> float:
    """Half of what training needs: there is no backward pass."""
    return needed_flops(model, cost) / 2


def duration(seconds: float) -> str:
    """A number of seconds in words, as `90 s` or `7.5 min`."""
    for limit, unit, name in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 3600:.3g} h"


def curve(results: Sequence[RunRecord]) -> dict[int, Figures]:
    """The figures of a population at each evaluation, by step."""
    return {
        points[0].step: {
            **_spread("dev_accuracy", [point.dev_accuracy for point in points]),
            **_spread("prompt_f1", [point.prompt_f1 for point in points]),
        }
        for points in zip(*(result.curve for result in results), strict=True)
    }


def outcome(results: Sequence[RunRecord]) -> Figures:
    """The figures of a population's results."""
    return {
        **_spread("accuracy", [result.accuracy for result in results]),
        "diverged": float(sum(result.diverged_at is not None for result in results)),
    }


def _spread(name: str, values: Sequence[float | None]) -> Figures:
    """Mean, 10th and 90th percentile of the finite values; nothing if there are none."""
    known = np.array(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return {}
    low, high = np.quantile(known, [0.1, 0.9])
    return {f"{name}/mean": known.mean(), f"{name}/p10": low, f"{name}/p90": high}
