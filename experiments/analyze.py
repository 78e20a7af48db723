"""Tables, figures and a page about finished jobs: `python -m experiments.analyze --runs=DIR`.

Works from results and checkpoints alone: nothing is trained, and nothing is fetched.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import flags
from wayward_jax.errors import InputError
from wayward_jax.jobs.settings import AnalysisSettings, Settings

if TYPE_CHECKING:
    from wayward_jax.analysis.readings import Reading
    from wayward_jax.jobs.finished import FinishedRun, Measured
    from wayward_jax.models import LanguageModel

PROMPTS_AT_ONCE = 256

FIGURE_CAPTIONS = {
    "main": "Accuracy, its drop and prompt F1. Small dots are targets, large ones their means; "
    "bars are 95 % intervals over targets, seeds and test examples.",
    "gamma": "Prompt F1 and accuracy drop against gamma, the weight of the distance term. Means, "
    "and 95 % intervals over targets, seeds and test examples.",
    "length": "Prompt F1 and accuracy drop against the length of the prompt, at the best gamma.",
    "model_size": "Prompt F1 and accuracy drop against the model's parameters, at the best gamma.",
    "training": "Along training: means, and the band that holds 80 % of the runs.",
    "path": "Along the straight lines from p_star to the wayward prompt and on to its target's "
    "embeddings: means, and the band that holds 80 % of the prompts.",
    "discrete": "Accuracy of the prompts as they were tuned, of what they read as put back as "
    "tokens, and of the target's text. Small dots are prompts, large ones their means; lines are "
    "the model without a prompt (zero-shot) and with demonstrations (few-shot).",
    "transfer": "Accuracy of prompts on the tasks, and as text with the models, that they were not "
    "tuned for. Means over prompts.",
}
TABLE_CAPTIONS = {
    "groups": "Groups of targets, with intervals over targets, seeds and test examples",
    "targets": "Targets, with intervals over test examples",
    "gammas": "Groups of targets at each gamma, chosen or not",
    "lengths": "Groups of targets by the length of their prompts",
    "differences": "Differences between groups in accuracy drop",
    "path": "Along the straight lines from p_star (0) to the wayward prompt (1) and its target (2)",
    "discrete": "Prompts as tuned, and texts as prompts",
    "gaps": "How much better prompts are than texts as prompts, in points of accuracy",
    "transfer": "Prompts on other tasks, and their readings with other models",
    "projection": "What the prompts, and p_star, have in common with the targets by each metric: "
    "F1, and the share of target tokens among the nearest 1, 5 and 10",
}
NOTES = (
    "A prompt reads as the tokens whose embeddings are nearest to its vectors (squared Euclidean "
    "distance). The margin of a vector is how much farther the second nearest token is: near 0, a "
    "small push would have it read otherwise.",
    "Prompt F1 compares the words of what is read with those of the target. The accuracy drop is "
    "(accuracy of p_star - accuracy) / accuracy of p_star, where p_star is the best prompt of the "
    "same length, task and settings without a target, for a single run that of its own seed. Of "
    "several gammas the one with the highest accuracy on {select} counts, among those that read as "
    "the target.",
    "Intervals are 95 % percentile bootstraps. For a target, test examples are drawn, the same for "
    "p_star and for its prompts: this is how sure the drop of these very prompts is. For a group, "
    "targets, seeds and test examples are drawn, each independently of the others: this is how far "
    "others might lead, though two or three seeds know too little of other seeds, and their "
    "intervals are somewhat too narrow. "
    "Differences between groups are tested by permutation, adjusted for the number of tests. What "
    "may be 0 on these terms is called within noise.",
)


def main(given: flags.Given) -> None:
    """Reads the jobs, reads their prompts anew, and writes what came of it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings = AnalysisSettings.parse(given)
    if not settings.runs:
        raise InputError("runs", None, "give folders of finished jobs, separated by commas")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path(f"runs/{stamp}-analysis")
    if os.path.exists(out_dir) and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError("out_dir", str(out_dir), "is not empty: name a new folder")
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from wayward_jax.jobs import object_stores

    with object_stores.local(settings.runs) as folders:
        analyze(folders, settings, out_dir)


def analyze(folders: Sequence[Path], settings: AnalysisSettings, out_dir: Path) -> None:
    """Analyses the jobs in folders on this machine."""
    from wayward_jax.jobs import finished

    runs = finished.read(folders)
    for run in runs:
        if not run.checkpoint.is_dir():
            raise InputError(f"{run.checkpoint} is not there: bring the job's checkpoints, too")
    models, missing = load_models(
        {run.row["model"]: _source(run) for run in runs}, settings.cache_dir, settings.assets_dir
    )
    readings = read_anew(runs, models)
    measured = finished.read_measurements(folders)
    write(runs, models, readings, measured, missing, out_dir, settings.select)
    print(f"{len(runs)} runs. Open {out_dir / 'report.html'}")


def _source(run: "FinishedRun") -> str:
    from wayward_jax.jobs.layout import JobLayout
    from wayward_jax.jobs.settings import read_flags
    from wayward_jax.models.sources import short_name

    named = Settings.parse({"model": read_flags(JobLayout(run.folder))["model"]}).model
    return next((x for x in named if short_name(x) == run.row["model"]), run.row["model"])


