"""Compiles a small model's programs for TPU v5e, and prints what is in them as JSON.

`python -m tests.helpers.compile_for_tpu gpt2` must be started with `ENVIRONMENT`.
"""

import collections
import json
import sys

import jax
import jax.numpy as jnp

from experiments.forecast.hlo import Program
from experiments.forecast.machines import find
from experiments.forecast.programs import abstract_params, compile_scoring, compile_training
from tests.helpers.packs import evaluation_set
from tests.helpers.toy_models import examples
from wayward_jax.models import LanguageModel
from wayward_jax.models.families import FAMILIES
from wayward_jax.runs import Run
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import make_mesh
from wayward_jax.training.planning import PopulationPlan

# Two layers, of two heads of 64 and of four heads of 128 with two key heads.
CONFIGS = {
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 2, "vocab_size": 512, "n_positions": 256},
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
}


def main(name: str, axis: str = "runs") -> None:
    family = FAMILIES[name]
    module = family.module_of(CONFIGS[name])
    _, devices = find("v5e:2x2")
    sizes = {"runs": 4} if axis == "runs" else {"runs": 2, axis: 2}
    mesh = make_mesh(**sizes, devices=devices)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    params = abstract_params(shapes, family, jnp.dtype(jnp.bfloat16), mesh)
    vocabulary = collections.namedtuple("Vocabulary", "vocab_size")(512)
    model = LanguageModel(name, family, module, params, vocabulary)
    plan = PopulationPlan(
        runs=tuple(Run(name, "task", 5, seed=seed, steps=2) for seed in range(8)),
        prompt_length=5,
        run_shards=mesh.shape["runs"],
        data_shards=mesh.shape["data"],
        packs_per_shard=1,
        runs_per_shard=8 // mesh.shape["runs"],
        eval_steps=(2,),
        steps_per_call=2,
        shapes=(PackedShape(rows=8, slots=128, copies=4, queries=32, predictions=32),),
    )
    scored = evaluation_set(
        examples(8, 2, seed=0), [0] * 8, prompt_length=5, tokens=512, row_grain=128
    )
    compiled = {
        "train": compile_training(model, plan, plan.shapes[0], mesh),
        "score": compile_scoring(model, plan, scored, mesh),
    }
    print(json.dumps({name: describe(each) for name, each in compiled.items()}))


def describe(compiled):
    program = Program.parse(compiled.hlo)
    # Each operation once, however often a loop repeats it.
    kinds = collections.Counter(program.kind(each) for each, _ in program.executed())
    counts = {kind: kinds[kind] for kind in ("attention kernel", "collectives")}
    return {**counts, "memory": compiled.memory}


if __name__ == "__main__":
    main(*sys.argv[1:])
