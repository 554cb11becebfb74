"""`data convert`: every record arrives, a kill costs one shard, and what is damaged is found."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from unimodal.command.data import run_data
from unimodal.data import LEDGER, decode_audio, decode_image, open_source
from unimodal.data.convert import convert, packable
from unimodal.errors import UsageError


@pytest.fixture
def photos(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for i in range(60):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    LEDGER.clear()
    return f"folder:{tmp_path}/photos"


def test_every_record_arrives(photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    assert run_data(["convert", photos, f"arrayrecord:{target}"], "unimodal") == 0
    said = capsys.readouterr().out
    for split in ("train", "validation"):
        before, after = open_source(photos, split), open_source(f"array_record:{target}", split)
        assert [before[i] for i in range(len(before))] == [after[i] for i in range(len(after))]
        assert f"{split}: {len(before)} records, 1 files" in said
    assert (target / "classes.txt").read_text() == "a\nb\n" and "counts and checksums agree" in said
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=target, check=True)
    # Done is done: nothing is written again, but a damaged shard is.
    path = target / "train.array_record"
    stamp, data = path.stat().st_mtime_ns, path.read_bytes()
    run_data(["convert", photos, f"arrayrecord:{target}"], "unimodal")
    assert path.stat().st_mtime_ns == stamp and f"going on in {target}" in capsys.readouterr().out
    path.write_bytes(data[:-1] + b"x")
    run_data(["convert", photos, f"arrayrecord:{target}"], "unimodal")
    assert path.read_bytes() == data


SLOW = """
import sys, time
from pathlib import Path
from unimodal.data.convert import convert
convert(sys.argv[1], Path(sys.argv[2]), shard_bytes=3000, show=lambda *_: time.sleep(0.05))
"""


def test_a_kill_costs_one_shard(photos: str, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", SLOW, photos, str(target)], env=tiny.environment(1), cwd=tiny.ROOT)
    deadline = time.monotonic() + 120
    while len(list(target.glob("train-*.array_record"))) < 2 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is None, "it was done before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    plan = json.loads((target / "convert.json").read_text())
    done = {name: (target / name).stat().st_mtime_ns for name in plan["splits"]["train"]["done"]}
    assert 1 <= len(done) < plan["splits"]["train"]["shards"]
    counts = convert(photos, target, shard_bytes=3000)
    assert {name: (target / name).stat().st_mtime_ns for name in done} == done
    convert(photos, tmp_path / "whole", shard_bytes=3000)
    for path in (tmp_path / "whole").iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(target.glob("*.partial")) and sum(counts.values()) == 60


def test_what_cannot_be_converted_is_one_line(photos: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.array_record").write_bytes(b"x")
    convert(photos, tmp_path / "done")
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "convert.json").write_text("{")
    for words, message in (
        ([], "usage: unimodal data convert SOURCE arrayrecord:DIR"),
        ([photos, "folder:x"], "cannot be written: expected arrayrecord:DIR"),
        ([photos, "photos.records"], "expected arrayrecord:DIR; did you mean arrayrecord:photos.records"),
        ([photos, "arrayrecord:" + photos.removeprefix("folder:").partition("?")[0]], "has other files, such as "),
        ([photos, f"arrayrecord:{tmp_path}/full"], "has .array_record files that are no conversion"),
        ([photos, f"arrayrecord:{tmp_path}/spoilt"], "convert.json is not what a conversion writes"),
        (["embedded:emoji", f"arrayrecord:{tmp_path}/done"], "holds a conversion of folder:"),
        ([photos, f"arrayrecord:{tmp_path}/x", "--split=train"], "no flag --split; did you mean splits"),
        ([photos, f"arrayrecord:{tmp_path}/x", "--splits=test"], "no split 'test'"),
        ([photos, f"arrayrecord:{tmp_path}/x", "--shard_megabytes=0"], "should be a whole number"),
        ([f"folder:{tmp_path}/none", f"arrayrecord:{tmp_path}/x"], "no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            run_data(["convert", *words], "unimodal")
    assert not (tmp_path / "x").exists()


def test_arrays_become_files_without_loss() -> None:
    rng = np.random.default_rng(0)
    picture, wave = rng.integers(0, 256, (5, 4, 3), np.uint8), rng.standard_normal(300).astype(np.float32) * 0.2
    made = packable(
        {"id": "a", "image": picture, "audio": wave, "rate": 8000, "label": np.int64(3), "box": np.arange(4)}
    )
    np.testing.assert_array_equal(decode_image(made["image"]), picture)
    np.testing.assert_array_equal(decode_audio(made["audio"], 8000), wave)
    assert soundfile.info(io.BytesIO(made["audio"])).samplerate == 8000
    assert (made["label"], made["box"], type(made["label"])) == (3, [0, 1, 2, 3], int)
