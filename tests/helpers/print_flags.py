"""A program that prints the flags that it was given, as JSON.

`python -m tests.helpers.print_flags KIND FLAGS...`; KIND names the settings that it has flags of.
"""

import json
import sys

from experiments import flags
from wayward_jax.jobs import settings

if __name__ == "__main__":
    kind = getattr(settings, sys.argv.pop(1))
    flags.run(lambda given: print(json.dumps(given)), kind)
