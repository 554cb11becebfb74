"""launch.py as a user meets it: every slip is one line and exit code 2, and a run leaves what it promises."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

import unimodal

TINY = f"--config={tiny.ROOT / 'tests' / 'tiny.py'}"
GPT, VIT = f"{TINY}:gpt", f"{TINY}:vit"

# name: (arguments, what the one line says). {work} is a workdir that does not exist, {scratch} a folder that does.
WORKDIR = "--workdir={work}"
SLIPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown field": (("train", GPT, WORKDIR, "--config.stepz=3"), ("stepz", "steps")),
    "unknown nested field": (("train", GPT, WORKDIR, "--config.mesh.dat=2"), ("dat", "data")),
    "unknown field of a task": (("train", GPT, WORKDIR, "--config.tasks.gpt.texts.lengh=3"), ("lengh", "length")),
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
        ("'smell' is not one of audio, codebook, image",),
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
    "an unknown flag": (
        ("train", GPT, WORKDIR, "--workdri=3"),
        ("train has no flag --workdri; did you mean workdir?",),
    ),
    "another command's flag": (("train", GPT, WORKDIR, "--topology=cpu:8"), ("train has no flag --topology",)),
    "a flag without its value": (("train", GPT, "--workdir"), ("--workdir needs a value: --workdir=DIR",)),
    "a step that is none": (("eval", WORKDIR, "--step=last"), ("--step must be a whole number, but is 'last'",)),
    "a switch set to a word": (("train", GPT, WORKDIR, "--fake_data=perhaps"), ("--fake_data is true or false",)),
    "a stray word": (
        ("train", GPT, WORKDIR, "steps=3"),
        ("unexpected argument 'steps=3'; did you mean --config.steps=3?",),
    ),
    "initials": (
        ("train", GPT, WORKDIR, "--config.optimizer.lr=1"),
        ("unknown config field optimizer.lr; did you mean learning_rate?",),
    ),
    "a field of a value": (("train", GPT, WORKDIR, "--config.steps.x=1"), ("steps.x: steps is a value, not a group",)),
    "a group for a field": (("train", GPT, WORKDIR, "--config.mesh=1"), ("mesh is a group", "data, fsdp")),
    "a word for yes or no": (
        ("train", "--config=vit:size=tiny", WORKDIR, "--config.backbones.shared.scan=maybe"),
        ("backbones.shared.scan must be true or false, but is 'maybe'",),
    ),
    "unknown recipe": (("train", "--config=demmo", WORKDIR), ("no recipe 'demmo'", "did you mean demo?")),
    "a folder for a recipe": (("train", "--config=configs", WORKDIR), ("no recipe 'configs'",)),
    "a recipe that takes no argument": (("train", "--config=demo:size=tiny", WORKDIR), ("takes no argument",)),
    "a recipe that lacks its argument": (
        ("train", "--config={scratch}/needy.py", WORKDIR),
        ("the recipe {scratch}/needy.py takes an argument, as in needy:ARGUMENT",),
    ),
    "a recipe with a slip in it": (
        ("train", "--config={scratch}/syntax.py", WORKDIR),
        ("{scratch}/syntax.py, line 7: SyntaxError",),
    ),
    "a recipe without get_config": (("train", "--config={scratch}/void.py", WORKDIR), ("void.py has no get_config()",)),
    "a recipe that returns nothing": (
        ("train", "--config={scratch}/nothing.py", WORKDIR),
        ("get_config() of {scratch}/nothing.py must return a ConfigDict, but returns NoneType",),
    ),
    "a task with a slip in it": (
        ("train", "--config={scratch}/own_syntax.py", WORKDIR),
        ("{scratch}/tasks/own_syntax.py, line 2: SyntaxError",),
    ),
    "a task that imports what there is not": (
        ("train", "--config={scratch}/own_import.py", WORKDIR),
        ("{scratch}/tasks/own_import.py, line 3: ModuleNotFoundError: No module named 'nowhere'",),
    ),
    "a task under another name": (
        ("train", "--config={scratch}/own_name.py", WORKDIR),
        ("{scratch}/tasks/own_name.py has no class OwnName",),
    ),
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
    "syntax": "    return (\n",
    "nothing": "    pass\n",
    **{
        name: f"    c = tiny.get_config('vit')\n    c.tasks = dict({name}=dict())\n    return c\n"
        for name in ("own_syntax", "own_import", "own_name")
    },
    "bare": "    from configs import common\n\n    return common.base()\n",
}
OWN_TASKS = {
    "own_syntax": "x = 1\nclass OwnSyntax(:\n",
    "own_import": "def f():\n    import nowhere\nimport nowhere\n",
    "own_name": "class Own_name:\n    pass\n",
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
    (scratch / "void.py").write_text("x = 1\n", encoding="utf-8")
    (scratch / "needy.py").write_text("def get_config(size):\n    pass\n", encoding="utf-8")
    (scratch / "tasks").mkdir()
    for name, text in OWN_TASKS.items():
        (scratch / "tasks" / f"{name}.py").write_text(text, encoding="utf-8")
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
    c.tasks.vit.labels = dict(count=9)  # what the data would have said
    c.steps = 2
    return c
"""
BOTH = (
    f"{TINY}:gpt,vit", "--config.steps=4", "--config.log_every=2", "--config.tasks.gpt.source=folder:{scratch}/book"
)  # fmt: skip
MORE = ("--config.steps=8", "--config.eval_limit=1", "--config.log_every=4")
AGAIN: dict[str, tuple[str, ...]] = {
    "eval": ("eval", *BOTH, "--workdir={scratch}/run"),
    "eval alone": ("eval", "--workdir={scratch}/alone"),
    "eval at another limit": ("eval", "--workdir={scratch}/alone", "--config.eval_limit=1", "--step=4"),
    "eval at no step": ("eval", "--workdir={scratch}/alone", "--step=3"),
    "eval of another config": ("eval", *BOTH, "--config.seed=7", "--workdir={scratch}/run"),
    "another config": (
        "train", *BOTH, "--config.seed=7", "--config.optimizer.learning_rate=0.5", "--workdir={scratch}/run"
    ),
    "other tasks": ("train", GPT, *BOTH[1:], "--workdir={scratch}/run"),
    "more steps": ("train", *BOTH, *MORE, "--workdir={scratch}/longer"),
    "eval of more steps": ("eval", "--workdir={scratch}/longer"),
    "fewer steps": ("train", *BOTH, "--config.steps=3", "--workdir={scratch}/run"),
    "a folder for the results": ("train", *BOTH, "--config.steps=9", "--workdir={scratch}/folders"),
    "a folder for the report": ("eval", "--workdir={scratch}/folders"),
    "classes": (
        "train", "--config=vit:size=tiny", "--dry_run", "--config.tasks.vit.labels.classes=cat, dog", "--config.mesh.data=1"
    ),
    "dry run": ("train", *BOTH, "--dry_run", "--workdir={scratch}/dry", "--config.mesh.data=2", "--config.mesh.fsdp=2"),
    "fake data": ("train", "--config={scratch}/fake.py", "--fake_data", "--workdir={scratch}/fake"),
    "eval of fake data": ("eval", "--workdir={scratch}/fake"),
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
    for copy in ("alone", "longer", "folders"):
        shutil.copytree(scratch / "run", scratch / copy)
    (scratch / "folders" / "report.html").unlink()
    (scratch / "folders" / "report.html").mkdir()
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


def results_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))


