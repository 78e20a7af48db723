"""A task's examples as token pieces, ready for training and evaluation (on the host)."""

import dataclasses

import numpy as np

from wayward_jax.batching import Piece, example_order, gold_pieces, label_pieces
from wayward_jax.models import LanguageModel
from wayward_jax.tasks import Encoded, Examples, TaskData, encode


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their C labels: pieces whose scores count up to E * C, and the answers.

    Attributes:
        pieces: of every label of every example.
        labels: `[E]` int32, the right ones.
        n_labels: C.
    """

    pieces: list[Piece]
    labels: np.ndarray
    n_labels: int


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTask:
    """A task's examples, tokenised for one method and template.

    Attributes:
        train: one piece an example, with its gold label.
        curve: a few dev examples, for the points of a training curve.
        dev: what choices between runs go by.
        test: what is reported.
    """

    train: list[Piece]
    curve: EvaluationSet
    dev: EvaluationSet
    test: EvaluationSet


def encode_task(
    model: LanguageModel,
    data: TaskData,
    *,
    prompt_length: int,
    method: str = "direct",
    template: int = 1,
    n_eval: int = 0,
    n_curve: int = 64,
) -> EncodedTask:
    """Tokenises a task's examples for prompts of up to `prompt_length` tokens.

    Dev and test are cut to `n_eval` random examples (0: all of them), the same for every run;
    the curve's to `n_curve`.

    Raises:
        InputError: see `tasks.encode`.
    """

    def encoded(examples: Examples) -> list[Encoded]:
        return encode(
            data.task,
            examples.texts,
            model.tokenizer,
            template=template,
            method=method,
            max_tokens=model.module.config.max_positions - prompt_length,
        )

    def evaluated(examples: Examples, limit: int) -> EvaluationSet:
        order = example_order(len(examples), len(examples), seed=0)
        examples = examples.take(np.sort(order[: limit or None]))
        pieces = label_pieces(encoded(examples))
        return EvaluationSet(pieces, examples.labels, len(data.task.labels))

    return EncodedTask(
        train=gold_pieces(encoded(data.train), data.train.labels),
        curve=evaluated(data.dev, min(n_curve, n_eval or n_curve)),
        dev=evaluated(data.dev, n_eval),
        test=evaluated(data.test, n_eval),
    )
