"""launch.py as a user meets it: every slip is one line and exit code 2, and a run leaves what it promises."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny

TINY = f"--config={tiny.ROOT / 'tests' / 'tiny.py'}"
GPT, VIT = f"{TINY}:gpt", f"{TINY}:vit"

# name: (arguments, what the one line says). {work} is a workdir that does not exist, {scratch} a folder that does.
WORKDIR = "--workdir={work}"
SLIPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown field": (("train", GPT, WORKDIR, "--config.stepz=3"), ("stepz", "steps")),
    "unknown nested field": (("train", GPT, WORKDIR, "--config.mesh.dat=2"), ("dat", "data")),
    "unknown field of a task": (("train", GPT, WORKDIR, "--config.tasks.gpt.lengh=3"), ("lengh", "length")),
    "unknown field of a backbone": (
        ("train", GPT, WORKDIR, "--config.backbones.shared.widht=3"),
        ("widht", "width"),
    ),
    "word for a number": (("train", GPT, WORKDIR, "--config.steps=abc"), ("steps", "abc")),
    "no steps": (("train", GPT, WORKDIR, "--config.steps=0"), ("steps must be at least 1",)),
    "unknown schedule": (("train", GPT, WORKDIR, "--config.schedule=random"), ("'random'", "sum, alternate")),
    "batch and mesh": (
        ("train", GPT, WORKDIR, "--config.mesh.data=3"),
        ("tasks.gpt.batch_size=8 is not divisible by 3",),
    ),
    "heads and tensor": (("train", GPT, WORKDIR, "--config.mesh.tensor=8"), ("heads=4", "not divisible", "tensor=8")),
    "mesh and devices": (
        ("train", GPT, WORKDIR, "--config.mesh.data=16"),
        ("needs 16 devices, but there are 8",),
    ),
    "two free mesh axes": (
        ("train", GPT, WORKDIR, "--config.mesh.data=-1", "--config.mesh.fsdp=-1"),
        ("only one mesh axis may be -1",),
    ),
    "width and heads": (
        ("train", GPT, WORKDIR, "--config.backbones.shared.width=30"),
        ("width=30 is not divisible by heads=4",),
    ),
    "unknown backbone": (("train", "--config={scratch}/other_backbone.py", WORKDIR), ("'sharde'", "shared")),
    "missing data": (("train", "--config={scratch}/missing.py", WORKDIR), ("/nonexistent",)),
    "empty data": (("train", "--config={scratch}/empty.py", WORKDIR), ("empty",)),
    "unknown task": (("train", "--config={scratch}/task.py", WORKDIR), ("no task 'vitt'", "did you mean vit?")),
    "unknown tokenizer": (
        ("train", "--config={scratch}/tokenizer.py", WORKDIR),
        ("'smell' is not one of audio, image",),
    ),
    "no tasks": (("train", "--config={scratch}/bare.py", WORKDIR), ("no ",)),
    "unwritable workdir": (("train", VIT, "--workdir={scratch}/file/run"), ("cannot write", "{scratch}/file/run")),
    "unknown command": (("trian", GPT, WORKDIR), ("'trian'", "did you mean train?")),
    "no command": ((GPT, WORKDIR), ("usage:", "train|eval")),
    "nothing": ((), ("usage:", "train|eval")),
    "no workdir": (("train", GPT), ("--workdir is missing",)),
    "no config": (("train", WORKDIR), ("--config",)),
    "missing config": (("train", "--config={scratch}/nowhere.py", WORKDIR), ("nowhere.py",)),
    "broken config": (
        ("train", "--config={scratch}/broken.py", WORKDIR),
        ("broken.py, line 7", "ZeroDivisionError: division by zero"),
    ),
    "an unknown flag": (("train", GPT, WORKDIR, "--stpe=3"), ("stpe",)),
    "a stray word": (("train", GPT, WORKDIR, "steps=3"), ("unexpected argument 'steps=3'",)),
    "argument of a recipe": (
        ("train", f"--config={tiny.ROOT / 'configs' / 'demo_solo.py'}:nonsense", WORKDIR),
        ("nonsense", "gpt"),
    ),
    "evaluating nothing": (("eval", GPT, WORKDIR), ("{work}", "train first")),
}
HEAD = f"import sys\nsys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\nimport tiny\n\n\ndef get_config():\n"
CONFIGS = {
    "other_backbone": "    c = tiny.get_config('gpt')\n    c.tasks.gpt.backbone = 'sharde'\n    return c\n",
    "missing": "    c = tiny.get_config('vit')\n    c.tasks.vit.source = 'array_record:/nonexistent'\n    return c\n",
    "empty": "    c = tiny.get_config('vit')\n    c.tasks.vit.source = 'array_record:{scratch}/records'\n    return c\n",
    "task": "    c = tiny.get_config('vit')\n    c.tasks = dict(vitt=dict())\n    return c\n",
    "tokenizer": "    c = tiny.get_config('vit')\n    c.tokenizers.smell = dict()\n    return c\n",
    "broken": "    return 1 / 0\n",
    "bare": "    from configs import common\n\n    return common.base()\n",
}


@pytest.fixture(scope="module")
def slips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str], Path, Path]]:
    """Every slip, run once: exit code, output, error, what its workdir's parent then holds, that folder, the scratch."""
    scratch = tmp_path_factory.mktemp("slips")
    (scratch / "file").write_text("not a folder")
    (scratch / "records").mkdir()
    (scratch / "records" / "train.array_record").touch()
    for name, text in CONFIGS.items():
        (scratch / f"{name}.py").write_text(HEAD + text.replace("{scratch}", str(scratch)), encoding="utf-8")
    places = [scratch / "works" / str(i) for i in range(len(SLIPS))]
    lines = []
    for place, (arguments, _) in zip(places, SLIPS.values(), strict=True):
        place.mkdir(parents=True)
        lines.append([fill(argument, place / "run", scratch) for argument in arguments])
    logs = scratch / "logs"
    logs.mkdir()
    done = tiny.launches(lines, logs)
    return {
        name: (*result, sorted(str(p) for p in place.rglob("*")), place / "run", scratch)
        for name, place, result in zip(SLIPS, places, done, strict=True)
    }


