"""Places among the processes that a scheduler started: shards, joint jobs, and each one's GPUs."""

import os
from unittest import mock

import pytest
from jax._src.clusters import SlurmCluster

from wayward_jax.errors import InputError
from wayward_jax.jobs import processes
from wayward_jax.jobs.schedulers import find_rank, find_shard, own_gpus
from wayward_jax.jobs.settings import Settings


def slurm(number=1, count=4, node=0, local=1, per_node="4", **others):
    """The variables of a task of `srun`."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        **others,
    }


def open_mpi(number=1, count=4, local=1, per_node=4, **others):
    """The variables of a process of `mpirun`."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(per_node),
        **others,
    }


def open_mpi_5(number=1, count=4, local=1, per_node=4):
    """The variables of Open MPI 5, which do not say where the launcher is."""
    environment = open_mpi(number, count, local, per_node)
    del environment["OMPI_MCA_orte_hnp_uri"]
    return environment


def array(task, lowest, highest, count, step=1):
    """The variables of a task of a Slurm array, in the script itself."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "0",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(lowest),
        "SLURM_ARRAY_TASK_MAX": str(highest),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (slurm(3, 4), (3, 4)),
        (slurm(0, 1), (0, 1)),
        (open_mpi(2, 8), (2, 8)),
        # Slurm's one task a host starts Open MPI's processes.
        (slurm(1, 2) | open_mpi(5, 8), (5, 8)),
        (array(0, 0, 7, 8), (0, 8)),
        (array(8, 1, 8, 8), (7, 8)),
        (array(30, 10, 30, 3, step=10), (2, 3)),
        (array(2, 0, 3, 4) | slurm(1, 2), (5, 8)),
    ],
)
def test_auto_takes_the_shard_from_the_scheduler(monkeypatch, environment, shard):
    assert find_shard(environment) == shard
    with mock.patch.dict(os.environ, environment, clear=True):
        settings = Settings.parse({"shard": "auto", "out_dir": "out"})
    assert settings.shard == shard
    assert settings.texts()["shard"] == f"{shard[0]}/{shard[1]}"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "shard='auto': neither Slurm nor Open MPI"),
        ({"JOB_COMPLETION_INDEX": "1"}, "shard='auto': neither Slurm nor Open MPI"),
        (array(5, 2, 5, 2), "shard='auto': the array has 2 tasks from 2 to 5"),
        (array(5, 2, 5, 4, step=0), "shard='auto': the array has 4 tasks"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_MIN: is not set"),
        ({"SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS: is not set"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "SLURM_STEP_NUM_TASKS: is not set"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID: is not set"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE: is not set"),
        (slurm(number="", count=2), "SLURM_PROCID: is ''"),
        (slurm(number=1, count="two"), "SLURM_STEP_NUM_TASKS: is 'two'"),
        (open_mpi(4, 4), "OMPI_COMM_WORLD_RANK: is 4, and OMPI_COMM_WORLD_SIZE is 4"),
    ],
)
def test_half_set_variables_are_refused_by_name(environment, said):
    with pytest.raises(InputError) as error:
        find_shard(environment)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        # One task a host uses all GPUs of the host.
        (slurm(1, 2, node=1, local=0, per_node="1(x2)", CUDA_VISIBLE_DEVICES="0,1,2,3"), "all"),
        # Tasks that all see all GPUs divide them.
        (slurm(3, 4, local=3, CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_GPUS_ON_NODE="4"), "3"),
        (slurm(1, 2, per_node="2", CUDA_VISIBLE_DEVICES="4,5,6,7"), "2,3"),
        (open_mpi(1, 2, local=1, per_node=2, CUDA_VISIBLE_DEVICES="0,1,2,3"), "2,3"),
        # Tasks that see their own GPUs alone use those.
        (slurm(3, 4, local=3, CUDA_VISIBLE_DEVICES="0", SLURM_GPUS_ON_NODE="4"), "all"),
        (slurm(1, 2, per_node="2", CUDA_VISIBLE_DEVICES="0,1", SLURM_GPUS_ON_NODE="4"), "all"),
        (open_mpi(3, 4, local=3, CUDA_VISIBLE_DEVICES="3"), "all"),
        # Hosts may have different numbers of tasks.
        (slurm(8, 9, node=2, local=0, per_node="4(x2),1", CUDA_VISIBLE_DEVICES="0,1"), "all"),
        # Where the number of GPUs is unknown, each task has one, as JAX gives it.
        (slurm(2, 4, local=2), "2"),
        (slurm(2, 4, local=2, per_node=""), "all"),
    ],
)
def test_each_process_has_gpus_of_its_own(environment, gpus):
    assert own_gpus(find_rank(environment), environment) == gpus


class Joined:
    """What `joined` told JAX."""

    def __init__(self, monkeypatch, environment, error=None, has_libtpu=False):
        self.places, self.gpus = [], "untouched"
        monkeypatch.setattr(processes.os, "environ", environment)
        monkeypatch.setattr(processes.importlib.util, "find_spec", lambda _: has_libtpu or None)
        monkeypatch.setattr(processes.ctypes, "CDLL", mock.MagicMock())
        monkeypatch.setattr(processes.jax.distributed, "initialize", self.initialize)
        monkeypatch.setattr(processes.jax.config, "update", self.update)
        self.error = error

    def initialize(self, heartbeat_timeout_seconds, shutdown_timeout_seconds, **place):
        self.places.append(place)
        if self.error is not None:
            raise self.error

    def update(self, name, value):
        assert name == "jax_cuda_visible_devices"
        self.gpus = value


KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_SKIP_MDS_QUERY": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # the script
        (slurm(0, 1, SLURM_ARRAY_TASK_COUNT="4"), None),
        # The shell that salloc opens on the first node of two tasks.
        (slurm(0, 1, SLURM_NTASKS="2", SLURM_STEP_ID="4294967290"), None),
        (slurm(1, 4), ("slurm", 4, 1)),
        (open_mpi(0, 1), None),
        (open_mpi(1, 2), ("ompi", 2, 1)),
        (KUBERNETES, None),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, ()),
    ],
)
def test_only_where_there_are_several_processes_they_are_joined(monkeypatch, environment, place):
    seen = Joined(monkeypatch, environment)
    with processes.joined({}, independent=False):
        pass
    names = ("cluster_detection_method", "num_processes", "process_id")
    assert seen.places == ([] if place is None else [dict(zip(names, place, strict=False))])


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        (slurm(1, 2, per_node="2", CUDA_VISIBLE_DEVICES="0,1"), "1"),
        (open_mpi_5(1, 2, per_node=2) | {"CUDA_VISIBLE_DEVICES": "0,1"}, "1"),
    ],
)
@pytest.mark.parametrize("independent", [False, True])
def test_of_a_given_coordinator_the_scheduler_says_the_rest(
    monkeypatch, environment, gpus, independent
):
    seen = Joined(monkeypatch, environment)
    place = {"coordinator_address": "host:1234"}
    with processes.joined(place, independent=independent):
        pass
    rest = {"cluster_detection_method": "deactivate", "num_processes": 2, "process_id": 1}
    assert seen.places == [place | rest]
    assert seen.gpus == gpus


@pytest.mark.parametrize("environment", [{}, array(0, 0, 7, 8)])
def test_a_coordinator_without_a_scheduler_is_not_enough(monkeypatch, environment):
    seen = Joined(monkeypatch, environment)
    expected = pytest.raises(InputError, match=r"^coordinator='host:1234': neither Slurm nor Open")
    with expected, processes.joined({"coordinator_address": "host:1234"}, independent=False):
        pass
    assert seen.places == []


def port(monkeypatch, job, step):
    """The port at which JAX has the tasks of a step of Slurm find each other."""
    environment = slurm(1, 2, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
    Joined(monkeypatch, environment)
    with processes.joined({}, independent=False):
        address = SlurmCluster.get_coordinator_address(1, environment["JAX_COORDINATOR_PORT"])
    return int(address.removeprefix("127.0.0.1:"))


def test_steps_side_by_side_and_tasks_of_an_array_find_their_own_processes(monkeypatch):
    ports = [port(monkeypatch, job, step) for job in range(4090, 4190) for step in range(4)]
    assert len(set(ports)) == len(ports)
    # Below are the ports that Linux gives to outgoing connections.
    assert all(61440 <= each < 65536 for each in ports)


def test_a_port_that_the_user_chooses_is_kept(monkeypatch):
    environment = slurm(1, 2, JAX_COORDINATOR_PORT="5000")
    Joined(monkeypatch, environment)
    with processes.joined({}, independent=False):
        assert environment["JAX_COORDINATOR_PORT"] == "5000"


@pytest.mark.parametrize("has_libtpu", [False, True])
@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        (slurm(1, 2, per_node="2", CUDA_VISIBLE_DEVICES="0,1"), "1"),
        (open_mpi(1, 2, per_node=2, CUDA_VISIBLE_DEVICES="0,1"), "1"),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "1"}, "untouched"),
    ],
)
def test_shards_are_never_joined(monkeypatch, environment, gpus, has_libtpu):
    seen = Joined(monkeypatch, environment, has_libtpu=has_libtpu)
    with processes.joined({}, independent=True):
        pass
    assert seen.places == []
    assert seen.gpus == gpus


def test_the_hosts_of_a_tpu_slice_do_a_shard_together(monkeypatch):
    seen = Joined(monkeypatch, {"TPU_WORKER_HOSTNAMES": "a,b"}, has_libtpu=True)
    with processes.joined({}, independent=True):
        pass
    assert seen.places == [{}]


@pytest.mark.parametrize(
    "error", [ConnectionError("metadata.google.internal"), ValueError("not a slice")]
)
def test_a_tpu_whose_slice_nobody_knows_works_alone(monkeypatch, error):
    seen = Joined(monkeypatch, {}, error, has_libtpu=True)
    with processes.joined({}, independent=False):
        assert seen.places == [{}]


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        (slurm(), KeyError("SLURM_STEP_NODELIST")),
        (open_mpi(), ValueError("coordinator_address should be defined.")),
        (open_mpi_5(), KeyError("OMPI_MCA_orte_hnp_uri")),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "1"}, ConnectionError("no API")),
    ],
)
def test_processes_that_cannot_find_each_other_say_so(monkeypatch, environment, error):
    Joined(monkeypatch, environment, error)
    expected = pytest.raises(InputError, match=r"^coordinator: the processes of this job cannot f")
    with expected, processes.joined({}, independent=False):
        pass
