"""`audit`: tests the reading of a given prompt: `python -m experiments.audit --prompt=P --task=T`.

Prompts are tuned from the given one to read as other texts, and compared with it: on a task or,
without --task, by what they make the model predict.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import flags, grid
from wayward_jax.errors import InputError
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.settings import AuditSettings, Settings
from wayward_jax.runs import Run
from wayward_jax.targets import Target, load_texts

if TYPE_CHECKING:
    from wayward_jax.jobs.probes import Measurement, ProbeContext
    from wayward_jax.models import LanguageModel

# Texts for all tasks. Before them come texts that contradict the task, if it has such.
TEXTS, OPPOSITES = "instructions:2,sentences:2", "contradictions:2"


def runs(
    settings: Settings, model: "LanguageModel", task: str, targets: Sequence[Target]
) -> list[Run]:
    """Lists the doubles."""
    if not all(init.startswith("checkpoint:") for init in settings.init):
        raise InputError("init", ",".join(settings.init), "give the prompt that is audited")
    return grid.held_runs(settings, model, task, targets)


def measure(context: "ProbeContext") -> Iterator["Measurement"]:
    """Yields a measurement for each audited prompt and task."""
    for init, prompt in context.starts.items():
        for task in context.tasks:
            yield f"{init} {task}", functools.partial(_measure_references, context, prompt, task)


def _measure_references(context: "ProbeContext", prompt: Any, task: str) -> list[dict[str, Any]]:
    from wayward_jax import metrics
    from wayward_jax.jobs.probes import answers
    from wayward_jax.readings import read_prompts

    examples = context.tasks[task].test
    (reading,) = read_prompts(context.model, [prompt], [None])
    as_text = context.embed(reading.ids[:, 0].tolist())
    prompts = {"prompt": prompt, "reading": as_text, "none": context.embed([])}
    common = {"task": task, "majority": metrics.majority(examples.labels)}
    scores = context.score(list(prompts.values()), examples)
    return [
        {"prompt": name, **common, **answers(own, examples)}
        for name, own in zip(prompts, scores, strict=True)
    ]


def main(given: flags.Given) -> None:
    """Audits the prompt that the flags name, and says where the page is."""
    settings = AuditSettings.parse({**EXPERIMENT.defaults, **_targets(given), **given})
    out_dir = settings.out_dir or Path("runs", f"{time.strftime('%Y%m%d-%H%M%S')}-audit")
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from experiments import imitation
    from wayward_jax.analysis import audit, audit_page
    from wayward_jax.jobs import job, progress_bar
    from wayward_jax.jobs.folder import JobFolder
    from wayward_jax.jobs.layout import JobLayout
    from wayward_jax.jobs.loader import Loader, keep_compiled
    from wayward_jax.prompt_files import fit_prompt, read_prompt

    saved = read_prompt(settings.prompt)
    keep_compiled(settings.cache_dir)
    folder = JobFolder(JobLayout(out_dir), settings.job)
    console, on_task, on_texts = Console(), None, None
    with progress_bar.ProgressReporter(console) as watch:
        if settings.task:
            finished = job.run_job(settings.job, EXPERIMENT, out_dir, watch)
            (rows,) = finished.measured["audit"].values()
            on_task = audit.on_task(rows, finished.records)
        else:
            given_texts = imitation.read_texts(settings)
            folder.validate()
        loader = Loader(settings, kept=folder.meshes())
        (name,) = loader.names
        mesh = loader.choose_mesh(name, settings.population or imitation.AT_ONCE)
        model = loader.model(name)
        prompt = fit_prompt(saved, model)
        if not settings.task:
            on_texts = imitation.compare_doubles(
                settings, model, prompt, given_texts, folder, mesh, watch
            )
        found = audit.audit(
            model,
            prompt,
            settings.prompt,
            on_task=on_task,
            on_texts=on_texts,
            margin=settings.equivalence_margin,
            templates=settings.verbal_templates,
        )
    audit_page.write(found, out_dir)
    console.print(audit.verdict(found), markup=False)
    console.print(f"Open {out_dir / 'audit.html'}", markup=False)


def _targets(given: flags.Given) -> dict[str, str]:
    """The default of `--targets`."""
    try:
        load_texts(OPPOSITES, task=given.get("task"))
    except InputError:
        return {"targets": TEXTS}
    return {"targets": f"{OPPOSITES},{TEXTS}"}


EXPERIMENT = Experiment(
    runs,
    tables=(),
    measure=measure,
    defaults={"constraint": "cell", "steps": "60", "targets": TEXTS},
    repeat_targets=True,
)


def program() -> None:
    """Runs this program with the flags of its command line."""
    flags.run(main, AuditSettings)


if __name__ == "__main__":
    program()
