"""The part of a job's runs that is carried out: all, or those that `--only` and `--shard` leave."""

from collections.abc import Sequence

from wayward_jax.errors import InputError
from wayward_jax.jobs.settings import Settings
from wayward_jax.runs import Run


def select_part(settings: Settings, runs: Sequence[Run]) -> list[Run]:
    """Selects the runs of a job that are carried out.

    A shard is a stretch of the list of runs, which the other settings decide: the n stretches of n
    shards are equally long, to within one run, and hold every run once. Runs that are alike stand
    together in the list, so populations stay large.

    Raises:
        InputError: `--only` names a run that is not there, or there are more shards than runs.
    """
    chosen = [run for run in runs if not settings.only or run.id in settings.only]
    if unknown := set(settings.only) - {run.id for run in chosen}:
        raise InputError(
            "only",
            ",".join(sorted(unknown)),
            "there is no such run: give all flags of the job that it is from",
        )
    if settings.shard is None:
        return chosen
    number, shards = settings.shard
    if shards > len(chosen):
        raise InputError(
            "shard",
            f"{number}/{shards}",
            f"there are {len(chosen)} runs: give at most as many shards",
        )
    first, last = (len(chosen) * each // shards for each in (number, number + 1))
    return chosen[first:last]
