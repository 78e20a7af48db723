"""The one exception that tells a person what to change, and what others say."""


def reason(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the flag or file at fault and the remedy. Programs show
    it as it is, without a traceback.
    """
