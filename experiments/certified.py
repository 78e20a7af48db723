"""`certified`: measures what prompts cost that read as their target by construction.

The prompts that read as a target form a product of Voronoi cells. A prompt that is kept in these
cells at every step reads as the target whatever it learns. It is compared with prompts that the
distance term holds to the same target.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "differences"),
    defaults={"targets": "instructions:3", "constraint": "penalty,cell"},
)
