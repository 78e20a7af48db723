"""Which of a job's runs are carried out: all, or those that `--only` and `--shard` leave."""

from collections.abc import Mapping, Sequence

from experiments.flags import Settings
from wayward_jax.errors import InputError
from wayward_jax.runs import Run


def part(settings: Settings, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """Of a job's runs by task those to be carried out, without the tasks that have none.

    A shard is a stretch of the list of runs, which the other flags decide: the n stretches of n
    shards are equally long, to within one run, and hold every run once. Runs that are alike stand
    together in the list, so populations stay large.

    Raises:
        InputError: `--only` names a run that is not there, or there are more shards than runs.
    """
    chosen = [(task, run) for task, own in runs.items() for run in own]
    if settings.only:
        if unknown := set(settings.only) - {run.id for _, run in chosen}:
            raise InputError(
                f"--only={','.join(sorted(unknown))}: there is no such run: give all flags of the "
                "job that it is from"
            )
        chosen = [(task, run) for task, run in chosen if run.id in settings.only]
    if settings.shard is not None:
        number, shards = settings.shard
        if shards > len(chosen):
            raise InputError(
                f"--shard={number}/{shards}: there are {len(chosen)} runs: give at most as many "
                "shards"
            )
        first, last = (len(chosen) * each // shards for each in (number, number + 1))
        chosen = chosen[first:last]
    found: dict[str, list[Run]] = {}
    for task, run in chosen:
        found.setdefault(task, []).append(run)
    return found
