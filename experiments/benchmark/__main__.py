"""How fast prompts are tuned and scored, here and in PyTorch: `python -m experiments.benchmark`.

Every population is measured in a process of its own, whose peak memory is its own, too. The
comparisons with PyTorch take turns in one process, on the same weights, tokens and schedule, after
a check that all sides compute the same losses. Texts are film reviews (the built-in task `reviews`,
of the corpus that SST-2 was made from); for six labels their first ten words stand in for
questions, with the template and label words of TREC. BENCHMARKS.md says what the columns mean.
"""

import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from wayward_jax import assets, models, tasks
from wayward_jax.jobs.settings import default_cache_dir
from wayward_jax.models import LanguageModel
from wayward_jax.models.gpt2.modeling import GPT2, GPT2Config
from wayward_jax.packing import example_order, label_segments
from wayward_jax.runs import Run
from wayward_jax.sharding import make_mesh, place
from wayward_jax.tasks.paper import TASKS
from wayward_jax.training.evaluation import evaluation_sets, scores, start_scoring
from wayward_jax.training.examples import EncodedTask, encode_task
from wayward_jax.training.flops import StepCost, matrix_peak, needed_flops, step_cost
from wayward_jax.training.memory import busy_tokens, pack_tokens
from wayward_jax.training.planning import batches, plan
from wayward_jax.training.step import BATCH_SPECS, Batches, tune
from wayward_jax.training.trainer import begin

_QUICK = flags.DEFINE_bool("quick", False, "Fewer rounds: under ten minutes on two CPU cores.")
_MODELS = flags.DEFINE_list(
    "models", ["gpt2", "smollm2-135m"], "gpt2 is GPT-2 small's shape, with random weights."
)
_POPULATIONS = flags.DEFINE_list("populations", ["1", "16"], "How many runs to tune at once.")
_COMPARE = flags.DEFINE_bool("compare", True, "Measure PyTorch, too; needs .[benchmark].")
_OUT = flags.DEFINE_string("out", "benchmark.json", "File for the figures.")

PROMPT_LENGTH = 14
STEPS = 2000
SAMPLES = 8  # examples that the other side scores; here it is 32 times as many
TOLERANCE = 1e-3

Row = dict[str, Any]


