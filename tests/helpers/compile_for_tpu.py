"""Compiles small models' programs for a TPU that is not there, and prints what is in them as JSON.

`python -m tests.helpers.compile_for_tpu v5e:2x2 data gpt2`: the mesh has two devices along the axis
that is named, and the others along `runs`.
"""

import collections
import json
import os
import sys

from experiments.forecast.environment import ENVIRONMENT

os.environ |= ENVIRONMENT  # the modules below import JAX

from transformers import AutoConfig

from experiments.forecast.estimates import estimate
from experiments.forecast.hlo import Program
from experiments.forecast.machines import find
from experiments.forecast.programs import compile_scoring, compile_training
from tests.helpers.packs import evaluation_set
from tests.helpers.tiny_programs import make_model, make_plan
from tests.helpers.toy_models import examples
from wayward_jax.sharding import make_mesh

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 512}
OWN_SIZES = {
    "gpt2": SIZES,
    "gpt_neox": {**SIZES, "intermediate_size": 512},
    "opt": {**SIZES, "ffn_dim": 512, "word_embed_proj_dim": 256},
    # Wide heads, and in some layers a window.
    "llama": {**GROUPED, "head_dim": 128},
    "gemma2": {**GROUPED, "head_dim": 256, "sliding_window": 64},
    "gemma3_text": {**GROUPED, "head_dim": 256, "sliding_window": 64},
}


def main(topology: str, axis: str, *families: str) -> None:
    machine, devices = find(topology)
    halves = {"runs": len(devices)} if axis == "runs" else {"runs": len(devices) // 2, axis: 2}
    mesh = make_mesh(**halves, devices=devices)
    scored = evaluation_set(
        examples(8, 2, seed=0), [0] * 8, prompt_length=5, tokens=512, row_grain=128
    )
    found = {}
    for name in families:
        entries = AutoConfig.for_model(name, **OWN_SIZES.get(name, GROUPED)).to_dict()
        model, plan = make_model(name, entries, mesh, "bfloat16"), make_plan(mesh)
        compiled = {
            "train": compile_training(model, plan, plan.shapes[0], mesh),
            "score": compile_scoring(model, plan, scored, mesh),
        }
        found[name] = {kind: describe(each, machine) for kind, each in compiled.items()}
    print(json.dumps(found))


def describe(compiled, machine):
    program = Program.parse(compiled.hlo)
    # Each operation once, however often a loop repeats it.
    kinds = collections.Counter(program.kind(each) for each, _ in program.executed())
    counts = {kind: kinds[kind] for kind in ("attention kernel", "collectives")}
    cycles = sum(estimate(compiled, machine).values()) * machine.clock
    return {**counts, "memory": compiled.memory, "cycles": cycles}


if __name__ == "__main__":
    main(*sys.argv[1:])
