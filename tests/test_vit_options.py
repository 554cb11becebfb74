"""ViT as its papers train it: RandAugment, erasing, mixed pictures, patches left out, other sizes, attention for pooling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image, ImageEnhance, ImageOps
from quick import quick

from unimodal.data.augment.erasing import random_erase
from unimodal.data.augment.randaugment import FILL, OPERATIONS, rand_augment
from unimodal.data.blocks import Images
from unimodal.errors import UsageError
from unimodal.objectives import mixed, softmax_classification
from unimodal.objectives.terms import as_scalars


def picture(seed: int = 0) -> Image.Image:
    smooth = np.random.default_rng(seed).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    return Image.fromarray(smooth).resize((24, 16), Image.Resampling.BICUBIC)


def test_operations_are_pillows_at_the_papers_strength() -> None:
    image = picture()
    at = lambda name, share: np.asarray(OPERATIONS[name](image, share)).astype(int)  # noqa: E731
    for name, wanted in (
        ("identity", image),
        ("autocontrast", ImageOps.autocontrast(image)),
        ("equalize", ImageOps.equalize(image)),
        ("solarize", ImageOps.invert(image)),  # at its most, every pixel is at or above the threshold 0
        ("posterize", ImageOps.posterize(image, 4)),
        ("color", ImageEnhance.Color(image).enhance(1.9)),
        ("contrast", ImageEnhance.Contrast(image).enhance(1.9)),
        ("brightness", ImageEnhance.Brightness(image).enhance(1.9)),
        ("sharpness", ImageEnhance.Sharpness(image).enhance(1.9)),
    ):
        np.testing.assert_array_equal(at(name, 1.0), np.asarray(wanted), err_msg=name)
    still = {name for name in OPERATIONS if (at(name, 0.0) == np.asarray(image)).all()}
    assert still == set(OPERATIONS) - {"autocontrast", "equalize"}
    # Moved by hand: at the strongest, 45 % of the width comes in as grey.
    columns = np.asarray(image).astype(int)
    moved = at("translate_x", 10 / 24 / 0.45)
    np.testing.assert_array_equal(moved[:, :14], columns[:, 10:])
    assert (moved[:, 14:] == FILL[0]).all()
    sheared = at("shear_x", 1.0)
    assert abs(sheared[0] - columns[0]).max() < abs(sheared[-1] - columns[-1]).max()


def test_randaugment_draws_so_many_operations() -> None:
    image = picture()
    seen: list[str] = []
    spied = {name: (lambda p, share, name=name: seen.append((name, share)) or p) for name in OPERATIONS}  # type: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimodal.data.augment.randaugment.OPERATIONS", spied)
        for seed in range(200):
            rand_augment(image, np.random.default_rng(seed), 2, 9.0)
    names, shares = {name for name, _ in seen}, {share for _, share in seen}
    assert len(seen) == 400 and names == set(OPERATIONS) and shares == {0.9, -0.9}
    once, again = (rand_augment(image, np.random.default_rng(3), 2, 9.0) for _ in range(2))
    assert once.tobytes() == again.tobytes() != image.tobytes()


def test_erasing_puts_one_rectangle_of_noise() -> None:
    pixels, shares = np.zeros((32, 40, 3), np.float32), []
    for seed in range(300):
        made = random_erase(pixels, np.random.default_rng(seed), 0.5)
        changed = (made != 0).any(axis=2)
        shares.append(changed.mean())
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed.sum() == len(rows) * len(columns) and not pixels.any()
        if len(rows):
            assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
    erased = [share for share in shares if share]
    assert 110 < len(erased) < 190 and 0.01 < min(erased) < 0.06 and 0.25 < max(erased) < 0.36


def slow_mix(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return share * first + (1 - share) * second


def test_mixup_blends_pictures_as_it_blends_labels() -> None:
    images = np.random.default_rng(0).standard_normal((6, 4, 6, 3), np.float32)
    labels = np.array([0, 1, 2, 3, 4, 0])
    made, targets = quick(lambda x, y, k: mixed(x, y, k, classes=5, mixup=0.8))(images, labels, jax.random.key(1))
    shares = []
    for i, (own, other) in enumerate(zip(labels, labels[::-1], strict=True)):
        share = float(targets[i, own]) if own != other else None
        if share is not None:
            shares.append(share)
            np.testing.assert_allclose(made[i], slow_mix(images[i], images[5 - i], share), atol=1e-5)
            assert float(targets[i, other]) == pytest.approx(1 - share, abs=1e-6)
        assert float(targets[i].sum()) == pytest.approx(1)
    assert len({round(share, 4) for share in shares}) == len(shares) and 0 < min(shares) < max(shares) < 1


def test_cutmix_labels_are_shares_of_the_area() -> None:
    images = np.stack([np.full((16, 24, 3), i, np.float32) for i in range(8)])
    labels = np.arange(8)
    run = quick(lambda k: mixed(images, labels, k, classes=8, cutmix=1.0))
    areas = []
    for seed in range(20):
        made, targets = run(jax.random.key(seed))
        for i in range(8):
            other = np.asarray(made[i]) == 7 - i
            assert ((np.asarray(made[i]) == i) | other).all()
            np.testing.assert_allclose(targets[i, 7 - i], other[..., 0].mean(), atol=1e-6)
            rows, columns = other[..., 0].any(axis=1).sum(), other[..., 0].any(axis=0).sum()
            assert other[..., 0].sum() == rows * columns
            areas.append(other[..., 0].mean())
    # A rectangle of a uniform share of the area; its parts beyond the border are cut off, and so it is less than a half.
    assert 0.25 < np.mean(areas) < 0.5 and max(areas) > 0.8
    both, targets = quick(lambda k: mixed(images, labels, k, classes=8, mixup=1.0, cutmix=1.0))(jax.random.key(0))
    whole = [len(np.unique(np.asarray(both[i]))) for i in range(8)]
    assert {1, 2} == set(whole)  # blended as a whole, or in two parts
    value = np.asarray(both).mean(axis=(1, 2, 3))
    np.testing.assert_allclose((np.asarray(targets) * labels).sum(axis=1), value, atol=1e-5)


def loss_of(**changes: Any) -> tuple[Any, Any, Any]:
    experiment = tiny.build(tiny.plain("vit", **changes))
    (task,) = experiment.tasks
    model = experiment.program.model(experiment.program.init())
    shape = task.inputs(experiment.model).spec["image"].shape
    image = np.random.default_rng(0).standard_normal((8, *shape), np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.arange(8) % 5}
    run = quick(lambda m, b: as_scalars(*task.loss(m, b, key=jax.random.key(0), step=jnp.int32(0)))[0])
    return experiment, model, (run, batch)


def test_the_task_mixes_and_leaves_patches_out() -> None:
    experiment, model, (run, batch) = loss_of(tasks__vit=dict(batch_size=8, mixup=0.8, cutmix=1.0, label_smoothing=0.0))
    (task,) = experiment.tasks
    made, targets = mixed(
        batch["image"],
        batch["label"],
        jax.random.fold_in(jax.random.key(0), 3),
        classes=task.labels.size(task.source),
        mixup=0.8,
        cutmix=1.0,
    )
    model.heads["vit"]["classify"].linear.kernel.set_value(
        jnp.asarray(np.random.default_rng(1).standard_normal((32, targets.shape[1]), np.float32))
    )
    wanted = softmax_classification(task.logits(model, made), targets)[0].mean()
    np.testing.assert_allclose(run(model, batch), wanted, rtol=1e-5)
    fewer = tiny.build(tiny.plain("vit", tasks__vit__patch_dropout=0.5))
    assert (experiment.tokens["vit"], fewer.tokens["vit"]) == (5, 3)  # 4 patches and a register, or 2


def test_other_sizes_and_attention_for_pooling() -> None:
    tokenizer = dict(image_size=(16, 16), patch=8, resize=True)
    task = dict(batch_size=8, size=(24, 32), pooling="attention")
    experiment, model, (run, batch) = loss_of(tokenizers__image=tokenizer, tasks__vit=task)
    assert batch["image"].shape[1:3] == (24, 32) and experiment.tokens["vit"] == 1 + 3 * 4
    gradient = quick(jax.grad(run.__wrapped__))(model, batch)
    table = gradient.heads["vit"]["classify"].linear.kernel.get_value()
    assert np.abs(np.asarray(table)).max() > 0 and model.heads["vit"]["classify"].attention is not None
    with pytest.raises(UsageError, match="where \\(16, 16, 3\\) was configured"):
        tiny.build(tiny.plain("vit", tasks__vit__size=(24, 32)))
    for size, said in (((20, 32), "is not divisible by patch=8"), ((4, 32), "is smaller than patch=8")):
        with pytest.raises(UsageError, match=f"tasks.vit.size {size[0]}x32 {said}"):
            tiny.build(tiny.plain("vit", tasks__vit__size=size, tokenizers__image__resize=True))


def test_bad_options_are_one_line() -> None:
    for fields in (dict(randaugment=(2, 11.0)), dict(randaugment=(-1, 5.0)), dict(erase=1.5)):
        with pytest.raises(UsageError, match="images.(randaugment|erase)"):
            Images(**fields)  # type: ignore[arg-type]
    for fields in (dict(size=(8,)), dict(patch_dropout=1.0)):
        with pytest.raises(UsageError, match="tasks.vit.(size|patch_dropout) must be"):
            tiny.build(tiny.plain("vit", tasks__vit=fields))


def test_few_labels_are_of_all_classes() -> None:
    """The emoji lie in the order of their groups: the first so many would be of one class."""
    task = tiny.build(tiny.plain("vit", tasks__vit__labelled=60)).tasks[0]
    model = tiny.build(tiny.plain("vit")).model
    train, valid = (task.inputs(model).dataset(split) for split in ("train", "validation"))
    labels = {int(example["label"]) for example in train.ordered()}
    assert (len(train), len(valid)) == (60, 152)
    assert len(labels) >= task.labels.size(task.source) - 1  # one group has few pictures
    with pytest.raises(UsageError, match="9999 records were asked for"):
        tiny.build(tiny.plain("vit", tasks__vit__labelled=9999)).tasks[0].inputs(model).dataset("train")
