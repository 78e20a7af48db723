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
    "readings": "Mean prompt F1 by the reading of columns, of prompts that the reading of rows "
    "holds to their target, and of p_star.",
}

_OF_ACCURACIES = ", with intervals of accuracies over prompts and test examples"

TABLE_CAPTIONS = {
    "groups": "Groups of targets, with intervals over targets, seeds and test examples",
    "targets": "Targets, with intervals over seeds and test examples",
    "gammas": "Groups of targets at every gamma",
    "lengths": "Groups of targets by the length of their prompts",
    "differences": "Differences between groups in accuracy drop",
    "path": "Along the straight lines from p_star (0) to the wayward prompt (1) and its target "
    f"(2){_OF_ACCURACIES}",
    "discrete": f"Prompts as they were tuned, and texts as prompts{_OF_ACCURACIES}",
    "gaps": "How much better prompts are than texts as prompts, in points of accuracy, with "
    "intervals over prompts and test examples",
    "transfer": f"Prompts on other tasks, and their readings with other models{_OF_ACCURACIES}",
    "projection": "Agreement of the prompts, and of p_star, with the targets under each metric: "
    "F1, and the share of target tokens among the nearest 1, 5 and 10",
    "detect": "How well scores of single prompts tell wayward prompts from honest ones: areas "
    "under ROC curves on tasks that are left out, with intervals over prompts; 0.5 is chance",
    "readings": "What each reading says of prompts that were held to their targets by one of them, "
    "and of p_star: F1 with the target, and the similarity of the letters of both texts (difflib)",
    "recover": "The rank of the true description, at which a prompt started, among 20 texts by the "
    "loss of each reading; 10.5 is chance. Beside p_star, the loss that the same text has with "
    "p_star is taken off",
}

ONE_SEED = (
    "With one seed, an interval is about these very prompts and other test examples: nothing can "
    "be said then of a text or a constraint, and there is no verdict."
)

NOTES = (
    "A prompt reads as the tokens whose embeddings are nearest to its vectors (squared Euclidean "
    "distance). The margin of a vector says how much farther the second nearest token is. If the "
    "margin is near 0, a small push changes what the vector reads as.",
    "Prompt F1 compares the words of the reading with those of the target. The accuracy drop is "
    "(accuracy of p_star - accuracy) / accuracy of p_star, where p_star is the best prompt of the "
    "same length, task and settings without a target. A single run is compared with the p_star of "
    "the same seed. If there are several gammas, the one with the highest accuracy on {select} "
    "counts, among those at which the prompts read as the target. p_star is the best of as many "
    "tries (other starts and orders of examples), as far as there are as many; the tables say "
    "how many tries each side had.",
    "The drop from p_star has in it what the start costs. The drop beside it is from prompts of "
    "the same start and order of examples without the constraint (gamma 0): that is what the "
    "constraint costs. All targets share these prompts if their start does not depend on them.",
    "Intervals are made to hold the truth in 95 % of cases. They add the variances over seeds, "
    "targets, choices of training examples and test examples, with the quantiles of Student's t, "
    "and say what others of all these (other targets for a group alone) would give; "
    f"docs/results/calibration.md has simulations. {ONE_SEED}",
    "A drop is within the margin of {margin:g} % if its interval lies between -{margin:g} and "
    "{margin:g}, and beyond it if the interval lies outside. Otherwise it cannot be told, and the "
    "tables say how many seeds or examples it would take. The p-values of differences between "
    "groups are adjusted for the number of tests, and a difference is called beyond the margin "
    "only if its adjusted p-value is below 0.05.",
)
"""Paragraphs; `{select}` is the split on which gammas are chosen, `{margin}` that of verdicts."""

ANSWERS = (
    "Some test examples, and what is answered to them with each prompt before them; wrong answers "
    "are colored. Examples are not chosen by their answers: they are the first of each label in "
    "turn in the test sample, without long ones where there are others. The prompts are those of "
    "the first {texts} texts, one of each (that of the first seed), and the p_star that they are "
    "compared with. The text itself is a prompt that consists of the embeddings of its tokens. The "
    "number is the probability of the answer: exp(-loss), divided by the sum over all labels; the "
    "loss is the mean over a label's tokens."
)
"""Introduces the answers; `{texts}` is how many texts are shown."""

NUMERICAL_FLOOR = (
    "Numerical floor: sums may be taken in another order in another population, alone, and on "
    "other devices, and training amplifies the rounding. The same run has then ended with an "
    "accuracy that was up to 1.5 points off (docs/design.md). A drop of a single run that is "
    "smaller says nothing; intervals over several seeds contain this."
)

MISSING_MODEL = (
    "The model {name} is not here ({reason}). Its prompts are shown as they were read when they "
    "were tuned, by token ids, without neighbors and margins."
)
