"""Forecasts as tables."""

import io
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from experiments.forecast.alternatives import Alternative, fastest
from experiments.forecast.estimates import (
    GPU_EFFICIENCY,
    GPU_KERNEL_BANDWIDTH,
    GPU_LAUNCH,
    TPU_ROW,
)
from experiments.forecast.forecast import Forecast, fits, total_seconds
from experiments.forecast.hlo import KINDS
from wayward_jax.jobs.throughput import duration

# The columns of a page.
PAGE_WIDTH = 120

NOTES = (
    "\nThese are estimates of a compiler; nothing was run. Packs of other shapes than the largest "
    "count by their slots. Left out: the host's time (it lays out the next steps while devices "
    "compute, and holds them up where it takes longer), reading and writing, gathers and scatters "
    "on a TPU (libtpu makes no estimate), contention for memory and links, and what an experiment "
    "measures after tuning. Compiling is timed on this machine, a program after the other. A job "
    "of one process compiles those of a population side by side, and so they count. The attention "
    "kernel on a TPU takes as long as the instructions that it was compiled to, or as its traffic "
    f"with memory, and {TPU_ROW * 1e6:.2f} us to begin with each row. On a GPU, whose compiler "
    "estimates no time, a kernel takes as long as its traffic with "
    f"memory or its products at {GPU_EFFICIENCY:.0%} of the peak, and {GPU_LAUNCH * 1e6:.0f} us to "
    f"begin; attention kernels reach {GPU_KERNEL_BANDWIDTH:.0%} of memory's bandwidth."
)


def table(parts: Mapping[str, Forecast]) -> Table:
    """The figures of one part of the job, with a column for each topology."""
    first = next(iter(parts.values()))
    title = f"{first.model}, {first.task}"
    made = Table("", *parts, title=title, title_justify="left", box=None)
    for rows in zip(*(_rows(part) for part in parts.values()), strict=True):
        (label, *_), values = zip(*rows, strict=True)
        if any(values):
            made.add_row(label, *values)
    return made


def total(
    found: Mapping[str, tuple[int, Sequence[Forecast]]], price_per_hour: float | None
) -> Table:
    """The whole job, with a column for each topology."""
    made = Table("whole job", *found, box=None)
    tuning, compiling, whole, cost = [], [], [], []
    for devices, parts in found.values():
        room, seconds = fits(parts), total_seconds(parts)
        compile_seconds = sum(part.compile_seconds for part in parts)
        tuning.append(duration(seconds) if room else "does not fit")
        compiling.append(duration(compile_seconds))
        whole.append(duration(seconds + compile_seconds) if room else "")
        hours = (seconds + compile_seconds) / 3600 * devices
        cost.append(f"{hours * price_per_hour:.2f}" if room and price_per_hour else "")
    made.add_row("devices", *(str(devices) for devices, _ in found.values()))
    made.add_row("tuning and evaluation", *tuning)
    made.add_row("compiling", *compiling)
    made.add_row("together", *whole)
    if price_per_hour:
        made.add_row("cost", *cost)
    return made


def compare(topology: str, found: Sequence[Alternative]) -> Table:
    """The job as it is and with other settings on one topology; below, which is the fastest."""
    made = Table(f"{topology}, with", "runs each", "largest step", "utilization", "time", box=None)
    for each in found:
        largest = max(each.parts, key=lambda part: part.step_memory)
        made.add_row(
            each.flag or "these flags",
            *(str(largest.runs), _memory(largest.step_memory, largest)),
            *(_speed(each.parts) if fits(each.parts) else ("", "no room")),
        )
    best = fastest(found)
    if best is not None:
        made.caption = f"Fastest: {best.flag or 'these flags'}"
        made.caption_justify = "left"
    return made


def as_page(shown: Sequence[RenderableType]) -> str:
    """The HTML of a page that shows the same tables and sentences as the terminal."""
    console = Console(record=True, file=io.StringIO(), width=PAGE_WIDTH)
    console.print(*shown, sep="\n")
    return console.export_html(theme=DEFAULT_TERMINAL_THEME)


def _rows(part: Forecast) -> list[tuple[str, str]]:
    estimated = part.step_seconds > 0
    return [
        ("mesh", part.mesh),
        ("populations, runs each", f"{part.populations}, {part.runs}"),
        ("programs", str(part.programs)),
        ("memory of the largest step", _memory(part.step_memory, part)),
        ("memory of evaluation", _memory(part.evaluation_memory, part)),
        ("fits", part.refusal or "yes"),
        ("a step", duration(part.step_seconds) if estimated else ""),
        ("utilization", f"{part.utilization:.2f}" if estimated else ""),
        *((f"  {kind}", f"{part.shares[kind]:.1%}" if estimated else "") for kind in KINDS),
        ("traffic of a step", f"{part.traffic / 1e9:.0f} GB" if part.traffic else ""),
        ("laying out a step, host", _host_time(part) if estimated else ""),
        ("evaluation of a population", duration(part.evaluation_seconds) if estimated else ""),
        ("all populations", duration(part.seconds) if estimated else ""),
    ]


def _speed(parts: Sequence[Forecast]) -> tuple[str, str]:
    """The utilization, averaged over the time that the steps of all parts take, and all seconds."""
    seconds = [part.populations * part.steps * part.step_seconds for part in parts]
    used = [part.utilization * own for part, own in zip(parts, seconds, strict=True)]
    return f"{sum(used) / sum(seconds):.2f}", duration(total_seconds(parts))


def _host_time(part: Forecast) -> str:
    longer = part.host_seconds > part.step_seconds
    return duration(part.host_seconds) + (", longer than the step" if longer else "")


def _memory(size: int, part: Forecast) -> str:
    if not size:
        return "too much"
    return f"{size / 2**30:.1f} of {part.device_memory / 2**30:.1f} GiB"
