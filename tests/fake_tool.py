"""Stands in for gcloud, kubectl, sbatch, sky …: writes down how it was called and answers as a list of rules says.

A rule is [tool and pattern, exit code, output, times]: the first whose pattern is found in the command line and that is not
used up answers. Without one it says nothing and succeeds.
"""

import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
line = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
with (FOLDER / "calls.jsonl").open("a") as log:
    log.write(json.dumps([line, stdin]) + "\n")
rules = json.loads((FOLDER / "rules.json").read_text())
for rule in rules:
    if rule[3] and re.search(rule[0], line):
        rule[3] -= 1
        (FOLDER / "rules.json").write_text(json.dumps(rules))
        print(rule[2])
        sys.exit(rule[1])
