"""`main`: for every task and target, the best prompt that reads as the target (paper, section 4.2).

Beside each of them stands p_star, the best prompt of the same length without a target.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(grid.runs, tables=("targets",))
