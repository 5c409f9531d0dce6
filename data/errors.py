"""The one exception for bad input data."""


class DataError(ValueError):
    """Input data that cannot be used. The message is one line: what is wrong, where, and the mend.

    The scripts print it on stderr and exit with code 2, without a traceback.
    """
