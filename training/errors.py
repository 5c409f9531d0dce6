"""What ends a run early, with one line for the user instead of a traceback."""


class UsageError(ValueError):
    """A run that cannot start or go on as it was asked for. The message is one line: what, where, the mend.

    The scripts print it on stderr and exit with code 2.
    """


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number. The scripts print the message on stderr and exit with code 1."""
