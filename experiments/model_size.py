"""`model_size`: prompt F1 and accuracy drop against the size of the model (paper, section 4.3).

Which gamma suits a model depends on the scale of its embeddings; `--gamma=gpt2:0.1,gpt2-xl:0.01`
gives each its own.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "differences"),
    defaults={
        "model": "gpt2,gpt2-medium,gpt2-large,gpt2-xl",
        "targets": "instructions:3",
        "gamma": "0.003,0.01,0.03,0.1",
    },
)
