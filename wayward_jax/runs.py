"""A run: what defines it, the id that follows from that, and the record of what came of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from wayward_jax.provenance import Provenance
from wayward_jax.targets import Target

P_STAR = "p_star"

# The paper's reading, in records.
NEAREST_TOKENS = "nearest tokens"

# Attributes of a record that are no entries of its row. The first two give theirs to it.
NOT_ENTRIES = ("run", "provenance", "prompt")


@dataclasses.dataclass(frozen=True)
class Run:
    """The optimization of one prompt; equal runs give equal prompts.

    A run without `target_ids` is unconstrained: a `p_star`, whose gamma is 0. Nothing here depends
    on where files lie.

    Attributes:
        model: name of the frozen model.
        task: name of the task.
        prompt_length: L.
        target_name: name of the target, or `P_STAR`.
        target_text: the text that the prompt is to read as.
        target_ids: its L tokens.
        init: a start of `initialization.STARTS`, or `checkpoint:` and a digest of the prompt that
            the run starts from.
        constraint: one of `constraints.CONSTRAINTS`, or the `repr` of a user's own constraint; or
            the name (`str`) of the reading whose loss stands in place of the distance.
        gamma: weight of the distance term, or of the loss of a reading; where it is found while
            tuning, the first one.
        margin: of the cells, see `constraints`; 0 where they do not matter.
        seed: of the start and the order of examples.
        attempt: 0, or the number of a further try of a `p_star`: another start, and the same order
            of examples.
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: its peak.
        optimizer: one of `training.optimizers.OPTIMIZERS`, or `custom` for the user's own.
        warmup: steps in which the learning rate rises to its peak; after them it falls linearly.
        weight_decay: decoupled from the gradient; 0 is none.
        keep: the prompt that is kept: that of the `last` step, or of the `best` evaluation on dev.
        method: `direct` or `channel`.
        template: index of the task's template.
        k_shot: training examples a class; -1 is all of them.
        data_seed: of the choice of training examples.
        model_digest: of the model's weights.
        bos_ids: the tokens before the prompt, with which the model begins every text.
    """

    model: str
    task: str
    prompt_length: int
    target_name: str = P_STAR
    target_text: str = ""
    target_ids: tuple[int, ...] = ()
    init: str = "vocab"
    constraint: str = "penalty"
    gamma: float = 0.0
    margin: float = 0.0
    seed: int = 1
    attempt: int = 0
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 0.01
    optimizer: str = "adamw"
    warmup: int = 0
    weight_decay: float = 0.0
    keep: str = "last"
    method: str = "direct"
    template: int = 1
    k_shot: int = -1
    data_seed: int = 100
    model_digest: str = ""
    bos_ids: tuple[int, ...] = ()

    @classmethod
    def towards(cls, target: Target, **settings: Any) -> Self:
        """A run for `target`, of its length; `settings` are the other attributes."""
        return cls(
            prompt_length=len(target.ids),
            target_name=target.name,
            target_text=target.text,
            target_ids=target.ids,
            **settings,
        )

    @property
    def input_length(self) -> int:
        """The vectors that stand before an example: those of `bos_ids` and of the prompt."""
        return len(self.bos_ids) + self.prompt_length

    @property
    def has_target(self) -> bool:
        """False for a `p_star`."""
        return bool(self.target_ids)

    @property
    def is_unconstrained(self) -> bool:
        """True if nothing holds the prompt to its target, or if it has none."""
        return self.constraint == "penalty" and self.gamma == 0

    @property
    def target(self) -> Target | None:
        """The target; None for a `p_star`."""
        if not self.has_target:
            return None
        return Target(self.target_name, self.target_text, self.target_ids)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that all attributes decide."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """A run while it was tuned.

    Attributes:
        step: steps taken.
        task_loss: mean training loss since the point before, in nats a token.
        distance: mean of `objective.distance` since the point before; None without a target.
        dev_accuracy: on a few dev examples.
        prompt_f1: of the prompt at this step; None without a target.
    """

    step: int
    task_loss: float
    distance: float | None
    dev_accuracy: float
    prompt_f1: float | None


class Answer(NamedTuple):
    """The label that is predicted for an example.

    Attributes:
        label: its name.
        probability: `exp(-loss)` of the label, divided by the sum of this over all labels.
    """

    label: str
    probability: float


Answers = Mapping[str, tuple[Answer | None, ...]]
"""Answers to the same examples by what stood before them; None where no loss is a number.

