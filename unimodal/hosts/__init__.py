"""Several processes as one run: they find each other, check that they are alike, stop together, and say who is missing.

`join` and `check_shared` run at the start, `Lifeline` during the run. A scheduler sees how the run ended by its exit code
(`peer.py`).
"""

from unimodal.hosts.doctor import check_shared
from unimodal.hosts.lifeline import Lifeline
from unimodal.hosts.peer import EXIT_DIVERGED, EXIT_LOST, EXIT_STOPPED, EXIT_USAGE, LostError
from unimodal.hosts.rendezvous import as_one, join

__all__ = [
    "EXIT_DIVERGED",
    "EXIT_LOST",
    "EXIT_STOPPED",
    "EXIT_USAGE",
    "Lifeline",
    "LostError",
    "as_one",
    "check_shared",
    "join",
]
