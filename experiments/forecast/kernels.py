"""The instructions of the attention kernel on TPUs.

libtpu estimates the cycles of every operation except kernels. But it can write down the *bundles*
of instructions that an operation was compiled to. A TPU begins one bundle a cycle, and the
attention kernel has no loops and no branches.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

# The name of a file: a number, the operation, a number, and what the file has.
_FILE = re.compile(r"\d+-(.+)-\d+-pre-delay_hlo-static-per-bundle-utilization\.txt")

# The line above the bundles, each of which has a line.
_HEADING = "== UTILIZATION:\n"


def take_bundles(folder: Path) -> Mapping[str, int]:
    """Counts the bundles of operations that libtpu wrote down in a folder, and removes the folder.

    Returns:
        The numbers, by the operations' names. Of several equal operations, libtpu writes one down.
    """
    found = {}
    for file in folder.glob("*"):
        if named := _FILE.fullmatch(file.name):
            found[named[1]] = file.read_text().partition(_HEADING)[2].count("\n")
    shutil.rmtree(folder, ignore_errors=True)
    return found
