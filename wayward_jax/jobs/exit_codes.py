"""The exit codes of the programs, for schedulers that decide whether to start a job again."""

BAD_INPUT = 2
"""Something given cannot be used; starting the same again gives the same."""

STOPPED = 75
"""The program was asked to stop and has saved its progress (EX_TEMPFAIL): start it again."""

LOST = 76
"""The process has lost the other processes of its job, as when one died: start all again."""
