"""What a run from a checkpoint is fed with is what the checkpoint was trained on, or the report says otherwise.

The references are what the published tools make of the same pictures, sounds and texts (tests/reference/interop/preprocess).
"""

from __future__ import annotations

import io
import json
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from test_init_from import REFERENCES, config_for

from tasks.audio_classifier import AudioClassifier
from unimodal import data
from unimodal.brought import with_brought
from unimodal.command.recipe import as_plain
from unimodal.data.blocks import Images, Sounds, Texts
from unimodal.data.image import encode_image
from unimodal.errors import UsageError
from unimodal.interop.preparation import Preparation, published

HERE = REFERENCES / "preprocess"
INPUTS: dict[str, np.ndarray] = dict(np.load(HERE / "inputs.npz"))
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "size": 20,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
CHOSEN = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "resize": (), "resample": "bilinear"}


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / name / "reference.npz") as file:
        return dict(file)


def fed(name: str, modality: str, size: tuple[int, int] = (1, 1), kind: str = "") -> tuple[dict[str, Any], Preparation]:
    """What the directory gives for one tower of that modality, by dotted field."""
    tower: Any = SimpleNamespace(input=modality, kind=kind or modality)
    config: Any = json.loads(path.read_text()) if (path := HERE / name / "config.json").exists() else {}
    found = published(HERE / name, config, {"t": tower}, {"t": SimpleNamespace(image_size=size)})
    return dict(found.fields["t"]), found


def block(cls: Any, fields: dict[str, Any], **more: Any) -> Any:
    return cls(**{name.split(".")[1]: value for name, value in fields.items() if "." in name}, **more)


def wav(samples: np.ndarray, rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["clip_image", "clip_old", "deit", "dinov2", "siglip_image", "vit", "vit_old", "vit_raw"]
)
def test_pictures_are_what_the_published_processor_makes(name: str) -> None:
    for key, wanted in reference(name).items():
        size = wanted.shape[1:3]
        fields, found = fed(name, "image", size)
        assert found.notes == ()
        part = block(Images, fields).part(size)
        which = {"both": ("wide", "tall")}.get(key.split("/")[1], (key.split("/")[1],))
        for picture, pixels in zip(which, wanted, strict=True):
            record = {"id": picture, "image": encode_image(INPUTS[picture])}
            for training in (False, True):  # without augmentation, training sees the same
                made = part.make(part.read(record), np.random.default_rng(0), training)
                np.testing.assert_allclose(made["image"], pixels, atol=3e-6, err_msg=f"{name} {picture}")
        low, high = part.spec["image"].low, part.spec["image"].high
        assert low - 1e-5 <= wanted.min() and wanted.max() <= high + 1e-5


def test_sounds_are_what_the_published_extractor_makes() -> None:
    wanted = reference("wav2vec2_large")
    length = int(wanted["audio/audio_mask"][0].sum())
    fields, _ = fed("wav2vec2_large", "audio")
    assert fields == {"sounds.rate": 16_000, "sounds.normalize": True}
    sounds = block(Sounds, fields, seconds=length / 16_000)
    part = sounds.part(random=False)
    record = {"id": "a", "audio": wav(INPUTS["speech"][100 : 100 + length], 16_000)}
    made = part.make(part.read(record), np.random.default_rng(0), False)
    np.testing.assert_allclose(made["audio"], wanted["audio/audio"][0][:length], atol=2e-5)


def test_spectrograms_are_what_the_published_extractor_makes(tmp_path: Path) -> None:
    wanted = reference("ast")
    fields, _ = fed("ast", "audio", kind="image")
    assert fields == {
        "sounds.rate": 16_000, "sounds.normalize": False, "mean": -4.2677393, "deviation": 4.5689974
    }  # fmt: skip
    for split, label in (("train", "a"), ("train", "b"), ("validation", "a")):
        folder = tmp_path / split / label
        folder.mkdir(parents=True)
        (folder / "x.wav").write_bytes(wav(INPUTS["speech"][100 : 100 + int(wanted["lengths"][0])], 16_000))
    task = AudioClassifier(
        source=f"folder:{tmp_path}", sounds=block(Sounds, fields), mean=fields["mean"], deviation=fields["deviation"]
    )
    config = SimpleNamespace(image_size=(64, 80), channels=1)
    model: Any = SimpleNamespace(tokenizers={"spectrogram": SimpleNamespace(config=config)})
    example = next(iter(task.inputs(model).dataset("validation").ordered()))
    found = example["spectrogram"][:, :, 0].T
    real = (int(wanted["lengths"][0]) - 400) // 160 + 1
    frames = min(real, 80)
    np.testing.assert_allclose(found[:frames], wanted["audio/audio"][0][:frames], atol=2e-4)


@pytest.mark.parametrize("name", ["bert", "clip", "roberta"])
def test_texts_are_what_the_published_tokenizer_makes(name: str) -> None:
    wanted, texts = reference(name)["texts/text"], json.loads((HERE / "texts.json").read_text("utf-8"))["texts"]
    fields, _ = fed(name, "text")
    block_of = block(Texts, fields, length=wanted.shape[1])
    encoder = data.open_encoder(block_of.encoder)
    real = reference(name)["texts/text_mask"] != 0
    for text, ids, mask in zip(texts, wanted, real, strict=True):
        np.testing.assert_array_equal(block_of.row(encoder, text)[mask], ids[mask])


