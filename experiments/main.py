"""`main`: for every task and target, the best prompt that reads as the target (paper, section 4.2).

Beside each of them stands p_star, the best prompt of the same length without a target.
"""

from collections.abc import Sequence

from experiments.flags import Settings
from wayward_jax.runs import Run
from wayward_jax.targets import Target


def runs(settings: Settings, task: str, targets: Sequence[Target]) -> list[Run]:
    """Per seed a p_star of each prompt length, and each target at each gamma."""
    common = {
        "model": settings.model,
        "task": task,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "method": settings.method,
        "template": settings.template,
        "k_shot": settings.k_shot,
        "data_seed": settings.data_seed,
    }
    start = settings.init if settings.init == "random" else "vocab"
    lengths = dict.fromkeys(len(target.ids) for target in targets)
    p_star = [
        Run(**common, prompt_length=length, init=start, seed=seed)
        for length in lengths
        for seed in settings.seeds
    ]
    wayward = [
        Run(
            **common,
            prompt_length=len(target.ids),
            target_name=target.name,
            target_text=target.text,
            target_ids=target.ids,
            init=settings.init,
            gamma=gamma,
            seed=seed,
        )
        for target in targets
        for gamma in settings.gammas
        for seed in settings.seeds
    ]
    return p_star + wayward