`PROMPT` is the run's own prompt, `TEXT` its target's text, as the embeddings of its tokens, and
`NOTHING` no prompt at all.
"""

PROMPT, TEXT, NOTHING = "prompt", "text", "nothing"


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run: its definition, and what came of it.

    Attributes:
        run: its definition.
        n_train: training examples.
        n_dev: dev examples.
        n_eval: test examples.
        accuracy: on the test examples.
        macro_f1: on the test examples.
        majority: the share of the most frequent label among the test examples, which is the
            accuracy of a constant answer.
        correct: `[n_eval]` bool, which test examples are predicted right, in the task's order.
        unprompted: `[n_eval]` bool, the same without any prompt; None if it was not measured.
        answers: to the examples of `EncodedTask.shown`.
        dev_accuracy: on the dev examples; what choices between runs go by.
        reading: the reading by which the prompt is held to its target: `NEAREST_TOKENS`, or the
            name of another one.
        text: what the prompt reads as by it.
        token_ids: the L tokens of this text.
        prompt_f1: F1 of the words of `text` against the target's; None without a target.
        token_f1: F1 of the tokens; None without a target.
        distance: `objective.distance` to the target; None without a target.
        final_gamma: the last weight of the distance term, which may have been found while tuning.
        gamma_found: what is known of a weight that was found while tuning: it `suffices`, was
            `never needed`, because the prompt never left its cells, or is `too small`, because the
            prompt was outside at the last step and had to be put back; None for other weights.
        in_cells: True if the prompt reads as its target's tokens, which `BY_CONSTRUCTION` of
            `constraints` promises; None under other constraints.
        kept_step: the step whose prompt was kept, see `Run.keep`.
        task_loss: mean training loss before that step, since the point of the curve before.
        diverged_at: the step whose loss or gradient was not finite, from which on the prompt stayed
            as it was; None if that never happened.
        seconds: the run's share of its population's time.
        curve: the run while it was tuned.
        provenance: what made it.
        prompt: `[L, D]` float32; None where the record was read from a file.
        checkpoint: the path, from the job's folder on, of the checkpoint that has the prompt under
            the run's id; empty if none was written.
    """

    run: Run
    n_train: int
    n_dev: int
    n_eval: int
    accuracy: float
    macro_f1: float
    majority: float
    correct: np.ndarray
    unprompted: np.ndarray | None
    answers: Answers
    dev_accuracy: float
    reading: str
    text: str
    token_ids: tuple[int, ...]
    prompt_f1: float | None
    token_f1: float | None
    distance: float | None
    final_gamma: float
    gamma_found: str | None
    in_cells: bool | None
    kept_step: int
    task_loss: float
    diverged_at: int | None
    seconds: float
    curve: tuple[CurvePoint, ...]
    provenance: Provenance
    prompt: np.ndarray | None = None
    checkpoint: str = ""

    @property
    def id(self) -> str:
        """That of the run."""
        return self.run.id

    def to_json(self) -> dict[str, Any]:
        """A flat object of plain values: the id, the run's attributes, then the record's own.

        The prompt is left out. `correct` and `unprompted` are in hexadecimal digits, a bit an
        example.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in NOT_ENTRIES:
            del values[name]
        return {
            "id": self.id,
            **dataclasses.asdict(self.run),
            **values,
            "correct": write_bits(self.correct),
            "unprompted": None if self.unprompted is None else write_bits(self.unprompted),
            "curve": [dataclasses.asdict(point) for point in self.curve],
            **dataclasses.asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The record that `to_json` made `row` of, without the prompt.

        Raises:
            ValueError: `row` lacks an entry, an entry is of the wrong kind, or the id is not the
                run's.
        """
        kinds = (Run, Provenance, cls)
        names = {field.name for kind in kinds for field in dataclasses.fields(kind)} | {"id"}
        if missing := sorted(names - {*NOT_ENTRIES} - row.keys()):
            raise ValueError(f"lacks {', '.join(missing)}")
        try:
            run = Run(**_entries(Run, row))
            provenance = Provenance(**_entries(Provenance, row))
            run = dataclasses.replace(
                run, target_ids=tuple(run.target_ids), bos_ids=tuple(run.bos_ids)
            )
            own = _entries(cls, row) | {
                "correct": read_bits(row["correct"], row["n_eval"]),
                "token_ids": tuple(row["token_ids"]),
                "curve": tuple(CurvePoint(**point) for point in row["curve"]),
                "answers": {
                    name: tuple(None if each is None else Answer(*each) for each in own)
                    for name, own in dict(row["answers"]).items()
                },
            }
            if row["unprompted"] is not None:
                own["unprompted"] = read_bits(row["unprompted"], row["n_eval"])
        except TypeError as error:
            raise ValueError(f"has an entry of the wrong kind ({error})") from error
        if row["id"] != run.id:
            raise ValueError("has an id that is not its run's")
        return cls(run, provenance=provenance, **own)


def _entries(kind: type, row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a row that are attributes of `Run`, `Provenance` or `RunRecord` itself."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: row[name] for name in names if name not in NOT_ENTRIES}


def write_bits(values: np.ndarray) -> str:
    """Writes `[N]` bool in hexadecimal digits, a bit each."""
    return np.packbits(values).tobytes().hex()


def read_bits(text: str, count: int) -> np.ndarray:
    """Reads `count` values that `write_bits` wrote: `[count]` bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
