"""`model_size`: measures prompt F1 and accuracy drop against the model's size (paper, section 4.3).

The gamma that suits a model depends on the scale of its embeddings. Each model can have its own
gammas, as in `--gamma=gpt2:0.1,gpt2-xl:0.01`.
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
