"""A frozen language model with everything that the rest of the library needs of it."""

import dataclasses
import math
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.models.family import Family
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.projection import c_proj
from wayward_jax.sharding import on_host, place_params

READABLE = ("text", "all")
BOS = ("auto", "yes", "no")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model whose weights are never trained.

    Attributes:
        name: a short name for results. It is a built-in or hub name as it was given, and of a path
            the last component without `.gguf`.
        family: the family's facts, such as which of its layers are sharded.
        module: the mathematics, as in `module.apply(params, ids, method="text_logits")`.
        params: the weights, all of one dtype, on the devices; mapped into memory before `placed`.
        tokenizer: the model's tokenizer.
        digest: 16 hexadecimal digits of a sha256 of the published weights: the names of all tensors
            that the model uses (without the family's prefix), their shapes, and their values in
            float32, before they are cast to the dtype of `params`. It does not depend on the path,
            on how the weights are split into files, or on `dtype`. It covers neither the
            configuration nor the tokenizer. It is empty if the weights were not loaded from files.
        readable: the tokens that a prompt can be read as, one of `READABLE`: those of `text`, or
            `all`, with special and reserved ones.
        bos_ids: the tokens that stand before every prompt, because the model expects every text to
            begin with them.
    """

    name: str
    family: Family
    module: CausalLM
    params: dict[str, Any]
    tokenizer: Tokenizer
    digest: str = ""
    readable: str = "text"
    bos_ids: tuple[int, ...] = ()

    @property
    def mesh(self) -> Mesh:
        """The devices that the weights are on."""
        return jax.tree.leaves(self.params)[0].sharding.mesh

    @property
    def nbytes(self) -> int:
        """The bytes of all weights together."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params))

    @property
    def device_nbytes(self) -> int:
        """The bytes of the weights on each device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.params)
        )

    def placed(self, mesh: Mesh) -> Self:
        """This model with its weights on a mesh, sharded over its axis `model`."""
        params = place_params(self.params, mesh, self.family.partition_spec)
        return dataclasses.replace(self, params=params)

    def embedding_table(self) -> jax.Array:
        """Returns the embedding table `[V, D]`, in the weights' dtype."""
        return self.params["params"]["embed"]["embedding"]

    @property
    def lookup_scale(self) -> float:
        """The factor between the embedding table and what transformers looks up in it."""
        return self.family.lookup_scale(self.module.config)

    def with_bos(self, prompt: np.ndarray) -> np.ndarray:
        """Puts the embeddings of `bos_ids` before a prompt `[L, D]`."""
        before = on_host(c_proj(self.embedding_table(), np.asarray(self.bos_ids, np.int32)))
        return np.concatenate([before, prompt])

    def valid_tokens(self) -> np.ndarray:
        """Returns `[V]` bool, True for the rows of the embedding table that are tokens.

        The table may have rows that are no tokens of the tokenizer. They have no text, so a prompt
        cannot be read as them. Whether it can be read as special tokens, `readable` tells.
        """
        rows = np.arange(len(self.embedding_table()))
        ids = self.tokenizer.text_ids if self.readable == "text" else self.tokenizer.ids
        return np.isin(rows, list(ids))
