# %% [markdown]
# # A first wayward prompt
#
# Two prompts are tuned for the same task: one that reads as a recipe, and one that is free. Then
# they are read and compared. This takes a few minutes on two CPU cores; the model and the film
# reviews are fetched on first use.

# %%
import matplotlib.pyplot as plt
import numpy as np

import wayward_jax as wj

STEPS = 60  # optimizer steps; more steps give better prompts
N_EVAL = 256  # test reviews
TARGET = "How to bake a cake"

model = wj.load_model("smollm2-135m")
task = wj.load_task("reviews")

# %% [markdown]
# ## Tune
#
# `None` stands for the prompt without a target, `p_star`. Both prompts are tuned together, over one
# copy of the model. They have the same length: as many vectors as the target has tokens.

# %%
length = len(model.tokenizer.encode(TARGET))
free, wayward = wj.tune(
    model,
    task,
    targets={"p_star": None, "recipe": TARGET},
    prompt_length=length,
    learning_rate=0.03,
    gamma=0.01,
    steps=STEPS,
    n_eval=N_EVAL,
    seeds=[1],
)
print(f"p_star is right about {free.accuracy:.0%} of the test reviews,")
print(f"the wayward prompt about {wayward.accuracy:.0%}, and it reads: {wayward.text!r}")

# %% [markdown]
# ## Read
#
# Every vector is replaced by its nearest token, under three metrics. The prompt was tuned to read
# as its target under the first, Euclidean distance.

# %%
for record in (free, wayward):
    readings = wj.read(model, record.prompt, target=TARGET)
    print(record.run.target_name)
    for metric, reading in readings.items():
        print(f"  {metric:10}{reading.prompt_f1:5.2f}  {reading.text!r}")

# %% [markdown]
# ## Does the text do the same?
#
# The target's own embeddings read as the same text. If reading and doing were one, they would
# solve the task as well as the wayward prompt.

# %%
table = np.asarray(model.embedding_table(), np.float32)
as_text = table[model.tokenizer.encode(TARGET)]
(of_text,) = wj.evaluate(model, [as_text], task, n_eval=N_EVAL)
print(f"The text itself is right about {of_text.accuracy:.0%} of the same reviews.")

# %% [markdown]
# ## Plot

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, record in (("p_star", free), ("wayward prompt", wayward)):
    steps = [point.step for point in record.curve]
    left.plot(steps, [point.task_loss for point in record.curve], marker="o", label=name)
left.set(xlabel="step", ylabel="task loss, nats a token")
left.legend()
names = ["p_star", "wayward prompt", "target as text"]
right.bar(names, [free.accuracy, wayward.accuracy, of_text.accuracy])
right.set(ylabel="accuracy", ylim=(0, 1))
figure.savefig("first_prompt.png", dpi=160)
