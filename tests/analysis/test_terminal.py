"""Tables on a terminal: words stay whole, and what one seed cannot tell is said once."""

import io

from rich.console import Console

from tests.helpers.finished_runs import best, wayward
from wayward_jax.analysis import captions, terminal
from wayward_jax.analysis.selection import compare
from wayward_jax.analysis.tables import by_target

NAME = "a-name-that-is-long/1"


def shown(seeds, width=80):
    """The table of one target on a terminal of so many columns, and the notes below it."""
    records = [best(0.8, seed=seed) for seed in seeds]
    records += [wayward(0.7, name=NAME, run={"seed": seed}) for seed in seeds]
    frame = by_target(compare(records))
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal._table(frame), crop=False)
    return console.file.getvalue(), terminal._notes([frame])


def test_words_stay_whole_on_a_terminal_that_is_too_narrow():
    table, _ = shown([1], width=20)
    assert {NAME, "accuracy", "0.800", "0.700"} <= set(table.split())


def test_with_one_seed_a_note_stands_in_place_of_verdicts():
    table, notes = shown([1])
    assert "verdict" not in table
    assert captions.ONE_SEED in notes
    table, notes = shown([1, 2, 3])
    assert "verdict" in table
    assert captions.ONE_SEED not in notes
