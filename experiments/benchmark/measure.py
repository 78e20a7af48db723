"""Measurements of populations that are tuned here, without PyTorch."""

import math
import resource
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.workload import Tuner, encode_reviews, load_model, load_reviews
from wayward_jax.training.flops import StepCost, matrix_peak, needed_flops

Row = dict[str, Any]


def measure_tuning(name: str, dtype: jnp.dtype, population: int, seconds: float) -> Row:
    """Tunes a population for about `seconds` after its programs are compiled.

    The caller gives it a process of its own, so that peak memory is that of the population.
    """
    model = load_model(name, dtype)
    tuner = Tuner(model, encode_reviews(model, load_reviews()), population)
    taken, peaks, chunks, steps, cost, computed_tokens = 0.0, [], 0, 0, StepCost(), 0
    while taken < seconds:
        peak = measure_peak(dtype)
        chunk = tuner.tune_chunk()
        if not math.isnan(chunk.seconds):
            taken, chunks = taken + chunk.seconds, chunks + 1
            steps += len(chunk.task_loss)
            peaks.append(peak)
            cost, computed_tokens = cost + chunk.cost, computed_tokens + chunk.computed_tokens
    peak = statistics.mean(peaks)
    first_calls = tuner.compile_seconds.values()
    return {
        "model": name,
        "population": population,
        "real tokens/s": cost.tokens / taken,
        "tokens/s": computed_tokens / taken,
        "real share": cost.tokens / computed_tokens,
        "run-steps/s": steps * population / taken,
        "mfu": needed_flops(model, cost) / taken / peak,
        "peak GFLOP/s": peak / 1e9,
        "programs": len(first_calls),
        "compile s": sum(first_calls) - len(first_calls) * taken / chunks,
        "memory GiB": read_peak_memory() / 2**30,
    }


def measure_peak(dtype: jnp.dtype) -> float:
    """Measures the FLOP/s of a large matrix product."""
    return matrix_peak(dtype, 2048 if jax.default_backend() == "cpu" else 8192)


def read_peak_memory() -> int:
    """Returns the most bytes that the device held, or on a CPU this process."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats["peak_bytes_in_use"]
