"""A config of every task in tasks/, small enough that XLA compiles it in seconds, and ways to run it.

In this process: `train(plain(...), workdir)`. As a user would: `--config=tests/tiny.py:gpt,vit` on launch.py's command line.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # launch.py, tasks/ and configs/ are no part of the installed package
    sys.path.insert(0, str(ROOT))

KINDS = sorted(path.stem for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__")

# What each task needs to be small; a task that is not named here is run with its own defaults and a batch of 8.
SMALL: dict[str, dict[str, Any]] = {
    "gpt": dict(texts=dict(length=16), source="embedded:book"),  # named, so that a command line can name another
    "bert": dict(texts=dict(length=16)),
    "clip": dict(texts=dict(length=16), size=16),
    "composed": dict(texts=dict(length=16), size=16, pictures=dict(count=2), words_alone=0.0),
    "pic2word": dict(
        texts=dict(length=15), size=16, pictures=dict(count=2), image_backbone="shared", text_backbone="shared",
        word=dict(hidden=16, norm="none"),
    ),
    "dalle": dict(texts=dict(length=16), unconditional=0.0),
    "virtex": dict(texts=dict(length=16), beams=2),
    "sentence": dict(texts=dict(length=16), size=16),
    "text_classifier": dict(texts=dict(length=16)),
    "wav2vec2": dict(sounds=dict(seconds=0.3), codes=8, code_size=16, size=16, negatives=5, span=3),
    "imagegpt": dict(pixels=dict(count=16), size=(4, 4)),
    # Temperatures and norms that suit eight examples: others magnify what devices round otherwise.
    "simclr": dict(views=dict(crop=(0.5, 1.0)), temperature=0.5, projector=dict(norm="layer")),
    "moco": dict(views=dict(crop=(0.5, 1.0)), temperature=0.5, projector=dict(norm="layer", last_norm=False)),
    "swav": dict(views=dict(crop=(0.5, 1.0)), temperature=0.5, projector=dict(norm="layer"), prototypes=6),
    "mae": dict(decoder_backbone="shared"),
    "ctc": dict(sounds=dict(segments="phrases", seconds=2.4), transcripts=dict(characters=48)),
}  # fmt: skip
OPTIMIZER = dict(learning_rate=3e-3, warmup=5, final=0.1, b1=0.9, b2=0.98, weight_decay=0.05, clip=1.0, accumulate=1)


def plain(*kinds: str, **changes: Any) -> dict[str, Any]:
    """The config as nested dictionaries. `changes`: dotted fields with double underscores, as in mesh__fsdp=8."""
    config: dict[str, Any] = dict(
        seed=0,
        steps=20,
        log_every=1,
        mesh=dict(data=1),
        optimizer=dict(OPTIMIZER),
        tokenizers=dict(
            text=dict(vocabulary=264, max_length=16),
            image=dict(image_size=(16, 16), patch=8, registers=1),
            spectrogram=dict(kind="image", image_size=(16, 24), patch=8, channels=1),
            codes=dict(kind="codebook", image_size=(16, 16), vocabulary=16, hidden=8, groups=3, blocks=1, code_size=8),
            audio=dict(channels=16, kernels=(40, 8), strides=(40, 8), position_kernel=4, position_groups=4),
        ),
        backbones=dict(shared=dict(width=32, depth=2, heads=4)),
        tasks={kind: dict(batch_size=8, **SMALL.get(kind, {})) for kind in kinds or KINDS},
    )
    config = copy.deepcopy(config)
    for field, value in changes.items():
        *path, last = field.split("__")
        place = config
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return config


def get_config(kinds: str = ",".join(KINDS)) -> Any:
    """The same for launch.py: `--config=tests/tiny.py:gpt,vit`."""
    from ml_collections import ConfigDict

    from configs import common

    config = common.base()
    small = plain(*kinds.split(","))
    for name in ("tokenizers", "backbones", "tasks"):
        config[name] = ConfigDict(small.pop(name))
    config.update(ConfigDict(small))
    return config


def short_book(folder: Path) -> str:
    """The source of a few pages of the embedded book, written below `folder`: whole evaluations of it take a second."""
    from unimodal.data.sources import open_source

    for split, characters in (("train", 4000), ("validation", 1500)):
        (folder / split).mkdir(parents=True)
        text = open_source("embedded:book", split)[0]["text"][:characters]
        (folder / split / "pages.txt").write_text(text, encoding="utf-8")
    return f"folder:{folder}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What `train` came to: the state, its fingerprint, whether all steps are done, and the metrics by task."""

    experiment: Any
    state: Any
    fingerprint: str
    done: bool
    metrics: dict[str, dict[int, dict[str, float]]]

    def losses(self, task: str) -> dict[int, float]:
        """Loss by step."""
        return {step: values["loss"] for step, values in self.metrics[task].items()}


