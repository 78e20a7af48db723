"""`main`: finds the best prompt that reads as each target, for every task (paper, section 4.2).

It is compared with p_star, the best prompt of the same length without a target.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(grid.runs, tables=("targets",))
