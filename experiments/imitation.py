"""The part of `audit` without a task: doubles that keep what a prompt makes the model predict."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments import grid
from wayward_jax.analysis import outputs
from wayward_jax.checkpoints import prompt_digest
from wayward_jax.constraints import CONSTRAINTS, ReadingPenalty
from wayward_jax.errors import InputError
from wayward_jax.jobs.folder import JobFolder, Plans, writing
from wayward_jax.jobs.inputs import check_cells, find_readings
from wayward_jax.jobs.preemption import Interruption
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import reading
from wayward_jax.jobs.settings import AuditSettings
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.readings import read_prompts
from wayward_jax.runs import Run
from wayward_jax.sharding import on_host
from wayward_jax.targets import load_texts, require_readable, tokenize
from wayward_jax.training.imitation import (
    START,
    Imitation,
    Texts,
    compare_outputs,
    imitate,
    plan_imitation,
)
from wayward_jax.training.memory import free_bytes
from wayward_jax.training.population import PopulationPlan

# Half of the texts are held out, and an interval over fewer tells nothing.
LEAST_TEXTS = 8

# At most this many doubles are tuned at once, because memory holds the logits of all of them.
AT_ONCE = 16

# Stands for the name of a task in runs.
TASK = "texts"

# The measurement in which finished doubles are kept, those of a population together.
DOUBLES = "doubles"


class Given(NamedTuple):
    """The texts of an audit.

    Attributes:
        texts: those on which doubles are to keep the predictions.
        targets: those that doubles are to read as, by name.
    """

    texts: list[str]
    targets: dict[str, str]


def read_texts(settings: AuditSettings) -> Given:
    """Reads the texts; those that doubles are to read as are left out of the others.

    Raises:
        InputError: there are no such texts, or too few.
    """
    texts = load_texts(settings.texts, data_dir=settings.data_dir, argument="texts")
    targets = load_texts(settings.targets, data_dir=settings.data_dir)
    found = [text for text in dict.fromkeys(texts.values()) if text not in targets.values()]
    if len(found) < LEAST_TEXTS:
        remedy = f"{len(found)} texts that are no targets are too few: give {LEAST_TEXTS} or more"
        raise InputError("texts", settings.texts, remedy)
    return Given(found, targets)


def compare_doubles(
    settings: AuditSettings,
    model: LanguageModel,
    prompt: np.ndarray,
    given: Given,
    folder: JobFolder,
    mesh: Mesh,
    watch: ProgressReporter,
) -> outputs.OnTexts:
    """Tunes doubles of a prompt `[L, D]`, and compares them with it on the held-out texts.

    Doubles that an earlier start finished are in the folder, and are not tuned again.

    Raises:
        InputError: a text or target cannot be used, nothing holds a double to its text, or the
            folder is another job's.
        KeyboardInterrupt: the audit was asked to stop.
    """
    encoded = Texts.encode(model, given.texts, len(prompt))
    runs = _list_doubles(settings, model, given, len(prompt))
    work = _Work(settings, model, prompt, encoded, folder, mesh, watch, Interruption())
    with folder.lock(work.decisive(runs), watch.note), work.interruption.heed():
        imitations = work.tune(runs)
    (read,) = read_prompts(model, [prompt], [None])
    as_text = on_host(c_proj(model.embedding_table(), read.ids[:, 0]))
    _, held_out = encoded.halves()
    of_text, of_nothing = (
        compare_outputs(model, prompt, [other], held_out).of(0) for other in (as_text, prompt[:0])
    )
    return outputs.on_texts(of_text, of_nothing, imitations)


def _list_doubles(
    settings: AuditSettings, model: LanguageModel, given: Given, length: int
) -> list[Run]:
    """The doubles of a prompt of so many vectors; those of a seed stand together."""
    targets = tokenize(given.targets, model.tokenizer, length, repeat=True)
    require_readable(targets, model.tokenizer, model.valid_tokens())
    from_prompt = dataclasses.replace(settings.job, init=(START,))
    held = [
        dataclasses.replace(run, bos_ids=model.bos_ids)
        for run in grid.held_runs(from_prompt, model, TASK, targets)
    ]
    check_cells(model, held)
    return sorted(held, key=lambda run: run.seed)


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """Tunes the doubles of a prompt `[L, D]`, and keeps finished ones in the folder."""

    settings: AuditSettings
    model: LanguageModel
    prompt: np.ndarray
    texts: Texts
    folder: JobFolder
    mesh: Mesh
    watch: ProgressReporter
    interruption: Interruption

    def decisive(self, runs: Sequence[Run]) -> dict[str, str]:
        """Names what decides the results beside the flags, see `JobFolder.lock`."""
        content = [[run.id for run in runs], prompt_digest(self.prompt)]
        content += [array.tolist() for array in self.texts]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return {"content": digest[:12], "dtype": self.model.embedding_table().dtype.name}

    def tune(self, runs: Sequence[Run]) -> list[Imitation]:
        """Tunes the doubles that are not finished, and gives all of them."""
        plans = self.plans(runs)
        finished = self.finished(runs)
        left = [plan for plan in plans if not {run.id for run in plan.runs} <= finished.keys()]
        self.watch.planned(self.settings.steps * len(left))
        held = {
            str(each): ReadingPenalty.of(each, self.model)
            for each in find_readings(self.settings, self.model)
        }
        free = free_bytes(self.mesh.local_devices)
        for plan in left:
            count = len(self.texts.ids)
            self.watch.doing(f"{self.model.name}, {count} texts, {len(plan.runs)} prompts")
            tuned = imitate(
                self.model,
                self.prompt,
                self.texts,
                plan,
                self.mesh,
                constraints=CONSTRAINTS | held,
                device_bytes=free + self.model.device_nbytes,
                on_steps=self.stepped,
            )
            self.add(tuned)
            finished |= {each.run.id: each for each in tuned}
        return [finished[run.id] for run in runs]

    def plans(self, runs: Sequence[Run]) -> list[PopulationPlan]:
        """The populations of an earlier start, or new ones; each has a single seed."""
        most = self.settings.population or AT_ONCE
        made_for = {
            **self.decisive(runs),
            "population": self.settings.population,
            "meshes": {self.model.name: dict(self.mesh.shape)},
        }

        def make(left: set[str]) -> Plans:
            by_seed = [list(own) for _, own in itertools.groupby(runs, lambda run: run.seed)]
            return [
                (TASK, plan_imitation(own[i : i + most], self.mesh))
                for own in by_seed
                for i in range(0, len(own), most)
            ]

        planned = self.folder.plans(made_for, {run.id: run for run in runs}, make)
        return [plan for _, plan in planned]

    def stepped(self, steps: int, loss: float) -> None:
        """Shows that steps were taken, and stops the audit if it was asked to stop."""
        self.watch.stepped(steps, {"task_loss/mean": loss})
        if self.interruption.asked():
            out_dir = self.folder.layout.folder
            raise KeyboardInterrupt(f": the same command with --out_dir={out_dir} continues it")

    def add(self, tuned: Sequence[Imitation]) -> None:
        """Writes the prompts and then the results of a population."""
        with writing(self.folder.layout.folder):
            for each in tuned:
                path = self.path(each.run)
                path.parent.mkdir(exist_ok=True)
                np.save(path, each.prompt)
        key = " ".join(each.run.id for each in tuned)
        self.folder.add_measurement(DOUBLES, key, [each.to_json() for each in tuned])

    def finished(self, runs: Sequence[Run]) -> dict[str, Imitation]:
        """The doubles that an earlier start finished, by the ids of their runs."""
        by_id, found = {run.id: run for run in runs}, {}
        for row in itertools.chain.from_iterable(self.folder.measured().get(DOUBLES, {}).values()):
            run = by_id[row["id"]]
            with reading(self.path(run)):
                prompt = np.load(self.path(run), allow_pickle=False)
            found[run.id] = Imitation.from_json(row, run, prompt)
        return found

    def path(self, run: Run) -> Path:
        """The file of a double."""
        return self.folder.layout.folder / "doubles" / f"{run.id}.npy"
