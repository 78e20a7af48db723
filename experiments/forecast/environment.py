"""The environment of a process that compiles for devices that are not there."""

import os
import tempfile
from pathlib import Path

DUMPS = Path(tempfile.gettempdir()) / f"wayward_jax_{os.getpid()}"
"""Where libtpu writes down the instructions of what it compiles."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # libtpu would look for a TPU first, refuse to work beside another process, and complain that
    # it finds none.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    # A file for each operation, see `kernels.py`.
    "LIBTPU_INIT_ARGS": " ".join(
        [
            os.environ.get("LIBTPU_INIT_ARGS", ""),
            f"--xla_jf_dump_to={DUMPS} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true",
            "--xla_jf_dump_llo_pass_label_regex=pre-delay.*",
        ]
    ),
}
"""Must be set before JAX is imported."""
