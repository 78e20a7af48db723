"""Which of a job's runs are carried out: all, or those that `--only` and `--shard` leave."""

from collections.abc import Sequence

from experiments.flags import Settings
from wayward_jax.errors import InputError
from wayward_jax.runs import Run


def part(settings: Settings, runs: Sequence[Run]) -> list[Run]:
    """Those of a job's runs that are carried out.

    A shard is a stretch of the list of runs, which the other flags decide: the n stretches of n
    shards are equally long, to within one run, and hold every run once. Runs that are alike stand
    together in the list, so populations stay large.

    Raises:
        InputError: `--only` names a run that is not there, or there are more shards than runs.
    """
    chosen = [run for run in runs if not settings.only or run.id in settings.only]
    if unknown := set(settings.only) - {run.id for run in chosen}:
        raise InputError(
            f"--only={','.join(sorted(unknown))}: there is no such run: give all flags of the job "
            "that it is from"
        )
    if settings.shard is None:
        return chosen
    number, shards = settings.shard
    if shards > len(chosen):
        raise InputError(
            f"--shard={number}/{shards}: there are {len(chosen)} runs: give at most as many shards"
        )
    first, last = (len(chosen) * each // shards for each in (number, number + 1))
    return chosen[first:last]
