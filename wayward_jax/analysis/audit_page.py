"""Writes an audit as a page (HTML), as Markdown and as JSON, all with the same content."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wayward_jax.analysis import escaping, outputs, report, statistics
from wayward_jax.analysis.audit import (
    Audit,
    OnTask,
    TaskDouble,
    drop_from,
    findings,
    needed,
    verdict,
)
from wayward_jax.analysis.outputs import OnTexts
from wayward_jax.analysis.statistics import BEYOND, CANNOT_TELL, WITHIN, Interval, Ratio
from wayward_jax.errors import InputError
from wayward_jax.training.imitation import MAX_TOKENS, Outputs

WORDS = {WITHIN: "as well", BEYOND: "worse", CANNOT_TELL: "cannot be told"}
KEPT = {WITHIN: "keeps the predictions", BEYOND: "changes them", CANNOT_TELL: "cannot be told"}

OF_TASKS = (
    "A double is a prompt that was tuned, from the audited prompt, to read as another text and to "
    "do the task. It does as well if the interval of its drop of accuracy lies below the margin of "
    "{margin:g} %, worse if the interval lies above the margin; otherwise it cannot be told. In "
    "95 % of audits, the intervals of all texts hold the truth (Bonferroni). Of several tries for "
    "a text, the one with the best accuracy on dev is shown, and all accuracies are of test "
    "examples.",
    "Intervals are over test examples and about these very prompts. They say nothing about other "
    "prompts that the same training with another seed would give.",
)

OF_TEXTS = (
    "A double is a prompt that was tuned, from the audited prompt, to read as another text and to "
    "keep what the model predicts. The divergence of a prompt is the Kullback-Leibler divergence "
    "of the model's next-token predictions with it from those with the audited prompt, averaged "
    f"over the first {MAX_TOKENS} tokens of each text, in nats a token. Its share is that of the "
    "divergence without any prompt, which undoes everything that the audited prompt does. A double "
    f"keeps the predictions if the interval of its share lies below {outputs.MARGIN:g} %, and "
    "changes them if the interval lies above that; otherwise it cannot be told. In 95 % of audits, "
    "the intervals of all texts hold the truth (Bonferroni). Of several tries for a text, the one "
    "with the least divergence on the texts that it was tuned on is shown, and all figures are of "
    "other texts.",
    "Intervals are over texts and about these very prompts. They say nothing about other prompts "
    "that the same training with another seed would give, nor about texts of another kind.",
)

NOTES = (
    "The margin of a vector is how much farther the second nearest token is than the nearest, in "
    "squared Euclidean distance.",
    "The lens (nostalgebraist, 2020) applies the model's last norm and output head to the hidden "
    "states of the prompt's positions after each layer, and reads each position as the likeliest "
    "token.",
    "The model was asked what the prompt means: it continued texts that have the prompt in them, "
    "by the likeliest token each time. In some, hidden states of the prompt after a layer were put "
    "into a layer of the text in place of its vectors (InSPEcT, Ramati et al., 2024). The surprise "
    "of an answer is its mean negative log-likelihood, in nats a token.",
    "Doubles are tuned to deceive nearest tokens, or the reading that --constraint names (lens, "
    "verbal, inspect). About readings of which there are no doubles, nothing is shown.",
)


def write(found: Audit, folder: Path) -> None:
    """Writes `audit.html`, `audit.md` and `audit.json` into a folder, which is made if need be.

    Raises:
        InputError: they cannot be written.
    """
    files = {"html": render(found), "md": markdown(found), "json": to_json(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            (folder / f"audit.{suffix}").write_text(content, encoding="utf-8")
    except OSError as error:
        remedy = f"cannot be written ({error.strerror}): name another folder"
        raise InputError("out_dir", str(folder), remedy) from error


def render(found: Audit) -> str:
    """The page, which loads nothing else."""
    return report.template("audit.html").render(
        title=title(found),
        verdict=verdict(found),
        findings=findings(found),
        tables={caption: report.cells(frame) for caption, frame in tables(found).items()},
        notes=notes(found),
    )


def markdown(found: Audit) -> str:
    """The page as Markdown."""
    parts = [
        f"# {escaping.in_markdown(title(found))}",
        f"**{escaping.in_markdown(verdict(found))}**",
    ]
    parts += map(escaping.in_markdown, findings(found))
    for caption, frame in tables(found).items():
        safe = frame.map(lambda cell: escaping.in_markdown(str(cell)))
        parts += [f"## {caption}", safe.to_markdown(index=False, disable_numparse=True)]
    parts += ["## How to read this", *notes(found)]
    return "\n\n".join(parts) + "\n"


def notes(found: Audit) -> list[str]:
    """Explains the page's words and figures."""
    if found.on_texts is not None:
        return [*OF_TEXTS, *NOTES]
    return [*(note.format(margin=found.margin) for note in OF_TASKS), *NOTES]


