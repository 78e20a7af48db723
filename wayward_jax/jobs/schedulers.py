"""The processes that a scheduler starts together, as the environment of each of them tells."""

import dataclasses
import re
from collections.abc import Mapping

from wayward_jax.errors import InputError

Environment = Mapping[str, str]
"""Variables such as `os.environ`."""

# The variables with a process's number and with the number of processes, by the name that
# `jax.distributed.initialize` has for the scheduler. Where Slurm starts Open MPI's launcher, the
# processes have the variables of both, and Slurm's are about the launcher.
SCHEDULERS = {
    "ompi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
}


@dataclasses.dataclass(frozen=True)
class Rank:
    """The place of a process among those that a scheduler started together.

    Attributes:
        scheduler: one of `SCHEDULERS`.
        number: the number of this process, from 0.
        count: the number of processes.
        local: the same two among the processes of this host; None if the scheduler does not say.
    """

    scheduler: str
    number: int
    count: int
    local: tuple[int, int] | None


def find_rank(environment: Environment) -> Rank | None:
    """Finds the place of this process; None if no scheduler started it.

    Raises:
        InputError: variables are missing or are no numbers.
    """
    for scheduler, (number, count) in SCHEDULERS.items():
        if count in environment:
            place = _read(environment, number), _read(environment, count)
            if place[0] >= place[1]:
                raise InputError(
                    None, number, f"is {place[0]}, and {count} is {place[1]}: set it to less"
                )
            return Rank(scheduler, *place, _local(scheduler, environment))
        if number in environment and not _in_script(environment):
            raise _lacking(count)
    return None


def find_shard(environment: Environment) -> tuple[int, int]:
    """Finds which shard this process does, and of how many: each task of an array and step has one.

    Raises:
        InputError: no scheduler says, or only a part of an array was submitted.
    """
    rank = find_rank(environment)
    first, count = (0, 1) if rank is None else (rank.number, rank.count)
    if "SLURM_ARRAY_TASK_ID" in environment:
        names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
        own, lowest, highest, step, tasks = (_read(environment, name) for name in names)
        if step == 0 or (highest - lowest) // step + 1 != tasks:
            raise InputError(
                "shard",
                "auto",
                f"the array has {tasks} tasks from {lowest} to {highest}, so it may be a part of "
                "another: give i/n",
            )
        return (own - lowest) // step * count + first, tasks * count
    if rank is None:
        raise InputError(
            "shard",
            "auto",
            "neither Slurm nor Open MPI says which of how many processes this is: give i/n, on "
            "Kubernetes $(JOB_COMPLETION_INDEX)/n",
        )
    return first, count


def own_gpus(rank: Rank, environment: Environment) -> str:
    """Decides which of the GPUs that a process sees are its own, as `jax_cuda_visible_devices`.

    The processes of a host divide the GPUs that they all see. A process that is alone on its host,
    or that the scheduler lets see its own GPUs alone, has all that it sees.
    """
    if rank.local is None or rank.local[1] == 1:
        return "all"
    number, count = rank.local
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is None:
        return str(number)  # there is no telling how many GPUs the host has
    gpus = len(visible.split(","))
    of_host = environment.get("SLURM_GPUS_ON_NODE", "")
    if gpus < count or (of_host.isdecimal() and gpus < int(of_host)):
        return "all"
    share = gpus // count
    return ",".join(map(str, range(number * share, (number + 1) * share)))


def port_of_step(environment: Environment) -> int:
    """Chooses the port at which the processes of one `srun` find each other.

    JAX itself chooses among the same 4096 ports by the number of the Slurm job alone, so that
    processes of two `srun` commands side by side would take each other for their own. Here the
    steps of a job have different ports, and so have jobs of an array, whose numbers are near.

    Raises:
        InputError: variables are missing or are no numbers.
    """
    job, step = (_read(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 2**16 - 2**12 + (job + 1031 * step) % 2**12


def _in_script(environment: Environment) -> bool:
    """Tells whether this is the script of a Slurm job, which has the number 0 but is no task."""
    return environment.get("SLURM_PROCID") == "0" and "SLURM_STEP_ID" not in environment


def _local(scheduler: str, environment: Environment) -> tuple[int, int] | None:
    if scheduler == "ompi":
        number = environment.get("OMPI_COMM_WORLD_LOCAL_RANK", "")
        count = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    else:
        number = environment.get("SLURM_LOCALID", "")
        node = environment.get("SLURM_NODEID", "")
        # For instance 4(x2),3 on three hosts.
        counts = [
            count
            for count, hosts in re.findall(
                r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
            )
            for _ in range(int(hosts or 1))
        ]
        count = counts[int(node)] if node.isdecimal() and int(node) < len(counts) else ""
    return (int(number), int(count)) if number.isdecimal() and count.isdecimal() else None


def _read(environment: Environment, name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise _lacking(name)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(None, name, f"is {text!r} and must be a whole number: correct it")
    return int(text)


def _lacking(name: str) -> InputError:
    return InputError(
        None,
        name,
        "is not set, and other variables of its scheduler are: pass on all of them, or none",
    )
