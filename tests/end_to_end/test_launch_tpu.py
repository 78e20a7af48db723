"""launch_tpu.sh against a gcloud that is a stub, with a folder for each host of its slice.

What the launcher sends to the hosts really runs there, but for Python, which is a stub too: it
notes its arguments and ends as the test has planned.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LAUNCHER = PROJECT / "launch_tpu.sh"
SLICE = ["--name=wayward", "--zone=us-west4-a", "--type=v5litepod-16"]
FILES = (
    *("launch_tpu.sh", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
    *("experiments/run.py", "wayward_jax/jobs/job.py"),
)
JOB = ["--out_dir=gs://bucket/job", "--steps=5"]
PREEMPTED = (1, "PREEMPTED")
GONE = (1, None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("flock"), reason="the stub's hosts need flock, which Linux has"
    ),
]

# The stubs start hundreds of times, so each imports what it needs where it needs it.
GCLOUD = r"""
import json, os, pathlib, sys

world, args = pathlib.Path(os.environ["WORLD"]), sys.argv[1:]
hosts, state = sorted((world / "hosts").iterdir()), world / "state"
with open(world / "calls", "a") as calls:
    calls.write(json.dumps(args) + "\n")
verb = args[1] if args[0] == "storage" else args[3]
plan = world / f"{verb}.exits"
if plan.exists():  # exit codes of the next calls; 0 is a call that works
    code, *rest = plan.read_text().split()
    plan.write_text(" ".join(rest)) if rest else plan.unlink()
    if int(code):
        sys.exit(int(code))
