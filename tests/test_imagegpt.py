"""ImageGPT: palettes of real pixels, transformers' own logits from its checkpoint, and no pixel sees itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from quick import quick
from sklearn.cluster import KMeans
from test_init_from import REFERENCES, started

from unimodal import interop
from unimodal.data import Dataset, open_source
from unimodal.data.blocks import Inputs, Pixels
from unimodal.data.palette import fit_palette, palette_error
from unimodal.errors import UsageError
from unimodal.evaluation.colours import nats_per_pixel, unigram
from unimodal.objectives import shifted_right


def emoji_pixels() -> np.ndarray:
    source = open_source("embedded:emoji", "train")
    return np.concatenate([Pixels().read(source[i]).reshape(-1, 3)[::7] for i in range(0, 200, 4)])


def folder(path: Path, colours: list[tuple[int, int, int]]) -> str:
    """Pictures of one colour each, in a folder of both splits."""
    for split in ("train", "validation"):
        (path / split).mkdir(parents=True)
        for i, colour in enumerate(colours):
            Image.fromarray(np.full((4, 4, 3), colour, np.uint8)).save(path / split / f"{i}.png")
    return f"folder:{path}"


def test_a_palette_is_as_near_as_scikit_learns() -> None:
    pixels = emoji_pixels()
    ours = fit_palette(pixels, 32)
    theirs = KMeans(32, n_init=1, random_state=0, max_iter=50).fit(pixels.astype(np.float64)).cluster_centers_
    assert ours.dtype == np.uint8 and 28 <= len(ours) <= 32
    assert palette_error(pixels, ours) < 1.1 * palette_error(pixels, theirs)
    np.testing.assert_array_equal(ours, fit_palette(pixels, 32))
    assert (np.diff(ours.astype(int).sum(axis=1)) >= 0).all()  # from dark to light


def test_few_colours_are_a_palette_themselves(tmp_path: Path) -> None:
    colours = [(250, 250, 250), (0, 0, 9), (200, 10, 10)]
    source = folder(tmp_path, colours)
    block = Pixels(count=8)
    assert block.palette(source).tolist() == [list(c) for c in sorted(colours, key=sum)]
    part = block.row(source, (4, 4))
    ids = part.make(part.read(open_source(source, "train")[0]), np.random.default_rng(0), False)["ids"]
    assert ids.tolist() == [2] * 16
    assert block.picture(source, ids, (4, 4)).tolist() == np.full((4, 4, 3), 250).tolist()
    kept = dataclasses.replace(block, colours=tuple(block.learned(source)["colours"]))
    kept.check(source)
    np.testing.assert_array_equal(kept.palette("folder:nowhere"), block.palette(source))  # no data is needed


def test_a_palette_of_other_data_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, [(250, 20, 20), (20, 250, 20), (240, 240, 20)])
    with pytest.raises(
        UsageError, match="a palette that was made for other data: pixels of folder:.*leave colours unset"
    ):
        Pixels(colours=(0, 0, 250, 40, 40, 250)).check(source)
    with pytest.raises(UsageError, match="three numbers from 0 to 255"):
        Pixels(colours=(0, 0, 256))
    with pytest.raises(UsageError, match="vocabulary must be 301"):
        tiny.build(tiny.plain("imagegpt", tasks__imagegpt__pixels=dict(count=300)))


def test_a_palette_is_compared_with_one_that_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path, [(250, 20, 20), (20, 250, 20), (240, 240, 20)])
    given = Pixels(colours=(250, 20, 20, 20, 250, 20, 240, 240, 20))
    given.check(source)
    monkeypatch.setattr("unimodal.data.blocks.pixels.open_source", None)
    monkeypatch.setattr("unimodal.data.blocks.pixels.fit_palette", None)
    given.check(source)


def published(weights: Path = REFERENCES / "imagegpt") -> tuple[Any, Any]:
    found = interop.recipe(weights)
    kind, tokenizer = found.tokenizers["image"]
    config = tiny.plain("imagegpt", init_from=str(weights))
    config["tokenizers"] = {"image": {"kind": kind, **dataclasses.asdict(tokenizer), "dropout": 0.0}}
    config["backbones"] = {"image": {**dataclasses.asdict(found.backbones["image"]), "dropout": 0.0}}
    task = dict(batch_size=8, tokenizer="image", backbone="image", pixels=dict(count=16), size=(4, 4))
    return started({**config, "tasks": {"imagegpt": task}})


def test_the_published_palette_comes_along(tmp_path: Path) -> None:
    weights = Path(shutil.copytree(REFERENCES / "imagegpt", tmp_path / "weights"))
    levels = np.random.default_rng(0).integers(0, 256, (16, 3))
    steps = {"image_processor_type": "ImageGPTImageProcessor", "clusters": (levels / 127.5 - 1).tolist()}
    (weights / "preprocessor_config.json").write_text(json.dumps(steps))
    experiment, _ = published(weights)
    (task,) = experiment.tasks
    np.testing.assert_array_equal(task.pixels.palette("folder:nowhere"), levels)
    (line,) = experiment.start.inputs
    assert "tasks.imagegpt.pixels.colours" in line and "48 numbers" in line and "as there" in line


def test_logits_and_loss_are_those_of_the_published_model() -> None:
    experiment, model = published()
    assert (experiment.start.fresh, experiment.start.unused) == ((), ())
    (task,), known = experiment.tasks, dict(np.load(REFERENCES / "imagegpt" / "reference.npz"))
    inputs = known["in/image"]  # ids as transformers reads them
    # Ours reads what begins a picture and all pixels but the last: so the references', one place on.
    theirs = interop.load_huggingface(REFERENCES / "imagegpt")
    ids = jnp.asarray(np.minimum(inputs, 15), jnp.int32)
    wanted = theirs(image=shifted_right(ids, 16))["logits"]
    found = quick(task.logits)(model, {"ids": ids})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    chances = np.asarray(jax.nn.log_softmax(wanted))
    nats = -np.take_along_axis(chances, np.asarray(ids)[:, :, None], axis=2).mean()
    loss = task.loss(model, {"ids": ids}, key=jax.random.key(0), step=jnp.int32(0))[0]
    np.testing.assert_allclose(loss, nats, rtol=1e-5)
    rows = {name: np.asarray(x).sum() for name, x in task.predict(model, {"ids": ids}).items()}
    scored = nats_per_pixel({**rows, "examples": np.asarray(float(len(ids)))}, pixels=ids.shape[1])
    assert scored["value"] == pytest.approx(nats, rel=1e-5)
    # No pixel sees itself or what comes after it.
    other = ids.at[:, 5].set((ids[:, 5] + 1) % 16)
    moved = np.abs(np.asarray(quick(task.logits)(model, {"ids": other})) - np.asarray(found)).max(axis=(0, 2))
    assert (moved[:6] == 0).all() and (moved[6:] > 0).all()


def test_the_unigram_baseline_counts_training(tmp_path: Path) -> None:
    source = folder(tmp_path, [(0, 0, 0), (0, 0, 0), (255, 255, 255)])
    from unimodal.data.blocks import columns

    block = Pixels(count=2)
    value, what = unigram(columns(source, block.row(source, (4, 4))), 2)({})
    chances = np.array([33 / 50, 17 / 50])
    assert what == "how common each colour is"
    assert value == pytest.approx(-(2 * np.log(chances[0]) + np.log(chances[1])) / 3)


def test_the_unigram_baseline_is_of_all_classes_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are sorted by class: those that are counted must not be the first ones, nor validation be cut short."""
    monkeypatch.setattr("unimodal.evaluation.colours.EXAMPLES", 120)
    rng, colours = np.random.default_rng(0), 32
    chances = rng.dirichlet(np.full(colours, 0.3), size=10)
    rows: Any = {
        split: [{"id": str(i), "ids": rng.choice(colours, 64, p=chances[i // each])} for i in range(10 * each)]
        for split, each in (("train", 60), ("validation", 30))
    }
    value, _ = unigram(Inputs({}, lambda split: Dataset(rows[split], lambda row, _: {"ids": row["ids"]})), colours)({})
    train, valid = (np.stack([row["ids"] for row in rows[split]]).ravel() for split in ("train", "validation"))
    wanted = -np.log((np.bincount(train, minlength=colours) + 1) / (len(train) + colours))[valid].mean()
    assert value == pytest.approx(wanted, rel=0.02)
    first = -np.log((np.bincount(train[: 120 * 64], minlength=colours) + 1) / (120 * 64 + colours))[valid].mean()
    assert first > 1.1 * wanted


def test_samples_keep_what_was_given_and_a_probe_reads_rows_of_colours(tmp_path: Path) -> None:
    source = folder(tmp_path, [(0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)])
    config = tiny.plain(
        "imagegpt", tasks__imagegpt=dict(batch_size=4, source=source, pixels=dict(count=8), size=(4, 4))
    )
    config["evaluations"] = {
        "near": dict(
            kind="knn", source="embedded:emoji", tokenizer="text", causal=True, pixels=dict(count=8), size=(4, 4)
        )
    }
    experiment = tiny.build(config)
    model = experiment.program.model(experiment.program.init())
    measured = experiment.evaluations["imagegpt"].measure(model, experiment.reader)
    assert measured.shown is not None
    rows = experiment.evaluations["imagegpt"].samples(model, measured.shown)
    assert [what for what, _ in rows[0].pictures] == ["original", "completed", "completed", "from nothing"]
    for row in rows:
        original, first, second, _ = (picture for _, picture in row.pictures)
        np.testing.assert_array_equal(original[:2], first[:2])
        np.testing.assert_array_equal(original[:2], second[:2])
    assert 0 <= experiment.evaluations["near"].measure(model, experiment.reader, limit=1).score["value"] <= 1
