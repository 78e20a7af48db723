"""The texts of a report: captions of figures and tables, and notes on how to read them."""

FIGURE_CAPTIONS = {
    "main": "Accuracy, accuracy drop and prompt F1. Small dots are targets, large dots are means "
    "over targets. Bars are 95 % intervals over targets, seeds and test examples.",
    "gamma": "Prompt F1 and accuracy drop against gamma, the weight of the distance term: means, "
    "and 95 % intervals over targets, seeds and test examples.",
    "length": "Prompt F1 and accuracy drop against the length of the prompt, at the best gamma.",
    "model_size": "Prompt F1 and accuracy drop against the model's number of parameters, at the "
    "best gamma.",
    "training": "Training curves: means over runs, and bands that hold 80 % of the runs.",
    "path": "Along the straight lines from p_star to the wayward prompt and on to its target's "
    "embeddings: means over prompts, and bands that hold 80 % of the prompts.",
    "discrete": "Accuracy of the prompts as they were tuned, of their readings as prompts made of "
    "tokens, and of the targets' texts. Small dots are prompts, large dots are means. Lines are "
    "the model without a prompt (zero-shot) and with demonstrations (few-shot).",
    "transfer": "Accuracy of prompts on other tasks than they were tuned for, and of their "
    "readings, as text, with other models: means over prompts.",
}

TABLE_CAPTIONS = {
    "groups": "Groups of targets, with intervals over targets, seeds and test examples",
    "targets": "Targets, with intervals over test examples",
    "gammas": "Groups of targets at every gamma",
    "lengths": "Groups of targets by the length of their prompts",
    "differences": "Differences between groups in accuracy drop",
    "path": "Along the straight lines from p_star (0) to the wayward prompt (1) and its target (2)",
    "discrete": "Prompts as they were tuned, and texts as prompts",
    "gaps": "How much better prompts are than texts as prompts, in points of accuracy",
    "transfer": "Prompts on other tasks, and their readings with other models",
    "projection": "Agreement of the prompts, and of p_star, with the targets under each metric: "
    "F1, and the share of target tokens among the nearest 1, 5 and 10",
}

NOTES = (
    "A prompt reads as the tokens whose embeddings are nearest to its vectors (squared Euclidean "
    "distance). The margin of a vector says how much farther the second nearest token is. If the "
    "margin is near 0, a small push changes what the vector reads as.",
    "Prompt F1 compares the words of the reading with those of the target. The accuracy drop is "
    "(accuracy of p_star - accuracy) / accuracy of p_star, where p_star is the best prompt of the "
    "same length, task and settings without a target. A single run is compared with the p_star of "
    "the same seed. If there are several gammas, the one with the highest accuracy on {select} "
    "counts, among those at which the prompts read as the target.",
    "Intervals are 95 % percentile bootstraps. For a target, test examples are drawn, the same "
    "for p_star and for the target's prompts: the interval says how certain the drop of these very "
    "prompts is. For a group, targets, seeds and test examples are drawn, each independently of "
    "the others: the interval says what other targets, seeds and examples might give. With two or "
    "three seeds it is somewhat too narrow, because they show little of the spread of seeds. "
    "Differences between groups are tested by permutation, and their p-values are adjusted for the "
    "number of tests. A value that may be 0 on these terms is called within noise.",
)
"""Paragraphs; `{select}` is the split on which gammas are chosen."""

MISSING_MODEL = (
    "The model {name} is not here ({reason}). Its prompts are shown as they were read when they "
    "were tuned, by token ids, without neighbors and margins."
)
