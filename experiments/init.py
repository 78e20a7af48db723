"""`init`: measures how much of a prompt's F1 comes from where the prompt started.

A prompt that starts at its target may still read as the target after tuning, even without the
distance term (gamma 0). Starts that do not know the target show what the distance term does by
itself.
"""

from experiments import grid
from wayward_jax.jobs.experiment import Experiment

EXPERIMENT = Experiment(
    grid.runs,
    tables=("gammas",),
    defaults={"targets": "instructions:3", "init": "target,vocab,random"},
)