def to_json(found: Audit) -> str:
    """The page's content as JSON; numbers that are not finite are null."""
    anatomy = found.anatomy
    content = {
        "verdict": verdict(found),
        "findings": findings(found),
        "prompt": found.source,
        "model": found.model,
        "margin": found.margin,
        "readings": {
            metric: {
                "text": reading.text,
                "ids": reading.ids.tolist(),
                "distances": reading.distances.tolist(),
                "margins": reading.margins.tolist(),
            }
            for metric, reading in found.readings.items()
        },
        "lens": found.lens,
        "answers": [answer._asdict() for answer in found.answers],
        "tokens": {str(id_): text for id_, text in found.tokens.items()},
        "to_token": anatomy.to_token.tolist(),
        "between_tokens": np.quantile(anatomy.between_tokens, (0.05, 0.5, 0.95)).tolist(),
        "norms": anatomy.norms.tolist(),
        "duplicates": anatomy.duplicates,
        "dead": anatomy.dead,
        "task": None if found.on_task is None else _task_json(found.on_task, found.margin),
        "texts": None if found.on_texts is None else _texts_json(found.on_texts),
    }
    return json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def title(found: Audit) -> str:
    """Names the prompt, the model and the task."""
    on = "" if found.on_task is None else f" on {found.on_task.task}"
    return f"{found.source}, a prompt of {found.model}{on}"


def tables(found: Audit) -> dict[str, pd.DataFrame]:
    """The tables of the page by caption; all cells are text."""
    made = {"What it reads as, token by token": _by_token(found)}
    if found.on_task is not None:
        made["Its doubles"] = _doubles(found.on_task, found.margin)
        made["What it does"] = _references(found.on_task)
    if found.on_texts is not None:
        made["Its doubles"] = _text_doubles(found.on_texts)
        made["What it does"] = _text_references(found.on_texts)
    made["What the model says of it"] = pd.DataFrame(
        {
            "asked": _on_a_line(answer.asked),
            "answer": _on_a_line(answer.text),
            "surprise": f"{answer.nll:.2f}",
        }
        for answer in found.answers
    )
    made["What the lens reads"] = pd.DataFrame(
        {"after layer": str(layer), "reads as": text} for layer, text in enumerate(found.lens)
    )
    return made


def _on_a_line(text: str) -> str:
    return text.replace("\n", "↵")


def _by_token(found: Audit) -> pd.DataFrame:
    def token(id_: int) -> str:
        return repr(found.tokens[int(id_)])

    euclidean = found.readings["euclidean"]
    return pd.DataFrame(
        {
            "position": str(i + 1),
            **{metric: token(reading.ids[i, 0]) for metric, reading in found.readings.items()},
            "distance": f"{found.anatomy.to_token[i]:.3g}",
            "margin": f"{euclidean.margins[i]:.3g}",
            "norm": f"{found.anatomy.norms[i]:.3g}",
            "nearest tokens": " ".join(map(token, euclidean.ids[i])),
        }
        for i in range(len(euclidean.ids))
    )


