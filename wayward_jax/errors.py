"""The exception that tells a person what to change, and the reasons of other exceptions."""

import re
from collections.abc import Callable

# The middle of values longer than this is left out of messages, so that a message stays one line
# that can be read. The end of a path has the names of file and line.
LONGEST_VALUE = 200

FLAG = re.compile(r"(?<![\w-])--([a-z_]+)(?![\w-])")


def reason(error: BaseException) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line that names the argument or file at fault and the remedy. A Python user
    reads `gamma=-1: give ...`; a program shows `as_flag()`, `--gamma=-1: give ...`. Remedies name
    other arguments as flags (`--steps`), and `str` drops the dashes.

    Attributes:
        argument: name of the argument and flag at fault; None where a file is at fault.
        value: what was given; for a file its path, with the line where there is one (`a.tsv:12`).
            None where nothing was given.
        remedy: what is wrong, and what to do about it.
    """

    def __init__(self, argument: str | None, value: object, remedy: str) -> None:
        super().__init__(argument, value, remedy)
        self.argument, self.value, self.remedy = argument, value, remedy

    def __str__(self) -> str:
        return FLAG.sub(r"\1", self._line("", repr))

    def as_flag(self) -> str:
        """The message as a command line has it."""
        return self._line("--", str)

    def _line(self, dashes: str, show: Callable[[object], str]) -> str:
        if self.argument is None:
            return f"{_cut(str(self.value))}: {self.remedy}"
        if self.value is None:
            return f"{dashes}{self.argument}: {self.remedy}"
        return f"{dashes}{self.argument}={_cut(show(self.value))}: {self.remedy}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= LONGEST_VALUE:
        return line
    half = LONGEST_VALUE // 2
    return f"{line[:half]}...{line[-half:]}"
