"""The environment of a process that compiles for devices that are not there."""

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
}
"""Must be set before JAX is imported."""
