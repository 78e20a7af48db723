"""Settings: their kinds of values, and their declarations in the settings of a program.

A declaration has the setting's name (which is also its flag's), kind of values, default and help,
and says whether the setting decides results.
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from wayward_jax.errors import InputError
from wayward_jax.jobs.schedulers import find_shard

AUTO = "auto"

# The largest number of float32, in which losses are computed.
LARGEST_NUMBER = 3.4e38


class Gamma(NamedTuple):
    """A weight of the distance term.

    Attributes:
        weight: None is a weight that is found while tuning.
        model: the only model that it is for, as `--model` names it; empty if it is for all.
    """

    weight: float | None
    model: str = ""


class Kind(Protocol):
    """A kind of values, and how they are written as text.

    Attributes:
        form: a description of the text that completes the sentence "give ...".
    """

    @property
    def form(self) -> str: ...

    def parse(self, name: str, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            InputError: `text` is not of this kind; `name` is the setting's.
        """

    def write(self, value: Any) -> str:
        """The one text that stands for `value`."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A kind whose `read` raises a `ValueError` for text of another form.

    An `InputError`, which is one, has its own message.
    """

    form: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str

    def parse(self, name: str, text: str) -> Any:
        """See `Kind`."""
        try:
            return self.read(text)
        except InputError:
            raise
        except ValueError:
            raise InputError(name, text, f"give {self.form}") from None


@dataclasses.dataclass(frozen=True)
class Listed:
    """Different values of one kind, separated by commas; quotes protect commas, as in CSV."""

    element: Kind
    may_be_empty: bool = False

    @property
    def form(self) -> str:
        """See `Kind`."""
        return f"{self.element.form}; several are separated by commas"

    def parse(self, name: str, text: str) -> tuple:
        """See `Kind`."""
        try:
            (parts,) = csv.reader([text], strict=True) if text else ([],)
        except (ValueError, csv.Error):
            raise InputError(name, text, f"give {self.form}") from None
        values = tuple(self.element.parse(name, part.strip()) for part in parts)
        if not values and not self.may_be_empty:
            raise InputError(name, None, "give at least one value")
        if len(set(values)) < len(values):
            raise InputError(name, text, "a value is named twice: give each once")
        return values

    def write(self, value: tuple) -> str:
        """See `Kind`."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(map(self.element.write, value))
        return line.getvalue()


def one_of(*names: str) -> Value:
    """One of a few names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return Value(f"one of {', '.join(names)}", read)


def read_constraint(text: str) -> str:
    """Reads what holds prompts: a constraint, or a reading, which `readings.find_reading` takes."""
    if not re.fullmatch(r"penalty|cell|lens(:[0-9]{1,6})?|verbal|inspect", text):
        raise ValueError(text)
    return text


def read_templates(text: str) -> tuple[str, ...]:
    """Reads templates of verbal readings, separated by `|`."""
    return tuple(dict.fromkeys(text.split("|")))


def whole(lowest: int, highest: int = 10**18 - 1, form: str = "") -> Value:
    """Whole numbers from `lowest` to `highest`."""
    upper = f"from {lowest} on" if highest == 10**18 - 1 else f"from {lowest} to {highest}"

    def read(text: str) -> int:
        # Python takes text of more digits for an attack.
        if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) or not lowest <= int(text) <= highest:
            raise ValueError(text)
        return int(text)

    return Value(form or f"a whole number {upper}", read)


def _boolean(text: str) -> bool:
    return ("false", "true").index(text) == 1


def read_number(text: str) -> float:
    value = float(text)
    if not 0 <= value <= LARGEST_NUMBER:  # nor is NaN
        raise ValueError(text)
    return value


def write_number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def read_share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(text)
    return value


def read_gamma(text: str) -> Gamma:
    model, _, weight = text.rpartition(":")
    return Gamma(None if weight == AUTO else read_number(weight), model)


def write_gamma(gamma: Gamma) -> str:
    weight = AUTO if gamma.weight is None else write_number(gamma.weight)
    return f"{gamma.model}:{weight}" if gamma.model else weight


def read_k_shot(text: str) -> int:
    value = whole(-1).read(text)
    if value == 0:
        raise ValueError(text)
    return value


def read_path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def read_json_path(text: str) -> Path:
    path = read_path(text)
    if path.suffix == ".html":  # the page is there
        raise ValueError(text)
    return path


def _folder(text: str) -> Path:
    if not text or not os.path.isdir(read_path(text)):
        raise ValueError(text)
    return read_path(text)


def read_path_or_url(text: str) -> Path | str | None:
    return text if "://" in text else read_path(text) if text else None


def read_size(text: str) -> int | None:
    return None if text == AUTO else whole(1).read(text)


def read_index(text: str) -> int | None:
    return None if text == AUTO else whole(0).read(text)


def read_mesh(text: str) -> dict[str, int] | None:
    if text == AUTO:
        return None
    axes = dict(part.partition(":")[::2] for part in text.split(","))
    if axes.keys() - {"runs", "data", "model"} or len(axes) < text.count(",") + 1:
        raise ValueError(text)
    return {axis: whole(1).read(size) for axis, size in axes.items()}


def read_shard(text: str) -> tuple[int, int]:
    if text == AUTO:
        return find_shard(os.environ)
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise ValueError(text)
    number, count = map(int, text.split("/"))
    return number, count


def read_address(text: str) -> str:
    if not re.fullmatch(r".+:[0-9]{1,5}", text):
        raise ValueError(text)
    return text


TEXT = Value("text", str)
BOOLEAN = Value("true or false", _boolean, lambda value: str(value).lower())
NUMBER = Value("a finite number from 0 on", read_number, write_number)
SEED = whole(0, 2**32 - 1, f"whole numbers from 0 to {2**32 - 1}, like 1,10,100")
FOLDER = Value("a folder that exists", _folder)

Decides = Literal["results", "results by content", "nothing"]
"""A setting may decide results; it does so by content if it may name files, which can be moved."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The declaration of a setting.

    Attributes:
        name: the name of the setting and of its flag.
        kind: its values.
        default: the text of its default, None where the setting need not be given.
        help: what `--help` says.
        decides: whether it decides results.
    """

    name: str
    kind: Kind
    default: str | None
    help: str
    decides: Decides


def setting(kind: Kind, default: str | None, help: str, decides: Decides = "results") -> Any:
    """A field of `Declared` that is a setting."""
    value = None if default is None else kind.parse("", default)
    declaration = {"kind": kind, "default": default, "help": help, "decides": decides}
    return dataclasses.field(default=value, metadata=declaration)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """The settings of a program: each field is a setting."""

    @classmethod
    def settings(cls) -> list[Setting]:
        """The declarations."""
        return [Setting(field.name, **field.metadata) for field in dataclasses.fields(cls)]

    @classmethod
    def parse(cls, texts: Mapping[str, str | None]) -> Self:
        """The settings that texts stand for; those without a text are as by default.

        Raises:
            InputError: a text cannot be used.
        """
        kinds = {setting.name: setting.kind for setting in cls.settings()}
        given = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: kinds[name].parse(name, text) for name, text in given.items()})

    def texts(self) -> dict[str, str | None]:
        """The text that stands for each setting, None for one that is not given."""
        texts = {}
        for setting in self.settings():
            value = getattr(self, setting.name)
            texts[setting.name] = None if value in (None, ()) else setting.kind.write(value)
        return texts
