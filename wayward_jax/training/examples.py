"""A task's examples as segments of tokens, ready for training and evaluation (on the host)."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.segments import Segments, example_order, gold_segments, label_segments
from wayward_jax.shapes import GRAIN, PackedShape
from wayward_jax.tasks import Encoded, Examples, TaskData, encode
from wayward_jax.training.scoring import EvaluationSet, scoring_shape
from wayward_jax.training.shown import Shown, choose_shown

CONTENT_FREE = "N/A"
"""A text that says nothing about any task."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTask:
    """A task's examples, tokenized for one method and template.

    The train and dev examples depend on the choice of examples, and so on a run's data seed.

    Attributes:
        train: for each data seed, the segments with the gold label of each example.
        dev_subset: for each data seed, a few dev examples, for evaluations during training.
        dev: for each data seed, the examples by which runs are chosen.
        test: the examples on which results are reported.
        shown: a few of these, for reports.
        content_free: a single example whose text has no content, for calibration; its label means
            nothing.
        digests: for each data seed, sixteen hexadecimal digits of the tokens and labels of its
            train, dev and test examples.
    """

    train: dict[int, Segments]
    dev_subset: dict[int, EvaluationSet]
    dev: dict[int, EvaluationSet]
    test: EvaluationSet
    shown: Shown
    content_free: EvaluationSet
    digests: dict[int, str]


def encode_task(
    model: LanguageModel, samples: Mapping[int, TaskData], *, template: int = 1, **options: Any
) -> EncodedTask:
    """Tokenizes a single task's examples; see `encode_tasks`."""
    return encode_tasks(model, {"": samples}, templates={"": template}, **options)[""]


def encode_tasks(
    model: LanguageModel,
    samples: Mapping[str, Mapping[int, TaskData]],
    *,
    templates: Mapping[str, int],
    prompt_length: int,
    method: str = "direct",
    n_dev: int = 0,
    n_eval: int = 0,
    n_dev_subset: int = 64,
    tokens: int = 2048,
    truncate: str = "tail",
    row_grain: int = GRAIN,
) -> dict[str, EncodedTask]:
    """Tokenizes the examples of tasks for prompts of up to `prompt_length` tokens.

    One program scores the dev and test examples of all of them.

    Args:
        model: that the tokens are for.
        samples: for each task, its data by the data seed of their choice; they differ in train and
            dev alone.
        templates: for each task, the index of its template.
        prompt_length: the longest prompt.
        method: `direct` or `channel`.
        n_dev: random examples to which dev is cut, the same for every run; 0 is all.
        n_eval: random examples to which test is cut, the same for every run; 0 is all.
        n_dev_subset: random examples to which the dev subset is cut.
        tokens: about how many tokens are scored at once.
        truncate: the end that is cut from a text that is too long, `tail` or `head`.
        row_grain: see `rows.row_sizes`.

    Raises:
        InputError: the model has no room for such prompts; see also `tasks.encode`.
    """
    positions = model.module.config.max_positions
    prompt_length += len(model.bos_ids)
    if prompt_length >= positions:
        raise InputError(
            "targets",
            None,
            f"a prompt would take {prompt_length} positions, and {model.name} has {positions} "
            "for prompt and text: choose shorter targets or --prompt_length",
        )

    def encoded(data: TaskData, examples: Examples, template: int) -> list[Encoded]:
        return encode(
            data.task,
            examples.texts,
            model.tokenizer,
            template=template,
            method=method,
            max_tokens=positions - prompt_length,
            texts_b=examples.texts_b,
            truncate=truncate,
        )

    tokenized, tests = {}, {}
    for name, own in samples.items():
        *_, last = own.values()
        tests[name] = _some(last.test, n_eval)
        evaluated = [
            *(
                (data, _some(data.dev, min(n_dev_subset, n_dev or n_dev_subset)))
                for data in own.values()
            ),
            *((data, _some(data.dev, n_dev)) for data in own.values()),
            (last, tests[name]),
            (last, Examples((CONTENT_FREE,), np.zeros(1, np.int32), (CONTENT_FREE,))),
        ]
        tokenized[name] = [
            (encoded(data, examples, templates[name]), examples.labels)
            for data, examples in [*((data, data.train) for data in own.values()), *evaluated]
        ]
    segments = {
        name: [label_segments(each) for each, _ in own[len(samples[name]) :]]
        for name, own in tokenized.items()
    }
    shape = scoring_shape(
        [each for own in segments.values() for each in own],
        prompt_length=prompt_length,
        tokens=tokens,
        row_grain=row_grain,
    )
    return {
        name: _make_task(samples[name], tests[name], tokenized[name], segments[name], shape)
        for name in samples
    }


def _some(examples: Examples, limit: int) -> Examples:
    """Random examples, the same whenever there are as many; 0 is all."""
    order = example_order(len(examples), len(examples), seed=0)
    return examples.take(np.sort(order[: limit or None]))


def _make_task(
    samples: Mapping[int, TaskData],
    test: Examples,
    tokenized: Sequence[tuple[Sequence[Encoded], np.ndarray]],
    segments: Sequence[Segments],
    shape: PackedShape,
) -> EncodedTask:
    """Makes a task of its examples.

    Args:
        samples: its data, S samples.
        test: the test examples.
        tokenized: S times train, S times the dev subset, S times dev, test, and the example without
            content, each with labels.
        segments: of all but train.
        shape: in which they are scored.
    """
    task, count = next(iter(samples.values())).task, len(samples)
    train, evaluated = tokenized[:count], tokenized[count:]
    sets = [
        EvaluationSet(own, shape, labels, tuple(task.word_labels))
        for own, (_, labels) in zip(segments, evaluated, strict=True)
    ]
    numbers = choose_shown(test)
    shown = EvaluationSet(
        label_segments([evaluated[-2][0][number] for number in numbers]),
        shape,
        test.labels[numbers],
        tuple(task.word_labels),
    )
    return EncodedTask(
        train={
            seed: gold_segments(each, labels, task.word_labels)
            for seed, (each, labels) in zip(samples, train, strict=True)
        },
        dev_subset=dict(zip(samples, sets[:count], strict=True)),
        dev=dict(zip(samples, sets[count : 2 * count], strict=True)),
        test=sets[-2],
        shown=Shown(test.take(numbers), numbers, task.labels, shown),
        content_free=sets[-1],
        digests={
            seed: _digest(train[i], evaluated[i], evaluated[count + i], evaluated[-2])
            for i, seed in enumerate(samples)
        },
    )


def _digest(*parts: tuple[Sequence[Encoded], np.ndarray]) -> str:
    """Sixteen hexadecimal digits of examples with their labels."""
    digest = hashlib.sha256()
    for examples, labels in parts:
        digest.update(repr([tuple(each) for each in examples]).encode())
        digest.update(np.asarray(labels, np.int32).tobytes())
    return digest.hexdigest()[:16]
