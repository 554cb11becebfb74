"""How long a large table takes to open, and how much memory: 10 million synthetic records in one jsonl file.

    python benchmarks/data.py [--records 10000000] [--folder /tmp]

Prints seconds and peak memory of a fresh process that opens both splits and reads 1,000 records at random: the first time, when the
index is made, and again, when it is there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OPEN = """
import resource, sys, time
import numpy as np
from unimodal.data import open_source
ready = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, spent = time.perf_counter(), time.process_time()
train, valid = (open_source("jsonl:" + sys.argv[1], split) for split in ("train", "validation"))
opened, spent = time.perf_counter() - began, time.process_time() - spent
began = time.perf_counter()
for i in np.random.default_rng(0).integers(0, len(train), 1000):
    train[int(i)]
read = 1000 / (time.perf_counter() - began)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{len(train):,} + {len(valid):,} records in {opened:.1f} s ({spent:.1f} s of the processor), {read:,.0f} random records/s, "
      f"peak {peak / 1024:,.0f} MB, of which imports {ready / 1024:,.0f} MB")
"""


def write(path: Path, records: int) -> None:
    """Records of about 40 bytes."""
    with path.open("w") as file:
        for start in range(0, records, 100_000):
            file.write("".join(f'{{"text": "record {i}", "n": {i % 97}}}\n' for i in range(start, start + 100_000)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000, help="a multiple of 100,000")
    parser.add_argument("--folder", type=Path, help="for half a gigabyte (default: the system's own)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "table.jsonl"
        write(path, given.records)
        environment = {**os.environ, "UNIMODAL_CACHE": str(Path(folder) / "cache")}
        for what in ("index made", "index there"):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(path)], env=environment, check=True, capture_output=True, text=True
            )
            print(f"{what}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
