"""The sizes of a mesh: what the devices do that runs do not fill, and how users write it."""

from collections.abc import Mapping

# The part of a device's memory that weights may take. The rest is for what steps compute.
WEIGHTS_SHARE = 0.75


def choose_sizes(
    devices: int, free: int, weights: int, runs: int, batch_size: int
) -> dict[str, int]:
    """Chooses the sizes of a mesh's axes, whose product is the number of devices.

    Weights are divided among as few devices as hold them. Then as many runs as can be have devices
    of their own, because runs never communicate. Devices that are left divide each run's examples.

    Args:
        devices: how many there are.
        free: bytes of each that are free.
        weights: bytes of the model.
        runs: that are tuned at once.
        batch_size: examples of a run's step.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    model = next((n for n in divisors if weights <= n * WEIGHTS_SHARE * free), devices)
    groups = devices // model
    data = max(
        n
        for n in divisors
        if n == 1 or (n <= batch_size and groups % n == 0 and groups // n >= min(runs, groups))
    )
    return {"runs": groups // data, "data": data, "model": model}


def write_mesh(sizes: Mapping[str, int]) -> str:
    """Writes the sizes of axes as users give them: `runs:4,data:2`."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items())
