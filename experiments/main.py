"""`main`: for every task and target, the best prompt that reads as the target (paper, section 4.2).

Beside each of them stands p_star, the best prompt of the same length without a target.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from experiments.flags import AUTO, Settings
from experiments.terminal import token_strip
from wayward_jax.analysis.selection import compare, is_aimed
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.runs import FIRST_GAMMA, Run
from wayward_jax.targets import Target


def runs(settings: Settings, task: str, targets: Sequence[Target]) -> list[Run]:
    """Per seed and choice of examples a p_star of each length, and each target at each gamma."""
    common = {
        "model": settings.model,
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
    start = settings.init if settings.init == "random" else "vocab"
    lengths = dict.fromkeys(len(target.ids) for target in targets)
    p_star = [
        Run(**common, prompt_length=length, init=start, **repeat)
        for length in lengths
        for repeat in repeats
    ]
    wayward = [
        Run.towards(target, **common, init=settings.init, **hold, **repeat)
        for target in targets
        for hold in _holds(settings)
        for repeat in repeats
    ]
    return p_star + wayward


def _holds(settings: Settings) -> list[dict]:
    """What holds prompts to their targets, in every way that is asked for."""
    holds = []
    if "penalty" in settings.constraints:
        holds += [
            {"constraint": "dual", "gamma": FIRST_GAMMA, "margin": settings.margin}
            if gamma == AUTO
            else {"gamma": gamma}
            for gamma in settings.gammas
        ]
    if "cell" in settings.constraints:
        holds.append({"constraint": "cell", "margin": settings.margin})
    return holds


def show(rows: Sequence[dict], tokenizer: Tokenizer, console: Console) -> None:
    """A line for every target, and the first target's tokens beside those that were read."""
    comparisons = compare(rows)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("\ntask")
    table.add_column("\ntarget", overflow="fold")
    for name in (
        "\ngamma",
        "p_star\naccuracy",
        "\naccuracy",
        "\ndrop",
        "95 %\ninterval",
        "prompt\nF1",
        "\nruns",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for c in comparisons:
        row = c.wayward[0]
        table.add_row(
            row["task"],
            row["target_name"],
            f"{row['gamma']:g}",
            f"{c.best_accuracy:.3f}",
            f"{c.accuracy:.3f}",
            f"{c.drop.value:+.1f} %",
            f"{c.drop.low:+.0f} to {c.drop.high:+.0f}",
            f"{c.prompt_f1:.2f}",
            str(len(c.wayward)),
        )
    for row in [] if comparisons else rows:
        f1 = f"{row['prompt_f1']:.2f}" if is_aimed(row) else ""
        accuracy = f"{row['accuracy']:.3f}"
        cells = (row["task"], row["target_name"], f"{row['gamma']:g}", "", accuracy, "", "", f1)
        table.add_row(*cells, "1")
    console.print(table)
    aimed = [row for c in comparisons for row in c.wayward] or [r for r in rows if is_aimed(r)]
    if aimed:
        console.print()
        console.print(token_strip(aimed[0], tokenizer))