def load_models(
    names: Mapping[str, str], cache_dir: Path, assets_dir: Path | None
) -> tuple[dict[str, "LanguageModel"], list[str]]:
    """The models that are on this machine by name, and what to say of the others."""
    from wayward_jax import models

    found, missing = {}, []
    for name in sorted(names):
        try:
            # Looking for built-in models where they are kept once fetched spares the network.
            found[name] = models.load(
                names[name], cache_dir=cache_dir, assets_dir=assets_dir or cache_dir / "assets"
            )
        except InputError as error:
            missing.append(
                f"The model {name} is not here ({error}). Its prompts are shown as they were read "
                "when they were tuned, by token ids, without neighbors and margins."
            )
    return found, missing


def read_anew(
    finished: Sequence["FinishedRun"], models: Mapping[str, "LanguageModel"]
) -> dict[str, dict[str, "Reading"]]:
    """What the prompts read as, by metric and run id, for the models that are here.

    Raises:
        InputError: a checkpoint is broken, or of another shape than its row and model have it.
    """
    from wayward_jax import checkpoints
    from wayward_jax.analysis.readings import read_prompts
    from wayward_jax.projection import METRICS

    readings: dict[str, dict[str, Reading]] = {metric: {} for metric in METRICS}
    for name, model in models.items():
        own = [run for run in finished if run.row["model"] == name]
        width = model.embedding_table().shape[1]
        for first in range(0, len(own), PROMPTS_AT_ONCE):
            part = own[first : first + PROMPTS_AT_ONCE]
            prompts = [checkpoints.load_prompt(run.checkpoint) for run in part]
            for run, prompt in zip(part, prompts, strict=True):
                if prompt.shape != (run.row["prompt_length"], width):
                    raise InputError(
                        f"{run.checkpoint} holds a prompt of shape {prompt.shape}, not "
                        f"{(run.row['prompt_length'], width)} as its row and {name} have it: "
                        "bring the checkpoint and the model that belong to the row"
                    )
            rows = [run.row for run in part]
            for metric in METRICS:
                found = read_prompts(model, rows, prompts, metric)
                readings[metric] |= {row["id"]: r for row, r in zip(rows, found, strict=True)}
    return readings


def write(
    finished: Sequence["FinishedRun"],
    models: Mapping[str, "LanguageModel"],
    readings: Mapping[str, Mapping[str, "Reading"]],
    measured: "Measured",
    missing: Sequence[str],
    out_dir: Path,
    select: str,
) -> None:
    """Writes tables, figures and the page."""
    import jax

    from wayward_jax.analysis import figures, report, summary, tables
    from wayward_jax.analysis.readings import agreements
    from wayward_jax.analysis.selection import compare

    rows = [run.row for run in finished]
    comparisons = compare(rows, select)
    anew = {c.wayward[0]["id"]: agreements(c, readings) for c in comparisons}
    projection = measured.get("projection", {}) | {
        key: found for key, found in anew.items() if found
    }
    measured = {**measured, "projection": projection}
    frames = tables.tables(rows, comparisons, measured)
    parameters = {
        name: sum(leaf.size for leaf in jax.tree.leaves(model.params))
        for name, model in models.items()
    }
    made = figures.figures(rows, comparisons, parameters, measured)
    without_sets = [name for name in tables.SETTING_NAMES if name != "set"]
    said = summary.summary(rows, comparisons, tables.by_group(comparisons, without_sets))
    page = report.render(
        title=summary.title(rows),
        said=said,
        notes=[
            *missing,
            *summary.reservations(rows, readings["euclidean"]),
            *(note.format(select=select) for note in NOTES),
        ],
        made={FIGURE_CAPTIONS[name]: figure for name, figure in made.items()},
        frames={TABLE_CAPTIONS[name]: frame for name, frame in frames.items()},
        data=report.page_data(finished, readings, token_texts(finished, models, readings)),
    )
    try:
        (out_dir / "tables").mkdir(parents=True)
        (out_dir / "figures").mkdir()
    except OSError as error:
        raise InputError(
            f"--out_dir={out_dir} cannot be made ({error.strerror}): name a folder that can"
        ) from error
    for name, frame in frames.items():
        tables.write(frame, out_dir / "tables", name)
    tables.by_run(rows).to_csv(out_dir / "tables" / "runs.csv", index=False)
    figures.save(made, out_dir / "figures")
    (out_dir / "summary.md").write_text("\n\n".join(said) + "\n", encoding="utf-8")
    (out_dir / "report.html").write_text(page, encoding="utf-8")


def token_texts(
    finished: Sequence["FinishedRun"],
    models: Mapping[str, "LanguageModel"],
    readings: Mapping[str, Mapping[str, "Reading"]],
) -> dict[str, dict[int, str]]:
    """The texts of all tokens that occur, by model and id."""
    texts = {}
    for name, model in models.items():
        own = [run.row for run in finished if run.row["model"] == name]
        ids = {id_ for row in own for id_ in (*row["target_ids"], *row["token_ids"])}
        for by_id in readings.values():
            ids.update(id_ for row in own for id_ in by_id[row["id"]].ids.ravel().tolist())
        texts[name] = {id_: model.tokenizer.decode([id_]) for id_ in sorted(ids)}
    return texts


if __name__ == "__main__":
    flags.run(main, AnalysisSettings)
