"""The supported model families, by the `model_type` entry of a Hugging Face `config.json`."""

from wayward_jax.models.gpt2.params import GPT2_FAMILY
from wayward_jax.models.llama.params import LLAMA_FAMILY, MISTRAL_FAMILY

FAMILIES = {"gpt2": GPT2_FAMILY, "llama": LLAMA_FAMILY, "mistral": MISTRAL_FAMILY}
