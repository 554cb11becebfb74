"""A folder of photographs with a CSV of captions → CLIP → the class of photographs it has not seen, by words alone (zero-shot).

    python examples/photographs.py PHOTOS runs/photographs "a cat,a dog"

PHOTOS/captions.csv has the columns file_name and text. One photograph in ten is held out. Further arguments are flags of `unimodal train`.
"""

import json
import sys
from pathlib import Path

import unimodal
from unimodal.command import main
from unimodal.data import open_source

photos, workdir, classes, *more = sys.argv[1:]
fields = [f"--config.tasks.clip.source=folder:{photos}", "--config.tasks.clip.texts.phrases="]  # no phrases of emoji
if code := main(["unimodal", "train", "--config=clip:size=tiny", f"--workdir={workdir}", *fields, *more]):
    sys.exit(code)
found = json.loads((Path(workdir) / "results.json").read_text())["tasks"]["clip"]
held_out = open_source(f"folder:{photos}", "validation")
unseen = [held_out[i] for i in range(len(held_out))]
for answer in unimodal.load(workdir).predict(unseen, task="clip", classes=classes.split(",")):
    print(answer["id"], "→", answer.get("class", answer.get("error")))
print(f"{found['metric']} {found['value']:.2f}, by chance {found['baseline']:.2f}")
