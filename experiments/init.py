"""`init`: how much of a prompt's F1 is only where it began.

A prompt that starts at its target may still read as it after tuning, distance term or not. Starts
that do not know the target show what the distance term does by itself.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("gammas",),
    defaults={"targets": "instructions:3", "init": "target,vocab,random", "gamma": "0,0.1"},
)
