"""Analyzes finished jobs: reads results and prompts, and makes tables, figures and a page.

Nothing is trained. What is needed are the folders of the jobs and, to read the prompts, the models.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wayward_jax import models
from wayward_jax.analysis import (
    captions,
    escaping,
    figures,
    report,
    shown_tables,
    statistics,
    tables,
)
from wayward_jax.analysis.agreement import agreements
from wayward_jax.analysis.answers import answered
from wayward_jax.analysis.selection import Comparison, ModelKey, compare, model_key
from wayward_jax.analysis.summary import reservations, summary, title
from wayward_jax.errors import InputError, reason
from wayward_jax.jobs.kept_flags import read_flags
from wayward_jax.jobs.records import FinishedRun, load_prompts, read_jobs, read_measurements
from wayward_jax.jobs.settings import Settings
from wayward_jax.models import LanguageModel
from wayward_jax.models.sources import short_name
from wayward_jax.projection import METRICS
from wayward_jax.readings import Reading, read_prompts
from wayward_jax.runs import RunRecord

Models = Mapping[ModelKey, LanguageModel]

Readings = Mapping[str, Mapping[str, Reading]]
"""Readings by metric and run id."""

# The number of prompts that are in memory together.
PROMPTS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The analysis of finished jobs.

    Attributes:
        records: all runs.
        comparisons: of these runs.
        token_texts: see `token_texts`.
        summary: a few sentences on the runs, the most general one first.
        tables: tables by name.
        figures: figures by name.
        page: an HTML page with all of it.
    """

    records: list[RunRecord]
    comparisons: list[Comparison]
    token_texts: dict[ModelKey, dict[int, str]]
    summary: list[str]
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]
    page: str


def analyze(
    folders: Sequence[Path],
    *,
    cache_dir: Path,
    assets_dir: Path | None = None,
    select: str = "dev",
    margin: float = statistics.MARGIN,
) -> Analysis:
    """Analyzes the jobs in some folders together.

    Args:
        folders: the folders of finished jobs.
        cache_dir: the folder of converted models.
        assets_dir: the folder of built-in models, to use no network.
        select: the split on which a target's best gamma is chosen, `dev` or `test`.
        margin: of verdicts, in percent, see `statistics.Interval.verdict`.

    Raises:
        InputError: the results or checkpoints of a job are missing or broken, or it is an audit's.
    """
    finished = read_jobs(folders)
    for folder in dict.fromkeys(run.job for run in finished):
        if read_flags(folder)["experiment"] == "audit":
            raise InputError(
                "runs",
                str(folder.folder),
                "holds an audit, whose prompts have no p_star to be compared with: open audit.html "
                "there, and leave the folder out",
            )
    for run in finished:
        if not run.checkpoint.is_dir():
            raise InputError(None, run.checkpoint, "is missing: bring the job's checkpoints, too")
    loaded, missing = load_models(finished, cache_dir, assets_dir)
    readings = read_checkpoints(finished, loaded)
    records = [run.record for run in finished]
    comparisons = compare(records, select)
    measured = read_measurements(folders)
    read_now = {c.wayward[0].id: agreements(c, readings) for c in comparisons}
    projection = {key: rows for key, rows in read_now.items() if rows}
    measured["projection"] = measured.get("projection", {}) | projection

    made_tables = tables.tables(records, comparisons, measured, margin)
    sizes = {key: sum(leaf.size for leaf in jax.tree.leaves(m.params)) for key, m in loaded.items()}
    made_figures = figures.figures(records, comparisons, sizes, measured)
    without_sets = [name for name in tables.SETTING_NAMES if name != "set"]
    by_task = tables.by_group(comparisons, without_sets, margin)
    texts = token_texts(records, loaded, readings)
    said = summary(records, comparisons, by_task, margin)
    page = report.render(
        title=title(records),
        said=said,
        answers=answered(comparisons, measured),
        notes=[
            *missing,
            *reservations(records, readings["euclidean"]),
            *(note.format(select=select, margin=margin) for note in captions.NOTES),
        ],
        made={captions.FIGURE_CAPTIONS[name]: figure for name, figure in made_figures.items()},
        frames={captions.TABLE_CAPTIONS[name]: frame for name, frame in made_tables.items()},
        data=report.page_data(finished, readings, texts),
    )
    return Analysis(records, comparisons, texts, said, made_tables, made_figures, page)


