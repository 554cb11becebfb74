"""`data inspect` finds what is wrong with a folder that has everything wrong with it, and its page shows what a model sees."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from unimodal.command.data import run_data
from unimodal.data import LEDGER, decode_image, open_source
from unimodal.data.blocks import Images
from unimodal.errors import UsageError
from unimodal.inspection import Looked, look, write_page
from unimodal.inspection.page import histogram
from unimodal.inspection.twins import alike, nearly


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Looked], str]:
    """A folder of 40 captioned pictures in two splits: one is in both, one nearly so, one damaged, one caption is HTML."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        split = "train" if i < 28 else "validation"
        (root / split).mkdir(exist_ok=True)
        pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((24, 24)))
        if i == 3:
            first = pixels
        if i == 5:
            other = pixels
        if i == 30:
            pixels = first
        if i == 31:
            pixels = np.clip(other.astype(int) + 3, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / split / f"{i}.png")
    (root / "train" / "7.png").write_bytes(b"no picture")
    for split, places in (("train", range(28)), ("validation", range(28, 40))):
        rows = [
            f"{i}.png,{'ab'[i % 4 == 0]},{'<b>bold</b>' if i == 4 else 'no. 3' if i in (3, 30) else f'no. {i}'}"
            for i in places
        ]
        rows = [row.replace(f"{30}.png,a", "30.png,a") for row in rows]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,label,text", *rows]), "utf-8")
    LEDGER.clear()
    uri = f"folder:{root}?bad=0.1"
    changes: dict[str, Any] = {f"tasks__{kind}__source": uri for kind in ("vit", "clip", "bert")}
    changes["tasks__bert__source"] = tiny.short_book(tmp_path_factory.mktemp("book"))
    experiment = tiny.build(tiny.plain("vit", "clip", "bert", "audio_classifier", **changes))
    looked = [look(task, experiment.model, limit=200) for task in experiment.tasks]
    path = write_page(root / "page.html", looked, "Data of <x>")
    return looked, path.read_text("utf-8")


def test_the_numbers_are_those_of_the_folder(page: tuple[list[Looked], str]) -> None:
    vit, clip, bert, _ = page[0]
    train, valid = vit.splits
    assert (train.examples, valid.examples) == (28, 12)
    assert train.labels["label"] == {
        "a": 20,
        "b": 7,
    }  # train/7.png cannot be read, and what stands in for it counts once
    assert valid.labels["label"] == {"a": 9, "b": 3}
    assert [name for name, _ in train.skipped] == ["train/7.png"] and "not an image" in train.skipped[0][1]
    assert vit.twins == (("train: train/3.png", "validation: validation/30.png"),)
    assert vit.near == (("train: train/5.png", "validation: validation/31.png"),)
    assert clip.splits[1].lengths["ids"].tolist() == [6 if i != 30 else 5 for i in range(28, 40)]
    assert vit.per_second > 0 and not bert.twins and bert.splits[0].lengths["inputs"].max() == 16
    said = "\n".join(vit.lines())
    for text in ("28 examples, 28 looked at", "cannot be used: ", "in two splits 1 records", "2 values: a 75%, b 25%"):
        assert text in said


def test_the_page_shows_what_a_model_sees(page: tuple[list[Looked], str]) -> None:
    looked, text = page
    assert "Data of &lt;x&gt;" in text and "<b>bold</b>" not in text
    assert not re.search(r"(src|href)=[\"'](?!data:)", text) and "http" not in text.replace("http-equiv", "")
    (name, views), image = looked[0].shown[0], {}
    picture = next(view for view in views if view.name == "image")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.pictures[0].partition(",")[2]))))
    path = Path(re.sub(r"\?.*", "", looked[0].source).removeprefix("folder:")) / name
    pixels = np.asarray(Image.open(path).convert("RGB"))
    seen = Images().fitted(pixels, (16, 16))
    np.testing.assert_allclose(image.astype(int), seen, atol=1)  # no augmentation in this config
    kinds = {view.name: view.kind for _, views in looked[2].shown for view in views}
    assert kinds == {"inputs": "text", "targets": "text", "weights": "picture"}
    masked = next(view for view in looked[2].shown[0][1] if view.name == "inputs")
    assert "▒" in masked.text
    sounds = {view.name: view for view in looked[3].shown[0][1]}
    assert any(view.kind in ("sound", "picture") and view.pictures for view in sounds.values())


