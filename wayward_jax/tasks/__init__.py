"""Tasks: their definitions, their examples, and the encoding of examples as tokens."""

from wayward_jax.tasks.encoding import Encoded, count_truncated, encode
from wayward_jax.tasks.loading import TASKS, load
from wayward_jax.tasks.task import Examples, Task, TaskData

__all__ = ["TASKS", "Encoded", "Examples", "Task", "TaskData", "count_truncated", "encode", "load"]
