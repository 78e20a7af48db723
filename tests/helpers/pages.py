"""The code blocks of Markdown pages, and notebooks made of scripts.

`python -m tests.helpers.pages` makes the notebooks in `docs/examples` from their scripts.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"

BLOCK = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        file: the path that stands before the block as `path`:, empty if there is none.
        language: after the fence.
        code: with its last line break.
    """

    file: str
    language: str
    code: str


def blocks(text: str) -> list[Block]:
    """Finds the fenced code blocks of a page or of a part of it."""
    return [Block(*found.groups(default="")) for found in BLOCK.finditer(text)]


def sections(text: str) -> dict[str, str]:
    """Splits a page at its headings of the second level: the texts by heading; "" comes first."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def notebook(script: str) -> dict:
    """Makes the notebook of a script whose cells begin with `# %%` or `# %% [markdown]`."""
    _, *parts = CELL.split(script)
    cells = []
    for number, (is_text, content) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        content = content.strip("\n")
        cell = {"cell_type": "code", "execution_count": None, "id": f"cell-{number}"}
        cell |= {"metadata": {}, "outputs": []}
        if is_text:
            content = re.sub("^# ?", "", content, flags=re.MULTILINE)
            cell = {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}}
        cells.append({**cell, "source": content.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    for path in EXAMPLES.glob("*.py"):
        made = notebook(path.read_text(encoding="utf-8"))
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        path.with_suffix(".ipynb").write_text(text, encoding="utf-8")