def test_pictures_that_were_saved_again_are_found() -> None:
    source = open_source("embedded:emoji", "validation")
    drawn = [source[i] for i in range(len(source))]

    def again(record: dict[str, Any], size: int, quality: int) -> dict[str, Any]:
        out = io.BytesIO()
        Image.fromarray(decode_image(record["image"])).resize((size, size)).save(out, "JPEG", quality=quality)
        return {"id": record["id"], "image": out.getvalue()}

    for size, quality, share in ((32, 90, 0.98), (29, 70, 0.9), (16, 60, 0.65)):
        parts = {
            "train": [(record["id"], nearly(record)) for record in drawn],
            "validation": [(record["id"], nearly(again(record, size, quality))) for record in drawn],
        }
        right = [one.split(": ")[1] == other.split(": ")[1] for one, other in alike(parts)]
        assert sum(right) >= share * len(drawn) and sum(right) >= 0.98 * len(right), (size, len(right), sum(right))
    halves = [[(record["id"], nearly(record)) for record in drawn[first::2]] for first in (0, 1)]
    assert len(alike({"train": halves[0], "validation": halves[1]})) <= 0.05 * len(halves[1])


def test_what_no_run_would_go_on_with_can_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        Image.new("RGB", (20, 20), (4 * i, 0, 0)).save(path)
        if i % 5 == 0:
            path.write_bytes(b"")
    run_data(["inspect", "--config=vit:size=tiny", "--config.tasks.vit.source=folder:photos"], "unimodal")
    said = capsys.readouterr().out
    assert "too many: " in said and "where ?bad=0.05 is the share that training goes on with" in said
    assert (tmp_path / "inspect.html").is_file()
    assert LEDGER.least == 0  # for what the process does next
    LEDGER.clear()


def test_histograms_and_usage() -> None:
    bars = histogram(np.array([3, 3, 4, 9]))
    assert [count for _, count in bars["bars"]] == [2, 1, 0, 0, 0, 0, 1] and bars["bars"][0][0] == "100.0"
    assert len(histogram(np.arange(1000))["bars"]) == 24 and len(histogram(np.array([5]))["bars"]) == 1
    for words, message in (
        ([], "usage: unimodal data inspect|convert"),
        (["look"], "unknown command data 'look'"),
        (["inspect"], "usage: unimodal data inspect --config=NAME"),
        (["inspect", "--config=vit", "--limit=x"], "--limit=x should be a whole number"),
        (["inspect", "--config=vit", "--pages=x"], "no flag --pages; did you mean page"),
    ):
        with pytest.raises(UsageError) as caught:
            run_data(words, "unimodal")
        assert message in str(caught.value)


def test_packed_rows_are_told_and_shown(tmp_path: Path) -> None:
    """How full rows are, how many share one, and each picture of a row in its own proportions."""
    rng = np.random.default_rng(0)
    for i in range(30):
        place = tmp_path / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, ((16, 8, 3), (8, 16, 3))[i % 2], np.uint8)).save(place)
    packed: dict[str, Any] = dict(source=f"folder:{tmp_path}?stratify=label", pack=dict(row=14, most=4), batch_size=8)
    gpt: dict[str, Any] = dict(source="embedded:emoji", packed=True, texts=dict(length=16, column="name"))
    experiment = tiny.build(tiny.plain("vit", "gpt", tasks__vit=packed, tasks__gpt={**gpt, "batch_size": 8}))
    vit, texts = (look(task, experiment.model, limit=40) for task in experiment.tasks)
    train = vit.splits[0]
    count = sum(train.labels["label"].values())
    assert count == 30 - sum(vit.splits[1].labels["label"].values()) > 20
    assert train.lengths["tokens of each"].tolist() == [3] * count and train.lengths["how many in a row"].max() == 4
    np.testing.assert_allclose(train.filled, count * 3 / (-(-count // 4) * 14))
    views = {view.name: view for view in vit.shown[0][1]}
    assert set(views) == {"patches", "label"} and set(views["label"].text.split(", ")) <= {"0: a", "1: b"}
    # A row holds what stands side by side in the folder, so mostly one class: both shapes are in the rows together.
    drawn = [picture for _, shown in vit.shown for view in shown if view.name == "patches" for picture in view.pictures]
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).size for picture in drawn]
    assert set(sizes) == {(8, 16), (16, 8)}
    rows = {view.name: view.text for view in texts.shown[0][1]}
    assert "padding: " in rows["segment"] and set(rows) == {"ids", "segment"}
    assert texts.splits[0].filled and 0.3 < texts.splits[0].filled <= 1
    assert "of each row, the rest is padding" in "\n".join(vit.lines())
    assert "of each row is filled" in write_page(tmp_path / "page.html", [vit, texts], "x").read_text("utf-8")
