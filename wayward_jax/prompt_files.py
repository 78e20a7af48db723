"""Prompts in files: adapters of PEFT, arrays and checkpoints; and texts in the place of files.

Our prompts are in the space of the embedding table. transformers multiplies the embeddings of some
models (Gemma) when it looks tokens up, and PEFT puts its vectors behind the lookup, so that they
are in the multiplied space. PEFT also puts its vectors before all of a text, and our BOS stands
before the prompt: adapters that are written here begin with its embedding.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import ArrayLike
from safetensors import SafetensorError

from wayward_jax import checkpoints
from wayward_jax.errors import InputError, reason
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.sharding import on_host

FORMATS = ("peft", "safetensors", "npy")

# As many arrays of a file are named in a message.
MOST_NAMES = 8

# The start of a source that is a text.
TEXT = "text="

# Files of PEFT, and the array of its prompts.
CONFIG, WEIGHTS, VECTORS = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"

# The kinds of adapters that consist of vectors before the text. The vectors of P-tuning are saved
# as its encoder computed them, and those of multitask prompts beside factors for each task.
SINGLE, ENCODED, MULTITASK = "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNPICKLE = (
    'python -c "import torch, safetensors.torch as s; x = torch.load({path!r}, weights_only=True); '
    's.save_file(x if isinstance(x, dict) else dict(prompt=x), {new!r})"'
)


@dataclasses.dataclass(frozen=True, eq=False)
class SavedPrompt:
    """A prompt that was read and not yet fitted to a model.

    Attributes:
        source: where it was read.
        content: its vectors `[L, D]`, finite; or a text.
        base_model: the name of the model that it was tuned for, if the file has it.
        is_peft: whether the vectors stand where those of PEFT do.
    """

    source: str
    content: np.ndarray | str
    base_model: str | None = None
    is_peft: bool = False

    def doubt(self, model: LanguageModel) -> str | None:
        """A sentence if the file names another model; names differ for many good reasons."""
        if self.base_model is None or _last_part(self.base_model) == _last_part(model.name):
            return None
        return (
            f"{self.source} was tuned for {self.base_model} and is used with {model.name}: make "
            "sure that they are the same model"
        )


def read_prompt(
    source: str | Path, argument: str = "prompt", names: Sequence[str] = ()
) -> SavedPrompt:
    """Reads the prompt of a file or folder, or takes the text that follows `text=`.

    Args:
        source: a folder with an adapter of PEFT; a checkpoint of a job, or a file `.safetensors`,
            `.npy` or `.npz`, with `:NAME` behind it to choose one of several arrays (in a
            checkpoint, NAME is the id of a run); or `text=` and a text.
        argument: the name of the argument that `source` is, for messages.
        names: what the argument takes beside prompts, for messages.

    Raises:
        InputError: there is no such prompt, or it cannot be used.
    """
    name = str(source)
    if name.startswith(TEXT):
        return SavedPrompt(name, name.removeprefix(TEXT))
    path, array = _path_and_array(name)
    if path.name in (CONFIG, WEIGHTS):
        path = path.parent
    if os.path.isdir(path):
        if array is None and (path / CONFIG).exists():
            return _read_adapter(path)
        prompts = checkpoints.load_prompts(path)
        return SavedPrompt(name, _checked(path, _choose(path, prompts, array)))
    if not os.path.isfile(path):
        raise InputError(
            argument,
            name,
            f"there is no such file or folder: give {''.join(f'{name}, ' for name in names)}a PEFT "
            "adapter, a checkpoint, a .safetensors, .npy or .npz file, or text=... for the "
            "embeddings of a text",
        )
    arrays, about = _read_arrays(path)
    vectors = _checked(path, _choose(path, arrays, array))
    return SavedPrompt(name, vectors, about.get("model"))


def fit_prompt(saved: SavedPrompt, model: LanguageModel) -> np.ndarray:
    """The prompt `[L, D]` float32 in the space of the model's embedding table, without BOS.

    Raises:
        InputError: it is too long for the model, or has vectors of another width.
    """
    table, first = model.embedding_table(), len(model.bos_ids)
    if isinstance(saved.content, str):
        ids = np.asarray(model.tokenizer.encode(saved.content), np.int32)
        if not len(ids):
            raise InputError(None, saved.source, "there are no tokens in it: give another text")
        vectors = on_host(c_proj(table, ids))
    else:
        vectors = saved.content
    if vectors.shape[1] != table.shape[1]:
        raise InputError(
            None,
            saved.source,
            f"has vectors of width {vectors.shape[1]}, and those of {model.name} have "
            f"{table.shape[1]}: give the model that it was tuned for"
            + (f", {saved.base_model}" if saved.base_model else ""),
        )
    if saved.is_peft:
        vectors = vectors.astype(np.float64) / model.lookup_scale
    prompt = vectors.astype(np.float32)
    bos = model.with_bos(prompt[:0])
    if saved.is_peft and first and len(prompt) > first and np.array_equal(prompt[:first], bos):
        prompt = prompt[first:]
    room = model.module.config.max_positions - first
    if len(prompt) >= room:
        raise InputError(
            None,
            saved.source,
            f"has {len(prompt)} vectors, and {model.name} reads {room} tokens in all: give a "
            "shorter prompt",
        )
    return prompt


def save_prompt(
    path: str | Path, prompt: ArrayLike, model: LanguageModel, format: str = "peft"
) -> None:
    """Writes a prompt to a new file, or to a new folder as an adapter of PEFT.

    Args:
        path: where nothing is yet.
        prompt: `[L, D]`.
        model: the model that the prompt is for.
        format: `peft`, which `PeftModel.from_pretrained` loads; `safetensors`, with the array
            `prompt`; or `npy`.

    Raises:
        InputError: the prompt is not one of the model's, or `path` cannot be written.
    """
    vectors, path = checked_prompt(model, prompt), Path(path).expanduser()
    if format not in FORMATS:
        raise InputError("format", format, f"choose one of {', '.join(FORMATS)}")
    if os.path.lexists(path):
        raise InputError(None, path, "exists already: name a new file or folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "npy":
            with path.open("xb") as file:
                np.save(file, vectors)
        elif format == "safetensors":
            about = {"model": model.name}
            safetensors.numpy.save_file({"prompt": vectors}, path, metadata=about)
        else:
            _write_adapter(path, vectors, model)
    except OSError as error:
        remedy = f"cannot be written ({error.strerror or error}): name another place"
        raise InputError(None, path, remedy) from error


def checked_prompt(model: LanguageModel, prompt: ArrayLike) -> np.ndarray:
    """The prompt as `[L, D]` float32.

    Raises:
        InputError: it is not an array of finite numbers `[L, D]`.
    """
    vectors, width = np.asarray(prompt, np.float32), model.embedding_table().shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise InputError(
            "prompt", vectors.shape, f"give an array of vectors of {model.name}: [L, {width}]"
        )
    if not np.isfinite(vectors).all():
        raise InputError("prompt", vectors.shape, "holds numbers that are not finite: remove them")
    return vectors


def _write_adapter(folder: Path, prompt: np.ndarray, model: LanguageModel) -> None:
    inputs, scale = model.with_bos(prompt), model.lookup_scale
    exact = inputs.astype(np.float64) * scale
    rounded = exact.astype(np.float32)
    # Where float32 would not give the bits of the prompt back, the products are kept whole.
    is_exact = np.array_equal((rounded.astype(np.float64) / scale).astype(np.float32), inputs)
    vectors = {VECTORS: rounded if is_exact else exact}
    config = {
        "peft_type": SINGLE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "inference_mode": True,
        "num_virtual_tokens": len(inputs),
        "token_dim": inputs.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": model.module.config.heads,
        "num_layers": model.module.config.depth,
        "prompt_tuning_init": "RANDOM",
    }
    folder.mkdir()
    safetensors.numpy.save_file(vectors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_adapter(folder: Path) -> SavedPrompt:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, base = config["peft_type"], config.get("base_model_name_or_path")
        parts = config.get("num_transformer_submodules")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = f"is no configuration of an adapter ({reason(error)}): get it again"
        raise InputError(None, folder / CONFIG, remedy) from error
    if kind not in (SINGLE, ENCODED, MULTITASK) or parts not in (None, 1):
        what = f"of the kind {kind}" if parts in (None, 1) else "for an encoder and a decoder"
        raise InputError(
            None,
            folder,
            f"is an adapter {what}, which is no prompt before a text: give one of {SINGLE}, "
            f"{ENCODED} or {MULTITASK} for a causal language model",
        )
    weights = folder / WEIGHTS
    if not weights.exists():
        if (pickled := folder / "adapter_model.bin").exists():
            raise _pickled(pickled, weights)
        raise InputError(None, weights, "is missing: bring it, too")
    arrays, _ = _read_arrays(weights)
    vectors = _checked(weights, _choose(weights, arrays, VECTORS))
    if kind == MULTITASK:
        vectors = _checked(weights, vectors * _task_factors(weights, arrays, vectors.shape))
    return SavedPrompt(str(folder), vectors, base if isinstance(base, str) else None, True)


def _task_factors(
    path: Path, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """The factors of a multitask prompt's vectors, if it has a single task."""
    columns, rows = (arrays.get(f"prefix_task_{name}") for name in ("cols", "rows"))
    if columns is None or rows is None:
        return np.ones(shape)
    if columns.ndim != 3 or len(columns) != 1 or rows.ndim != 3 or len(rows) != 1:
        raise InputError(
            None,
            path,
            f"has the prompts of {len(columns)} tasks: save that of one task, {VECTORS} times "
            "prefix_task_cols @ prefix_task_rows, as an array of its own",
        )
    factors = columns[0].astype(np.float64) @ rows[0].astype(np.float64)
    if factors.shape != shape:
        raise InputError(None, path, f"has factors of another shape than {VECTORS}: get it again")
    return factors


