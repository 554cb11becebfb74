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

from unimodal.command import main, program
from unimodal.command.recipe import as_plain
from unimodal.places import places_of

task_class = places_of(None).task_class

__all__ = ["as_plain", "main", "task_class"]

if __name__ == "__main__":
    program()