def test_what_no_field_can_say_is_noted() -> None:
    assert not fed("imagegpt", "image")[1].notes  # its palette has a field
    assert "pictures of any proportions" in fed("dinov2_whole", "image", (15, 20))[1].notes[0]
    assert "does not say how audio is prepared" in fed("vit", "audio")[1].notes[0]
    assert "no vocabulary" in fed("vit", "text")[1].notes[0]


def test_pixels_that_are_not_divided_by_255(tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "rescale_factor": 1 / 127.5,
        "image_mean": 1.0,
        "image_std": 1.0,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    tower: Any = SimpleNamespace(input="image")
    fields = published(tmp_path, {}, {"t": tower}, {"t": SimpleNamespace(image_size=(8, 8))}).fields["t"]
    assert (fields["images.mean"], fields["images.std"]) == ((0.5,), (0.5,))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of a picture checkpoint, with a mean and a deviation of its own."""
    shutil.copytree(REFERENCES / "vit_base", tmp_path / "weights")
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps(VIT))
    return tmp_path / "weights"


def config_from(weights: Path, **changes: Any) -> dict[str, Any]:
    return {**config_for("vit_base", "vit", **changes), "init_from": str(weights)}


def images_of(config: dict[str, Any]) -> dict[str, Any]:
    images = tiny.build(config).tasks[0].images
    return {name: getattr(images, name) for name in CHOSEN}


def test_what_is_unset_comes_with_the_weights_and_is_reported(weights: Path) -> None:
    config = config_from(weights, tasks__vit__images=dict(mean=None, flip=0.25))
    config["evaluations"] = dict(knn=dict(source="embedded:emoji", tokenizer="image", backbone="image"))
    experiment = tiny.build(config)
    for reader in (experiment.tasks[0], experiment.attached["knn"]):
        assert {name: getattr(reader.images, name) for name in CHOSEN} == CHOSEN
    assert experiment.tasks[0].images.flip == 0.25  # what belongs to the data stays as the config says
    report = experiment.start.report()
    assert "  input   tasks.vit.images.mean is (0.4, 0.5, 0.6), as there" in report
    assert "  input   evaluations.knn.images.std is (0.2, 0.3, 0.4), as there" in report
    assert "input   tasks.vit.images.mean" not in tiny.build(config_for("vit_base", "vit")).start.report()
    assert "vit_base does not say how image is prepared" in tiny.build(config_for("vit_base", "vit")).start.report()


def test_another_choice_is_kept_and_said(weights: Path) -> None:
    config = config_from(weights, tasks__vit__images=dict(mean=[0.5], resample="nearest"))
    assert images_of(config) == {**CHOSEN, "mean": (0.5,), "resample": "nearest"}
    report = tiny.build(config).start.report()
    assert "  input   tasks.vit.images.mean is (0.5), but (0.4, 0.5, 0.6) there, which the weights were" in report
    assert "  input   tasks.vit.images.resample is 'nearest', but 'bilinear' there" in report
    config["evaluations"] = dict(knn=dict(source="embedded:emoji", tokenizer="image", backbone="image"))
    assert tiny.build(config).attached["knn"].images.mean == (0.5,)  # as the model was trained here


def test_a_run_that_goes_on_needs_the_checkpoint_no_more(weights: Path) -> None:
    import launch

    config = config_from(weights)
    kept = json.loads(json.dumps(with_brought(config, launch.task_class)))
    assert kept["tasks"]["vit"]["images"]["mean"] == [0.4, 0.5, 0.6]
    shutil.rmtree(weights)
    assert images_of(kept) == CHOSEN
    again = with_brought(config, launch.task_class, there=kept)
    assert images_of(again) == CHOSEN
    # A run from before there were such fields goes on as it was.
    before = with_brought(config, launch.task_class, there=json.loads(json.dumps(config)))
    assert images_of(before) == {"mean": (0.5,), "std": (0.5,), "resize": (), "resample": "bicubic"}


def test_weights_of_our_own_bring_theirs(tmp_path: Path) -> None:
    kept = dict(tasks=dict(vit=dict(tokenizer="image", images=dict(mean=[0.1], std=[0.2], crop=[0.5, 1.0]))))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(kept))
    config = tiny.plain("clip", init_from=str(tmp_path))
    images = tiny.build(config).tasks[0].images
    assert (images.mean, images.std) == ((0.1,), (0.2,))
    assert images.crop == (1.0, 1.0)  # which belongs to the data, and not to the weights


def test_a_vocabulary_comes_along_unless_its_table_starts_afresh(tmp_path: Path) -> None:
    shutil.copytree(REFERENCES / "bert_base", tmp_path / "weights")
    shutil.copyfile(HERE / "bert" / "vocab.txt", tmp_path / "weights" / "vocab.txt")
    config = {**config_for("bert_base", "bert"), "init_from": str(tmp_path / "weights")}
    assert tiny.build(config).tasks[0].texts.encoder == str(tmp_path / "weights")
    config["init_skip"] = r"tokenizers\.text\.table"
    assert tiny.build(config).tasks[0].texts.encoder == "bytes"


def test_bad_values_are_one_line() -> None:
    for fields, line in (
        (dict(resample="cubic"), "images.resample must be one of nearest, .*, but is 'cubic'"),
        (dict(resize=(1, 2, 3)), r"images.resize must be \(\), a side or height and width"),
    ):
        with pytest.raises(UsageError, match=line):
            Images(**fields)  # pyright: ignore[reportArgumentType]


def test_the_recipe_says_what_the_checkpoint_is_fed_with(weights: Path) -> None:
    from configs import finetune

    found = as_plain(finetune.get_config(str(weights)))
    assert found["tasks"]["vit"]["images"]["mean"] == [0.4, 0.5, 0.6]
