"""A folder of recordings with transcripts → CTC → a transcript of what is held out.

    python examples/recordings.py RECORDINGS runs/recordings

RECORDINGS/transcripts.csv has the columns file_name and text; recordings are of 10 s at most (--config.tasks.ctc.sounds.seconds).
One in ten is held out; runs/recordings/report.html has some of those, to hear, with what the model heard.
"""

import json
import sys
from pathlib import Path

from unimodal.command import main

recordings, workdir, *more = sys.argv[1:]
fields = dict(
    source=f"folder:{recordings}", **{"sounds.segments": "", "sounds.seconds": 10, "transcripts.characters": 240}
)
flags = [f"--config.tasks.ctc.{name}={value}" for name, value in fields.items()]
code = main(["unimodal", "train", "--config=ctc:size=tiny", f"--workdir={workdir}", *flags, *more])
if code:
    sys.exit(code)
found = json.loads((Path(workdir) / "results.json").read_text())["tasks"]["ctc"]
print(f"{found['metric']} {found['value']:.2f}, of the best constant answer {found['baseline']:.2f}")