def _read_arrays(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    """The arrays of a file by name, and what else it says."""
    if path.suffix in PICKLED:
        raise _pickled(path, path.with_suffix(".safetensors"))
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
                return arrays, file.metadata() or {}
        if path.suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return ({"": found} if path.suffix == ".npy" else dict(found)), {}
    except (SafetensorError, OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        remedy = f"is not a readable file of arrays ({reason(error)}): get it again"
        raise InputError(None, path, remedy) from error
    raise InputError(
        None, path, "is of no known kind: give a .safetensors, .npy or .npz file, or an adapter"
    )


def _choose(path: Path, arrays: Mapping[str, np.ndarray], name: str | None) -> np.ndarray:
    names = ", ".join(sorted(arrays)[:MOST_NAMES]) or "none"
    names += ", ..." if len(arrays) > MOST_NAMES else ""
    if name is not None and name not in arrays:
        raise InputError(None, path, f"has no array {name}: choose from {names}")
    chosen = [name] if name is not None else [n for n in arrays if arrays[n].ndim == 2]
    if len(chosen) > 1 or not arrays:
        raise InputError(
            None, path, f"has {len(chosen)} arrays [L, D] ({names}): choose one as {path}:NAME"
        )
    return arrays[chosen[0]] if chosen else next(iter(arrays.values()))


def _checked(path: Path, vectors: np.ndarray) -> np.ndarray:
    if vectors.ndim != 2 or not vectors.size:
        remedy = f"holds an array of shape {vectors.shape}: give one of vectors [L, D]"
        raise InputError(None, path, remedy)
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        remedy = f"holds numbers of type {vectors.dtype}: give floating-point vectors"
        raise InputError(None, path, remedy)
    wide = vectors if vectors.dtype == np.float64 else vectors.astype(np.float32)
    if not (np.abs(wide) <= np.finfo(np.float32).max).all():  # nor is NaN
        raise InputError(None, path, "holds numbers that are not finite: give another prompt")
    return wide


def _pickled(path: Path, new: Path) -> InputError:
    command = UNPICKLE.format(path=str(path), new=str(new))
    return InputError(None, path, f"is a pickle, which can run code: convert it by {command}")


def _path_and_array(name: str) -> tuple[Path, str | None]:
    """The path, and the array that is named behind it."""
    path = Path(os.path.expanduser(name))
    before, colon, array = name.rpartition(":")
    if colon and not os.path.lexists(path) and os.path.exists(os.path.expanduser(before)):
        return Path(os.path.expanduser(before)), array
    return path, None


def _last_part(name: Any) -> str:
    return os.path.basename(str(name).rstrip("/")).lower().removesuffix(".gguf")
