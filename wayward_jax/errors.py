"""The one exception that tells a person what to change."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the flag or file at fault and the remedy. Programs show
    it as it is, without a traceback.
    """
