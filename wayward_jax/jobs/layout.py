"""The names of all files and folders of a job."""

import dataclasses
import os
import re
from pathlib import Path

SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclasses.dataclass(frozen=True)
class JobLayout:
    """Where everything of a job lies in its folder, its `--out_dir`.

    Attributes:
        folder: the folder.
    """

    folder: Path

    @property
    def flags(self) -> Path:
        """The flags of the job's first start."""
        return self.folder / "flags.json"

    @property
    def plan(self) -> Path:
        """Which runs are tuned together, and in what shapes."""
        return self.folder / "plan.json"

    @property
    def results(self) -> Path:
        """One record a line for every finished run."""
        return self.folder / "results.jsonl"

    @property
    def measurements(self) -> Path:
        """The measurements of finished prompts, one a line."""
        return self.folder / "measurements.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of finished prompts: a checkpoint for all that were finished together."""
        return self.folder / "checkpoints"

    @property
    def in_flight(self) -> Path:
        """The folder of populations that are being tuned."""
        return self.folder / "in_flight"

    @property
    def lock(self) -> Path:
        """The lock of the process that writes the folder."""
        return self.folder / ".lock"

    @property
    def report(self) -> Path:
        """The folder of the job's analysis."""
        return self.folder / "report"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.folder / "tensorboard"

    @property
    def profile(self) -> Path:
        """The folder of a JAX profile."""
        return self.folder / "profile"

    def shard(self, number: int, count: int) -> "JobLayout":
        """The job of shard `number` of `count` in this folder, which the shards share."""
        return JobLayout(self.folder / f"shard-{number}-of-{count}")

    def shards(self) -> dict[tuple[int, int], "JobLayout"]:
        """The shards that are there, by number and count, in this order."""
        found = {}
        for path in self.folder.glob("shard-*") if os.path.isdir(self.folder) else ():
            if named := SHARD.fullmatch(path.name):
                found[int(named[1]), int(named[2])] = JobLayout(path)
        return dict(sorted(found.items()))
