"""A task's examples as token pieces, ready for training and evaluation (on the host)."""

import dataclasses

import numpy as np

from wayward_jax.batching import Piece, example_order, gold_pieces, label_pieces
from wayward_jax.evaluation import EvaluationSet, evaluation_sets
from wayward_jax.models import LanguageModel
from wayward_jax.tasks import Encoded, Examples, TaskData, encode


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
    tokens: int = 2048,
    devices: int = 1,
) -> EncodedTask:
    """Tokenises a task's examples for prompts of up to `prompt_length` tokens.

    Dev and test are cut to `n_eval` random examples (0: all of them), the same for every run;
    the curve's to `n_curve`. They are packed in parts of about `tokens` tokens, to be scored on
    `devices` devices side by side.

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

    def some(examples: Examples, limit: int) -> Examples:
        order = example_order(len(examples), len(examples), seed=0)
        return examples.take(np.sort(order[: limit or None]))

    evaluated = [
        some(data.dev, min(n_curve, n_eval or n_curve)),
        some(data.dev, n_eval),
        some(data.test, n_eval),
    ]
    curve, dev, test = evaluation_sets(
        [label_pieces(encoded(examples)) for examples in evaluated],
        [examples.labels for examples in evaluated],
        len(data.task.labels),
        tokens=tokens,
        devices=devices,
    )
    train = gold_pieces(encoded(data.train), data.train.labels)
    return EncodedTask(train, curve, dev, test)
