"""The exceptions that are one line to whoever started the run, and no traceback."""


class UsageError(ValueError):
    """Bad configuration, data or directory. The message is one line: what is wrong, and what would be right.

    `launch.py` prints it without a traceback and exits with code 2; library callers may catch it as a ValueError.
    """


class DivergedError(ArithmeticError):
    """Training has come to numbers that are not finite, again and again. The message is one line: where, and what.

    `launch.py` prints it without a traceback and exits with code 3, as the same command would come to the same end.
    """


class StorageError(RuntimeError):
    """A disk or bucket no longer takes what a run writes: full, gone or read-only. The message is one line.

    `launch.py` prints it without a traceback and exits with code 74. What was saved before is whole; the same command
    goes on from there once the storage is mended.
    """


class Stopped(BaseException):
    """SIGTERM outside the training loop, where there is nothing to save. The message is one line; the exit code is 75.

    No Exception, so that whatever catches those lets it through, as it does a KeyboardInterrupt.
    """
