"""`true_definitions`: does a prompt read more easily as what it does? (paper, section 4.3)

Targets are the task's own definition, definitions of tasks of another kind, and texts that
contradict the task, a group each.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "differences"),
    defaults={"targets": "definitions,other_definitions:5,contradictions"},
)
