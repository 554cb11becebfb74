"""Streams of tasks: some classes of a source, pixels in another order, and a head that several tasks use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import used

from unimodal.command import main
from unimodal.data import EMOJI_GROUPS, class_names, column, open_source, write_array_record
from unimodal.data.blocks import Images, Labels, images
from unimodal.data.values import id_at
from unimodal.errors import UsageError
from unimodal.interop.files import open_source as open_checkpoint

EMOJI = "embedded:emoji"
PAIR = f"{EMOJI}?only=label:objects,flags"


# --- some records of a source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["label:objects,flags", "label:6,8", "label:flags,6", "group:flags,objects"])
def test_only_has_the_records_of_these_values_in_their_order(asked: str) -> None:
    whole, some = open_source(EMOJI, "train"), open_source(f"{EMOJI}?only={asked}", "train")
    wanted = [record for record in (whole[i] for i in range(len(whole))) if record["group"] in ("objects", "flags")]
    assert 0 < len(wanted) < len(whole)
    assert [some[i]["id"] for i in range(len(some))] == [record["id"] for record in wanted]
    assert column(some, "group") == [record["group"] for record in wanted]
    assert class_names(some) == EMOJI_GROUPS and some[-1] == wanted[-1]
    assert id_at(some, 3) == str(id_at(whole, int(some.places[3])))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("label", "only=label should be COLUMN:VALUE,VALUE, such as label:0,1"),
        ("label:", "should be COLUMN:VALUE"),
        ("label:object", "no record has label 'object', .* did you mean objects?"),
        ("label:9", "no record has label '9'"),
        ("labl:1", "labl"),
    ],
)
def test_what_only_cannot_find_is_one_line(asked: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(f"{EMOJI}?only={asked}", "train")


def test_a_column_is_read_once_for_all_its_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_array_record(tmp_path / "train.array_record", [{"id": str(i), "label": i % 3} for i in range(9)])
    asked: list[str] = []
    monkeypatch.setattr("unimodal.data.only.column", lambda source, name: (asked.append(name), column(source, name))[1])
    found = [open_source(f"array_record:{tmp_path}?only=label:{label}", "train") for label in (0, 1, 2)]
    assert [column(some, "id") for some in found] == [[str(i) for i in range(k, 9, 3)] for k in range(3)]
    assert asked == ["label"]


# --- classes of some records ------------------------------------------------------------------------------------------------


def test_numbers_of_classes_stay_or_follow_the_names_given() -> None:
    record = open_source(PAIR, "train")[0]
    shared, own = Labels(), Labels(classes=("flags", "objects"))
    assert shared.size(PAIR) == len(EMOJI_GROUPS) and own.size(PAIR) == 2
    assert shared.number(PAIR, record) == EMOJI_GROUPS.index(record["group"])
    assert own.names(PAIR)[own.number(PAIR, record)] == record["group"]
    assert shared.present(PAIR) == (6, 8) and own.present(PAIR) == (0, 1)
    with pytest.raises(UsageError, match="labels.classes lacks 'objects'"):
        Labels(classes=("flags", "food & drink")).names(PAIR)


# --- pixels in another order --------------------------------------------------------------------------------------------------


def test_pixels_are_put_into_one_other_order() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    made = lambda seed, training: Images(permute=seed).made(picture, (6, 6), np.random.default_rng(5), training)  # noqa: E731
    plain = made(0, False)
    order = np.random.default_rng(3).permutation(36)
    np.testing.assert_array_equal(made(3, False), plain.reshape(36, 3)[order].reshape(6, 6, 3))
    np.testing.assert_array_equal(made(3, True), made(3, False))
    assert not np.array_equal(made(3, False), made(4, False)) and not np.array_equal(made(3, False), plain)
    assert images._permutation(5, 36) is images._permutation(5, 36)  # drawn once, not for every example
    with pytest.raises(UsageError, match="images.permute must be 0 or more"):
        Images(permute=-1)


# --- a head of several tasks --------------------------------------------------------------------------------------------------


def config(**second: Any) -> dict[str, Any]:
    tasks = dict(
        one=dict(kind="vit", batch_size=8, source=PAIR),
        two=dict(kind="vit", batch_size=8, source=f"{EMOJI}?only=label:0,1", head="one", **second),
    )
    return {**tiny.plain("vit"), "tasks": tasks, "steps": 4, "schedule": "sequence"}


def test_a_task_goes_out_with_the_head_that_it_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(pooling="first")
    made["tasks"]["one"]["pooling"] = "first"
    made["tokenizers"] = {"image": made["tokenizers"]["image"]}
    used.workdir(tmp_path / "run", made, noise=0.05)
    for name in ("one", "two"):
        words = ["unimodal", "export", str(tmp_path / "run"), f"huggingface:{tmp_path / name}", f"--task={name}"]
        assert main(words) == 0, capsys.readouterr().err
    tensors = [open_checkpoint(tmp_path / name).tensors for name in ("one", "two")]
    for name in tensors[0]:
        np.testing.assert_array_equal(tensors[0][name].read(), tensors[1][name].read())
    made["tasks"]["two"]["images"] = dict(permute=2)
    used.workdir(tmp_path / "permuted", made)
    words = ["unimodal", "export", str(tmp_path / "permuted"), f"huggingface:{tmp_path / 'x'}", "--task=two"]
    assert main(words) == 2 and "images.permute has no place" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_tasks_that_share_a_head_have_one() -> None:
    experiment = tiny.build(config())
    heads = [name for name in experiment.program.parameter_names() if name.startswith("heads.")]
    assert heads == ["heads.one.classify.linear.bias", "heads.one.classify.linear.kernel"]
    state = experiment.program.init()
    one, two = experiment.tasks
    batch = {n: x for n, x in next(experiment.train_batches(two)).items() if n != "id"}
    gradient = experiment.program.gradient("two", two.loss)(state, batch, jax.random.key(0))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["heads"]))
    model = experiment.program.model(state)
    np.testing.assert_array_equal(one.judged(model, batch), two.judged(model, batch))
    assert one.own_classes() == (6, 8) and two.own_classes() == (0, 1)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (dict(head="on"), "tasks.two.head='on' names no earlier task with a head of its own; there is one"),
        (dict(head="two"), "names no earlier task"),
        (dict(labels=dict(classes=EMOJI_GROUPS[:2])), "tasks.two has 2 classes, but the head of tasks.one, .* has 9"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(second: dict[str, Any], message: str) -> None:
    given = config()
    given["tasks"]["two"].update(second)
    with pytest.raises(UsageError, match=message):
        tiny.build(given)
