"""The supported model families, by the `model_type` entry of a Hugging Face `config.json`."""

from wayward_jax.models.gemma.params import GEMMA2_FAMILY, GEMMA3_FAMILY
from wayward_jax.models.gpt2.params import GPT2_FAMILY
from wayward_jax.models.gpt_neox.params import GPT_NEOX_FAMILY
from wayward_jax.models.granite.params import GRANITE_FAMILY
from wayward_jax.models.llama.params import LLAMA_FAMILY, MISTRAL_FAMILY
from wayward_jax.models.olmo2.params import OLMO2_FAMILY
from wayward_jax.models.opt.params import OPT_FAMILY
from wayward_jax.models.phi3.params import PHI3_FAMILY
from wayward_jax.models.qwen.params import QWEN2_FAMILY, QWEN3_FAMILY
from wayward_jax.models.smollm3.params import SMOLLM3_FAMILY

FAMILIES = {
    "gemma2": GEMMA2_FAMILY,
    "gemma3_text": GEMMA3_FAMILY,
    "gpt2": GPT2_FAMILY,
    "gpt_neox": GPT_NEOX_FAMILY,
    "granite": GRANITE_FAMILY,
    "llama": LLAMA_FAMILY,
    "mistral": MISTRAL_FAMILY,
    "olmo2": OLMO2_FAMILY,
    "opt": OPT_FAMILY,
    "phi3": PHI3_FAMILY,
    "qwen2": QWEN2_FAMILY,
    "qwen3": QWEN3_FAMILY,
    "smollm3": SMOLLM3_FAMILY,
}
