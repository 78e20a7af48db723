"""What the programs here have in common: three flags, and how they end early."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from wayward_jax.errors import InputError

STOPPED = 75
"""The exit code of a program that was asked to stop: EX_TEMPFAIL, run it again and it goes on."""


def default_cache_dir() -> Path:
    """`wayward_jax` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wayward_jax"


_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    str(default_cache_dir()),
    "Folder for what is fetched, converted and compiled.",
)
_ASSETS_DIR = flags.DEFINE_string(
    "assets_dir",
    None,
    "Folder that holds the built-in model and data (or the wheels they are in), for machines "
    "without network.",
)

_SELECT = flags.DEFINE_enum(
    "select",
    "dev",
    ["dev", "test"],
    "The split on which a target's best gamma is chosen. test, which is also reported, is how the "
    "paper chooses.",
)


def path(value: str) -> Path:
    """The path that a flag says, with `~` for the user's folder."""
    return Path(os.path.expanduser(value))


def cache_dir() -> Path:
    """What `--cache_dir` says."""
    return path(_CACHE_DIR.value)


def assets_dir() -> Path | None:
    """What `--assets_dir` says."""
    return folder("assets_dir", _ASSETS_DIR.value)


def select() -> str:
    """What `--select` says."""
    return _SELECT.value


def folder(flag: str, value: str | None) -> Path | None:
    """The folder that a flag names, which must exist."""
    if value is None:
        return None
    if not os.path.isdir(path(value)):
        raise InputError(f"--{flag}={value} is not a folder: give one that exists")
    return path(value)


def run(program: Callable[[], None]) -> None:
    """Reads the flags and runs a program.

    Bad input gets one line and exit code 2, SIGTERM and SIGINT get one and `STOPPED`.
    """

    def main(argv: list[str]) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if not flags.FLAGS["verbosity"].present:
            # What goes wrong in Orbax's threads it also raises: one message is enough.
            logging.set_verbosity(logging.FATAL)
            sys.unraisablehook = lambda _: None
        try:
            if len(argv) > 1:
                raise InputError(f"{argv[1]} is not a flag: write --name=value")
            program()
        except InputError as error:
            _refuse(error.as_flag())
        except KeyboardInterrupt as interrupt:
            print(f"stopped{interrupt}", file=sys.stderr)
            sys.exit(STOPPED)

    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        return _refuse(str(error))


def _refuse(message: str) -> None:
    print("error:", *message.splitlines(), file=sys.stderr)
    sys.exit(2)
