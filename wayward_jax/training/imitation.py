"""Prompts that are tuned to make the model predict what it predicts behind another prompt.

In place of a task's loss stands the Kullback-Leibler divergence of the model's next-token
distributions behind a prompt from those behind the imitated prompt, after each token of some texts
(context distillation, Askell et al., 2021). Constraints, optimizer and clipping are those of the
training step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax.constraints import Constraint
from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.readings.hidden import masked_mean
from wayward_jax.runs import Run
from wayward_jax.segments import example_order
from wayward_jax.sharding import on_host, place
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.planning import MAX_STEPS_PER_CALL
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.programs import Memory, check_memory, compile_together
from wayward_jax.training.reading import decode_readings, reading_name, start_reading
from wayward_jax.training.starting import init_population
from wayward_jax.training.step import BATCH_SPECS, train_steps

# Where the runs start, see `Run.init`: at the imitated prompt.
START = "imitated"

# The collection of variables, beside the model's weights, in which the imitated prompt is.
IMITATED = "imitated"

# Texts are cut to so many tokens.
MAX_TOKENS = 32


class Texts(NamedTuple):
    """N texts of at most T tokens; the texts of a step have more axes before T, see `BATCH_SPECS`.

    ids: `[N, T]` int32, 0 after the end of a text.
    mask: `[N, T]` bool, False there.
    """

    ids: np.ndarray
    mask: np.ndarray

    @classmethod
    def encode(cls, model: LanguageModel, texts: Sequence[str], prompt_length: int) -> Self:
        """Encodes texts for a model, and cuts them to `MAX_TOKENS`, or to what a prompt leaves.

        Raises:
            InputError: a text has no tokens, or the prompt leaves no position.
        """
        room = model.module.config.max_positions - len(model.bos_ids) - prompt_length
        if room < 1:
            raise InputError("prompt", None, "leaves no position for a text: give a shorter one")
        encoded = model.tokenizer.encode_batch(texts)
        for text, tokens in zip(texts, encoded, strict=True):
            if not tokens:
                raise InputError("texts", text, "has no tokens: leave it out")
        cut = [tokens[: min(room, MAX_TOKENS)] for tokens in encoded]
        mask = np.arange(max(map(len, cut))) < np.array([[len(tokens)] for tokens in cut])
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(cut)
        return cls(ids, mask)

    def halves(self) -> tuple[Self, Self]:
        """The first, third, ... texts, and the others."""
        first, second = (type(self)(self.ids[i::2], self.mask[i::2]) for i in (0, 1))
        return first, second


class Outputs(NamedTuple):
    """What R prompts make the model predict on N texts, beside an imitated prompt.

    kl: `[R, N]` float32, the divergence from the imitated prompt's predictions, nats a token.
    kept: `[R, N]` float32, the share of tokens after which the likeliest token is the same.
    """

    kl: np.ndarray
    kept: np.ndarray

    def of(self, number: int) -> Self:
        """Those of one prompt, `[N]` each."""
        return type(self)(self.kl[number], self.kept[number])

    def to_json(self) -> dict[str, list[float]]:
        """Plain values."""
        return {name: own.tolist() for name, own in self._asdict().items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Sequence[float]]) -> Self:
        """The outputs that `to_json` made `row` of."""
        return cls(*(np.array(row[name], np.float32) for name in cls._fields))


@dataclasses.dataclass(frozen=True, eq=False)
class Imitation:
    """A prompt that was tuned to imitate another one.

    Attributes:
        run: its definition.
        reading: by which it is held to its target, see `RunRecord.reading`.
        text: what it reads as by it.
        prompt_f1: F1 of the words of `text` against the target's.
        prompt: `[L, D]` float32.
        tuned: `[N]`, its outputs on the texts that it was tuned on.
        held_out: `[N]`, its outputs on other texts.
    """

    run: Run
    reading: str
    text: str
    prompt_f1: float
    prompt: np.ndarray
    tuned: Outputs
    held_out: Outputs

    def to_json(self) -> dict[str, Any]:
        """A flat object of plain values without the prompt; the run is named by its id."""
        outputs = {name: getattr(self, name).to_json() for name in ("tuned", "held_out")}
        return {
            "id": self.run.id,
            **{name: getattr(self, name) for name in ("reading", "text", "prompt_f1")},
            **outputs,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any], run: Run, prompt: np.ndarray) -> Self:
        """The imitation that `to_json` made `row` of."""
        outputs = (Outputs.from_json(row[name]) for name in ("tuned", "held_out"))
        return cls(run, row["reading"], row["text"], row["prompt_f1"], prompt, *outputs)


def plan_imitation(runs: Sequence[Run], mesh: Mesh) -> PopulationPlan:
    """Plans a population of `imitate`.

    Args:
        runs: of equal seed, steps, batch size (in texts), length and optimizer. They start at
            `START`.
        mesh: of the model.
    """
    first = runs[0]
    shards, data_shards = mesh.shape["runs"], mesh.shape["data"]
    return PopulationPlan(
        runs=tuple(runs),
        prompt_length=first.input_length,
        run_shards=shards,
        data_shards=data_shards,
        packs_per_shard=-(-first.batch_size // data_shards),
        runs_per_shard=-(-len(runs) // shards),
        eval_steps=(first.steps,),
        steps_per_call=min(first.steps, MAX_STEPS_PER_CALL),
    )


def imitate(
    model: LanguageModel,
    prompt: np.ndarray,
    texts: Texts,
    plan: PopulationPlan,
    mesh: Mesh,
    *,
    constraints: Mapping[str, Constraint],
    device_bytes: int | None = None,
    on_steps: Callable[[int, float], None] = lambda steps, loss: None,
) -> list[Imitation]:
    """Tunes prompts from a prompt to make the model predict the same, and to read as their targets.

    They are tuned on the first of the two `halves` of the texts and compared on both. All prompts
    are those of the last step.

    Args:
        model: the frozen model, its weights on the mesh.
        prompt: `[L, D]`, the imitated prompt.
        texts: N of them.
        plan: runs with targets of L tokens, see `plan_imitation`.
        mesh: that the plan was made for.
        constraints: by the names that runs have for them.
        device_bytes: memory of each device that the steps may take, the weights included; None is
            not compared with what they take.
        on_steps: is called after some steps with their number and the mean loss of the last one.

    Returns:
        A result of each run, in order.

    Raises:
        InputError: the steps take more memory than there is.
    """
    first = plan.runs[0]
    optimizer = named_optimizer(first.optimizer, first.steps, first.warmup, first.weight_decay)
    population, state = init_population(model, plan, mesh, optimizer, {START: prompt}, constraints)
    tuned, held_out = texts.halves()
    variables = model.params | imitated_variables(model, prompt, mesh)
    packs = [place(each, mesh, BATCH_SPECS) for each in _packs(tuned, plan)]
    settings = (optimizer, first.steps, mesh, summed_divergences)
    lowered = train_steps.lower(model.module, variables, population, state, packs[0], 1, *settings)
    (memory,) = compile_together([lowered], plan, mesh)
    if device_bytes is not None:
        check_memory(plan, mesh, memory, Memory(0, 0), device_bytes, one_text=True)
    for (begin, end), own in zip(plan.calls, packs, strict=True):
        state, losses = train_steps(
            model.module, variables, population, state, own, end - begin, *settings
        )
        on_steps(end - begin, float(on_host(losses.task)[end - begin - 1, plan.places].mean()))

    readings = decode_readings(model, start_reading(model, population, state.prompts, mesh), plan)
    prompts = on_host(state.prompts)[plan.places, len(model.bos_ids) :]
    both = [compare_outputs(model, prompt, prompts, half) for half in (tuned, held_out)]
    return [
        Imitation(
            run,
            reading_name(population, plan.places[r]),
            readings[r].text,
            readings[r].prompt_f1,
            prompts[r],
            *(found.of(r) for found in both),
        )
        for r, run in enumerate(plan.runs)
    ]


def imitated_variables(model: LanguageModel, prompt: np.ndarray, mesh: Mesh) -> dict[str, Any]:
    """The collection `IMITATED`, on the mesh: the prompt `[L, D]`, with BOS before it."""
    return {IMITATED: {"prompt": place(model.with_bos(prompt), mesh, PartitionSpec())}}


def _packs(texts: Texts, plan: PopulationPlan) -> list[Texts]:
    """The packs of each call, one text each: all runs see the same texts. See `BATCH_SPECS`."""
    sizes = (plan.packs_per_shard, plan.data_shards)
    (last_step,) = plan.eval_steps
    seed = plan.runs[0].seed
    order = example_order(len(texts.ids), last_step * sizes[0] * sizes[1], seed)
    order = order.reshape(last_step, *sizes)
    packs = []
    for begin, _ in plan.calls:
        steps = np.minimum(np.arange(begin, begin + plan.steps_per_call), last_step - 1)
        numbers = np.tile(order[steps], (1, plan.run_shards, 1))
        packs.append(Texts(texts.ids[numbers], texts.mask[numbers]))
    return packs


def compare_outputs(
    model: LanguageModel, prompt: np.ndarray, others: Sequence[np.ndarray], texts: Texts
) -> Outputs:
    """Compares what R prompts make the model predict with what a prompt does, on N texts.

    Args:
        model: the frozen model.
        prompt: `[L, D]`, the imitated prompt.
        others: R prompts `[L', D]`.
        texts: the texts.
    """
    inputs = jnp.asarray(np.stack([model.with_bos(other) for other in others]))
    imitated = jnp.asarray(model.with_bos(prompt))
    found = _compare(model.module, model.params, inputs, imitated, texts)
    return Outputs(*on_host(found))


@functools.partial(jax.jit, static_argnames="module")
def _compare(
    module: nn.Module,
    params: dict[str, Any],
    prompts: jax.Array,
    imitated: jax.Array,
    texts: Texts,
) -> Outputs:
    def of_text(text: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids, mask = text
        theirs = log_probabilities(module, params, imitated[None], ids)
        ours = log_probabilities(module, params, prompts, ids)
        same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
        return masked_mean(_divergence(theirs, ours), mask), masked_mean(same, mask)

    kl, kept = jax.lax.map(of_text, tuple(texts))
    return Outputs(kl.T, kept.T)


def summed_divergences(
    module: nn.Module, params: dict[str, Any], prompts: jax.Array, text: Texts
) -> tuple[jax.Array, jax.Array]:
    """The divergence of each of R prompts on a text, and 1, the number of texts: `[R]` float32.

    The divergence of the imitated prompt's predictions p from a prompt's predictions q is
    `sum_v p(v) (log p(v) - log q(v))`, averaged over the tokens of the text, in nats a token.

    Args:
        module: a `CausalLM`.
        params: its frozen weights and `imitated_variables`.
        prompts: `[R, L, D]` float32, with BOS before them.
        text: the text, `[T]`.
    """
    theirs = log_probabilities(module, params, params[IMITATED]["prompt"][None], text.ids)
    ours = log_probabilities(module, params, prompts, text.ids)
    return masked_mean(_divergence(theirs, ours), text.mask), jnp.ones(len(prompts))


def log_probabilities(
    module: nn.Module, params: dict[str, Any], prompts: jax.Array, ids: jax.Array
) -> jax.Array:
    """Predicts the token after each of T tokens behind each of R prompts: `[R, T, V]` float32.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32, with BOS before them.
        ids: `[T]` int32, a text. Attention is causal, so tokens do not see what comes after them.
    """
    runs, length, width = prompts.shape
    tokens = module.apply(params, ids, method="embed_tokens")
    of_runs = jnp.broadcast_to(tokens, (runs, *tokens.shape))
    rows = jnp.concatenate([prompts.astype(tokens.dtype), of_runs], axis=1)
    slots = length + len(ids)
    outputs = np.arange(runs)[:, None] * slots + np.arange(length, slots)
    hidden = module.apply(
        params,
        rows.reshape(-1, width),
        jnp.tile(jnp.arange(slots), runs),
        jnp.broadcast_to(jnp.tril(jnp.ones((slots, slots), bool)), (runs, slots, slots)),
        jnp.asarray(outputs.ravel()),
    )
    logits = module.apply(params, hidden, method="logits")
    return jax.nn.log_softmax(logits).reshape(runs, len(ids), -1)


def _divergence(theirs: jax.Array, ours: jax.Array) -> jax.Array:
    """`sum_v p (log p - log q)` of log-probabilities `[..., V]`: `[...]`."""
    return (jnp.exp(theirs) * (theirs - ours)).sum(axis=-1)
