"""A published checkpoint that is asked: what it says of its logits, and what it reads of a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax

import unimodal
from unimodal.answers import Asked
from unimodal.errors import UsageError
from unimodal.interop import Preprocessor
from unimodal.use.published import PublishedTask

REFERENCES = Path(__file__).parent / "reference" / "interop"


def test_a_published_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(REFERENCES / "vit_classifier", tmp_path / "vit")
    height, width = json.loads((tmp_path / "vit" / "config.json").read_text())["image_size"]
    steps = dict(image_processor_type="ViTImageProcessor", size=dict(height=height, width=width))
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(steps))
    model = unimodal.load(tmp_path / "vit")
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    (found,) = model.predict(picture, top=3)
    wanted = jax.nn.softmax(model.model(**unimodal.load_preprocessor(tmp_path / "vit")(image=picture))["logits"])[0]
    assert found["probability"] == pytest.approx(float(wanted.max()), abs=1e-5)
    assert model.embed([picture, picture]).shape[0] == 2
    with pytest.raises(UsageError, match="no workdir of a run"):
        unimodal.load(tmp_path / "vit", step=3)


def test_the_end_of_a_long_prompt_is_read(tmp_path: Path) -> None:
    text = "".join(f"{i} words. " for i in range(2000))
    for name, most, begin in (("gpt2", 16, []), ("llama", 4096 - 4, [1])):
        shutil.copytree(REFERENCES / "preprocess" / name, tmp_path / name)
        shutil.copytree(REFERENCES / name, tmp_path / name, dirs_exist_ok=True)
        model = unimodal.load(tmp_path / name)
        (answer,) = (a for a in model.answers(name, Asked(steps=4)) if a.gives == "continuation")
        whole = unimodal.load_preprocessor(tmp_path / name)(text=text)["text"][0]
        row = answer.row({"id": "0", "text": text})
        assert row["length"] == most < len(whole)
        np.testing.assert_array_equal(row["prompt"], [*begin, *whole[len(begin) - most :]])


@pytest.mark.parametrize("kind", [None, "single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("labels", [1, 3])
def test_logits_of_a_published_classifier_are_read_as_its_kind_wants(kind: str | None, labels: int) -> None:
    """By the formulas of the text-classification pipeline of transformers."""
    z = np.asarray([[-1.5, 2.0, 0.25]], np.float32)[:, :labels]
    task = PublishedTask("bert", Preprocessor("."), {"problem_type": kind})
    names = ["a", "b", "c"][:labels]
    answer = task._classes("text", names, lambda _: {}, lambda _, batch: batch["z"], 5)
    (row,) = ({name: np.asarray(v)[0] for name, v in answer.predict(None, {"z": jax.numpy.asarray(z)}).items()},)
    found = answer.say(row)
    if kind == "regression":
        assert found == ({"value": -1.5} if labels == 1 else {"values": {"a": -1.5, "b": 2.0, "c": 0.25}})
        return
    alone = kind == "multi_label_classification" or labels == 1
    wanted = dict(zip(names, (expit if alone else softmax)(z[0].astype(np.float64)), strict=True))
    assert found["classes"] == pytest.approx(wanted, abs=1e-6)
    assert found["class"] == ("a" if labels == 1 else "b") and found["probability"] == max(found["classes"].values())


def test_a_published_classifier_of_one_logit(tmp_path: Path) -> None:
    """ELECTRA's discriminator has one logit for each token, a cross-encoder one for each text."""
    for name in ("electra_discriminator", "roberta_choices"):
        shutil.copytree(REFERENCES / name, tmp_path / name)
        shutil.copytree(
            REFERENCES / "preprocess" / "bert", tmp_path / name, dirs_exist_ok=True, ignore=lambda *_: ["config.json"]
        )
        model, text = unimodal.load(tmp_path / name), "."
        given = unimodal.load_preprocessor(tmp_path / name)(text=text)
        (found,) = model.predict({"text": text})
        chances = expit(np.asarray(model.model(**given)["logits"], np.float64)).reshape(-1)
        told = [token["probability"] for token in found["tokens"]] if "tokens" in found else [found["probability"]]
        assert told == pytest.approx(chances[1:-1] if "tokens" in found else chances, abs=1e-5)
