"""CLIP between any two modalities, and classes by their names alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from unimodal.data import open_source, write_array_record
from unimodal.data.text import ByteEncoder
from unimodal.errors import UsageError
from unimodal.evaluation.samples import AudioSample, ImageSample

COLOURS = dict(red=(220, 30, 30), green=(30, 200, 30), blue=(30, 30, 220), grey=(120, 120, 120))


def said_and_seen(folder: Path, each: int = 4) -> str:
    """Records with a picture of one colour, a tone and the colour's name, which is also the class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        records = []
        for k, (name, colour) in enumerate(COLOURS.items()):
            for i in range(each):
                picture, sound = io.BytesIO(), io.BytesIO()
                pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(picture, "png")
                wave = np.sin(np.arange(4800) * (0.05 + 0.1 * k)) + 0.1 * rng.standard_normal(4800)
                soundfile.write(sound, (0.5 * wave).astype(np.float32), 16_000, format="wav")
                records.append(
                    dict(
                        id=f"{split}/{name}/{i}",
                        image=picture.getvalue(),
                        audio=sound.getvalue(),
                        caption=name,
                        label=name,
                    )
                )
        write_array_record(folder / f"{split}.array_record", records)
    return f"array_record:{folder}"


def of_pair(source: str, *pair: str, **changes: Any) -> dict[str, Any]:
    sounds = dict(audio_tokenizer="audio", audio_backbone="shared", sounds=dict(seconds=0.3))
    return tiny.plain("clip", tasks__clip=dict(source=source, pair=pair, batch_size=8, size=16, **sounds), **changes)


def test_pictures_and_sounds_without_a_word(tmp_path: Path) -> None:
    run = tiny.train(of_pair(said_and_seen(tmp_path / "data"), "image", "audio", steps=30), tmp_path / "run")
    losses = list(run.losses("clip").values())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    model, evaluation = run.experiment.program.model(run.state), run.experiment.evaluations["clip"]
    measured = evaluation.measure(model, run.experiment.reader)
    assert evaluation.baseline(measured.score)[0] < measured.score["value"] <= 1
    both = [measured.score[f"{way}_recall@5"] for way in ("there", "back")]
    assert measured.score["recall@5"] == pytest.approx(np.mean(both))
    samples = evaluation.samples(model, measured.shown)
    assert len(samples) == 8 and all(isinstance(sample, ImageSample) for sample in samples)


def test_sounds_are_classified_by_names(tmp_path: Path) -> None:
    """The nearest name wins, as by hand, and classes that were never labels of training are found by what they are called."""
    source = said_and_seen(tmp_path / "data")
    config = of_pair(source, "audio", "text", steps=30, tasks__clip__texts=dict(length=16))
    config["evaluations"] = dict(names=dict(kind="zero_shot", source=source, templates=["{}", "a {}"], batch_size=8))
    run = tiny.train(config, tmp_path / "run")
    model, task = run.experiment.program.model(run.state), run.experiment.tasks[0]
    evaluation = run.experiment.evaluations["names"]
    measured = evaluation.measure(model, run.experiment.reader)
    assert evaluation.baseline({}) == (0.25, "chance") and measured.score["value"] > 0.75
    correct = measured.each.columns["correct"]
    assert evaluation.value_of({"correct": correct.sum(), "examples": len(correct)}) == measured.score["value"]
    # By hand: the mean of the two templates' unit embeddings, and the cosine.
    encoder = ByteEncoder()
    said = [task.texts.row(encoder, form.format(name)) for name in sorted(COLOURS) for form in ("{}", "a {}")]
    texts = (
        np.asarray(task.embed_one(model, "text", {"ids": jnp.asarray(np.stack(said))})).reshape(4, 2, -1).mean(axis=1)
    )
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    dataset = evaluation.inputs(model).dataset("validation")
    rows = [dataset[i] for i in range(len(dataset))]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in ("audio", "length", "label")}
    found = np.asarray(task.embed_one(model, "audio", batch)) @ texts.T
    assert measured.score["value"] == np.mean(found.argmax(axis=1) == np.asarray(batch["label"]))
    retrieval = run.experiment.evaluations["clip"]
    samples = retrieval.samples(model, retrieval.measure(model, run.experiment.reader).shown)
    assert all(isinstance(sample, AudioSample) and sample.truth in COLOURS for sample in samples)


def test_pictures_are_classified_by_names_against_raw_pixels(tmp_path: Path) -> None:
    source = said_and_seen(tmp_path / "data")
    config = of_pair(source, "text", "image", tasks__clip__texts=dict(length=16))
    config["evaluations"] = dict(names=dict(kind="zero_shot", source=source))
    experiment = tiny.build(config)
    evaluation = experiment.evaluations["names"]
    # One colour for each class: the mean picture says it all.
    assert evaluation.baseline({}) == (1.0, "nearest class mean of raw pixels")
    model = experiment.program.model(experiment.program.init())
    measured = evaluation.measure(model, experiment.reader)
    assert 0 <= measured.score["value"] <= 1 and measured.score["classes"] == 4
    samples = evaluation.samples(model, measured.shown)
    assert len(samples) == 8 and all(isinstance(sample, ImageSample) and len(sample.guesses) == 3 for sample in samples)
    sick = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model)
    assert np.isnan(evaluation.measure(sick, experiment.reader).score["value"])


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("red", "green", "blue", " red"), "2 classes are called 'red'"),
        (("red", "green", " ", "blue"), "class 2 has an empty name"),
    ],
)
def test_names_that_name_nothing(classes: tuple[str, ...], said: str, tmp_path: Path) -> None:
    folder = said_and_seen(tmp_path / "data").partition(":")[2]
    for split in ("train", "validation"):  # numbers instead of names, which the config then gives
        records = list(open_source(f"array_record:{folder}", split)[i] for i in range(16))
        numbered = [{**record, "label": sorted(COLOURS).index(record["label"])} for record in records]
        Path(folder, f"{split}.array_record").unlink()
        write_array_record(Path(folder, f"{split}.array_record"), numbered)
    config = tiny.plain("clip")
    config["evaluations"] = dict(
        names=dict(kind="zero_shot", source=f"array_record:{folder}", labels=dict(classes=classes))
    )
    with pytest.raises(UsageError, match=said):
        tiny.build(config).evaluations["names"].baseline({})


def test_a_task_that_cannot_be_asked() -> None:
    config = tiny.plain("vit")
    for fields, said in [
        (dict(task="vit"), "tasks.vit does not compare texts"),
        (dict(task="clip"), "none of the tasks: vit"),
        (dict(templates=["a photo"]), "must each have one {} for the name"),
    ]:
        config["evaluations"] = dict(names=dict(kind="zero_shot", source="embedded:emoji", **fields))
        with pytest.raises(UsageError, match=said):
            tiny.build(config)


def test_a_pair_that_cannot_be(tmp_path: Path) -> None:
    for pair, said in [(("text", "text"), "two of image, text, audio"), (("text", "smell"), "two of image, text")]:
        with pytest.raises(UsageError, match=said):
            tiny.build(of_pair("embedded:emoji", *pair))
    with pytest.raises(UsageError, match="clip reads audio and text: audio_tokenizer must name one"):
        tiny.build(tiny.plain("clip", tasks__clip__pair=("audio", "text")))
