"""The runs of nearly all experiments: every target in every way, and p_star beside them."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wayward_jax.constraints import hold
from wayward_jax.errors import InputError
from wayward_jax.jobs.inputs import find_readings
from wayward_jax.jobs.settings import Settings
from wayward_jax.runs import Run
from wayward_jax.targets import Target

if TYPE_CHECKING:
    from wayward_jax.models import LanguageModel

# The attributes of a `Run` that nothing holds to its target.
UNCONSTRAINED = hold("penalty", 0.0, 0.0)

# The start that is another one for each target.
TARGET = "target"


def runs(
    settings: Settings, model: "LanguageModel", task: str, targets: Sequence[Target]
) -> list[Run]:
    """Lists p_stars of each length, and each target under each constraint, with all repetitions.

    A reading whose loss stands in place of the distance counts as a constraint.

    Repetitions differ in learning rate, choice of examples and seed. Targets are tuned from each
    start. From each there is also a run without a constraint (gamma 0), beside which one sees what
    a constraint costs: one a target where it starts there, or where gamma 0 is asked for. From
    other starts it would be the same prompt for each target, so it is one run without a target.
    p_star, which has no target, starts at common tokens, unless the starts are random vectors
    alone. It gets as many attempts, from other starts, as a target has gammas. All runs of a seed
    see the examples in the same order, so that no drop is a matter of the order.

    Args:
        settings: of the job, for this model alone.
        model: the frozen model.
        task: the task's name.
        targets: in the model's tokens.
    """
    common = {
        "model": model.name,
        "model_digest": model.digest,
        "task": task,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": settings.optimizer,
        "warmup": settings.warmup,
        "weight_decay": settings.weight_decay,
        "keep": settings.keep,
        "method": settings.method,
        "template": settings.template,
        "k_shot": settings.k_shot,
    }
    repetitions = [
        {"learning_rate": rate, "data_seed": data_seed, "seed": seed}
        for rate, data_seed, seed in itertools.product(
            settings.learning_rate, settings.data_seed, settings.seeds
        )
    ]
    start = "random" if settings.init == ("random",) else "vocab"
    lengths = dict.fromkeys(len(target.ids) for target in targets)
    constraints = _constraints(settings, model)
    tries = [(start, attempt) for attempt in range(_gammas(constraints))]
    tries += [(init, 0) for init in settings.init if init not in (start, TARGET)]
    p_star = [
        Run(**common, prompt_length=length, init=init, attempt=attempt, **repetition)
        for length in lengths
        for init, attempt in tries
        for repetition in repetitions
    ]
    zero = any(gamma.weight == 0 for gamma in settings.gamma)
    wayward = [
        Run.towards(target, **common, init=init, **constraint, **repetition)
        for target in targets
        for init in settings.init
        for constraint in (*constraints, *([UNCONSTRAINED] if zero or init == TARGET else []))
        for repetition in repetitions
    ]
    return p_star + wayward


def held_runs(
    settings: Settings, model: "LanguageModel", task: str, targets: Sequence[Target]
) -> list[Run]:
    """Lists the runs of `runs` that something holds to a target.

    Raises:
        InputError: there are none.
    """
    found = [
        run
        for run in runs(settings, model, task, targets)
        if run.has_target and not run.is_unconstrained
    ]
    if not found:
        raise InputError("gamma", 0, "holds no prompt to its text: give a number above 0")
    return found


def _gammas(constraints: Sequence[Mapping[str, Any]]) -> int:
    """The number of gammas of which a target's best one is chosen; 1 if there are none."""
    return max(Counter(each["constraint"] for each in constraints).values(), default=1)


def _constraints(settings: Settings, model: "LanguageModel") -> list[dict[str, Any]]:
    """The constraints that are asked for, as attributes of `Run`; gamma 0 is none."""
    asked = []
    if "penalty" in settings.constraint:
        asked += [
            ("dual", 0.0) if gamma.weight is None else ("penalty", gamma.weight)
            for gamma in settings.gamma
        ]
    if "cell" in settings.constraint:
        asked.append(("cell", 0.0))
    held = [hold(constraint, gamma, settings.margin) for constraint, gamma in asked]
    held += [
        hold(str(reading), gamma.weight, 0.0)
        for reading in find_readings(settings, model)
        for gamma in settings.gamma
        if gamma.weight
    ]
    return [each for each in held if each != UNCONSTRAINED]
