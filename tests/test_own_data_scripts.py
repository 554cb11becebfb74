"""The scripts of examples/ take a folder as people have it, from nothing to answers and a score, in 25 lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import tiny
from PIL import Image

from unimodal.data import open_source

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 210), "white": (250, 250, 250)}


def run(name: str, folder: Path, workdir: Path, *more: str) -> list[str]:
    script = tiny.ROOT / "examples" / f"{name}.py"
    assert len(script.read_text("utf-8").splitlines()) <= 25
    line = [sys.executable, str(script), str(folder), str(workdir), *more]
    done = subprocess.run(line, cwd=folder, env=tiny.environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def held_out(folder: Path) -> list[str]:
    source = open_source(f"folder:{folder}", "validation")
    return [source[i]["id"] for i in range(len(source))]


def test_photographs_with_a_table_of_captions(tmp_path: Path) -> None:
    rng, rows, folder = np.random.default_rng(0), ["file_name,text"], tmp_path / "photos"
    folder.mkdir()
    for i in range(60):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(rng.normal(colour, 12, (40, 30, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        rows.append(f'{i}.jpg,"a {name} wall, no. {i}"')
    (folder / "captions.csv").write_text("\n".join(rows), "utf-8")
    words = ",".join(f"a {name} wall" for name in COLOURS)
    *_, said = lines = run("photographs", folder, tmp_path / "run", words, "--config.steps=8", "--config.eval_every=0")
    assert said.startswith("recall@5 ") and ", by chance " in said
    answers = dict(line.split(" → ") for line in lines if " → " in line)
    assert list(answers) == held_out(folder)
    assert set(answers.values()) <= set(words.split(","))
    assert (tmp_path / "run" / "report.html").is_file()


def test_recordings_with_a_table_of_transcripts(tmp_path: Path) -> None:
    rng, rows, folder = np.random.default_rng(0), ["file_name,text"], tmp_path / "recordings"
    folder.mkdir()
    for i in range(40):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
        rows.append(f"{i}.wav,{'yes' if i % 2 else 'no'}")
    (folder / "transcripts.csv").write_text("\n".join(rows), "utf-8")
    more = [
        "--config.steps=2",
        "--config.eval_every=0",
        "--config.tasks.ctc.sounds.seconds=1",
        "--config.tasks.ctc.beam=0",
    ]
    *_, said = lines = run("recordings", folder, tmp_path / "run", *more, "--config.tasks.ctc.batch_size=4")
    assert "of the best constant answer" in said
    assert [line.split(" → ")[0] for line in lines if " → " in line] == held_out(folder)
    assert (tmp_path / "run" / "report.html").is_file()
