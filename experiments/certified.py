"""`certified`: prompts that read as their target by construction, and what that costs.

The prompts that read as a target are a product of Voronoi cells. A prompt that is kept in them at
every step reads as the target whatever it learns. Beside it stand prompts that a penalty holds.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "differences"),
    defaults={"targets": "instructions:3", "constraint": "penalty,cell"},
)
