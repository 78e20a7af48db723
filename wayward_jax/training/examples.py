"""A task's examples as segments of tokens, ready for training and evaluation (on the host)."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.packing import GRAIN, Segment, example_order, gold_segments, label_segments
from wayward_jax.tasks import Encoded, Examples, TaskData, encode
from wayward_jax.training.evaluation import EvaluationSet, evaluation_sets

CONTENT_FREE = "N/A"
"""A text that says nothing about any task."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTask:
    """A task's examples, tokenized for one method and template.

    The train and dev examples depend on the choice of examples, and so on a run's data seed.

    Attributes:
        train: for each data seed, a segment with the gold label for each example.
        dev_subset: for each data seed, a few dev examples, for evaluations during training.
        dev: for each data seed, the examples by which runs are chosen.
        test: the examples on which results are reported.
        content_free: a single example whose text has no content, for calibration; its label means
            nothing.
        digests: for each data seed, sixteen hexadecimal digits of the tokens and labels of its
            train, dev and test examples.
    """

    train: dict[int, list[Segment]]
    dev_subset: dict[int, EvaluationSet]
    dev: dict[int, EvaluationSet]
    test: EvaluationSet
    content_free: EvaluationSet
    digests: dict[int, str]


def encode_task(
    model: LanguageModel,
    samples: Mapping[int, TaskData],
    *,
    prompt_length: int,
    method: str = "direct",
    template: int = 1,
    n_eval: int = 0,
    n_dev_subset: int = 64,
    tokens: int = 2048,
    devices: int = 1,
    truncate: str = "tail",
    row_grain: int = GRAIN,
) -> EncodedTask:
    """Tokenizes a task's examples for prompts of up to `prompt_length` tokens.

    Args:
        model: that the tokens are for.
        samples: the task's data by the data seed of their choice; they differ in train and dev
            alone.
        prompt_length: the longest prompt.
        method: `direct` or `channel`.
        template: index of the task's template.
        n_eval: random examples to which dev and test are cut, the same for every run; 0 is all.
        n_dev_subset: random examples to which the dev subset is cut.
        tokens: about how many tokens are scored at once.
        devices: parts of the examples that are scored side by side.
        truncate: the end that is cut from a text that is too long, `tail` or `head`.
        row_grain: see `packing.row_sizes`.

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

    def encoded(data: TaskData, examples: Examples) -> list[Encoded]:
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

    def some(examples: Examples, limit: int) -> Examples:
        order = example_order(len(examples), len(examples), seed=0)
        return examples.take(np.sort(order[: limit or None]))

    last = list(samples.values())[-1]
    evaluated = [
        *(
            (data, some(data.dev, min(n_dev_subset, n_eval or n_dev_subset)))
            for data in samples.values()
        ),
        *((data, some(data.dev, n_eval)) for data in samples.values()),
        (last, some(last.test, n_eval)),
        (last, Examples((CONTENT_FREE,), np.zeros(1, np.int32), (CONTENT_FREE,))),
    ]
    tokens_of = [encoded(data, examples) for data, examples in evaluated]
    train = {seed: encoded(data, data.train) for seed, data in samples.items()}
    *of_samples, test, content_free = evaluation_sets(
        [label_segments(each) for each in tokens_of],
        [examples.labels for _, examples in evaluated],
        last.task.word_labels,
        prompt_length=prompt_length,
        tokens=tokens,
        devices=devices,
        row_grain=row_grain,
    )
    return EncodedTask(
        train={
            seed: gold_segments(train[seed], data.train.labels, data.task.word_labels)
            for seed, data in samples.items()
        },
        dev_subset=dict(zip(samples, of_samples[: len(samples)], strict=True)),
        dev=dict(zip(samples, of_samples[len(samples) :], strict=True)),
        test=test,
        content_free=content_free,
        digests={
            seed: _digest(
                (train[seed], data.train.labels),
                (tokens_of[i], evaluated[i][1].labels),
                (tokens_of[len(samples) + i], evaluated[len(samples) + i][1].labels),
                (tokens_of[-2], evaluated[-2][1].labels),
            )
            for i, (seed, data) in enumerate(samples.items())
        },
    )


def _digest(*parts: tuple[Sequence[Encoded], np.ndarray]) -> str:
    """Sixteen hexadecimal digits of examples with their labels."""
    digest = hashlib.sha256()
    for examples, labels in parts:
        digest.update(repr([tuple(each) for each in examples]).encode())
        digest.update(np.asarray(labels, np.int32).tobytes())
    return digest.hexdigest()[:16]
