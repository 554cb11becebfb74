"""A platform that takes a run as one submission, gives its logs and ends it: what GKE, Slurm and SkyPilot have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimodal.pods.description import Pod
from unimodal.pods.tools import Step, must, run, spell


@dataclass(frozen=True)
class Cloud:
    """The steps of one platform, and what its refusals mean."""

    submit: Callable[[Pod, Sequence[str]], Step]  # hands the run over
    logs: Callable[[Pod], Step]  # follows its output
    end: Callable[[Pod], Step]  # stops and removes it
    ending: str  # what `end` does, in the platform's word: delete, cancel, …
    reasons: Sequence[tuple[str, str]]  # pattern in a tool's output → what it means
    # raises UsageError for a name in use, where the platform itself would not
    refuse_taken: Callable[[Pod], None] | None = (
        None  # raises UsageError for a name in use, where the platform would not
    )
    number: Callable[[str], str] | None = None  # output of `submit` → what the platform calls the run; None: its name

    def dry_run(self, pod: Pod, program: Sequence[str]) -> str:
        """The files and commands, as text."""
        if pod.action != "run":
            return spell(self.logs(pod) if pod.action == "logs" else self.end(pod))
        return spell(self.submit(pod, program))

    def launch(self, pod: Pod, program: Sequence[str], _root: Path) -> int:
        """Submit a run, follow its logs or end it; returns the exit code."""
        if pod.action == "logs":
            return run(self.logs(pod), show=True).code
        if pod.action == "delete":
            must(self.end(pod), self.reasons)
            past = f"{self.ending.removesuffix('e')}ed" if self.ending != "cancel" else "cancelled"
            print(f"{past} {pod.name}")
            return 0
        step = self.submit(pod, program)  # what is wrong with the description is said before the platform is asked
        if self.refuse_taken is not None:
            self.refuse_taken(pod)
        said = must(step, self.reasons)
        what = pod.name if self.number is None else self.number(said)
        print(f"submitted {what}; follow it with --action=logs, {self.ending} it with --action=delete")
        return 0
