"""The flags of a job as its folder keeps them: `flags.json`, and what is made of it."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from wayward_jax.errors import InputError, reason
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.setting import Decides
from wayward_jax.jobs.settings import Settings

Flags = dict[str, str | None]
"""The content of `flags.json`: the text of every setting by name."""


def read_flags(job: JobLayout) -> Flags:
    """The flags of a job's first start.

    Raises:
        InputError: they are not there, broken, or of another version.
    """
    try:
        flags = json.loads(job.flags.read_text(encoding="utf-8"))
        if not isinstance(flags, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            None,
            job.flags,
            f"cannot be read ({reason(error)}): give the --out_dir of another job, or a new folder",
        ) from error
    names = {setting.name for setting in Settings.settings()}
    if flags.keys() != names or not all(isinstance(v, str | None) for v in flags.values()):
        raise InputError(
            None,
            job.flags,
            "was written by another version of wayward_jax: continue the job with that version, "
            "or name a new folder",
        )
    return flags


def differing(then: Flags, now: Flags, decides: Decides) -> list[str]:
    """The differences between two starts of a job in the settings that decide this, in words."""
    names = [setting.name for setting in Settings.settings() if setting.decides == decides]
    return [
        f"--{name} was {then[name]} and is {now[name]}" for name in names if then[name] != now[name]
    ]


def repeating_command(flags: Flags, model: str, task: str) -> str:
    """The command that repeats a run of a job, once `--only=<its id>` stands at the end.

    Args:
        flags: of the job.
        model: the name of the run's model.
        task: the name of the run's task.
    """
    given = Settings.parse({name: flags[name] for name in ("model", "task", "gamma")})
    of_model = given.of_model(named(model, given.model)[0])
    own = dataclasses.replace(of_model, task=(named(task, given.task)[0],))
    texts = {**flags, **{name: own.texts()[name] for name in ("model", "task", "gamma")}}
    words = [
        f"--{setting.name}={texts[setting.name]}"
        for setting in Settings.settings()
        if setting.decides != "nothing" and texts[setting.name] is not None
    ]
    return shlex.join(["python", "-m", "experiments.run", *words])


def named(name: str, texts: Sequence[str]) -> list[str]:
    """The texts of `--model` or `--task` that may stand for what the results call `name`."""
    return [text for text in texts if name in (text, Path(text).name, Path(text).stem)]
