"""Pictures of classes that training has not seen, by a text tower that comes from elsewhere and stays as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from test_dual_encoder import COLOURS, said_and_seen

from configs import held_out
from unimodal import interop
from unimodal.data import open_source, write_array_record
from unimodal.data.text import ByteEncoder
from unimodal.sharding import path_name

SENTENCES = tiny.ROOT / "tests" / "reference" / "interop" / "minilm_sentence"


def classes_of(source: str) -> list[str]:
    return source.partition("?only=label:")[2].split(",")


@pytest.mark.parametrize("argument", ["", "dog,horse", "bird,deer,dog,horse"])
def test_no_picture_of_a_held_out_class_is_trained_on(argument: str) -> None:
    config = held_out.get_config(argument)
    trained = classes_of(config.tasks.clip.source)
    unseen = config.evaluations.unseen
    assert set(classes_of(unseen.source)) == set((argument or held_out.HELD_OUT).split(","))
    assert not set(trained) & set(classes_of(unseen.source))
    assert sorted([*trained, *classes_of(unseen.source)]) == sorted(held_out.CLASSES)
    # They are asked for among themselves, in the words of the captions.
    assert list(unseen.labels.classes) == classes_of(unseen.source)
    assert unseen.templates == (held_out.SAID,)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("dog,hrose", "'hrose' is none of the classes: airplane"),
        ("dog", "two classes or more"),
        ("dog,dog", "two classes or more"),
        (",".join(held_out.CLASSES[1:]), "two classes or more"),
    ],
)
def test_classes_that_cannot_be_held_out(argument: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        held_out.get_config(argument)


def with_published_text() -> dict[str, Any]:
    """A tiny CLIP with the frozen parts and the text head of the recipe, and a published sentence encoder's tower of text."""
    recipe, found = held_out.get_config(), interop.recipe(SENTENCES)
    (kind, tokenizer), size = found.tokenizers["text"], found.backbones["text"].width
    config = tiny.plain("clip", init_from=str(SENTENCES), optimizer__freeze=recipe.optimizer.freeze)
    config["tokenizers"] = dict(image=config["tokenizers"]["image"], text=dict(kind=kind, **vars(tokenizer)))
    config["backbones"] = dict(image=dict(width=16, depth=1, heads=2), text=vars(found.backbones["text"]))
    head = recipe.tasks.clip.text_head.to_dict()
    towers = dict(image_backbone="image", text_backbone="text", size=size, text_head=head)
    config["tasks"]["clip"] |= dict(**towers, texts=dict(encoder=str(SENTENCES), length=8))
    return config


def test_the_text_tower_is_the_published_one_and_stays_so() -> None:
    experiment = tiny.build(with_published_text())
    program, (task,) = experiment.program, experiment.tasks
    assert {name.split(".")[1] for name in experiment.start.loaded} == {"text"}
    assert not [name for name in experiment.start.fresh if ".text." in name]
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 61, (8, 8)).astype(np.int32)
    ids[3, 5:] = ids[4, 2:] = task.texts.pad
    batch = dict(ids=jnp.asarray(ids), image=jnp.asarray(rng.normal(size=(8, 16, 16, 3)), jnp.float32))
    state = program.init()
    before = {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(state.parameters)[0]}
    step = program.step({task.name: (task.loss, task.weight)})
    with jax.set_mesh(experiment.mesh):
        for _ in range(2):
            state, _ = step(state, {task.name: batch})
    after = {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(state.parameters)[0]}
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    of_text = {name for name in before if name.split(".")[1] == "text"}
    assert len(of_text) > 10 and not moved & of_text
    assert {"heads.clip.image.linear.kernel", "tokenizers.image.projection.kernel"} <= moved
    # The embedding of a text is the published one: the mean over its tokens, at unit length, and no layer after it.
    found = jax.jit(lambda model: task.embed_one(model, "text", batch))(program.model(state))
    real = ids != task.texts.pad
    wanted = interop.load_huggingface(SENTENCES)(
        text=jnp.asarray(np.where(real, ids, 0)), text_mask=jnp.asarray(real, jnp.int32)
    )
    np.testing.assert_allclose(found, wanted["pooled"], atol=1e-5)


def test_classes_are_asked_among_themselves(tmp_path: Path) -> None:
    """Of numbered classes some are trained on; the others are told apart by their names alone, and keep their pictures."""
    folder = Path(said_and_seen(tmp_path / "data").partition(":")[2])
    numbers = {name: number for number, name in enumerate(COLOURS)}
    for split in ("train", "validation"):
        source = open_source(f"array_record:{folder}", split)
        records = [{**source[i], "label": numbers[source[i]["label"]]} for i in range(len(source))]
        (folder / f"{split}.array_record").unlink()
        write_array_record(folder / f"{split}.array_record", records)
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    config = tiny.plain("clip", tasks__clip__source=f"array_record:{folder}?only=label:green,blue")
    asked = dict(source=f"array_record:{folder}?only=label:grey,red", labels=dict(classes=["grey", "red"]))
    config["evaluations"] = dict(unseen=dict(kind="zero_shot", **asked))
    experiment = tiny.build(config)
    (task,), evaluation = experiment.tasks, experiment.evaluations["unseen"]
    assert {task.texts.text(record) for record in open_source(task.source, "train")} == {"green", "blue"}
    model = experiment.program.model(experiment.program.init())
    dataset = evaluation.inputs(model).dataset("validation")
    rows = [dataset[i] for i in range(len(dataset))]
    assert [int(row["label"]) for row in rows] == [1] * 4 + [0] * 4  # red comes first in the data, grey in the config
    images = jnp.asarray(np.stack([row["image"] for row in rows]))
    texts = np.stack([task.texts.row(ByteEncoder(), name) for name in ("grey", "red")])
    names = np.asarray(task.embed_one(model, "text", {"ids": jnp.asarray(texts)}))
    nearest = (np.asarray(task.embed_one(model, "image", {"image": images})) @ names.T).argmax(axis=1)
    score = evaluation.measure(model, experiment.reader).score
    assert score["classes"] == 2 and score["value"] == np.mean(nearest == [1] * 4 + [0] * 4)
    # Raw pixels, which have seen the labels, tell two colours apart.
    assert evaluation.baseline({}) == (1.0, "nearest class mean of raw pixels")


def test_pictures_come_with_a_caption_of_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tiny.ROOT / "tools"))
    for name in ("fetch", "labelled_pictures", "make_cifar10"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import make_cifar10  # pyright: ignore[reportMissingImports]

    labels = [8, 0, 3]
    (tmp_path / "test_lables.json").write_text(json.dumps(labels), encoding="utf-8")
    Image.fromarray(np.zeros((3, 32 * 32, 3), np.uint8)).save(tmp_path / "test_batch.png")
    found = list(make_cifar10.records(tmp_path, "validation", 2))
    assert [(row["label"], row["caption"]) for row in found] == [
        (8, "a ship."),
        (0, "a airplane."),
    ]
    assert make_cifar10.CLASSES == held_out.CLASSES
    assert found[0]["caption"] == held_out.SAID.format(held_out.CLASSES[8])
