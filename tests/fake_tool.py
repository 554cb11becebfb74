"""Stands in for gcloud, kubectl, sbatch, sky …: writes down how it was called and answers as a list of rules says.

A rule is [tool and pattern, exit code, output, times]: the first whose pattern is found in the command line and that is not
used up answers, on standard error if it fails. Without one it says nothing and succeeds. What is in stderr.txt it always says.
"""

import json
import os
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
line = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
with (FOLDER / "calls.jsonl").open("a") as log:
    log.write(json.dumps([line, stdin]) + "\n")
if (FOLDER / "stderr.txt").exists():
    sys.stderr.write((FOLDER / "stderr.txt").read_text())
rules = json.loads((FOLDER / "rules.json").read_text())
for rule in rules:
    if rule[3] and re.search(rule[0], line):
        rule[3] -= 1
        fresh = FOLDER / f"rules.{os.getpid()}"  # several may run at once
        fresh.write_text(json.dumps(rules))
        fresh.replace(FOLDER / "rules.json")
        print(rule[2], file=sys.stderr if rule[1] else sys.stdout)
        sys.exit(rule[1])
