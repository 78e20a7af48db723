"""The command line of the programs: flags made from settings, and how a program ends."""

import importlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from absl import app, flags, logging

from wayward_jax.errors import InputError
from wayward_jax.jobs.exit_codes import BAD_INPUT, STOPPED
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.setting import BOOLEAN, Declared, Listed, Setting
from wayward_jax.jobs.settings import Settings
from wayward_jax.jobs.signals import stopping_signals

Given = Mapping[str, str]
"""The texts of the flags that are given on a command line, by name."""


def run(main: Callable[[Given], None], kind: type[Declared]) -> None:
    """Runs a program with the flags of its settings, and exits.

    Its help begins with the docstring of its module. Bad input ends with one line and exit code 2;
    signals that ask to stop, with one line and 75.

    Args:
        main: the program, a function of the texts of the flags that are given.
        kind: the settings of the program.
    """
    define(kind)
    # absl shows the docstring of the script; that of an installed program has none.
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__

    def checked(argv: list[str]) -> None:
        for number in stopping_signals():
            signal.signal(number, signal.default_int_handler)
        if not flags.FLAGS["verbosity"].present:
            # Orbax also raises the errors that its threads print: one message is enough.
            logging.set_verbosity(logging.FATAL)
            sys.unraisablehook = lambda _: None
        if len(argv) > 1:
            _refuse(f"{argv[1]} is not a flag: write --name=value")
        try:
            main(given(kind))
        except InputError as error:
            _refuse(error.as_flag())
        except KeyboardInterrupt as interrupt:
            print(f"stopped{interrupt}", file=sys.stderr)
            sys.exit(STOPPED)

    app.run(checked, flags_parser=_parse)


def define(kind: type[Declared]) -> None:
    """Defines the flags of settings; absl calls the program's module, whose help shows them, so."""
    for setting in kind.settings():
        flags.DEFINE_flag(_Flag(setting), module_name=sys.argv[0])


class _Flag(flags.Flag):
    """The flag of a setting. If it is given twice, lists are joined and other values refused."""

    def __init__(self, setting: Setting) -> None:
        self._is_list = isinstance(setting.kind, Listed)
        is_boolean = setting.kind is BOOLEAN
        super().__init__(
            flags.BooleanParser() if is_boolean else flags.ArgumentParser(),
            None if is_boolean else flags.ArgumentSerializer(),
            setting.name,
            setting.default,
            setting.help if is_boolean else f"{setting.help}\n({setting.kind.form})",
            boolean=is_boolean,
        )

    def parse(self, argument: str) -> None:
        """Parses one more text of the command line."""
        if self.present and not self._is_list:
            raise flags.IllegalFlagValueError(
                f"--{self.name}={argument}: is given a second time, after {self.value}: give it "
                "once"
            )
        before = self.value if self.present else None
        super().parse(",".join(filter(None, (before, argument))))


def given(kind: type[Declared]) -> Given:
    """The texts of the flags that are on the command line."""
    found = {setting.name: flags.FLAGS[setting.name] for setting in kind.settings()}
    return {
        name: str(flag.value).lower() if flag.boolean else flag.value
        for name, flag in found.items()
        if flag.present
    }


def job_settings(texts: Given, kind: type[Settings] = Settings) -> Settings:
    """The settings of a job: as given, else as its experiment has them, else as by default.

    Args:
        texts: of the flags that are given.
        kind: of the settings.

    Raises:
        InputError: a text cannot be used.
    """
    name = Settings.parse({"experiment": texts.get("experiment")}).experiment
    return kind.parse({**find_experiment(name).defaults, **texts})


def find_experiment(name: str) -> Experiment:
    """The experiment of a module beside this one."""
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _refuse(str(error))
    except SystemExit:  # absl ends --help with the exit code of a failure
        sys.exit()


def _refuse(message: str) -> NoReturn:
    print("error:", *message.splitlines(), file=sys.stderr)
    sys.exit(BAD_INPUT)
