"""Compiles a small model's programs for TPU v5e, and prints what is in them as JSON.

`python -m tests.helpers.compile_for_tpu gpt2` must be started with `ENVIRONMENT`.
"""

import collections
import json
import sys

from experiments.forecast.hlo import Program
from experiments.forecast.machines import find
from experiments.forecast.programs import compile_scoring, compile_training
from tests.helpers.packs import evaluation_set
from tests.helpers.tiny_programs import make_model, make_plan
from tests.helpers.toy_models import examples
from wayward_jax.sharding import make_mesh

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
    _, devices = find("v5e:2x2")
    sizes = {"runs": 4} if axis == "runs" else {"runs": 2, axis: 2}
    mesh = make_mesh(**sizes, devices=devices)
    model, plan = make_model(name, CONFIGS[name], mesh, "bfloat16"), make_plan(mesh)
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