def load_model(name: str) -> LanguageModel:
    """SmolLM2, or GPT-2 small's shape with random weights and SmolLM2's tokenizer."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    model = models.load("smollm2-135m", cache_dir=default_cache_dir(), dtype=dtype)
    if name != "gpt2":
        return model
    module = GPT2(GPT2Config())
    params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="text_logits")
    return LanguageModel(
        name, module, jax.tree.map(lambda x: x.astype(dtype), params), model.tokenizer
    )


def load_reviews() -> tasks.TaskData:
    """Film reviews, and what is needed of them to train on and to score."""
    return tasks.load(
        "reviews",
        data_dir=None,
        fetch=lambda name: assets.fetch(name, cache_dir=default_cache_dir()),
    )


class Tuner:
    """A population of `reviews` that is tuned a chunk of steps at a time."""

    def __init__(self, model: LanguageModel, task: EncodedTask, population: int) -> None:
        self.model, self.mesh = model, make_mesh()
        runs = [
            Run(model.name, "reviews", PROMPT_LENGTH, seed=i, steps=STEPS)
            for i in range(population)
        ]
        tokens = pack_tokens(model, task.train, runs, self.mesh)
        (self.plan,) = plan(
            task.train, runs, population=population, pack_tokens=tokens, mesh=self.mesh
        )
        self.population, self.state = begin(model, self.plan, self.mesh, {})
        self.batches = batches(task.train, self.plan)
        self.compiled: dict[int, float] = {}

    def chunk(self) -> tuple[float, np.ndarray, StepCost, int]:
        """Takes a chunk of steps: seconds, task losses `[n, R]`, work, and tokens computed.

        Where that takes a new program, the seconds go to `compiled`, and are NaN.
        """
        began = time.perf_counter()
        batch = next(self.batches)
        self.state, losses = tune(
            self.model.module,
            self.model.params,
            self.population,
            self.state,
            place(batch, self.mesh, BATCH_SPECS),
            STEPS,
            self.mesh,
        )
        task = np.asarray(losses.task)
        seconds = time.perf_counter() - began
        shape = batch.packs.ids.shape[-1]
        if shape not in self.compiled:
            self.compiled[shape], seconds = seconds, math.nan
        return seconds, task, step_cost(batch, self.plan), self._computed(batch)

    def _computed(self, batch: Batches) -> int:
        """Tokens that go through the model, padding counted in."""
        prompts = self.plan.chunk * PROMPT_LENGTH * len(self.plan.padded_runs)
        return batch.packs.ids.size + prompts


def peak_flops(dtype: jnp.dtype) -> float:
    """FLOP/s of a large matrix product."""
    return matrix_peak(dtype, 2048 if jax.default_backend() == "cpu" else 8192)


def tuning_row(name: str, population: int, seconds: float) -> Row:
    """A population on its own, for about so many seconds after its programs are compiled."""
    model = load_model(name)
    task = encode_task(model, {100: load_reviews()}, prompt_length=PROMPT_LENGTH, n_eval=SAMPLES)
    tuner = Tuner(model, task, population)
    taken, peaks, chunks, work, computed = 0.0, [], 0, StepCost(), 0
    while taken < seconds:
        peak = peak_flops(model.embedding_table().dtype)
        elapsed, _, done, tokens = tuner.chunk()
        if not math.isnan(elapsed):
            taken, chunks = taken + elapsed, chunks + 1
            peaks.append(peak)
            work, computed = work + done, computed + tokens
    peak = statistics.mean(peaks)
    return {
        "model": name,
        "population": population,
        "real tokens/s": work.tokens / taken,
        "tokens/s": computed / taken,
        "real share": work.tokens / computed,
        "run-steps/s": chunks * tuner.plan.chunk * population / taken,
        "mfu": needed_flops(model, work) / taken / peak,
        "peak GFLOP/s": peak / 1e9,
        "programs": len(tuner.compiled),
        "compile s": sum(tuner.compiled.values()) - len(tuner.compiled) * taken / chunks,
        "memory GiB": peak_memory() / 2**30,
    }


def peak_memory() -> int:
    """Bytes: the most that the device held, or on a CPU this process."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats["peak_bytes_in_use"]


def load_pair(name: str, folder: Path) -> tuple[LanguageModel, Any]:
    """The same weights here and in PyTorch (float32)."""
    import transformers

    ours = models.load("smollm2-135m", cache_dir=default_cache_dir())
    if name != "gpt2":
        file = assets.fetch(name, cache_dir=default_cache_dir())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype="float32"
        )
        return ours, theirs
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    theirs.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.tokenizer.backend, eos_token="<|im_end|>"
    ).save_pretrained(folder)
    return models.load(str(folder), cache_dir=folder), theirs


