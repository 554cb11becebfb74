"""A run's config.json from before fields moved still says what it said."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from unimodal.moved import MOVED, renewed
from unimodal.settings import read_settings

# A task each as config.json had it, where it differs from what a config says today.
BEFORE: dict[str, dict[str, Any]] = {
    "gpt": dict(fields=["text"], encoder="bytes", length=16),
    "bert": dict(fields=["title", "text"], encoder="bytes", length=16),
    "vit": dict(crop=[0.5, 1.0], flip=0.0, shift=1, jitter=[0.1, 0.2, 0.3]),
    "clip": dict(length=16, crop=[0.9, 1.0], shift=0, jitter=[0.0, 0.0, 0.0]),
    "sentence": dict(first=["name"], second=["keywords"], encoder="bytes", length=16),
    "text_classifier": dict(fields=["name"], second=[], classes=["a", "b"], label="label", encoder="bytes", length=16),
    "wav2vec2": dict(seconds=0.3, rate=8000),
    "ctc": dict(seconds=2.4, segments="phrases", transcript="text", characters=48, alphabet="", drop="+", keep=""),
    "audio_classifier": dict(segments="phones", label="group", classes=[], rate=16000),
}
NOW: dict[str, dict[str, Any]] = {
    "gpt": dict(texts=dict(encoder="bytes", length=16)),
    "bert": dict(texts=dict(column="title+text", encoder="bytes", length=16)),
    "vit": dict(images=dict(crop=(0.5, 1.0), flip=0.0, shift=1, jitter=(0.1, 0.2, 0.3))),
    "clip": dict(
        texts=dict(length=16, phrases="keywords"), images=dict(crop=(0.9, 1.0), shift=0, jitter=(0.0, 0.0, 0.0))
    ),
    "sentence": dict(texts=dict(column="name", length=16), second="keywords"),
    "text_classifier": dict(texts=dict(column="name", length=16), second="", labels=dict(classes=("a", "b"))),
    "wav2vec2": dict(sounds=dict(seconds=0.3, rate=8000)),
    "ctc": dict(sounds=dict(seconds=2.4, segments="phrases"), transcripts=dict(characters=48)),
    "audio_classifier": dict(),
}


@pytest.mark.parametrize("kind", sorted(MOVED))
def test_a_config_from_before_means_what_it_meant(kind: str) -> None:
    import launch

    def meaning(fields: dict[str, Any]) -> dict[str, Any]:
        config = tiny.plain(kind)
        config["tasks"] = {"some": dict(kind=kind, batch_size=8, **fields)}
        return read_settings(config, launch.task_class).as_plain()

    before = meaning(BEFORE[kind])
    assert before == meaning(NOW[kind])
    assert before["tasks"]["some"] != meaning({})["tasks"]["some"] or kind == "audio_classifier"


def test_what_is_in_place_stays() -> None:
    config = tiny.plain()
    assert renewed(config) == config
    assert renewed({"tasks": None}) == {"tasks": None}
    assert renewed({"tasks": {"vit": None}}) == {"tasks": {"vit": None}}