def build(config: Mapping[str, Any], *, fake_data: bool = False) -> Any:
    """The Experiment of a plain config."""
    import launch
    from unimodal.experiment import build as build_experiment

    return build_experiment(config, launch.task_class, fake_data=fake_data)


def train(config: Mapping[str, Any], workdir: Path, *, wrap: Any = None, fake_data: bool = False) -> Run:
    """Train in this process; `wrap(name, batches)` may stand between the data and the loop."""
    from unimodal.training.loop import train as run
    from unimodal.training.work import Work

    experiment = build(config, fake_data=fake_data)
    batches = {task.name: experiment.train_batches(task) for task in experiment.tasks}
    if wrap is not None:
        batches = {name: wrap(name, iterator) for name, iterator in batches.items()}
    work = Work(experiment.tasks, batches, experiment.tokens)
    state, fingerprint, done = run(experiment.program, work, experiment.loop, workdir)
    return Run(experiment, state, fingerprint, done, logged(workdir))


def logged(workdir: Path) -> dict[str, dict[int, dict[str, float]]]:
    """metrics.jsonl as {task: {step: metrics}}. Fails if a step was logged twice."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        steps = found.setdefault(record.pop("task"), {})
        step = record.pop("step")
        assert step not in steps, f"step {step} was logged twice in {workdir}"
        steps[step] = record
    return found


def environment(devices: int = 8, **more: str) -> dict[str, str]:
    """The environment of a child process: as this one's, on so many CPU devices, finding the package."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    fixed = dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices), TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH=paths)
    return {**os.environ, **fixed, **more}


def command(*arguments: str, launch: Path = ROOT / "launch.py") -> list[str]:
    """launch.py as a command line."""
    return [sys.executable, str(launch), *arguments]


# Imports launch.py once and runs each command line of standard input in a fork of its own: a process as fresh as a
# user's, without seconds of importing each time. Nothing of JAX has started threads by then.
_FORKS = """
import json, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import launch, unimodal.command.runs
for number, arguments in enumerate(json.load(sys.stdin)):
    folder = pathlib.Path(sys.argv[2], str(number))
    folder.mkdir()
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["launch.py", *arguments]
        code = 70
        try:
            code = launch.main(sys.argv)
        except SystemExit as error:
            code = error.code
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    (folder / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def launches(
    command_lines: Sequence[Sequence[str]], scratch: Path, devices: int = 8, folder: Path = ROOT
) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of launch.py with each of the command lines, run in `folder`."""
    subprocess.run(
        [sys.executable, "-c", _FORKS, str(ROOT), str(scratch)],
        input=json.dumps([list(line) for line in command_lines]),
        env=environment(devices),
        cwd=folder,
        check=True,
        text=True,
    )
    read = [
        [(scratch / str(i) / name).read_text() for name in ("code", "out", "err")] for i in range(len(command_lines))
    ]
    return [(int(code), out, err) for code, out, err in read]
