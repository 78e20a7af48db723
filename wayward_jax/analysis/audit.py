"""An audit of a prompt: whether what it reads as says anything about what it does.

What it does is a task or, without a task, what it makes the model predict (see `outputs`).

The test is by doubles: prompts that are tuned from this very prompt to read as another text. If one
does the task as well, then two texts are read off prompts that do the same, and neither reading
tells what its prompt does. Comparisons are of single prompts on the same test examples, so their
intervals say nothing about training; a double that exists is a fact whatever led to it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wayward_jax.analysis import outputs, statistics
from wayward_jax.analysis.anatomy import Anatomy, dissect
from wayward_jax.analysis.doubles import Double, by_reading, find_doubles, read_off
from wayward_jax.analysis.outputs import OnTexts, OutputsDouble
from wayward_jax.analysis.statistics import BEYOND, CANNOT_TELL, WITHIN, Compared, Interval
from wayward_jax.models import LanguageModel
from wayward_jax.projection import METRICS
from wayward_jax.readings import Reading, Verbal, find_reading, read_prompts
from wayward_jax.readings.lens import read_layers
from wayward_jax.runs import NEAREST_TOKENS, RunRecord, read_bits
from wayward_jax.sharding import on_host

# The set of texts that contradict a task's definition.
OPPOSITES = "contradictions"

TaskDouble = Double[RunRecord, Interval]


@dataclasses.dataclass(frozen=True, eq=False)
class OnTask:
    """What the prompt and its doubles do on N test examples of a task.

    Attributes:
        task: the task's name.
        majority: the share of the most frequent label.
        prompt: `[N]` bool, which examples are right with the prompt.
        reading: `[N]` bool, with the embeddings of the tokens that it reads as.
        nothing: `[N]` bool, without a prompt.
        doubles: one for each reading that is to be deceived and each text.
    """

    task: str
    majority: float
    prompt: np.ndarray
    reading: np.ndarray
    nothing: np.ndarray
    doubles: tuple[TaskDouble, ...]

    @property
    def learned(self) -> bool:
        """True if the prompt is better than a constant answer and than no prompt.

        That is, the intervals of its accuracy, and of what it gains over no prompt, are.
        """
        gain = statistics.accuracy(self.prompt[None], self.nothing)
        return statistics.accuracy(self.prompt[None]).low > self.majority and gain.low > 0


class Answer(NamedTuple):
    """A text that the model says of a prompt.

    Attributes:
        asked: the way it was asked, see `readings.verbal.Said`.
        text: the answer.
        nll: its mean negative log-likelihood, in nats a token.
    """

    asked: str
    text: str
    nll: float


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """An audit.

    Attributes:
        source: what `--prompt` says.
        model: the model's name.
        readings: the prompt's readings by metric, the Euclidean one first.
        tokens: the text of each token that is among the neighbors.
        lens: what the logit lens reads at each layer, from before the first to after the last.
        answers: what the model itself says of it, asked in several ways.
        anatomy: where its vectors lie.
        on_task: None if no task is given.
        on_texts: None if a task is given.
        margin: of verdicts, in percent.
    """

    source: str
    model: str
    readings: Mapping[str, Reading]
    tokens: Mapping[int, str]
    lens: tuple[str, ...]
    answers: tuple[Answer, ...]
    anatomy: Anatomy
    on_task: OnTask | None
    on_texts: OnTexts | None
    margin: float

    @property
    def text(self) -> str:
        """What the prompt reads as by its nearest tokens."""
        return next(iter(self.readings.values())).text


def audit(
    model: LanguageModel,
    prompt: np.ndarray,
    source: str,
    *,
    on_task: OnTask | None = None,
    on_texts: OnTexts | None = None,
    margin: float = statistics.MARGIN,
    templates: tuple[str, ...] | None = None,
) -> Audit:
    """Reads and measures a prompt `[L, D]`.

    Args:
        model: that the prompt is for.
        prompt: `[L, D]`.
        source: see `Audit`.
        on_task: what the prompt's job has found.
        on_texts: or else, what it makes the model predict.
        margin: see `Audit`.
        templates: of verbal readings, see `readings.find_reading`.
    """
    readings = {metric: read_prompts(model, [prompt], [None], metric)[0] for metric in METRICS}
    ids = {int(id_) for reading in readings.values() for id_ in reading.ids.ravel()}
    tokens = {id_: model.tokenizer.decode([id_]) for id_ in sorted(ids)}
    lens = tuple(model.tokenizer.decode(ids.tolist()) for ids in read_layers(model, prompt))
    answers = (
        answer
        for name in ("verbal", "inspect")
        for answer in _ask(find_reading(name, model, templates), model, prompt)
    )
    return Audit(
        source,
        model.name,
        readings,
        tokens,
        lens,
        tuple(answers),
        dissect(model, prompt),
        on_task,
        on_texts,
        margin,
    )


def _ask(verbal: Verbal, model: LanguageModel, prompt: np.ndarray) -> list[Answer]:
    said = verbal.say(model, prompt[None])
    return [
        Answer(asked, model.tokenizer.decode(ids.tolist()), float(nll))
        for asked, ids, nll in zip(
            said.ways, on_host(said.ids)[0], on_host(said.nll)[0], strict=True
        )
    ]


def on_task(rows: Sequence[Mapping[str, Any]], records: Sequence[RunRecord]) -> OnTask:
    """Compares what a job measured.

    Of several tries for a text, the one with the highest accuracy on dev is the best. Its cost is
    the drop of accuracy.

    Args:
        rows: of the measurement `references` of `experiments.audit`: prompt, reading, none.
        records: the doubles.
    """
    correct = {row["prompt"]: read_bits(row["correct"], row["n_eval"]) for row in rows}
    doubles = find_doubles(
        records,
        lambda record: -record.dev_accuracy,
        lambda best: drop_from(correct["prompt"], best.correct),
        Interval(math.nan),
    )
    return OnTask(
        rows[0]["task"],
        rows[0]["majority"],
        correct["prompt"],
        correct["reading"],
        correct["none"],
        doubles,
    )


def drop_from(prompt: np.ndarray, other: np.ndarray) -> Interval:
    """The drop from a prompt's accuracy to that of another, in percent, over `[N]` examples.

    Even if both predict the same, another example might be predicted differently. The error is at
    least that of one such example among the N.
    """
    drop = statistics.mean_drop([Compared(prompt[None], other[None])])
    least = 100 / max(int(prompt.sum()), 1)
    return dataclasses.replace(drop, error=max(drop.error, least))


def verdict(found: Audit) -> str:
    """The verdict of an audit in a sentence."""
    if found.on_texts is not None:
        return outputs.verdict(found.on_texts, is_text=found.anatomy.is_text)
    task = found.on_task.task
    if not found.on_task.learned:
        return (
            f"This prompt is not shown to do {task} better than a constant answer and than no "
            "prompt, so there is nothing that its reading could explain."
        )
    reading, doubles = next(iter(by_reading(found.on_task.doubles).items()))
    return _judge_reading(found, task, reading, doubles)


def _judge_reading(found: Audit, task: str, reading: str, doubles: Sequence[TaskDouble]) -> str:
    """The verdict on one reading, of which there are doubles."""
    judged = [double.verdict(found.margin) for double in doubles]
    as_well = [double for double in doubles if double.verdict(found.margin) == WITHIN]
    if found.anatomy.is_text and reading == NEAREST_TOKENS:
        others = (
            f"; all the same, {read_off(len(as_well), len(doubles))} with which the model does "
            f"{task} as well, so that a reading alone does not show it"
        )
        return (
            "This prompt is a text: its vectors are embeddings of tokens, so what it reads as is "
            f"what the model is given{others if as_well else ''}."
        )
    if as_well:
        return (
            f"{read_off(len(as_well), len(doubles), _contrary(as_well))} with which the model does "
            f"{task} as well as with this one (accuracy at most {found.margin:g} % lower): what "
            "this prompt reads as does not tell what it does."
        )
    if all(each == BEYOND for each in judged):
        return (
            f"No double was found: all prompts that read as another text ({len(doubles)}) do "
            f"{task} worse than this one (accuracy more than {found.margin:g} % lower), as hard as "
            "was tried here; this does not show that its reading is right."
        )
    return (
        f"It cannot be told whether this prompt's reading means anything: of the prompts for "
        f"{len(doubles)} other texts, none is shown to do {task} as well as this one, "
        f"{judged.count(BEYOND)} to do it worse, and for {judged.count(CANNOT_TELL)} there are too "
        "few test examples, or no prompt reads as the text."
    )


def _contrary(doubles: Sequence[TaskDouble]) -> str:
    """Says how many of the texts contradict the task, if any does."""
    opposite = sum(double.target_name.startswith(OPPOSITES) for double in doubles)
    if opposite and len(doubles) == 1:
        return "one that contradicts the task"
    return f"{opposite} of which contradict{'s' * (opposite == 1)} the task" if opposite else ""


def findings(found: Audit) -> list[str]:
    """Further sentences: on the vectors, the reading as a text, and how hard was tried."""
    anatomy = found.anatomy
    said = [
        f"It reads as: {found.text}",
        _place(anatomy),
        f"The nearest token is {np.median(anatomy.to_token):.3g} away (median over vectors); "
        f"tokens are {np.median(anatomy.between_tokens):.3g} from the nearest other token, and "
        f"95 % of them at most {anatomy.usual:.3g}. Vectors have norms of "
        f"{anatomy.norms.min():.3g} to {anatomy.norms.max():.3g}, tokens of "
        f"{np.quantile(anatomy.token_norms, 0.025):.3g} to "
        f"{np.quantile(anatomy.token_norms, 0.975):.3g} (95 % of them).",
    ]
    if anatomy.duplicates:
        pairs = ", ".join(f"{i + 1} and {j + 1}" for i, j in anatomy.duplicates)
        said.append(f"Nearly the same vectors stand at {pairs}.")
    if anatomy.dead:
        said.append(f"Nearly 0 are the vectors at {', '.join(str(i + 1) for i in anatomy.dead)}.")
    if found.on_texts is not None:
        said += outputs.findings(found.on_texts, is_text=anatomy.is_text)
        said.append(_effort(found.on_texts.doubles, "texts"))
    if found.on_task is not None:
        said.append(_as_text(found))
        if found.on_task.learned:
            _, *others = by_reading(found.on_task.doubles).items()
            for reading, own in others:
                judged = _judge_reading(found, found.on_task.task, reading, own)
                said.append(f"By the reading {reading}: {judged}")
        said.append(_effort(found.on_task.doubles, "examples"))
    return said


def needed(drop: Interval, margin: float) -> int | None:
    """The test examples that would give a verdict if the drop stayed; None if no number would."""
    room = abs(margin - drop.value)
    if math.isnan(room) or room == 0 or statistics.judge(drop, margin) != CANNOT_TELL:
        return None
    return math.ceil(drop.examples * ((drop.high - drop.value) / room) ** 2)


def _place(anatomy: Anatomy) -> str:
    count = len(anatomy.to_token)
    if anatomy.is_text:
        return f"All {count} vectors of this prompt are embeddings of tokens."
    than = "than 95 % of tokens are from the nearest other token"
    if not anatomy.far:
        return f"None of the {count} vectors of this prompt is farther from its token {than}."
    return (
        f"{anatomy.far} of the {count} vectors of this prompt are near no token: they are farther "
        f"from each {than}."
    )


def _as_text(found: Audit) -> str:
    if found.anatomy.is_text:
        return "Put back as text, it is the same prompt."
    drop = drop_from(found.on_task.prompt, found.on_task.reading)
    said = {
        WITHIN: f"does {found.on_task.task} as well as the prompt",
        BEYOND: f"does {found.on_task.task} worse than the prompt",
        CANNOT_TELL: "may do as well as the prompt or worse, which cannot be told",
    }[statistics.judge(drop, found.margin)]
    return (
        f"Put back as text, the reading {said} (drop of accuracy {drop.value:+.1f} %, 95 % "
        f"interval {drop.low:+.1f} to {drop.high:+.1f})."
    )


def _each_reading(doubles: Sequence[TaskDouble] | Sequence[OutputsDouble]) -> str:
    readings = len(by_reading(doubles))
    return f" and {readings} readings" if readings > 1 else ""


def _effort(doubles: Sequence[TaskDouble] | Sequence[OutputsDouble], unit: str) -> str:
    runs = [each.run for double in doubles for each in double.tries]
    texts = {double.target_name for double in doubles}
    tries = max(len(double.tries) for double in doubles)
    ways = dict.fromkeys(
        f"{run.constraint} of gamma {run.gamma:g}"
        if run.gamma or run.constraint == "penalty"
        else run.constraint
        for run in runs
    )
    rates = dict.fromkeys(f"{run.learning_rate:g}" for run in runs)
    lost = sum(double.best is None for double in doubles)
    return (
        f"How hard was tried: for each of {len(texts)} texts{_each_reading(doubles)}, {tries} "
        f"{'prompt was' if tries == 1 else 'prompts were'} tuned from this prompt, in "
        f"{runs[0].steps} steps of {runs[0].batch_size} {unit} (learning rate "
        f"{', '.join(rates)}), held to the text by {', '.join(ways)}."
        + (f" For {lost} of them, no prompt came to read as the text." if lost else "")
    )
