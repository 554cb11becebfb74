"""The one exception that means "the user can mend this"."""


class UsageError(ValueError):
    """Bad configuration, data or directory. The message is one line: what is wrong, and what would be right.

    `launch.py` prints it without a traceback and exits with code 2; library callers may catch it as a ValueError.
    """
