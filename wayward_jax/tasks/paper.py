"""The paper's five tasks, and the folders that hold their data.

Templates and label words are those of the paper's code (`get_prompts`).
"""

from collections.abc import Callable
from pathlib import Path

from wayward_jax.errors import InputError
from wayward_jax.tasks import folders, sampling
from wayward_jax.tasks.readers import SUFFIXES
from wayward_jax.tasks.task import Task, TaskData

SENTIMENT_TEMPLATES = ("A %s one . ", "It was %s . ", "All in all %s . ", "A %s piece . ")
SUBJECTIVITY_TEMPLATES = ("This is %s . ", "It's all %s . ", "It's %s . ", "Is it %s ? ")

SST2 = Task(
    name="sst2",
    labels=("negative", "positive"),
    templates=SENTIMENT_TEMPLATES,
    label_words=("terrible", "great"),
)
SST5 = Task(
    name="sst5",
    labels=("very negative", "negative", "neutral", "positive", "very positive"),
    templates=SENTIMENT_TEMPLATES,
    label_words=("terrible", "bad", "okay", "good", "great"),
)
AGNEWS = Task(
    name="agnews",
    labels=("World", "Sports", "Business", "Sci/Tech"),
    templates=("Topic: %s. ", "Subject: %s. ", "This is about %s. ", "It is about %s. "),
    label_words=("World", "Sports", "Business", "Technology"),
    max_length=256,
)
TREC = Task(
    name="trec",
    labels=("description", "entity", "abbreviation", "human", "location", "number"),
    templates=("%s : ", "Q: %s : ", "Why %s ? ", "Answer: %s . "),
    label_words=("Description", "Entity", "Expression", "Human", "Location", "Number"),
)
SUBJ = Task(
    name="subj",
    labels=("subjective", "objective"),
    templates=SUBJECTIVITY_TEMPLATES,
    label_words=("subjective", "objective"),
    max_length=256,
)
TASKS = {task.name: task for task in (SST2, SST5, AGNEWS, TREC, SUBJ)}

# LM-BFF's names of tasks, where they differ from ours.
LMBFF_NAMES = {"sst2": "SST-2", "sst5": "sst-5"}

# Folders of `data_dir` that are searched for a task's folder, in this order.
PARENTS = (".", "original", "lmbff", "jsonl")


def load(
    task: Task,
    *,
    data_dir: Path | None,
    k_shot: int,
    data_seed: int,
    fetch: Callable[[str], Path],
) -> TaskData:
    """Loads a task of the paper from a folder under `data_dir`. `fetch` is not used.

    The paper's preprocessed `k-shot/<task>/<k>-<seed>/` of this very k and seed comes first and is
    taken as it is. Otherwise the whole splits are sampled that are in a folder `<task>`,
    `original/<task>`, `lmbff/<task>` or `jsonl/<task>`, where LM-BFF's name of the task comes
    before ours. The test split of sst2 is dev if there is one, as in LM-BFF and in the paper.

    Raises:
        InputError: there are no data, a file is bad, or a class has too few examples.
    """
    del fetch
    if data_dir is None:
        remedy = "set --data_dir to the folder with the data of the paper's tasks"
        raise InputError("task", task.name, remedy)
    if folder := find_prepared(task, data_dir, k_shot, data_seed):
        splits = folders.read_splits(folder, task, ag_news_csv=task is AGNEWS)
        if missing := [split for split in folders.SPLITS if split not in splits]:
            remedy = f"no {' and no '.join(missing)} file: restore it or remove the folder"
            raise InputError(None, folder, remedy)
        return TaskData(task, splits["train"], splits["dev"], splits["test"])
    folder = find_raw(task, data_dir)
    splits = folders.read_splits(folder, task, ag_news_csv=task is AGNEWS)
    if task is SST2 and "dev" in splits:
        splits.pop("test", None)
    return sampling.sample(
        task,
        splits,
        str(folder),
        k_shot=k_shot,
        data_seed=data_seed,
        by_class=task is AGNEWS,
    )


def find_prepared(task: Task, data_dir: Path, k_shot: int, data_seed: int) -> Path | None:
    """Finds `k-shot/<task>/<k>-<seed>`, the paper's preprocessed layout, if it exists."""
    candidates = (data_dir / "k-shot" / n / f"{k_shot}-{data_seed}" for n in _names(task))
    return next((folder for folder in candidates if folder.is_dir()), None)


def find_raw(task: Task, data_dir: Path) -> Path:
    """Finds the first folder of `PARENTS` that has a train file of `task`.

    Raises:
        InputError: there is none. The message lists the places.
    """
    candidates = [Path(parent, name) for parent in PARENTS for name in _names(task)]
    for folder in candidates:
        if folders.find_split(data_dir / folder, "train"):
            return data_dir / folder
    raise InputError(
        "data_dir",
        data_dir,
        f"no data for --task={task.name}: looked for "
        f"k-shot/{_names(task)[0]}/<k_shot>-<data_seed> and for a train file "
        f"({', '.join(SUFFIXES)}) in {', '.join(map(str, candidates))}",
    )


def _names(task: Task) -> list[str]:
    """The names that a folder of the task may have, LM-BFF's first."""
    return list(dict.fromkeys((LMBFF_NAMES.get(task.name, task.name), task.name)))
