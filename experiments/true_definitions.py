"""`true_definitions`: asks whether true descriptions of a task cost less (paper, section 4.3).

There are three groups of targets: the task's own definition, definitions of tasks of another kind,
and texts that contradict the task.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "differences"),
    defaults={"targets": "definitions,other_definitions:5,contradictions"},
)
