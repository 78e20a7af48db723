"""The library in a few calls: load, read, evaluate, and the loss itself; `tuning` has `tune`.

The functions here put defaults around those of the other modules: the cache folder, the devices,
and the number of tokens that go through the model at once are chosen as for a job.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from wayward_jax import assets, metrics, models, objective, tasks
from wayward_jax.jobs.settings import default_cache_dir
from wayward_jax.models import LanguageModel
from wayward_jax.packing import PackedBatch, fitting_shape, pack_segments
from wayward_jax.projection import METRICS
from wayward_jax.prompt_files import checked_prompt, fit_prompt, read_prompt
from wayward_jax.readings import Reading, read_prompts
from wayward_jax.rows import row_sizes
from wayward_jax.segments import gold_segments
from wayward_jax.sharding import make_mesh
from wayward_jax.targets import load_texts, tokenize
from wayward_jax.tasks import TaskData
from wayward_jax.training.evaluation import score_prompts
from wayward_jax.training.examples import encode_task
from wayward_jax.training.memory import busy_tokens, row_grain


def load_model(
    name: str,
    *,
    cache_dir: str | Path | None = None,
    assets_dir: str | Path | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    readable: str = "text",
    bos: str = "auto",
) -> LanguageModel:
    """Loads a frozen language model; built-in models and models of the hub are fetched.

    Args:
        name: see `models.load`; `smollm2-135m` is built in.
        cache_dir: keeps fetched and converted models; None is the user's cache folder.
        assets_dir: a folder with the files of built-in models, to use no network.
        dtype: of the weights; None is that of `models.resolve_dtype` for `auto`.
        mesh: devices that its prompts will be tuned on; None is all of them, for different runs.
        readable: the tokens that a prompt can be read as: those of `text`, or `all`.
        bos: whether BOS stands before every prompt, `yes` or `no`; `auto` is where the model's
            tokenizer begins every text with it.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    return models.load(
        name,
        cache_dir=_path(cache_dir) or default_cache_dir(),
        assets_dir=_path(assets_dir),
        dtype=dtype or models.resolve_dtype("auto", jax.devices()[0]),
        mesh=mesh or make_mesh(runs=jax.device_count()),
        readable=readable,
        bos=bos,
    )


def load_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    k_shot: int = -1,
    data_seed: int = 100,
    text_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | Path | None = None,
    assets_dir: str | Path | None = None,
) -> TaskData:
    """Loads a task with its train, dev and test examples.

    Args:
        name: see `tasks.load`; `reviews` and `plots` are built in.
        data_dir: the folder of data sets, for tasks that are not built in.
        k_shot: training examples a class; -1 is all of them.
        data_seed: of the choice of training examples.
        text_column: the column of the texts, for tasks that are not built in.
        label_column: the column of the labels.
        cache_dir: keeps fetched files; None is the user's cache folder.
        assets_dir: a folder with the files of built-in tasks, to use no network.

    Raises:
        InputError: there is no such task, or its data cannot be used.
    """
    cache, own = _path(cache_dir) or default_cache_dir(), _path(assets_dir)
    return tasks.load(
        name,
        data_dir=_path(data_dir),
        k_shot=k_shot,
        data_seed=data_seed,
        text_column=text_column,
        label_column=label_column,
        fetch=lambda asset: assets.fetch(asset, cache_dir=cache, assets_dir=own),
    )


def load_targets(
    spec: str, *, task: str | None = None, data_dir: str | Path | None = None
) -> dict[str, str]:
    """Loads target texts by name, for instance `instructions:3`.

    Args:
        spec: sets of targets, see `targets.load_texts`.
        task: name of the task, for sets that have texts for each task.
        data_dir: the folder of the paper's files, for sets that are not built in.

    Raises:
        InputError: there is no such set or text.
    """
    return load_texts(spec, task=task, data_dir=_path(data_dir))


def load_prompt(source: str | Path, model: LanguageModel) -> np.ndarray:
    """Loads a prompt for a model, and warns if it seems to be another model's.

    Args:
        source: an adapter of PEFT, an array in a file, a checkpoint, or `text=` and a text; see
            `prompt_files.read_prompt`.
        model: the model that it is for.

    Returns:
        `[L, D]` float32, in the space of the model's embedding table.

    Raises:
        InputError: there is no such prompt, or it does not fit the model.
    """
    saved = read_prompt(source)
    prompt = fit_prompt(saved, model)
    if doubt := saved.doubt(model):
        warnings.warn(doubt, stacklevel=2)
    return prompt