def comparison_rows(name: str, populations: Sequence[int], rounds: int) -> list[Row]:
    """Seconds a run-step, and a scored example, of both sides in turn, and their ratio."""
    from experiments.benchmark import torch_side

    folder = Path(tempfile.mkdtemp())
    model, theirs = load_pair(name, folder)
    data = load_reviews()
    task = encode_task(model, {100: data}, prompt_length=PROMPT_LENGTH, n_eval=SAMPLES)
    examples = tasks.encode(data.task, data.train.texts, model.tokenizer)
    order = example_order(len(examples), STEPS * 8, seed=0).reshape(STEPS, 8)
    rows = []
    for population in populations:
        tuner = Tuner(model, task, population)
        prompt = np.asarray(tuner.state.prompts[0])
        sides = {"peft": torch_side.Peft(theirs, prompt, STEPS)}
        if population == 1:
            sides["paper-style"] = torch_side.PaperStyle(theirs, prompt, STEPS)
        _, losses, *_ = tuner.chunk()
        seconds: dict[str, list[float]] = {side: [] for side in ("here", *sides)}
        for turn in range(-1, rounds):
            while math.isnan(elapsed := tuner.chunk()[0]):
                pass
            here = elapsed / tuner.plan.chunk / population
            for side, other in sides.items():
                batch = order[turn + 1]
                began = time.perf_counter()
                loss = other.step([examples[i] for i in batch], data.train.labels[batch])
                if turn < 0:  # the first step warms up, and shows the loss
                    _check(f"{name}, {side}: loss", losses[0, 0], loss)
                else:
                    seconds[side].append(time.perf_counter() - began)
            if turn >= 0:
                seconds["here"].append(here)
        rows += [
            _ratio_row(name, f"tuning, population {population}", side, seconds) for side in sides
        ]
    paper = torch_side.PaperStyle(theirs, prompt, STEPS)
    questions = tuple(" ".join(text.split()[:10]) for text in data.test.texts)
    for what, kind, texts in (
        ("scoring, 2 labels", data.task, data.test.texts),
        ("scoring, 6 labels", TASKS["trec"], questions),
    ):
        encoded = tasks.encode(kind, texts[: 32 * SAMPLES], model.tokenizer)
        rows.append(_scoring_row(name, what, model, prompt, encoded, paper, rounds))
    return rows


def _scoring_row(
    name: str,
    what: str,
    model: LanguageModel,
    prompt: np.ndarray,
    encoded: Sequence[tasks.Encoded],
    paper: Any,
    rounds: int,
) -> Row:
    mesh = make_mesh()
    (ours,) = evaluation_sets(
        [label_segments(encoded)],
        [np.zeros(len(encoded), np.int32)],
        len(encoded[0].continuations),
        tokens=busy_tokens(mesh),
    )
    some = encoded[:SAMPLES]
    prompts, mask = jnp.asarray(prompt)[None], jnp.ones((1, len(prompt)), bool)

    def here() -> np.ndarray:
        return scores(start_scoring(model, prompts, mask, ours, mesh), ours)[0]

    _check(f"{name}, {what}", here()[: len(some)], paper.scores(some))
    seconds: dict[str, list[float]] = {"here": [], "paper-style": []}
    for _ in range(rounds):
        seconds["here"].append(_timed(here) / len(encoded))
        seconds["paper-style"].append(_timed(lambda: paper.scores(some)) / len(some))
    return _ratio_row(name, what, "paper-style", seconds)


def _ratio_row(name: str, what: str, side: str, seconds: dict[str, list[float]]) -> Row:
    ratios = [theirs / ours for ours, theirs in zip(seconds["here"], seconds[side], strict=True)]
    return {
        "model": name,
        "what": what,
        "beside": side,
        "here ms": 1e3 * statistics.median(seconds["here"]),
        "there ms": 1e3 * statistics.median(seconds[side]),
        "times faster": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _check(what: str, ours: Any, theirs: Any) -> None:
    """Stops the benchmark where two sides do not compute the same."""
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _show(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(*rows[0], title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)


def main(argv: list[str]) -> None:
    """Measures, prints and saves."""
    del argv
    console = Console(width=140)
    populations = [int(x) for x in _POPULATIONS.value]
    seconds, rounds = (1, 2) if _QUICK.value else (40, 9)
    found = {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, {platform.platform()}"
    }
    found["tuning"] = [
        _alone(tuning_row, name, population, seconds)
        for name in _MODELS.value
        for population in populations
    ]
    _show(console, "Tuning", found["tuning"])
    if _COMPARE.value:
        pair = sorted({1, max(populations)})
        found["comparison"] = [
            row for name in _MODELS.value for row in _alone(comparison_rows, name, pair, rounds)
        ]
        _show(
            console, "Beside PyTorch, in turns: a run-step, a scored example", found["comparison"]
        )
    Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"{found['machine']}. Saved as {_OUT.value}")


if __name__ == "__main__":
    app.run(main)
