"""The part of `audit` without a task: doubles that keep what a prompt makes the model predict."""

import dataclasses
import itertools

import numpy as np
from jax.sharding import Mesh

from experiments import grid
from wayward_jax.analysis import outputs
from wayward_jax.constraints import CONSTRAINTS, ReadingPenalty
from wayward_jax.errors import InputError
from wayward_jax.jobs.inputs import check_cells, find_readings
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import AuditSettings
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.readings import read_prompts
from wayward_jax.runs import Run
from wayward_jax.sharding import on_host
from wayward_jax.targets import load_texts, require_readable, tokenize
from wayward_jax.training.imitation import START, Texts, compare_outputs, imitate

# Half of the texts are held out, and an interval over fewer tells nothing.
LEAST_TEXTS = 8

# At most this many doubles are tuned at once, because memory holds the logits of all of them.
AT_ONCE = 16


def read_texts(settings: AuditSettings) -> list[str]:
    """Reads the texts on which doubles are to keep the predictions.

    Texts that doubles read as are left out.

    Raises:
        InputError: there are no such texts, or too few.
    """
    try:
        texts = load_texts(settings.texts, data_dir=settings.data_dir)
    except InputError as error:
        argument = "texts" if error.argument == "targets" else error.argument
        raise InputError(argument, error.value, error.remedy) from error
    targets = load_texts(settings.targets, data_dir=settings.data_dir)
    found = [text for text in dict.fromkeys(texts.values()) if text not in targets.values()]
    if len(found) < LEAST_TEXTS:
        remedy = f"{len(found)} texts that are no targets are too few: give {LEAST_TEXTS} or more"
        raise InputError("texts", settings.texts, remedy)
    return found


def compare_doubles(
    settings: AuditSettings,
    model: LanguageModel,
    prompt: np.ndarray,
    texts: list[str],
    mesh: Mesh,
    watch: ProgressReporter,
) -> outputs.OnTexts:
    """Tunes doubles of a prompt `[L, D]`, and compares them with it on the held-out texts.

    Raises:
        InputError: a text or target cannot be used, or nothing holds a double to its text.
    """
    encoded = Texts.encode(model, texts, len(prompt))
    runs = _list_doubles(settings, model, len(prompt))
    held = {str(each): ReadingPenalty.of(each, model) for each in find_readings(settings, model)}
    most = settings.population or AT_ONCE
    by_seed = [list(own) for _, own in itertools.groupby(runs, lambda run: run.seed)]
    populations = [own[i : i + most] for own in by_seed for i in range(0, len(own), most)]
    watch.planned(settings.steps * len(populations))
    imitations = []
    for part in populations:
        watch.doing(f"{model.name}, {len(texts)} texts, {len(part)} prompts")
        imitations += imitate(
            model,
            prompt,
            encoded,
            part,
            mesh,
            constraints=CONSTRAINTS | held,
            on_steps=lambda steps, loss: watch.stepped(steps, {"task_loss/mean": loss}),
        )
    (reading,) = read_prompts(model, [prompt], [None])
    as_text = on_host(c_proj(model.embedding_table(), reading.ids[:, 0]))
    _, held_out = encoded.halves()
    of_text, of_nothing = (
        compare_outputs(model, prompt, [other], held_out).of(0) for other in (as_text, prompt[:0])
    )
    return outputs.on_texts(of_text, of_nothing, imitations)


def _list_doubles(settings: AuditSettings, model: LanguageModel, length: int) -> list[Run]:
    """The doubles of a prompt of so many vectors; those of a seed stand together."""
    texts = load_texts(settings.targets, data_dir=settings.data_dir)
    targets = tokenize(texts, model.tokenizer, length, repeat=True)
    require_readable(targets, model.tokenizer, model.valid_tokens())
    from_prompt = dataclasses.replace(settings.job, init=(START,))
    held = [
        run
        for run in grid.runs(from_prompt, model, "texts", targets)
        if run.has_target and not run.is_unconstrained
    ]
    if not held:
        raise InputError("gamma", 0, "holds no double to its text: give a number above 0")
    check_cells(model, held)
    return sorted(held, key=lambda run: run.seed)
