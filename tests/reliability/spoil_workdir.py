"""The files of a workdir beside its checkpoints, and all that the commands read of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import tiny
from etils import epath

from unimodal.command.recipe import as_plain, config_of_workdir
from unimodal.data.skipped import FILE as SKIPPED
from unimodal.data.skipped import Ledger
from unimodal.kept import FILE as LEARNED
from unimodal.kept import with_learned
from unimodal.scores import FILE as SCORES
from unimodal.scores import read_scores
from unimodal.settings import read_settings
from unimodal.training.alone import FILE_NAME as LOCK
from unimodal.training.alone import alone
from unimodal.training.metrics import MetricsWriter, read_metrics
from unimodal.training.status import Status
from unimodal.training.workdir import claim_workdir

WORKDIR_FILES = ("config.json", "metrics.jsonl", SKIPPED, LEARNED, LOCK, "status.json", "last_words.json", SCORES)


def config() -> dict[str, object]:
    return json.loads(json.dumps(tiny.plain("vit")))


def write_workdir(folder: Path) -> None:
    claim_workdir(folder, config())
    with contextlib.closing(MetricsWriter(folder, resume_step=0)) as writer:
        for step in range(1, 9):
            writer.write(step, "vit", {"loss": 1 / step, "accuracy": float("nan")})
    entry = dict(source="folder:x", split="train", id="a/é.png", reason="not an image")
    (folder / SKIPPED).write_text(json.dumps(entry, ensure_ascii=False) + "\n", "utf-8")
    (folder / LEARNED).write_text(json.dumps({"tasks.vit.labels.classes": ["cat", "dog"]}))
    (folder / LOCK).write_text(json.dumps({"host": "h", "pid": 1, "since": "2026-01-01 00:00:00"}))
    for name in ("status.json", "last_words.json"):
        (folder / name).write_text("{}")
    row = dict(metric="accuracy", value=0.5, baseline=0.25, baseline_is="chance", higher_is_better=True, details={})
    (folder / SCORES).write_text(json.dumps(dict(tasks=dict(vit=row), step=8, fingerprint="9f3a")))


def read_workdir(folder: Path) -> None:
    """What train, eval and predict read. Raises UsageError as they do."""
    place = epath.Path(folder)
    import launch

    with alone(folder):
        meaning = lambda plain: read_settings(plain, launch.task_class).as_plain()  # noqa: E731
        claim_workdir(folder, config(), renew=True, may_differ=("*",), meaning=meaning)
        plain = with_learned(place, as_plain(config_of_workdir(place)))
        read_settings(plain, launch.task_class)
        Ledger().list_in(folder / SKIPPED)
        read_metrics(folder)
        with contextlib.closing(MetricsWriter(folder, resume_step=3)) as writer:
            writer.write(4, "vit", {"loss": 1.0})
        with Status(folder, 9):
            pass
    read_metrics(folder)
    read_scores(place)
