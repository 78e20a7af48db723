"""Names that a user chooses are text in everything that is written."""

import csv
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tests.helpers.finished_runs import best, wayward, with_run
from wayward_jax.analysis import escaping, figures, report, shown_tables, tables, terminal
from wayward_jax.analysis.selection import compare
from wayward_jax.metrics import predict

NAMES = [
    *(
        "[bold]",
        "[/red]",
        "$x^$",
        "a|b",
        "<script>alert(1)</script>",
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
    ),
    *("50%", "a_b", "_x_", "{y}", "\\textbf", "^", "~", "#1", "&amp;", "`c`", "*d*", "[e](f)"),
    *("line\nbreak", "日本", "'", '"', "--"),
]


@pytest.fixture
def records():
    """A p_star and a target of each name, in a task whose name is trouble, too."""
    targets = [
        wayward(0.7, name=name, text=f"word {i}", run={"gamma": 0.1})
        for i, name in enumerate(NAMES)
    ]
    return [with_run(record, task="[i]$|<t>") for record in (best(0.8), *targets)]


@pytest.fixture
def frame(records):
    return tables.by_target(compare(records))


def test_markdown_has_as_many_cells_as_the_table(frame, tmp_path):
    shown_tables.write(frame, tmp_path, "targets")
    lines = (tmp_path / "targets.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(NAMES)
    width = shown_tables.shown(frame)[0].shape[1]
    for line, name in zip(lines[2:], NAMES, strict=True):
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        assert len(cells) == width
        plain = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]
        assert " ".join(name.split("\n")) in plain
    assert not re.search(r"(?<!\\)<", "".join(lines))


def test_spreadsheets_find_no_formulas(frame, tmp_path):
    shown_tables.write(frame, tmp_path, "targets")
    with open(tmp_path / "targets.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, NAMES, strict=True):
        assert row["target"] in (name, f"'{name}")
        assert not row["target"].startswith(("=", "+", "-", "@"))
    assert escaping.in_csv(pd.DataFrame({"a": [-1.5]}))["a"].tolist() == [-1.5]


def test_latex_has_no_commands_but_its_own(frame, tmp_path):
    shown_tables.write(frame, tmp_path, "targets")
    lines = (tmp_path / "targets.tex").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(NAMES)
    own = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}"
    columns = shown_tables.shown(frame)[0].shape[1]
    for line in body:
        line = re.sub(own, "", line.removesuffix(r" \\"))
        assert len(re.split(r"(?<!\\)&", line)) == columns
        assert not re.search(r"(?<!\\)[%$#_^~]", line)
        assert not re.search(r"\\[^&%$#_{}]", line)
        assert not line.startswith("[")


def test_a_terminal_shows_them_as_they_are(frame):
    console = Console(file=io.StringIO(), width=400)
    console.print(terminal._table(frame))
    shown = console.file.getvalue()
    for name in NAMES:
        assert name.split("\n")[0] in shown


@pytest.mark.slow
def test_figures_show_them_as_they_are(records):
    made = figures.figures(records, compare(records))
    for name, figure in made.items():
        assert isinstance(figure, Figure)
        ET.fromstring(figures.to_svg(name, figure))
    svg = ET.fromstring(figures.to_svg("main", made["main"]))
    texts = {"".join(element.itertext()) for element in svg.iter() if element.tag.endswith("text")}
    for name in map(tables.target_set, NAMES):
        assert any(name.split("\n")[0] in text for text in texts), name


def test_the_page_has_them_as_text(frame):
    page = report.render(
        title="<b>",
        said=[NAMES[4]],
        answers=[],
        notes=[],
        made={},
        frames={"t": frame},
        data={"x": NAMES},
    )
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_score_that_is_not_a_number_never_is_the_lowest():
    scores = np.array([[np.nan, 2, 1], [3, np.nan, 4], [np.nan, np.nan, np.nan], [1, 1, 0.5]])
    assert predict(scores).tolist() == [2, 0, -1, 2]