def write(analysis: Analysis, out_dir: Path) -> None:
    """Writes an analysis into a folder, in place of what an earlier one wrote there.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        (out_dir / "tables").mkdir(parents=True, exist_ok=True)
        (out_dir / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            "out_dir", str(out_dir), f"cannot be made ({error.strerror}): name a folder that can"
        ) from error
    for name, frame in analysis.tables.items():
        shown_tables.write(frame, out_dir / "tables", name)
    runs = escaping.in_csv(tables.by_run(analysis.records))
    runs.to_csv(out_dir / "tables" / "runs.csv", index=False)
    figures.save(analysis.figures, out_dir / "figures")
    (out_dir / "summary.md").write_text(
        "\n\n".join(map(escaping.in_markdown, analysis.summary)) + "\n", encoding="utf-8"
    )
    (out_dir / "report.html").write_text(analysis.page, encoding="utf-8")


def load_models(
    finished: Sequence[FinishedRun], cache_dir: Path, assets_dir: Path | None
) -> tuple[dict[ModelKey, LanguageModel], list[str]]:
    """Loads the models of runs from where `--model` of their jobs says.

    Returns:
        The models that are here, in the dtype that the runs had, and a sentence on each model that
        is not. A model whose weights are others than those that a run was tuned for is not the
        run's model.
    """
    runs: dict[ModelKey, list[FinishedRun]] = {}
    for run in finished:
        runs.setdefault(model_key(run.record), []).append(run)
    found, missing = {}, []
    for (name, digest), of_model in sorted(runs.items()):
        try:
            found[name, digest] = _open_model(of_model, cache_dir, assets_dir)
        except InputError as error:
            missing.append(captions.MISSING_MODEL.format(name=name, reason=reason(error)))
    return found, missing


def read_checkpoints(
    finished: Sequence[FinishedRun], loaded: Models
) -> dict[str, dict[str, Reading]]:
    """Reads the prompts of the runs whose models are here, under every metric.

    Raises:
        InputError: a checkpoint is broken, or its shape is not that of its run and model.
    """
    readings: dict[str, dict[str, Reading]] = {metric: {} for metric in METRICS}
    for key, model in loaded.items():
        own = [run for run in finished if model_key(run.record) == key]
        for first in range(0, len(own), PROMPTS_AT_ONCE):
            part = own[first : first + PROMPTS_AT_ONCE]
            prompts = _load_prompts(part, model)
            targets = [run.record.run.target for run in part]
            for metric in METRICS:
                found = read_prompts(model, prompts, targets, metric)
                readings[metric] |= {
                    run.record.id: reading for run, reading in zip(part, found, strict=True)
                }
    return readings


def token_texts(
    records: Sequence[RunRecord], loaded: Models, readings: Readings
) -> dict[ModelKey, dict[int, str]]:
    """The texts of all tokens that occur in targets and readings, by model and id."""
    texts = {}
    for key, model in loaded.items():
        own = [record for record in records if model_key(record) == key]
        ids = {id_ for record in own for id_ in (*record.run.target_ids, *record.token_ids)}
        for by_id in readings.values():
            ids.update(id_ for record in own for id_ in by_id[record.id].ids.ravel().tolist())
        texts[key] = {id_: model.tokenizer.decode([id_]) for id_ in sorted(ids)}
    return texts


def _open_model(
    runs: Sequence[FinishedRun], cache_dir: Path, assets_dir: Path | None
) -> LanguageModel:
    """Opens the model of runs, as they had it, from where one of their jobs found it.

    Raises:
        InputError: it is at none of these places.
    """
    record = runs[0].record
    name, digest = model_key(record)
    flags = {read_flags(job)["model"] for job in {run.job for run in runs}}
    sources = sorted({source for text in flags for source in Settings.parse({"model": text}).model})
    failed = InputError("model", ",".join(sources), f"no model called {name} is there")
    for source in sources:
        if short_name(source) != name:
            continue
        try:
            # Built-in models that were fetched before are in the cache.
            model = models.open_model(
                source,
                cache_dir=cache_dir,
                assets_dir=assets_dir or cache_dir / "assets",
                dtype=record.provenance.dtype,
                readable=record.provenance.readable,
            )
        except InputError as error:
            failed = error
            continue
        if model.digest == digest:
            return model
        failed = InputError("model", source, "has other weights than the prompts were tuned for")
    raise failed


def _load_prompts(finished: Sequence[FinishedRun], model: LanguageModel) -> list[np.ndarray]:
    prompts = load_prompts(finished)
    for run in finished:
        found = prompts[run.record.id].shape
        expected = run.record.run.prompt_length, model.embedding_table().shape[1]
        if found != expected:
            raise InputError(
                None,
                f"{run.checkpoint}:{run.record.id}",
                f"is a prompt of shape {found}, and its run and {model.name} have {expected}: "
                "bring the checkpoint and the model that belong to the run",
            )
    return [prompts[run.record.id] for run in finished]