option = dict(arg[2:].partition("=")[::2] for arg in args if arg.startswith("--"))
names = [arg for arg in args if not arg.startswith("--")][2 if args[0] == "storage" else 4:]
if verb == "describe":
    if not state.exists():
        sys.exit(f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no {names[0]}")
    print(state.read_text())
elif verb == "create":
    assert not state.exists(), "ALREADY_EXISTS"
    state.write_text("READY")
elif verb == "delete":
    import shutil
    state.unlink()
    for host in hosts:
        shutil.rmtree(host)
        host.mkdir()
elif verb == "rsync":
    import shutil
    shutil.copytree(world / names[0].replace(":/", ""), names[1], dirs_exist_ok=True)
elif verb == "scp" and option["worker"] == "all":
    for host in hosts:
        (host / names[1].partition(":")[2]).write_bytes(pathlib.Path(names[0]).read_bytes())
elif verb == "scp":
    import shutil
    source = hosts[int(option["worker"])] / names[0].partition(":")[2]
    shutil.copytree(source, pathlib.Path(names[1], source.name), dirs_exist_ok=True)
elif verb == "ssh":
    import subprocess
    path = f"{world}/host_bin:{os.environ['PATH']}"
    sessions = [
        subprocess.Popen(
            ["bash", "-c", option["command"]],
            cwd=host,
            env={"HOME": str(host), "PATH": path, "WORLD": str(world), "HOST": host.name},
            start_new_session=True,
        )
        for host in hosts
    ]
    sys.exit(next((code for code in [s.wait() for s in sessions] if code), 0))
"""

PYTHON = r"""
import os, sys

_, module, *args = sys.argv[1:]
if module == "uv" and args[0] == "venv":
    os.makedirs(".venv/bin", exist_ok=True)
    if not os.path.lexists(".venv/bin/python"):
        os.symlink(sys.argv[0], ".venv/bin/python")
elif module == "experiments.run":
    import json, pathlib, time
    world, host = pathlib.Path(os.environ["WORLD"]), os.environ["HOST"]
    with open(world / f"jobs-{host}", "a+") as jobs:
        jobs.seek(0)
        earlier = len(jobs.readlines())
        jobs.write(json.dumps(args) + "\n")
    print("the log of host", host, flush=True)
    while (world / "hold").exists():
        time.sleep(0.02)
    outcome = json.loads((world / "plan").read_text())[host][earlier]
    if isinstance(outcome, list):  # the slice is lost
        outcome, state = outcome
        (world / "state").write_text(state) if state else (world / "state").unlink(missing_ok=True)
        sys.exit(outcome)
    out_dir = next(arg for arg in args if arg.startswith("--out_dir=")).partition("=")[2]
    folder = world / out_dir.replace(":/", "") if ":" in out_dir else pathlib.Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results-{host}.jsonl").write_text("{}\n")
    sys.exit(outcome)
"""


class World:
    """A few of the project's files, a slice of some hosts, and what has been asked of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.results = self.project / "runs" / "wayward"
        for file in FILES:
            (self.project / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / file, self.project / file)
        for stub, text in (("bin/gcloud", GCLOUD), ("host_bin/python3", PYTHON)):
            (folder / stub).parent.mkdir()
            (folder / stub).write_text(f"#!{sys.executable} -IS{text}")
            (folder / stub).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "WORLD": str(folder),
        }
        self.plan([0], [0])

    def plan(self, *outcomes: list) -> None:
        """Sets the exit codes with which the job ends on each host, one after the other.

        With a pair, the slice is lost with it; its state afterwards is the second value.
        """
        shutil.rmtree(self.folder / "hosts", ignore_errors=True)
        for host in range(len(outcomes)):
            (self.folder / "hosts" / str(host)).mkdir(parents=True)
        plan = {str(host): ends for host, ends in enumerate(outcomes)}
        (self.folder / "plan").write_text(json.dumps(plan))

    def slice_is(self, state: str) -> None:
        (self.folder / "state").write_text(state)

    def exits(self, verb: str, *codes: int) -> None:
        """The exit codes of the next calls of a gcloud command; 0 is one that works."""
        (self.folder / f"{verb}.exits").write_text(" ".join(map(str, codes)))

    def launch(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.bash("./launch_tpu.sh", *arguments)

    def bash(self, *arguments: str) -> subprocess.CompletedProcess:
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", *arguments],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self) -> list[list[str]]:
        return self._lines("calls")

    def verbs(self) -> list[str]:
        return [call[1] if call[0] == "storage" else call[3] for call in self.calls()]

    def jobs(self) -> dict[str, list[list[str]]]:
        """The flags of every job that each host has run."""
        hosts = (self.folder / "hosts").iterdir()
        return {host.name: self._lines(f"jobs-{host.name}") for host in hosts}

    def _lines(self, name: str) -> list:
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_slice_is_created_where_there_is_none(world):
    done = world.launch(*SLICE, "--project=mine", "--spot", "--", *JOB)
    assert done.returncode == 0, done.stderr
    assert world.verbs() == ["describe", "create", "scp", "ssh", "rsync"]
    assert world.calls()[1] == [
        *("compute", "tpus", "tpu-vm", "create", "wayward"),
        *("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"),
        *("--zone=us-west4-a", "--project=mine"),
    ]


def test_a_slice_that_is_there_is_used(world):
    world.slice_is("READY")
    assert world.launch(*SLICE, "--", *JOB).returncode == 0
    assert world.verbs() == ["describe", "scp", "ssh", "rsync"]


def test_a_slice_in_another_state_is_left_alone(world):
    world.slice_is("STOPPED")
    done = world.launch(*SLICE, "--", *JOB)
    assert done.returncode == 1
    assert "STOPPED" in done.stderr
    assert world.verbs() == ["describe"]


def test_a_slice_whose_state_cannot_be_asked_for_is_not_taken_for_absent(world):
    world.exits("describe", 7)
    assert world.launch(*SLICE, "--", *JOB).returncode == 7
    assert world.verbs() == ["describe"]


def test_a_slice_that_cannot_be_created_ends_the_launch_with_gclouds_code(world):
    world.exits("create", 3)
    assert world.launch(*SLICE, "--", *JOB).returncode == 3
    assert world.verbs() == ["describe", "create"]


@pytest.mark.parametrize(
    ("type_", "version"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_the_software_goes_with_the_type(world, type_, version):
    flags = ["--name=a", "--zone=b", f"--type={type_}", "--dry_run"]
    assert f"--version={version} " in world.launch(*flags, "--", *JOB).stdout
    flags.append("--version=mine")
    assert "--version=mine " in world.launch(*flags, "--", *JOB).stdout


@pytest.mark.parametrize(
    ("type_", "topology"),
    [("v5litepod-16", "v5e:4x4"), ("v6e-8", "v6e:2x4"), ("v5p-16", "v5p:2x2x2")],
)
def test_a_forecast_is_for_the_topology_of_the_type_and_calls_nothing(world, type_, topology):
    done = world.launch(f"--type={type_}", "--forecast", "--dry_run", "--", *JOB)
    command = " ".join(["python3 -m experiments.forecast", f"--topology={topology}", *JOB])
    assert done.stdout == f"{command}\n"
    assert world.calls() == []
    refused = world.launch("--type=v5p-17", "--forecast", "--", *JOB)
    assert refused.returncode == 2
    assert "--type=v5p-17" in refused.stderr


@pytest.mark.parametrize("job", [JOB, ["--out_dir=runs/job", '--targets=text=it\'s a "b"  $c, d']])
def test_a_dry_run_calls_nothing_and_prints_exactly_what_a_launch_does(world, job):
    world.plan([0])
    flags = ["--name=wayward", "--zone=us-west4-a", "--type=v5litepod-8", "--delete"]
    dry = world.launch(*flags, "--dry_run", "--", *job)
    assert dry.returncode == 0
    assert world.calls() == []
    assert not (world.project / "runs").exists()

    assert world.launch(*flags, "--", *job).returncode == 0
    launched = world.calls(), world.jobs()
    for record in ("calls", "jobs-0"):
        (world.folder / record).unlink()
    shutil.rmtree(world.project / "runs")
    assert world.bash("-c", dry.stdout).returncode == 0
    assert (world.calls(), world.jobs()) == launched
    assert (world.results / "job" / "results-0.jsonl").exists()


def test_every_host_runs_the_same_flags_whatever_is_in_them(world):
    odd = [
        "--targets=text=Don't say \"hi\", $HOME or `id`; it's  two  spaces & more ",
        "--task=a,b",
        "--empty=",
        "--glob=*/?[a]{b,c}~!",
        "--backslash=\\ \\n \\'",
        "--lines=one\ntwo\n",
        "--other=日本語 é",
        "",
    ]
    assert world.launch(*SLICE, "--", *JOB, *odd).returncode == 0
    assert world.jobs() == {"0": [[*JOB, *odd]], "1": [[*JOB, *odd]]}


def test_the_project_and_what_is_copied_are_where_the_job_runs(world):
    (world.project / "data").mkdir()
    (world.project / "data" / "train.jsonl").write_text("{}")
    (world.project / "private").write_text("stays here")
    assert world.launch(*SLICE, "--copy=data", "--", *JOB).returncode == 0
    for host in ("0", "1"):
        there = world.folder / "hosts" / host / "wayward_jax"
        for file in (*FILES[1:], "data/train.jsonl"):
            assert (there / file).read_bytes() == (world.project / file).read_bytes()
        assert not (there / "private").exists()


def test_the_log_is_shown(world):
    shown = world.launch(*SLICE, "--", *JOB).stdout
    assert "the log of host 0" in shown
    assert "the log of host 1" in shown


@pytest.mark.parametrize(
    ("outcome", "between"),
    [
        (PREEMPTED, ["describe", "describe", "delete", "create"]),
        (GONE, ["describe", "describe", "create"]),
        (75, ["describe"]),
    ],
)
def test_a_preempted_job_is_resumed_by_the_same_command(world, outcome, between):
    world.plan([outcome, 0], [outcome, 0])
    done = world.launch(*SLICE, "--spot", "--wait=0", "--", *JOB)
    assert done.returncode == 0, done.stderr
    assert world.verbs() == ["describe", "create", "scp", "ssh", *between, "scp", "ssh", "rsync"]
    assert world.jobs() == {"0": [JOB, JOB], "1": [JOB, JOB]}


def test_after_a_preemption_capacity_is_waited_for(world):
    world.plan([PREEMPTED, 0])
    world.exits("create", 0, 1, 1, 0)
    assert world.launch(*SLICE, "--spot", "--wait=0", "--", *JOB).returncode == 0
    assert world.verbs().count("create") == 4
    assert world.jobs() == {"0": [JOB, JOB]}


def test_restarts_are_bounded_and_the_last_exit_code_comes_through(world):
    world.plan([75, 75, 75, 0])
    done = world.launch(*SLICE, "--wait=0", "--restarts=2", "--", *JOB)
    assert done.returncode == 75
    assert world.jobs() == {"0": [JOB] * 3}


@pytest.mark.parametrize(("code", "host"), [(1, 0), (2, 1), (137, 1)])
def test_a_job_that_fails_is_not_tried_again_and_its_exit_code_comes_through(world, code, host):
    ends = [[0], [0]]
    ends[host] = [code]
    world.plan(*ends)
    assert world.launch(*SLICE, "--wait=0", "--", *JOB).returncode == code
    assert world.jobs() == {"0": [JOB], "1": [JOB]}


def test_bad_input_is_not_tried_again_even_if_the_slice_is_lost(world):
    world.plan([(2, "PREEMPTED"), 0])
    assert world.launch(*SLICE, "--wait=0", "--", *JOB).returncode == 2
    assert world.jobs() == {"0": [JOB]}


def test_results_come_from_the_bucket(world):
    assert world.launch(*SLICE, "--", *JOB).returncode == 0
    copied = sorted(path.name for path in (world.results / "job").iterdir())
    assert copied == ["results-0.jsonl", "results-1.jsonl"]


@pytest.mark.parametrize(("code", "hosts"), [(0, 1), (0, 2), (76, 2)])
def test_results_come_from_the_first_host_of_those_that_stay_even_if_the_job_failed(
    world, code, hosts
):
    world.plan(*[[code]] * hosts)
    assert world.launch(*SLICE, "--", "--out_dir=some/job/").returncode == code
    assert [path.name for path in (world.results / "job").iterdir()] == ["results-0.jsonl"]


def test_a_slice_is_deleted_only_when_asked_for(world):
    assert world.launch(*SLICE, "--", *JOB).returncode == 0
    assert "delete" not in world.verbs()
    world.plan([0, 0], [0, 0])
    assert world.launch(*SLICE, "--delete", "--", *JOB).returncode == 0
    assert world.verbs()[-2:] == ["rsync", "delete"]


def test_a_slice_is_kept_if_the_job_fails(world):
    world.plan([1], [0])
    assert world.launch(*SLICE, "--delete", "--", *JOB).returncode == 1
    assert "delete" not in world.verbs()


def test_a_slice_is_kept_if_its_results_could_not_be_copied(world):
    world.exits("rsync", 5)
    done = world.launch(*SLICE, "--delete", "--", *JOB)
    assert done.returncode == 1
    assert "gs://bucket/job could not be copied" in done.stderr
    assert "delete" not in world.verbs()


def test_a_job_outlives_its_launcher_and_the_same_command_shows_it_again(world):
    def launch_until_both_logs_are_shown():
        launcher = world.start("./launch_tpu.sh", *SLICE, "--", *JOB)
        shown = {launcher.stdout.readline(), launcher.stdout.readline()}
        assert shown == {"the log of host 0\n", "the log of host 1\n"}
        return launcher

    hold = world.folder / "hold"
    hold.touch()
    try:
        with launch_until_both_logs_are_shown() as killed:
            os.killpg(killed.pid, signal.SIGKILL)
        other = world.launch(*SLICE, "--", *JOB, "--seeds=2")
        assert other.returncode == 2
        assert "error: --name is a slice where another job runs" in other.stderr
        with launch_until_both_logs_are_shown() as again:
            hold.unlink()
            again.communicate(timeout=600)
        assert again.returncode == 0
    finally:
        hold.unlink(missing_ok=True)
    assert world.jobs() == {"0": [JOB], "1": [JOB]}


BAD = [
    (["--naem=x", *SLICE], JOB, "--naem=x"),
    ([*SLICE, "wayward"], JOB, "wayward"),
    (SLICE[1:], JOB, "--name="),
    (["--name=", *SLICE], JOB, "--name="),
    ([*SLICE, "--name=My slice"], JOB, "--name=My slice"),
    ([*SLICE, "--name=-x"], JOB, "--name=-x"),
    ([SLICE[0], SLICE[2]], JOB, "--zone="),
    ([*SLICE, "--zone=a b"], JOB, "--zone=a b"),
    (SLICE[:2], JOB, "--type="),
    ([*SLICE, "--type=v5e"], JOB, "--type=v5e"),
    ([*SLICE, "--spot=yes"], JOB, "--spot=yes"),
    ([*SLICE, "--restarts=-1"], JOB, "--restarts=-1"),
    ([*SLICE, "--wait=1m"], JOB, "--wait=1m"),
    ([*SLICE, "--copy=absent"], JOB, "--copy=absent"),
    ([*SLICE, "--copy=/etc/hosts"], JOB, "--copy=/etc/hosts"),
    ([*SLICE, "--copy=../project"], JOB, "--copy=../project"),
    (SLICE, [], "--out_dir"),
    (SLICE, ["--steps=5"], "--out_dir"),
    (SLICE, ["--out_dir="], "--out_dir"),
    (SLICE, ["--out_dir=gs://bucket"], "--out_dir=gs://bucket"),
    (SLICE, ["--out_dir=s3://bucket/job"], "--out_dir=s3://bucket/job"),
    ([*SLICE, "--type=v4-8"], ["--out_dir=/root/job"], "--out_dir=/root/job"),
    ([*SLICE, "--type=v4-8"], ["--out_dir=~/job"], "--out_dir=~/job"),
    ([*SLICE, "--type=v4-8"], ["--out_dir=../job"], "--out_dir=../job"),
    ([*SLICE, "--type=v4-8", "--spot"], ["--out_dir=runs/job"], "--out_dir=runs/job"),
]


@pytest.mark.parametrize(("flags", "job", "named"), BAD, ids=[named for *_, named in BAD])
def test_bad_input_gets_one_line_before_gcloud_is_called(world, flags, job, named):
    refused = world.launch(*flags, "--", *job)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.fullmatch(rf"error: {re.escape(named)} .*: .*\n", refused.stderr)
    assert world.calls() == []
    assert not (world.project / "runs").exists()


def test_without_gcloud_nothing_begins(world):
    (world.folder / "path").mkdir()
    for tool in ("bash", "dirname"):
        (world.folder / "path" / tool).symlink_to(shutil.which(tool))
    world.environment["PATH"] = str(world.folder / "path")
    refused = world.launch(*SLICE, "--", *JOB)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: gcloud is not on the PATH: ")


def test_help_explains_every_flag(world):
    shown = world.launch("--help")
    assert shown.returncode == 0
    assert world.calls() == []
    accepted = re.findall(r"^    (--\w+)(?:=\?\*)?\)", LAUNCHER.read_text(), re.MULTILINE)
    assert len(accepted) > 8
    for flag in set(accepted) - {"--help"}:
        assert re.search(rf"^  {flag}(=[A-Z]+)? ", shown.stdout, re.MULTILINE), flag


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not on the PATH")
    found = subprocess.run(["shellcheck", LAUNCHER], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