def _doubles(task: OnTask, margin: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": double.target_name,
            "reading": double.reading,
            "reads as": "another text" if double.best is None else double.best.text,
            "accuracy": "" if double.best is None else f"{double.best.accuracy:.3f}",
            "drop, %": _with_ends(double.cost, "{:+.1f}"),
            "does": WORDS[double.verdict(margin)],
            "would take": _would_take(double, margin),
        }
        for double in task.doubles
    )


def _references(task: OnTask) -> pd.DataFrame:
    prompts = {
        "this prompt": task.prompt,
        "its reading, put back as text": task.reading,
        "no prompt": task.nothing,
    }
    rows = [
        {
            "with": name,
            "accuracy": _with_ends(statistics.accuracy(correct[None]), "{:.3f}"),
            "drop, %": ""
            if correct is task.prompt
            else _with_ends(drop_from(task.prompt, correct), "{:+.1f}"),
        }
        for name, correct in prompts.items()
    ]
    rows.append({"with": "the most frequent label", "accuracy": f"{task.majority:.3f}"})
    return pd.DataFrame(rows).fillna("")


def _text_doubles(found: OnTexts) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": double.target_name,
            "reading": double.reading,
            "reads as": "another text" if double.best is None else double.best.text,
            **({} if double.best is None else _figures(double.best.held_out, found)),
            "does": KEPT[double.verdict(outputs.MARGIN)],
        }
        for double in found.doubles
    ).fillna("")


def _text_references(found: OnTexts) -> pd.DataFrame:
    prompts = {"its reading, put back as text": found.reading, "no prompt": found.nothing}
    return pd.DataFrame({"with": name, **_figures(own, found)} for name, own in prompts.items())


def _figures(own: Outputs, found: OnTexts) -> dict[str, str]:
    return {
        "divergence": f"{own.kl.mean():.3g}",
        "share, %": _with_ends(outputs.share_of(own.kl, found.nothing.kl), "{:.1f}"),
        "same likeliest token, %": f"{100 * own.kept.mean():.0f}",
    }


def _with_ends(found: Interval | Ratio, form: str) -> str:
    if math.isnan(found.value):
        return ""
    ends = " to ".join(form.format(end) for end in (found.low, found.high))
    return f"{form.format(found.value)} ({ends})"


def _would_take(double: TaskDouble, margin: float) -> str:
    examples = needed(double.cost, margin)
    return "" if examples is None else f"{examples:,} test examples"


def _task_json(task: OnTask, margin: float) -> dict[str, Any]:
    references = {"prompt": task.prompt, "reading": task.reading, "none": task.nothing}
    return {
        "name": task.task,
        "n_eval": len(task.prompt),
        "majority": task.majority,
        "accuracy": {name: float(correct.mean()) for name, correct in references.items()},
        "doubles": [
            {
                "reading": double.reading,
                "target_name": double.target_name,
                "target_text": double.text,
                "tries": [record.id for record in double.tries],
                "best": None if double.best is None else double.best.id,
                "checkpoint": None if double.best is None else double.best.checkpoint,
                "accuracy": None if double.best is None else double.best.accuracy,
                "drop": [double.cost.value, double.cost.low, double.cost.high],
                "verdict": double.verdict(margin),
            }
            for double in task.doubles
        ],
    }


def _texts_json(found: OnTexts) -> dict[str, Any]:
    return {
        "n_texts": len(found.nothing.kl),
        "margin": outputs.MARGIN,
        "none": _outputs_json(found.nothing),
        "reading": _outputs_json(found.reading),
        "doubles": [
            {
                "reading": double.reading,
                "target_name": double.target_name,
                "target_text": double.text,
                "tries": len(double.tries),
                "best": None if double.best is None else double.best.run.id,
                "text": None if double.best is None else double.best.text,
                **_outputs_json(None if double.best is None else double.best.held_out),
                "share": [double.cost.value, double.cost.low, double.cost.high],
                "verdict": double.verdict(outputs.MARGIN),
            }
            for double in found.doubles
        ],
    }


def _outputs_json(own: Outputs | None) -> dict[str, float | None]:
    if own is None:
        return {"divergence": None, "same_likeliest": None}
    return {"divergence": float(own.kl.mean()), "same_likeliest": float(own.kept.mean())}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
