"""The dtype that weights have if the user names none."""

from types import SimpleNamespace

import jax
import pytest

from wayward_jax.models import resolve_dtype

CPU = SimpleNamespace(platform="cpu")
TPU = SimpleNamespace(platform="tpu")
T4, A100, H100 = (
    SimpleNamespace(platform="gpu", compute_capability=each) for each in ("7.5", "8.0", "9.0")
)
B200 = SimpleNamespace(platform="gpu", compute_capability="10.0")
MI300 = SimpleNamespace(platform="gpu", compute_capability="gfx942")


@pytest.mark.parametrize("device", [TPU, A100, H100, B200, MI300])
def test_auto_is_bfloat16_where_devices_multiply_it(device):
    assert resolve_dtype("auto", device) == "bfloat16"


@pytest.mark.parametrize("device", [CPU, T4, jax.devices("cpu")[0]])
def test_auto_is_float32_elsewhere(device):
    assert resolve_dtype("auto", device) == "float32"


@pytest.mark.parametrize("device", [CPU, T4, TPU])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_is_named_is_taken_everywhere(device, name):
    assert resolve_dtype(name, device) == name
