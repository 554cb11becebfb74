"""Pictures of one's own: tasks bring nothing of the embedded emoji with them, and captions lie where people put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from configs import clip, demo, vit
from tasks.clip import Clip
from tasks.text_classifier import TextClassifier
from tasks.vit import Vit
from unimodal.data.blocks import Images
from unimodal.data.text import ByteEncoder
from unimodal.settings import read_settings


def test_defaults_of_tasks_are_nobodys() -> None:
    plain: Any = Images(crop=(1.0, 1.0), flip=0.0, shift=0, jitter=(0.0, 0.0, 0.0))
    assert Vit().images == Clip().images == plain
    assert Clip().texts.phrases == TextClassifier().texts.column == ""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    made = plain.part((16, 16)).make(picture, np.random.default_rng(1), True)["image"]
    np.testing.assert_allclose(made, picture / 127.5 - 1, atol=1e-6)  # as it is, in training too


def test_the_demo_says_what_its_numbers_were_made_with() -> None:
    tasks = demo.get_config().tasks
    emoji = dict(crop=(0.6, 1.0), shift=2, jitter=(0.2, 0.2, 0.2))
    assert {name: tasks.vit.images[name] for name in (*emoji, "flip")} == {**emoji, "flip": 0.5}
    assert {name: tasks.clip.images[name] for name in (*emoji, "flip")} == {**emoji, "flip": 0.0}
    assert tasks.clip.texts.phrases == "keywords"
    # Of the papers: ImageNet's crops and mirror images (Szegedy 2015), and CLIP's crops alone (§2.4).
    assert vit.get_config("paper").tasks.vit.images.flip == 0.5
    assert clip.get_config("paper").tasks.clip.images.flip == 0.0


@pytest.mark.parametrize("place", ["beside", "metadata.csv"])
def test_clip_reads_pictures_with_captions(tmp_path: Path, place: str) -> None:
    rng, lines = np.random.default_rng(0), ["file_name,caption"]
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(tmp_path / f"photo{i}.png")
        if place == "beside":
            (tmp_path / f"photo{i}.txt").write_text(f"no. {i} of us\n", encoding="utf-8")
        lines.append(f"photo{i}.png,no. {i} of us")
    if place != "beside":
        (tmp_path / place).write_text("\n".join(lines) + "\n", encoding="utf-8")
    experiment = tiny.build(tiny.plain("clip", tasks__clip__source=f"folder:{tmp_path}"))
    task, found = experiment.tasks[0], set()
    for split in ("train", "validation"):
        dataset = task.inputs(experiment.model).dataset(split)
        for i in range(len(dataset)):
            found.add(ByteEncoder().decode(dataset[i]["ids"]))
    assert found == {f"no. {i} of us" for i in range(20)}
    batch = next(experiment.train_batches(task))
    assert batch["image"].shape == (8, 16, 16, 3) and len(set(map(bytes, batch["ids"]))) == 8


def test_the_recipes_of_clip_read_them_too(tmp_path: Path) -> None:
    import launch

    for i in range(20):
        Image.new("RGB", (24, 24), (12 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"red, {i}", encoding="utf-8")
    for size in ("tiny", "paper"):
        config = clip.get_config(size)
        config.tasks.clip.source = f"folder:{tmp_path}"
        task = read_settings(launch.as_plain(config), launch.task_class).tasks[0]
        part = task.texts.part(config.tokenizers.text.vocabulary)
        record = {"id": "0", "text": "red, 0"}
        made = part.make(part.read(record), np.random.default_rng(0), True)["ids"]
        assert ByteEncoder().decode(made) == "red, 0"
