"""A folder of recordings with transcripts → CTC → a transcript of what is held out.

    python examples/recordings.py RECORDINGS runs/recordings

RECORDINGS/transcripts.csv has the columns file_name and text. Recordings are of 10 s at most. One in ten is held out.
"""

import json
import sys
from pathlib import Path

import unimodal
from unimodal.command import main
from unimodal.data import open_source

recordings, workdir, *more = sys.argv[1:]
fields = {"source": f"folder:{recordings}", "sounds.segments": "", "sounds.seconds": 10, "transcripts.characters": 240}
flags = [f"--config.tasks.ctc.{name}={value}" for name, value in fields.items()]
if code := main(["unimodal", "train", "--config=ctc:size=tiny", f"--workdir={workdir}", *flags, *more]):
    sys.exit(code)
found = json.loads((Path(workdir) / "results.json").read_text())["tasks"]["ctc"]
held_out = open_source(f"folder:{recordings}", "validation")
for answer in unimodal.load(workdir).predict([held_out[i] for i in range(len(held_out))], task="ctc"):
    print(answer["id"], "→", answer.get("transcript", answer.get("error")))
print(f"{found['metric']} {found['value']:.2f}, of the best constant answer {found['baseline']:.2f}")
