"""Writes text that a user has chosen, such as names of targets, so that it is text everywhere."""

import re

import pandas as pd

# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")

# An underscore within a word is no markup.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$&~#]|(?<!\w)_|_(?!\w)")

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # After the end of a line, a bracket would begin an argument.
    "[": "{[}",
    "]": "{]}",
}


def in_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before text that a spreadsheet would compute."""

    def protect(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    return frame.map(protect)


def in_markdown(text: str) -> str:
    """The text on a line, with a backslash before what Markdown takes for markup."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", _one_line(text))


def in_latex(text: str) -> str:
    """The text on a line, with commands for what LaTeX takes for commands."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
