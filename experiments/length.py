"""`length`: measures prompt F1 and accuracy drop against the prompt's length (paper, section 4.3).

Every target is cut to every length, so that the lengths have the same targets.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("lengths",),
    defaults={"targets": "passages:3", "prompt_length": "4,7,14,28,56"},
)
