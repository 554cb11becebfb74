"""The one entry point, equal to the console command `unimodal`.

    python launch.py train --config=NAME[:argument] --workdir=DIR [--config.any.field=value]
    python launch.py eval  --workdir=DIR [--config=NAME[:argument]]
    python launch.py doctor [--config=…] [--workdir=DIR]                    is every host fit for a run?
    python launch.py pod   --platform=local|tpu-vm|gke|slurm|sky --config=… --workdir=DIR [--dry_run]   docs/pods
    python launch.py ledger commit|diff|revert|merge|… LEDGER …          weights with a history: docs/history.md
    python launch.py plan  --config=NAME[:argument] --topology=v5p:8x8x8 [--mesh=auto] [--json=FILE]

NAME is a recipe (demo), or a file (configs/demo.py, mine.py). `python launch.py COMMAND --help` shows all flags. The
program is `unimodal/command/`: it reads a config, builds Task objects, hands them to the loop, then evaluates and writes
results.json and report.html.
"""

from typing import TYPE_CHECKING, Any

from unimodal.command import main, program

if TYPE_CHECKING:
    from unimodal.command.recipe import as_plain
    from unimodal.places import places_of

    task_class = places_of(None).task_class

__all__ = ["as_plain", "main", "task_class"]


def __getattr__(name: str) -> Any:
    # Only for those who import this file: the program sets its process up before it imports anything large.
    if name == "as_plain":
        from unimodal.command.recipe import as_plain as found

        return found
    if name == "task_class":
        from unimodal.places import places_of as places

        return places(None).task_class
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    program()
