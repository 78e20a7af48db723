"""Verbal readings: the model itself continues a text about the prompt.

The prompt's vectors stand in a template, such as `The instruction "{prompt}" means: "`, and what
the model writes next, by the likeliest token each time, is what the prompt is taken to say. In the
form of InSPEcT (Ramati et al., 2024, arXiv 2410.11660), the template has tokens without meaning in
the prompt's place, and the hidden states that the prompt alone has after some layer replace theirs
at the input of some layer.

Hidden states are the cache of the texts that are being continued, see `CausalLM.extend_states`.
"""

import dataclasses
import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.readings.hidden import (
    likeliest_tokens,
    mask_of,
    masked_mean,
    negative_log_likelihood,
    prompt_states,
)
from wayward_jax.readings.template_rows import PLACE, Row, make_rows

# The quotation mark at the end lets a text begin as it does by itself, without a space.
TEMPLATES = (
    f'The instruction "{PLACE}" asks to: "',
    f'The instruction "{PLACE}" means: "',
    f'The instruction "{PLACE}" can also be written as: "',
)

# The message of a chat, where the model has a chat template.
QUESTION = f'What does the instruction "{PLACE}" ask for? Answer with the instruction alone.'


class Said(NamedTuple):
    """What a model says of R prompts in K ways (see `Verbal`).

    ways: a name for each of the K ways.
    ids: `[R, K, N]` int32, the continuations.
    nll: `[R, K]` float32, their mean negative log-likelihood in nats a token.
    """

    ways: tuple[str, ...]
    ids: jax.Array
    nll: jax.Array