def read(
    model: LanguageModel, prompt: ArrayLike, k: int = 10, *, target: str | None = None
) -> dict[str, Reading]:
    """Reads a prompt by its nearest tokens under every metric.

    Args:
        model: the model that the prompt is for.
        prompt: `[L, D]`.
        k: neighbors of each vector.
        target: a text that the readings are compared with.

    Returns:
        A `Reading` for each of `projection.METRICS`: neighbors, distances, margins and text.

    Raises:
        InputError: the prompt is not an array of finite numbers `[L, D]`.
    """
    vectors = checked_prompt(model, prompt)
    aim = None if target is None else tokenize({"text": target}, model.tokenizer)[0]
    return {metric: read_prompts(model, [vectors], [aim], metric, k)[0] for metric in METRICS}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A prompt on N test examples with C labels.

    Attributes:
        nll: `[N, C]` float32, the mean negative log-likelihood of each label in nats a token.
        predictions: `[N]` int32, the label of lowest `nll`.
        accuracy: of the predictions.
        macro_f1: of the predictions.
    """

    nll: np.ndarray
    predictions: np.ndarray
    accuracy: float
    macro_f1: float


def evaluate(
    model: LanguageModel,
    prompts: Sequence[ArrayLike],
    task: TaskData,
    *,
    n_eval: int = 0,
    method: str = "direct",
    template: int | None = None,
    truncate: str = "tail",
) -> list[Evaluation]:
    """Evaluates prompts on the test examples of a task.

    Args:
        model: the frozen model.
        prompts: `[L, D]` each, of any lengths.
        task: from `load_task`.
        n_eval: test examples, chosen at random; 0 is all of them.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.
        truncate: the end that is cut from a text that is too long, `tail` or `head`.

    Raises:
        InputError: a prompt is not an array of finite numbers `[L, D]`.
    """
    vectors = [checked_prompt(model, prompt) for prompt in prompts]
    length = max(map(len, vectors))
    mesh = model.mesh
    encoded = encode_task(
        model,
        {task.data_seed: task},
        prompt_length=length,
        method=method,
        template=task.task.default_template if template is None else template,
        n_dev=n_eval,
        n_eval=n_eval,
        tokens=busy_tokens(mesh),
        truncate=truncate,
        row_grain=row_grain(mesh),
    )
    test = encoded.test
    inputs = [model.with_bos(prompt) for prompt in vectors]
    nll = score_prompts(model, inputs, test, mesh, length=length + len(model.bos_ids))
    return [
        Evaluation(
            nll=own,
            predictions=metrics.predict(own),
            accuracy=metrics.accuracy(metrics.predict(own), test.labels),
            macro_f1=metrics.macro_f1(metrics.predict(own), test.labels),
        )
        for own in nll
    ]


def pack(
    model: LanguageModel,
    task: TaskData,
    examples: Sequence[Sequence[int]],
    *,
    prompt_length: int,
    method: str = "direct",
    template: int | None = None,
) -> PackedBatch:
    """Packs training examples of R runs, for `losses`.

    Args:
        model: the frozen model.
        task: from `load_task`.
        examples: for each of the R runs, which of the task's training examples it has.
        prompt_length: L, of each run's prompt.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.
    """
    input_length = len(model.bos_ids) + prompt_length
    numbers = sorted({number for own in examples for number in own})
    chosen = task.train.take(numbers)
    encoded = tasks.encode(
        task.task,
        chosen.texts,
        model.tokenizer,
        template=task.task.default_template if template is None else template,
        method=method,
        max_tokens=model.module.config.max_positions - input_length,
        texts_b=chosen.texts_b,
    )
    segments = gold_segments(encoded, chosen.labels.tolist(), task.task.word_labels)
    most = max(map(len, examples))
    of_runs = np.full((1, len(examples), most), -1)
    for run, own in enumerate(examples):
        of_runs[0, run, : len(own)] = np.searchsorted(numbers, own)
    lengths = np.full((1, len(examples)), input_length)
    longest = int(segments.sizes[:, 0].max())
    shape = min(
        (
            fitting_shape(segments, of_runs, lengths, slots)
            for slots in row_sizes(input_length, longest, row_grain(model.mesh))
        ),
        key=lambda shape: shape.cost,
    )
    return jax.tree.map(lambda x: x[0], pack_segments(segments, of_runs, lengths, shape))


def losses(
    model: LanguageModel,
    prompts: jax.Array,
    packed: PackedBatch,
    targets: ArrayLike,
    gamma: ArrayLike,
) -> jax.Array:
    """The losses of R prompts: pure, and differentiable with respect to the prompts.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`.
        packed: the examples of the R runs, from `pack`.
        targets: `[R, L]`, target tokens.
        gamma: `[R]` or `[]`, weights of the distance term.

    Returns:
        `[R]` float32, `objective.losses`.
    """
    target_ids = jnp.asarray(targets, jnp.int32)
    return objective.losses(
        model.module, model.params, prompts, packed, target_ids, gamma, model.bos_ids
    )


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name).expanduser()
