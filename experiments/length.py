"""`length`: prompt F1 and accuracy drop against the length of the prompt (paper, section 4.3).

Every target is cut to every length, so that lengths differ in nothing else.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("lengths",),
    defaults={"targets": "passages:3", "prompt_length": "4,7,14,28,56"},
)