@dataclasses.dataclass(frozen=True)
class Verbal:
    """Reads a prompt as the text with which the model continues a template; see `readings.Method`.

    Each template, with each patch, is a way to ask. The reading is the answer that the model is
    surest of: the continuation of the highest mean log-likelihood.

    Attributes:
        templates: texts that have `{prompt}` once, where the prompt stands.
        patches: pairs of layers. The hidden states that the prompt has behind BOS after the first
            number of layers replace those in the template at the input of the second. Without
            any, the prompt's vectors themselves stand in the template.

    Raises:
        InputError: a template does not have `{prompt}` once, or no text after it.
    """

    templates: tuple[str, ...] = TEMPLATES
    patches: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(PLACE) != 1 or not template.partition(PLACE)[2].strip():
                remedy = f"put {PLACE} into it once, and text after it"
                raise InputError("verbal_templates", template, remedy)

    def __str__(self) -> str:
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{'inspect' if self.patches else 'verbal'}:{digest}"

    def read(
        self, model: LanguageModel, prompts: ArrayLike, mask: ArrayLike | None = None
    ) -> jax.Array:
        """See `readings.Method`; special tokens are left out as for nearest tokens."""
        said = self.say(model, prompts, mask, jnp.shape(prompts)[1])
        surest = said.nll.argmin(axis=1)[:, None, None]
        return jnp.take_along_axis(said.ids, surest, axis=1)[:, 0]

    def loss(
        self,
        model: LanguageModel,
        prompts: ArrayLike,
        targets: ArrayLike,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """See `readings.Method`: the mean negative log-likelihood of the target, nats a token.

        The target is the continuation of every template with every patch; the mean is over all.
        """
        prompts, mask = jnp.asarray(prompts), mask_of(prompts, mask)
        targets = jnp.asarray(targets, jnp.int32)
        rows = make_rows(model, self.templates, prompts.shape[1], targets.shape[1])
        of_ways = [
            _target_nll(
                model.module, model.params, prompts, mask, targets, row, self.patches, model.bos_ids
            )
            for row in rows
        ]
        return jnp.concatenate(of_ways, axis=1).mean(axis=1)

    def say(
        self,
        model: LanguageModel,
        prompts: ArrayLike,
        mask: ArrayLike | None = None,
        tokens: int = 16,
    ) -> Said:
        """Continues every template with every patch, greedily.

        Args:
            model, prompts, mask: see `readings.Method`.
            tokens: N, of each continuation. If they are as many as the prompts' vectors, the
                likelihood is that of as many tokens as each prompt has.
        """
        prompts, mask = jnp.asarray(prompts), mask_of(prompts, mask)
        valid = jnp.asarray(model.valid_tokens())
        counted = mask if tokens == mask.shape[1] else jnp.ones((len(mask), tokens), bool)
        ways, ids, nll = [], [], []
        for row in make_rows(model, self.templates, prompts.shape[1], tokens):
            ways += [
                f"{template}{_patched_name(patch)}"
                for patch in self.patches or [None]
                for template in row.templates
            ]
            own_ids, own_nll = _continue(
                model.module, model.params, prompts, mask, valid, row, self.patches, model.bos_ids
            )
            ids.append(own_ids)
            nll.append(masked_mean(own_nll, counted[:, None]))
        return Said(tuple(ways), jnp.concatenate(ids, axis=1), jnp.concatenate(nll, axis=1))


def default_templates(model: LanguageModel) -> tuple[str, ...]:
    """Returns `TEMPLATES`, and a chat with `QUESTION` where the model has a chat template."""
    if not model.tokenizer.chat_template:
        return TEMPLATES
    try:
        chat = model.tokenizer.chat(QUESTION)
    except Exception:  # templates are code, and may be written for chats that begin otherwise
        return TEMPLATES
    return (*TEMPLATES, chat) if chat.count(PLACE) == 1 else TEMPLATES


def inspecting(model: LanguageModel, templates: tuple[str, ...]) -> Verbal:
    """Makes InSPEcT's form of a verbal reading, with a few pairs of layers of the model's depth.

    It takes the first of the templates alone. Hidden states are taken after about a quarter, a half
    and three quarters of the layers, and put in at the first layer and at about a quarter.
    """
    depth = model.module.config.depth
    patches = dict.fromkeys(
        (max(1, depth * part // 4), into) for into in (0, depth // 4) for part in (1, 2, 3)
    )
    return Verbal(templates[:1], tuple(patches))


def _patched_name(patch: tuple[int, int] | None) -> str:
    return "" if patch is None else f" [states after layer {patch[0]} into layer {patch[1]}]"


class _Inputs(NamedTuple):
    """The inputs of `CausalLM.hidden_states` for `W = R * P` rows, P the number of patches or 1."""

    x: jax.Array
    positions: jax.Array
    attention_mask: jax.Array
    patch: tuple[jax.Array, jax.Array] | None


def _inputs(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    mask: jax.Array,
    row: Row,
    patches: tuple[tuple[int, int], ...],
    bos_ids: tuple[int, ...],
) -> _Inputs:
    runs, _, width = prompts.shape
    ids, ways = row.ids, max(1, len(patches))
    embedded = module.apply(params, ids, method="embed_tokens")
    rows = (runs, ways, len(ids))
    x = jnp.broadcast_to(embedded, (*rows, width))
    positions, attention_mask = row.place(mask)
    patch = None
    if patches:
        sources, into = np.array(patches, np.int32).T
        states = prompt_states(module, params, prompts, bos_ids, int(sources.max()))
        patched = jnp.zeros((*rows, width), states.dtype)
        patched = patched.at[:, :, row.prompt].set(states[sources].swapaxes(0, 1))
        layers = np.full(rows[1:], -1, np.int32)
        layers[:, row.prompt] = into[:, None]
        patch = patched.reshape(-1, width), jnp.tile(layers.ravel(), runs)
    else:
        x = x.at[:, :, row.prompt].set(prompts[:, None].astype(x.dtype))
    return _Inputs(
        x.reshape(-1, width),
        jnp.repeat(positions, ways, axis=0).ravel(),
        jnp.repeat(attention_mask, ways, axis=0),
        patch,
    )


@functools.partial(jax.jit, static_argnames=("module", "row", "patches", "bos_ids"))
def _target_nll(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    mask: jax.Array,
    targets: jax.Array,
    row: Row,
    patches: tuple[tuple[int, int], ...],
    bos_ids: tuple[int, ...],
) -> jax.Array:
    """The mean negative log-likelihood of targets `[R, N]` in each way: `[R, P * M]` float32."""
    runs, width = len(prompts), prompts.shape[2]
    inputs = _inputs(module, params, prompts, mask, row, patches, bos_ids)
    tokens = module.apply(params, targets, method="embed_tokens")
    x = inputs.x.reshape(runs, -1, len(row.ids), width)
    x = x.at[:, :, row.continued].set(tokens[:, None, None]).reshape(-1, width)
    depth = module.config.depth
    states = module.apply(
        params,
        x,
        inputs.positions,
        inputs.attention_mask,
        depth,
        inputs.patch,
        method="hidden_states",
    )
    last = states[-1].reshape(runs, -1, len(row.ids), width)[:, :, row.continued - 1]
    logits = module.apply(params, last, method="lens")
    wanted = jnp.broadcast_to(targets[:, None, None], last.shape[:-1])
    nll = negative_log_likelihood(logits, wanted)
    counted = mask if mask.shape == targets.shape else jnp.ones(targets.shape, bool)
    return masked_mean(nll, counted[:, None, None]).reshape(runs, -1)


@functools.partial(jax.jit, static_argnames=("module", "row", "patches", "bos_ids"))
def _continue(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    mask: jax.Array,
    valid: jax.Array,
    row: Row,
    patches: tuple[tuple[int, int], ...],
    bos_ids: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Continues greedily in each way: ids `[R, P * M, N]` int32 and their NLL in nats."""
    runs = len(prompts)
    inputs = _inputs(module, params, prompts, mask, row, patches, bos_ids)
    first = np.arange(len(inputs.attention_mask))[:, None, None] * len(row.ids)
    continued = (first + row.continued).reshape(-1, row.tokens)  # [W * M, N]

    def choose(states: jax.Array, slots: ArrayLike) -> tuple[jax.Array, jax.Array]:
        logits = module.apply(params, states[-1, slots], method="lens")
        ids = likeliest_tokens(logits, valid)
        return ids, negative_log_likelihood(logits, ids)

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array], slots: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        x, states, ids = carry
        x = x.at[slots].set(module.apply(params, ids, method="embed_tokens"))
        states = module.apply(
            params,
            states,
            x,
            inputs.positions,
            inputs.attention_mask,
            slots,
            method="extend_states",
        )
        ids, nll = choose(states, slots)
        return (x, states, ids), (ids, nll)

    states = module.apply(
        params,
        inputs.x,
        inputs.positions,
        inputs.attention_mask,
        module.config.depth,
        inputs.patch,
        method="hidden_states",
    )
    ids, nll = choose(states, continued[:, 0] - 1)
    _, (more_ids, more_nll) = jax.lax.scan(step, (inputs.x, states, ids), continued.T[:-1])

    def join(first: jax.Array, more: jax.Array) -> jax.Array:
        return jnp.concatenate([first[None], more]).T.reshape(runs, -1, row.tokens)

    return join(ids, more_ids), join(nll, more_nll)
