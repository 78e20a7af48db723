"""The way from a model's name, as in `--model`, to its files and to a `PublishedModel`."""

import os
import re
from pathlib import Path

from wayward_jax import assets
from wayward_jax.errors import InputError, reason
from wayward_jax.models.formats import gguf, safetensors
from wayward_jax.models.formats.published import PublishedModel

# Short names for models on the Hugging Face hub.
HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}

# Models that are fetched as `assets`, by the same names.
ASSET_NAMES = ("smollm2-135m",)


def locate(name: str, cache_dir: Path, assets_dir: Path | None) -> Path:
    """Finds the GGUF file or the folder of a model, and fetches it if necessary.

    Raises:
        InputError: there is no such model, or it cannot be fetched.
    """
    if name in ASSET_NAMES:
        return assets.fetch(name, cache_dir=cache_dir, assets_dir=assets_dir)
    if name in HUB_NAMES:
        return _fetch_from_hub(name)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix == ".gguf"):
        return path.resolve()
    if os.path.isfile(path):
        raise InputError("model", name, "is a file, but no .gguf file: give the folder it is in")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".gguf":
        return _fetch_from_hub(name)
    built_in = ", ".join([*ASSET_NAMES, *HUB_NAMES])
    raise InputError(
        "model",
        name,
        f"there is no such model: give {built_in}, a folder, a .gguf file, "
        "or organization/name on the Hugging Face hub",
    )


def short_name(name: str) -> str:
    """Gives the `LanguageModel.name` of the model that `locate` finds under `name`."""
    path = os.path.expanduser(name)
    if name in ASSET_NAMES or name in HUB_NAMES or not os.path.exists(path):
        return name
    return os.path.basename(os.path.abspath(path)).removesuffix(".gguf")


def files(source: Path) -> list[Path]:
    """Lists the files that `read(source)` depends on."""
    if source.is_file():
        return [source]
    return sorted(file for pattern in safetensors.FILES for file in source.glob(pattern))


def read(source: Path) -> PublishedModel:
    """Reads the model at a path that `locate` returned.

    Raises:
        InputError: a file is missing or broken, or of a kind that is not supported.
    """
    return (gguf if source.is_file() else safetensors).read(source)


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # this function alone uses the network

    try:
        folder = snapshot_download(
            HUB_NAMES.get(name, name),
            allow_patterns=list(safetensors.FILES),
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:
        raise InputError(
            "model",
            name,
            "no local folder has this name, and the Hugging Face hub does not supply it "
            f"({reason(error)}): check name and network, or give a folder with config.json, "
            "model.safetensors and the tokenizer's files",
        ) from error
    return Path(folder)