def test_eval_needs_the_workdir_alone(runs: Runs) -> None:
    """Its config.json says the rest; the second of the two evaluated a batch, or a step, of choice."""
    for name in ("eval alone", "eval at another limit"):
        assert runs.ended[name][0] == 0, runs.ended[name][2]
    assert results_of(runs.scratch / "alone") == runs.first
    code, _, err = runs.ended["eval at no step"]
    assert code == 2 and len(err.splitlines()) == 1, err
    code, _, err = runs.ended["eval of fake data"]
    assert (code, err) == (
        2,
        f"error: {runs.scratch / 'fake'} was trained on random batches: there is nothing to evaluate it on\n",
    )


def test_a_config_that_a_run_has_left_can_be_built(runs: Runs) -> None:
    for name, fake in (("run", False), ("fake", True)):
        config = json.loads((runs.scratch / name / "config.json").read_text(encoding="utf-8"))
        assert config["fake_data"] is fake
        assert tiny.build(config).fake_data is fake


def test_more_steps_train_longer(runs: Runs) -> None:
    code, out, err = runs.ended["more steps"]
    assert code == 0, err
    assert results_of(runs.scratch / "longer")["step"] == 8
    assert set(tiny.logged(runs.scratch / "longer")["gpt"]) == {2, 4, 8}
    # Five steps of warm-up to 0.003 in either; at step 4 it is 4/5 of the way of 4 steps (the warm-up is cut), or of 5.
    said = "steps: 4 there, 8 now; from step 4 on the learning rate is that of 8 steps: 0.0024 here, where it was 0.003"
    assert said in out
    config = json.loads((runs.scratch / "longer" / "config.json").read_text(encoding="utf-8"))
    assert (config["steps"], config["eval_limit"], config["log_every"]) == (8, 1, 4)
    assert runs.ended["eval of more steps"][0] == 0
    code, _, err = runs.ended["fewer steps"]
    assert code == 2
    assert err == (
        f"error: {runs.scratch / 'run'} has been trained for 4 steps, more than steps=3: give at least as many, or "
        f"another workdir\n"
    )


