"""Renders one HTML page about a set of runs, which loads nothing else."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from wayward_jax.analysis import captions, figures, shown_tables, style, tables
from wayward_jax.analysis.answers import MOST_TEXTS, Answered
from wayward_jax.analysis.selection import (
    F1_THRESHOLD,
    ModelKey,
    best_try,
    model_key,
    p_stars,
    setting,
)
from wayward_jax.jobs.kept_flags import read_flags, repeating_command
from wayward_jax.jobs.records import FinishedRun
from wayward_jax.metrics import accuracy_drop
from wayward_jax.readings import Reading
from wayward_jax.runs import NEAREST_TOKENS, RunRecord

# The page's colors in place of those of figures; the page has others in dark mode.
PAGE_COLORS = {
    style.INK: "var(--ink)",
    style.GRID: "var(--rule)",
    style.P_STAR_COLOR: "var(--p-star)",
    style.WAYWARD_COLOR: "var(--wayward)",
}
SVG_FONT = re.compile(r"font: [^;\"]*?([0-9.]+px)[^;\"]*")
SVG_NUMBERED_ID = re.compile(r' id="[^"]*_\d+"')

# The table of runs shows these attributes of a run, and then the results. Columns with a single
# value for all runs are left out, but for those of ALWAYS.
OF_THE_RUN = (
    *("target_name", "model", "task", "init", "constraint", "gamma", "seed"),
    *("steps", "learning_rate", "optimizer", "keep", "prompt_length"),
)
COLUMNS = (*OF_THE_RUN, "accuracy", "drop", "prompt_f1", "margin", "distance")
ALWAYS = ("target_name", "task", "gamma", "accuracy", "drop", "prompt_f1")


def render(
    *,
    title: str,
    said: Sequence[str],
    answers: Sequence[Answered],
    notes: Sequence[str],
    made: Mapping[str, Figure],
    frames: Mapping[str, pd.DataFrame],
    data: Mapping[str, Any],
) -> str:
    """Renders the page.

    Args:
        title: the page's title.
        said: the summary, one string a paragraph.
        answers: to a few examples of each task.
        notes: explanations and reservations, one string a paragraph.
        made: figures by caption.
        frames: tables by caption.
        data: the result of `page_data`.
    """
    return template("page.html").render(
        title=title,
        said=said,
        answered=answers,
        how_answered=captions.ANSWERS.format(texts=MOST_TEXTS),
        most_texts=MOST_TEXTS,
        notes=notes,
        figures={caption: _svg(caption, figure) for caption, figure in made.items()},
        tables={caption: cells(frame) for caption, frame in frames.items()},
        data=data,
        f1_threshold=F1_THRESHOLD,
    )


def template(name: str) -> jinja2.Template:
    """A template of the folder `page`, in which all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wayward_jax.analysis", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    return environment.get_template(name)


def page_data(
    finished: Sequence[FinishedRun],
    readings: Mapping[str, Mapping[str, Reading]],
    token_texts: Mapping[ModelKey, Mapping[int, str]],
) -> dict[str, Any]:
    """Collects what the page's script shows; tokens, texts and commands are listed once.

    Args:
        finished: the runs.
        readings: readings by metric and run id; the first metric's are shown with neighbors.
        token_texts: the text of each token id, by model; a token without a text is shown as its id.
    """
    tokens, targets, commands = _Index(), _Index(), _Index()
    best = p_stars([run.record for run in finished])
    euclidean, *others = readings.values()

    def index(record: RunRecord, ids: Sequence[int]) -> list[int]:
        texts = token_texts.get(model_key(record), {})
        return [tokens.of(texts.get(int(id_), f"#{id_}")) for id_ in ids]

    runs = []
    for run in sorted(finished, key=lambda run: not run.record.run.has_target):
        record, settings = run.record, run.record.run
        entry = {
            "id": record.id,
            **{name: getattr(settings, name) for name in OF_THE_RUN},
            "set": tables.target_set(settings.target_name),
            "target": targets.of((settings.target_text, *index(record, settings.target_ids))),
            "command": commands.of((run.job, settings.model, settings.task)),
            "accuracy": record.accuracy,
            "prompt_f1": record.prompt_f1,
            "distance": record.distance,
            "text": record.text,
            "diverged": record.diverged_at,
            "curve": [
                [point.step, point.dev_accuracy, point.prompt_f1, point.task_loss]
                for point in record.curve
            ],
            "ids": index(record, record.token_ids),
        }
        if settings.constraint == "dual":
            entry["gamma"] = float(f"{record.final_gamma:.3g}")
            entry["gamma_found"] = record.gamma_found
        if settings.has_target and (tries := best.get(setting(record))):
            same = best_try(tries)
            of_seed = [other for other in same if other.run.seed == settings.seed]
            p_star = float(np.mean([other.accuracy for other in of_seed or same]))
            entry |= {"p_star": p_star, "drop": accuracy_drop(p_star, record.accuracy)}
        if found := euclidean.get(record.id):
            if record.reading == NEAREST_TOKENS:
                entry |= {
                    "text": found.text,
                    "ids": index(record, found.ids[:, 0]),
                    "prompt_f1": found.prompt_f1,
                }
            entry |= {
                "margin": found.margins.min(),
                "near": index(record, found.ids.ravel()),
                "far": found.distances.ravel().tolist(),
                "others": [index(record, by_id[record.id].ids[:, 0]) for by_id in others],
            }
        runs.append(entry)
    return _plain(
        {
            "metrics": list(readings),
            "columns": [name for name in COLUMNS if _worth_showing(name, runs)],
            "tokens": tokens.values,
            "targets": [{"text": text, "ids": ids} for text, *ids in targets.values],
            "commands": [
                repeating_command(read_flags(job), model, task)
                for job, model, task in commands.values
            ],
            "runs": runs,
            "hero": _most_wayward(runs),
        }
    )


class _Index:
    """Numbers values in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[Any]:
        return list(self._numbers)


def _worth_showing(name: str, runs: Sequence[Mapping[str, Any]]) -> bool:
    return name in ALWAYS or len({run.get(name) for run in runs}) > 1


def _most_wayward(runs: Sequence[Mapping[str, Any]]) -> int:
    """The run to show first: among those that read as their target, the most accurate one."""

    def rank(number: int) -> tuple:
        run = runs[number]
        f1 = run["prompt_f1"] or 0.0
        return f1 >= F1_THRESHOLD, "drop" in run, f1 if f1 < F1_THRESHOLD else 1, run["accuracy"]

    return max(range(len(runs)), key=rank)


def _plain(value: Any) -> Any:
    """Makes values fit for JSON, with four significant digits and None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        short = float(f"{value:.4g}")
        whole = int(short) if np.isfinite(short) and short == int(short) else short
        return whole if np.isfinite(short) else None
    return value


def _svg(name: str, figure: Figure) -> Markup:
    """Makes an SVG element of a figure, in the page's colors and fonts."""
    svg = figures.to_svg(name, figure, transparent=True)
    svg = SVG_NUMBERED_ID.sub("", svg[svg.index("<svg") :])
    svg = SVG_FONT.sub(r"font-size: \1", svg)
    for color, variable in PAGE_COLORS.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Makes the columns and rows of a table, as the macro of `tables.html` takes them."""
    table, numbers = shown_tables.shown(frame)
    return {
        "columns": list(zip(table, numbers, strict=True)),
        "rows": table.to_numpy().tolist(),
    }
