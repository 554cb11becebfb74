"""The one exception that means "the user can mend this"."""


class UsageError(ValueError):
    """Bad configuration, data or directory. The message is one line: what is wrong, and what would be right.

    `launch.py` prints it without a traceback and exits with code 2; library callers may catch it as a ValueError.
    """


class DivergedError(ArithmeticError):
    """Training has come to numbers that are not finite, again and again. The message is one line: where, and what.

    `launch.py` prints it without a traceback and exits with code 3, as the same command would come to the same end.
    """