def test_what_may_differ_is_named_by_patterns(tmp_path: Path) -> None:
    from unimodal.command.runs import MAY_DIFFER
    from unimodal.training.workdir import claim_workdir

    old = dict(steps=2, mesh=dict(data=1), tasks=dict(a=dict(beam=0, length=3)), backbones=dict(b=dict(remat="none")))
    assert claim_workdir(tmp_path, old, may_differ=MAY_DIFFER) == {}
    new = dict(steps=3, mesh=dict(data=2), tasks=dict(a=dict(beam=4, length=3)), backbones=dict(b=dict(remat="full")))
    differ = claim_workdir(tmp_path, new, may_differ=MAY_DIFFER)
    assert differ == {
        "steps": (2, 3), "mesh.data": (1, 2), "tasks.a.beam": (0, 4), "backbones.b.remat": ("none", "full")
    }  # fmt: skip
    assert claim_workdir(tmp_path, old, may_differ=MAY_DIFFER, renew=True) == {}
    assert claim_workdir(tmp_path, new, may_differ=MAY_DIFFER, renew=True) == differ
    assert claim_workdir(tmp_path, new) == {}
    with pytest.raises(unimodal.UsageError, match=r"tasks\.a\.length: 3 there, 4 now"):
        claim_workdir(tmp_path, {**new, "tasks": dict(a=dict(beam=4, length=4))}, may_differ=MAY_DIFFER)
    with pytest.raises(unimodal.UsageError, match=r"steps_more: None there, 4 now"):
        claim_workdir(tmp_path, {**new, "steps_more": 4}, may_differ=MAY_DIFFER)


def test_a_folder_for_a_file_is_said_before_training(runs: Runs) -> None:
    for name in ("a folder for the results", "a folder for the report"):
        code, _, err = runs.ended[name]
        assert code == 2
        assert err.startswith(f"error: cannot write {runs.scratch / 'folders' / 'report.html'}: it is a folder")
        assert len(err.splitlines()) == 1
    assert json.loads((runs.scratch / "folders" / "config.json").read_text(encoding="utf-8"))["steps"] == 4


def test_words_with_commas_are_several(runs: Runs) -> None:
    code, out, err = runs.ended["classes"]
    assert code == 0, err
    assert re.search(r"heads\.vit\S*kernel +128×2 ", out), out


def command_line(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = tiny.command(*arguments)
    return subprocess.run(line, cwd=tiny.ROOT, env=tiny.environment(1), capture_output=True, text=True, **options)


def test_help_and_version_are_quick() -> None:
    """They import neither the tasks nor what trains."""
    program = (
        "import sys; sys.argv = ['launch.py', *sys.argv[1:]]; import launch; code = launch.main(sys.argv); "
        "heavy = {'orbax', 'grain', 'unimodal.command.runs', 'unimodal.experiment'} & set(sys.modules); "
        "from jax._src import xla_bridge; sys.exit(code or bool(heavy) or xla_bridge.backends_are_initialized())"
    )
    for words, says in {
        ("--help",): ("train", "eval", "plan", "doctor", "pod", "COMMAND --help"),
        ("help", "train"): ("--config=NAME", "--workdir=DIR", "--fake_data", "--config.FIELD=VALUE"),
        ("eval", "-h"): ("--step=N", "--workdir alone"),
        ("plan", "--help"): ("--topology=KIND:SHAPE", "--json=FILE"),
        ("--version",): (f"unimodal {unimodal.__version__}",),
    }.items():
        line = [sys.executable, "-c", program, *words]
        done = subprocess.run(line, cwd=tiny.ROOT, env=tiny.environment(1), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert all(text in done.stdout for text in says), done.stdout
    shown = command_line("pod", "--help").stdout
    assert all(f"--{name}" in shown for name in ("platform", "topology", "spot", "dry_run"))


def test_a_second_interrupt_is_one_line(tmp_path: Path) -> None:
    """The first asks the loop to stop; the second ends it where it is."""
    line = tiny.command("train", GPT, f"--workdir={tmp_path / 'run'}", "--config.steps=1000000", "--fake_data")
    with (tmp_path / "err").open("wb") as log:
        child = subprocess.Popen(line, cwd=tiny.ROOT, env=tiny.environment(1), stdout=subprocess.DEVNULL, stderr=log)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    time.sleep(0.005)
    os.kill(child.pid, signal.SIGINT)
    code = child.wait(timeout=100)
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said, said
    assert code in (75, 130)  # 75: it had stopped in order before the second came
    assert code == 75 or said.endswith(
        "error: interrupted; the same command goes on from the last checkpoint, if there is one\n"
    )


def test_an_interrupt_anywhere_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import launch
    from unimodal.command import runs as program

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "load_recipe", interrupted)
    assert launch.main(["launch.py", "train", "--config=demo", "--workdir=nowhere"]) == 130
    assert capsys.readouterr().err.splitlines() == [
        "error: interrupted; the same command goes on from the last checkpoint, if there is one"
    ]


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import launch
    from unimodal.command import runs as program

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(program, "run_train", full)
    assert launch.main(["launch.py", "train", "--config=demo", "--workdir=nowhere"]) == 74
    advice = "mend this, and run the same command to go on"
    assert capsys.readouterr().err == f"error: runs/x/metrics.jsonl: No space left on device; {advice}\n"


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
