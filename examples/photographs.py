"""A folder of photographs with a CSV of captions → CLIP → how well captions find their photographs.

    python examples/photographs.py PHOTOS runs/photographs

PHOTOS/captions.csv has the columns file_name and text. One photograph in ten is held out. What stands behind the two words goes to
`unimodal train`: --config.steps=5000, say. runs/photographs/report.html shows which captions it finds for a photograph.
"""

import json
import sys
from pathlib import Path

from unimodal.command import main

photos, workdir, *more = sys.argv[1:]
source = f"--config.tasks.clip.source=folder:{photos}"
phrases = "--config.tasks.clip.texts.phrases="  # of the emoji, whose recipe this is
code = main(["unimodal", "train", "--config=clip:size=tiny", f"--workdir={workdir}", source, phrases, *more])
if code:
    sys.exit(code)
found = json.loads((Path(workdir) / "results.json").read_text())["tasks"]["clip"]
print(f"{found['metric']} {found['value']:.2f}, by chance {found['baseline']:.2f}")