def fill(text: str, work: Path, scratch: Path) -> str:
    return text.replace("{work}", str(work)).replace("{scratch}", str(scratch))


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_line_and_nothing_is_written(name: str, slips: dict[str, Any]) -> None:
    code, out, err, written, work, scratch = slips[name]
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    for words in SLIPS[name][1]:
        assert fill(words, work, scratch) in err
    assert out == ""
    assert written == []


# Real data is out of reach here: only made-up batches can train this.
FAKE = """    c = tiny.get_config('vit')
    c.tasks.vit.source = 'array_record:/nonexistent'
    c.steps = 2
    return c
"""
BOTH = (
    f"{TINY}:gpt,vit", "--config.steps=4", "--config.log_every=2", "--config.tasks.gpt.source=folder:{scratch}/book"
)  # fmt: skip
AGAIN: dict[str, tuple[str, ...]] = {
    "eval": ("eval", *BOTH, "--workdir={scratch}/run"),
    "eval of another config": ("eval", *BOTH, "--config.seed=7", "--workdir={scratch}/run"),
    "another config": (
        "train", *BOTH, "--config.seed=7", "--config.optimizer.learning_rate=0.5", "--workdir={scratch}/run"
    ),
    "other tasks": ("train", GPT, *BOTH[1:], "--workdir={scratch}/run"),
    "dry run": ("train", *BOTH, "--dry_run", "--workdir={scratch}/dry", "--config.mesh.data=2", "--config.mesh.fsdp=2"),
    "fake data": ("train", "--config={scratch}/fake.py", "--fake_data", "--workdir={scratch}/fake"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Runs:
    """A small run in `scratch`/run, its results before and after `eval`, and how each command ended."""

    scratch: Path
    first: dict[str, Any]
    second: dict[str, Any]
    ended: dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    scratch = tmp_path_factory.mktemp("runs")
    (scratch / "fake.py").write_text(HEAD + FAKE, encoding="utf-8")
    assert tiny.short_book(scratch / "book") == f"folder:{scratch}/book"
    for logs in ("logs1", "logs2"):
        (scratch / logs).mkdir()
    train = ["train", *(fill(argument, scratch, scratch) for argument in BOTH), f"--workdir={scratch / 'run'}"]
    trained = tiny.launches([train], scratch / "logs1")
    assert trained[0][0] == 0, trained[0][2]
    results = scratch / "run" / "results.json"
    first = json.loads(results.read_text(encoding="utf-8"))
    results.unlink()
    lines = [[fill(argument, scratch, scratch) for argument in line] for line in AGAIN.values()]
    ended = dict(zip(AGAIN, tiny.launches(lines, scratch / "logs2"), strict=True))
    assert ended["eval"][0] == 0, ended["eval"][2]
    return Runs(scratch, first, json.loads(results.read_text(encoding="utf-8")), ended)


def test_a_run_leaves_its_results(runs: Runs) -> None:
    assert set(runs.first) == {"tasks", "step", "fingerprint"}
    assert runs.first["step"] == 4
    assert runs.first["fingerprint"]
    assert set(runs.first["tasks"]) == {"gpt", "vit"}
    for task in runs.first["tasks"].values():
        assert task["metric"]
        assert math.isfinite(task["value"])
        assert math.isfinite(task["baseline"])


def test_a_run_leaves_a_report(runs: Runs) -> None:
    page = (runs.scratch / "run" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert runs.first["fingerprint"] in page
    assert all(task["metric"] in page for task in runs.first["tasks"].values())


def test_metrics_have_a_line_per_logged_step_and_task(runs: Runs) -> None:
    lines = [json.loads(line) for line in (runs.scratch / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert sorted((line["task"], line["step"]) for line in lines) == [("gpt", 2), ("gpt", 4), ("vit", 2), ("vit", 4)]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_eval_finds_the_same_values(runs: Runs) -> None:
    assert runs.second == runs.first


def test_a_workdir_belongs_to_one_config(runs: Runs) -> None:
    for name, fields in {
        "another config": ("optimizer.learning_rate: 0.003 there, 0.5 now", "seed: 0 there, 7 now"),
        "eval of another config": ("seed: 0 there, 7 now",),
        "other tasks": ("tasks.vit.",),
    }.items():
        code, _, err = runs.ended[name]
        assert code == 2, err
        assert len(err.splitlines()) == 1, err
        assert err.startswith(f"error: workdir {runs.scratch / 'run'} belongs to another config")
        assert all(field in err for field in fields), err


def test_a_dry_run_says_what_would_run_and_writes_nothing(runs: Runs) -> None:
    code, out, err = runs.ended["dry run"]
    assert code == 0, err
    assert not (runs.scratch / "dry").exists()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "data=2, fsdp=2, tensor=1, sequence=1 on 4" in lines["mesh"]
    assert "steps      4, schedule 'sum'" in out
    assert "batch 8, weight 1" in lines["task"]
    # Each query projection is [layers=2, embed=32, heads=4, head_size=8] float32, and fsdp halves it.
    row = lines["backbones.shared.layers.attention.query.kernel"]
    assert "2×32×4×8" in row
    assert "embed·heads" in row
    assert f"{2 * 32 * 4 * 8 * 4 // 2:,} B/device" in row
    shapes = [line.split()[1] for line in out.splitlines() if line.endswith("B/device")]
    total = sum(math.prod(int(n) for n in shape.split("×")) if shape != "scalar" else 1 for shape in shapes)
    bytes_each = sum(int(line.split()[-2].replace(",", "")) for line in out.splitlines() if line.endswith("B/device"))
    assert f"{total:,} in {len(shapes)} arrays, {bytes_each:,} bytes per device" in lines["parameters"]


def test_fake_data_trains_without_data(runs: Runs) -> None:
    code, _, err = runs.ended["fake data"]
    assert code == 0, err
    assert set(tiny.logged(runs.scratch / "fake")["vit"]) == {1, 2}
    assert not (runs.scratch / "fake" / "results.json").exists()
