"""`gamma`: measures prompt F1 and accuracy drop against gamma (paper, section 4.3).

Prompts start at random tokens, so that only the distance term brings them to their targets. Beside
the paper's gammas there are larger ones, for models whose embeddings have another scale.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("gammas",),
    defaults={
        "targets": "instructions:3",
        "init": "vocab",
        "gamma": "1e-4,5e-4,1e-3,3e-3,5e-3,0.01,0.03,0.1,0.3,1",
    },
)
