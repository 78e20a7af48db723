"""The models, examples and populations that the benchmark measures.

Texts are film reviews: the built-in task `reviews`, whose corpus SST-2 was also made from.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.forecast.shapes import SHAPES, module_of
from wayward_jax import assets, models, tasks
from wayward_jax.jobs.settings import default_cache_dir
from wayward_jax.models import LanguageModel
from wayward_jax.runs import Run
from wayward_jax.sharding import make_mesh, place
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.examples import EncodedTask, encode_task
from wayward_jax.training.flops import StepCost
from wayward_jax.training.memory import free_bytes, pack_tokens, row_grain
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.starting import init_population
from wayward_jax.training.step import BATCH_SPECS, train_steps

# The model with published weights. Its tokenizer stands for that of the others.
REAL_MODEL = "smollm2-135m"

PROMPT_LENGTH = 14
BATCH_SIZE = 8
STEPS = 2000

# Examples that PyTorch scores; the same program here scores 32 times as many.
SAMPLES = 8


def load_model(name: str, dtype: jnp.dtype) -> LanguageModel:
    """Loads SmolLM2, or random weights of another shape of `forecast.shapes`, and its tokenizer."""
    model = models.load(REAL_MODEL, cache_dir=default_cache_dir(), dtype=dtype)
    if name == REAL_MODEL:
        return model
    family, module = module_of(name)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="text_logits")
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return LanguageModel(name, family, module, params, model.tokenizer).placed(model.mesh)


def load_model_pair(name: str, dtype: jnp.dtype, folder: Path) -> tuple[LanguageModel, Any]:
    """Loads the same weights here and in PyTorch; `folder` is for converted files."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    ours = models.load(REAL_MODEL, cache_dir=default_cache_dir(), dtype=dtype)
    if name == REAL_MODEL:
        file = assets.fetch(name, cache_dir=default_cache_dir())
        config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype.name)
        # `from_pretrained` may leave weights quantized, which takes longer to compute with.
        read = load_gguf_checkpoint(file, return_tensors=True, model_to_load=theirs)
        theirs.load_state_dict(read["tensors"], strict=False)
        return ours, theirs
    config = transformers.AutoConfig.for_model(**SHAPES[name])
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype.name)
    theirs.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.tokenizer.backend, eos_token="<|im_end|>"
    ).save_pretrained(folder)
    return models.load(str(folder), cache_dir=folder, dtype=dtype), theirs


def load_reviews() -> tasks.TaskData:
    """Loads the task `reviews`."""
    return tasks.load(
        "reviews",
        data_dir=None,
        fetch=lambda name: assets.fetch(name, cache_dir=default_cache_dir()),
    )


def encode_reviews(model: LanguageModel, data: tasks.TaskData) -> EncodedTask:
    """Encodes the examples to tune on, and a few to score."""
    return encode_task(
        model, {100: data}, prompt_length=PROMPT_LENGTH, n_dev=SAMPLES, n_eval=SAMPLES
    )


class Chunk(NamedTuple):
    """Measurements of one call of the training program.

    Attributes:
        seconds: wall time; NaN if the call compiled the program.
        task_loss: `[n, R]`, of n steps and R runs.
        cost: the work of the real tokens.
        computed_tokens: tokens that went through the model, padding included.
    """

    seconds: float
    task_loss: np.ndarray
    cost: StepCost
    computed_tokens: int


class Tuner:
    """A population of runs on `reviews` that is tuned one chunk of steps at a time.

    Attributes:
        model: the frozen model.
        plan: the plan of the population.
        state: the state of its runs.
        compile_seconds: wall time of the first call of each program, by the shape of its packs.
    """

    def __init__(self, model: LanguageModel, task: EncodedTask, population: int) -> None:
        self.model, self._mesh = model, make_mesh()
        runs = [
            Run(model.name, "reviews", PROMPT_LENGTH, seed=i, steps=STEPS)
            for i in range(population)
        ]
        tokens = pack_tokens(model, task.train, runs, free_bytes(self._mesh.local_devices))
        (self.plan,) = plan_populations(
            {"reviews": task.train},
            runs,
            population=population,
            pack_tokens=tokens,
            mesh=self._mesh,
            row_grain=row_grain(self._mesh),
        )
        self._optimizer = named_optimizer("adamw", STEPS)
        self._population, self.state = init_population(
            model, self.plan, self._mesh, self._optimizer
        )
        self._calls = iter_calls(task.train, self.plan)
        self.compile_seconds: dict[tuple[int, ...], float] = {}

    def tune_chunk(self) -> Chunk:
        """Takes the next chunk of steps, and measures it."""
        began = time.perf_counter()
        call = next(self._calls)
        self.state, losses = train_steps(
            self.model.module,
            self.model.params,
            self._population,
            self.state,
            place(call.packs, self._mesh, BATCH_SPECS),
            call.steps,
            self._optimizer,
            STEPS,
            self._mesh,
        )
        task_loss = np.asarray(losses.task)[: call.steps]  # waits for the steps
        seconds = time.perf_counter() - began
        shape = call.packs.ids.shape
        if shape not in self.compile_seconds:
            self.compile_seconds[shape], seconds = seconds, math.nan
        return Chunk(seconds, task_loss, call.cost, call.packs.ids.size)
