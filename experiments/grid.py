"""The runs of nearly all experiments: every target in every way, and p_star beside them."""

from collections.abc import Sequence

from experiments.flags import AUTO, Settings
from wayward_jax.constraints import FIRST_GAMMA
from wayward_jax.runs import Run
from wayward_jax.targets import Target


def runs(settings: Settings, model: str, task: str, targets: Sequence[Target]) -> list[Run]:
    """Per seed and choice of examples a p_star of each length, and each target held in each way.

    Targets are tuned from each start. p_star, which has no target, starts at common tokens, unless
    the starts are random vectors alone.
    """
    common = {
        "model": model,
        "task": task,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "method": settings.method,
        "template": settings.template,
        "k_shot": settings.k_shot,
    }
    repeats = [
        {"seed": seed, "data_seed": data_seed}
        for data_seed in settings.data_seeds
        for seed in settings.seeds
    ]
    start = "random" if settings.inits == ("random",) else "vocab"
    lengths = dict.fromkeys(len(target.ids) for target in targets)
    p_star = [
        Run(**common, prompt_length=length, init=start, **repeat)
        for length in lengths
        for repeat in repeats
    ]
    wayward = [
        Run.towards(target, **common, init=init, **hold, **repeat)
        for target in targets
        for init in settings.inits
        for hold in _holds(settings, model)
        for repeat in repeats
    ]
    return p_star + wayward


def _holds(settings: Settings, model: str) -> list[dict]:
    """What holds prompts to their targets, in every way that is asked for."""
    holds = []
    if "penalty" in settings.constraints:
        holds += [
            {"constraint": "dual", "gamma": FIRST_GAMMA, "margin": settings.margin}
            if gamma == AUTO
            else {"gamma": gamma}
            for gamma in settings.gammas_of(model)
        ]
    if "cell" in settings.constraints:
        holds.append({"constraint": "cell", "margin": settings.margin})
    return holds
