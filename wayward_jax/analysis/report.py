"""One HTML page about a set of runs, with everything in it that it needs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from wayward_jax.analysis import figures, style, tables
from wayward_jax.analysis.readings import Reading
from wayward_jax.analysis.selection import F1_THRESHOLD, Row, is_aimed, p_stars, setting
from wayward_jax.jobs.finished import FinishedRun
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.settings import read_flags, repeating_command
from wayward_jax.metrics import accuracy_drop

# Colours of figures to the page's, which differ in the dark.
PAGE_COLORS = {
    style.INK: "var(--ink)",
    style.GRID: "var(--rule)",
    style.P_STAR_COLOR: "var(--p-star)",
    style.WAYWARD_COLOR: "var(--wayward)",
}
SVG_FONT = re.compile(r"font: [^;\"]*?([0-9.]+px)[^;\"]*")
SVG_NUMBERED_ID = re.compile(r' id="[^"]*_\d+"')

# Of the table of runs, in this order; those of one value for all runs are left out.
COLUMNS = (
    "target_name",
    "model",
    "task",
    "init",
    "constraint",
    "gamma",
    "seed",
    "steps",
    "prompt_length",
    "accuracy",
    "drop",
    "prompt_f1",
    "margin",
    "distance",
)
ALWAYS = ("target_name", "task", "gamma", "accuracy", "drop", "prompt_f1")


def render(
    *,
    title: str,
    said: Sequence[str],
    notes: Sequence[str],
    made: Mapping[str, Figure],
    frames: Mapping[str, pd.DataFrame],
    data: Mapping[str, Any],
) -> str:
    """The page.

    Args:
        title: of it.
        said: the summary, a paragraph each.
        notes: what to bear in mind, a paragraph each.
        made: figures by caption.
        frames: tables by caption.
        data: of `page_data`.
    """
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
    return environment.get_template("page.html").render(
        title=title,
        said=said,
        notes=notes,
        figures={caption: _svg(caption, figure) for caption, figure in made.items()},
        tables={caption: _cells(frame) for caption, frame in frames.items()},
        data=data,
        f1_threshold=F1_THRESHOLD,
    )


def page_data(
    finished: Sequence[FinishedRun],
    readings: Mapping[str, Mapping[str, Reading]],
    token_texts: Mapping[str, Mapping[int, str]],
) -> dict[str, Any]:
    """What the page's script shows, compactly: tokens, texts and commands are listed once.

    Args:
        finished: the runs.
        readings: by metric and run id; those of the first metric are shown with their neighbors.
        token_texts: by model and id; a token that is not there is shown as its id.
    """
    tokens, targets, commands = _Index(), _Index(), _Index()
    best = p_stars([run.row for run in finished])
    euclidean, *others = readings.values()

    def index(row: Row, ids: Sequence[int]) -> list[int]:
        texts = token_texts.get(row["model"], {})
        return [tokens.of(texts.get(int(id_), f"#{id_}")) for id_ in ids]

    runs = []
    for run in sorted(finished, key=lambda run: not is_aimed(run.row)):
        row = run.row
        # The margin shown is that of the reading, not of the constraint.
        entry = {name: row[name] for name in ("id", *COLUMNS) if name in row and name != "margin"}
        entry |= {
            "set": tables.target_set(row["target_name"]),
            "target": targets.of((row["target_text"], *index(row, row["target_ids"]))),
            "command": commands.of((run.folder, row["model"], row["task"])),
            "text": row["text"],
            "diverged": row["diverged_at"],
            "curve": [
                [point[name] for name in ("step", "dev_accuracy", "prompt_f1", "task_loss")]
                for point in row["curve"]
            ],
            "ids": index(row, row["token_ids"]),
        }
        if row["constraint"] == "dual":
            entry["gamma"] = float(f"{row['final_gamma']:.3g}")
        if is_aimed(row) and (same := best.get(setting(row))):
            of_seed = [other for other in same if other["seed"] == row["seed"]]
            p_star = float(np.mean([other["accuracy"] for other in of_seed or same]))
            entry |= {"p_star": p_star, "drop": accuracy_drop(p_star, row["accuracy"])}
        if found := euclidean.get(row["id"]):
            entry |= {
                "text": found.text,
                "ids": index(row, found.ids[:, 0]),
                "prompt_f1": found.prompt_f1,
                "margin": found.margins.min(),
                "near": index(row, found.ids.ravel()),
                "far": found.distances.ravel().tolist(),
                "others": [index(row, by_id[row["id"]].ids[:, 0]) for by_id in others],
            }
        runs.append(entry)
    return _plain(
        {
            "metrics": list(readings),
            "columns": [name for name in COLUMNS if _worth_showing(name, runs)],
            "tokens": tokens.values,
            "targets": [{"text": text, "ids": ids} for text, *ids in targets.values],
            "commands": [command(*job) for job in commands.values],
            "runs": runs,
            "hero": _most_wayward(runs),
        }
    )


def command(folder: Path, model: str, task: str) -> str:
    """What repeats a run of a job and nothing else, once `--only=<its id>` stands at the end."""
    return repeating_command(read_flags(JobLayout(folder)), model, task)


class _Index:
    """Numbers for values, in the order in which they are first asked for."""

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
    """The run to show first: it reads as its target and does its task, if there is one."""

    def rank(number: int) -> tuple:
        run = runs[number]
        f1 = run["prompt_f1"] or 0.0
        return f1 >= F1_THRESHOLD, "drop" in run, f1 if f1 < F1_THRESHOLD else 1, run["accuracy"]

    return max(range(len(runs)), key=rank)


def _plain(value: Any) -> Any:
    """For JSON: numbers with four significant digits, None where they are not finite."""
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
    """A figure as an SVG element in the page's colours and fonts."""
    svg = figures.to_svg(name, figure, transparent=True)
    svg = SVG_NUMBERED_ID.sub("", svg[svg.index("<svg") :])
    svg = SVG_FONT.sub(r"font-size: \1", svg)
    for color, variable in PAGE_COLORS.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    table, numbers = tables.shown(frame)
    return {
        "columns": list(zip(table, numbers, strict=True)),
        "rows": table.to_numpy().tolist(),
    }
