"""MAE: what transformers' own computes, from its checkpoint; visible patches only; a score beside its baselines."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import named, quick
from test_init_from import REFERENCES, started

from unimodal import interop
from unimodal.data import Dataset
from unimodal.data.blocks import Inputs
from unimodal.errors import UsageError
from unimodal.evaluation.reconstruction import Reconstruction, better_guess, errors, picture_rows, unpatchify
from unimodal.evaluation.run import MeshReader
from unimodal.interop.stages import Decoded
from unimodal.objectives import masked_pixels, visible_first
from unimodal.sharding import make_mesh
from unimodal.tokenizers import image
from unimodal.tokenizers.image import patchify, sines_and_cosines

REFERENCE = dict(np.load(tiny.ROOT / "tests/reference/model/mae.npz", allow_pickle=False))


def published(**changes: Any) -> tuple[Any, Any]:
    """The experiment that starts from the reference checkpoint, decoder included, and its first model."""
    found = interop.recipe(REFERENCES / "vit_mae")
    (decoder,) = (s.config for output in found.outputs for s in output.stages if isinstance(s, Decoded))
    kind, tokenizer = found.tokenizers["image"]
    config = tiny.plain("mae", init_from=str(REFERENCES / "vit_mae"))
    config["tokenizers"] = {"image": {"kind": kind, **dataclasses.asdict(tokenizer)}}
    config["backbones"] = {
        "image": dataclasses.asdict(found.backbones["image"]),
        "decoder": dataclasses.asdict(decoder),
    }
    config["backbones"]["decoder"]["scan"] = False  # the other way than the checkpoint's is described
    task = dict(batch_size=8, backbone="image", decoder_backbone="decoder", mask_ratio=0.5, **changes)
    return started({**config, "tasks": {"mae": task}})


@pytest.mark.parametrize("kind", ["plain", "normalised"])
def test_values_and_gradients_are_those_of_the_published_model(kind: str) -> None:
    experiment, model = published(normalise=kind == "normalised")
    assert (experiment.start.fresh, experiment.start.unused) == ((), ())
    (task,), known = experiment.tasks, REFERENCE
    model.heads["mae"]["decoder_mask"].table.set_value(jnp.asarray(known["mask_token"]))
    batch = {name: jnp.asarray(known[name]) for name in ("image", "noise")}
    graph, parameters = nnx.split(model, nnx.Param)

    def loss(parameters: Any) -> Any:
        model = nnx.merge(graph, parameters)
        value = task.loss(model, batch, key=jax.random.key(0), step=jnp.int32(0))[0]
        return value, task.predict(model, batch)

    (value, found), gradient = quick(jax.value_and_grad(loss, has_aux=True))(parameters)
    np.testing.assert_array_equal(found["masked"], known["mask"] == 1)
    np.testing.assert_allclose(found["predicted"], known["logits"], atol=1e-5)
    np.testing.assert_allclose(value, known[f"{kind}/loss"], rtol=1e-5)
    ours = named(gradient)
    mine = {
        "vit.embeddings.cls_token": ours["tokenizers.image.registers.table"][None],
        "vit.embeddings.patch_embeddings.projection.bias": ours["tokenizers.image.projection.bias"],
        "vit.layers.1.attention.v_proj.weight": ours["backbones.image.layers.attention.value.kernel"][1]
        .reshape(32, 32)
        .T,
        "decoder.decoder_embed.weight": ours["heads.mae.decoder_embed.kernel"].T,
        "decoder.mask_token": ours["heads.mae.decoder_mask.table"][None],
        "decoder.decoder_pred.bias": ours["heads.mae.patches.bias"],
    }
    for name, value in mine.items():
        wanted = known[f"{kind}/grad/{name}"]
        np.testing.assert_allclose(value, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=name)


def slow_loss(predicted: np.ndarray, pixels: np.ndarray, masked: np.ndarray, normalise: bool) -> np.ndarray:
    """He 2022, section 3, patch by patch and in float64."""
    found = []
    for example in range(len(pixels)):
        errors = []
        for patch in range(pixels.shape[1]):
            if masked[example, patch]:
                target = pixels[example, patch].astype(np.float64)
                if normalise:
                    middle = sum(target) / len(target)
                    variance = sum((value - middle) ** 2 for value in target) / (len(target) - 1)
                    target = np.array([(value - middle) / math.sqrt(variance + 1e-6) for value in target])
                errors.append(sum((predicted[example, patch] - target) ** 2) / len(target))
        found.append(sum(errors) / len(errors))
    return np.array(found)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_masked_patches_only(normalise: bool) -> None:
    rng = np.random.default_rng(0)
    predicted, pixels = rng.standard_normal((2, 3, 6, 12), np.float32)
    masked = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool)
    run = quick(lambda p: masked_pixels(p, jnp.asarray(pixels), jnp.asarray(masked), normalise=normalise))
    loss, sums = run(predicted)
    np.testing.assert_allclose(loss, slow_loss(predicted, pixels, masked, normalise), rtol=1e-5)
    assert (float(sums["patches"]), float(sums["objective"])) == (10, pytest.approx(float(loss.sum()), rel=1e-6))
    np.testing.assert_array_equal(run(np.where(masked[..., None], predicted, 7.0).astype(np.float32))[0], loss)


def test_the_encoder_sees_the_visible_patches_in_their_places() -> None:
    config = image.Config(image_size=(8, 12), patch=4, registers=2, plain_registers=1, norm=True)
    tokenizer = image.Tokenizer(config, 8, rngs=nnx.Rngs(0))
    noise = jnp.asarray([[0.5, 0.1, 0.9, 0.3, 0.7, 0.2], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]], jnp.float32)
    keep, rank = visible_first(noise, 2)
    assert keep.tolist() == [[1, 5], [0, 1]] and rank.tolist() == [[3, 0, 5, 2, 4, 1], [0, 1, 2, 3, 4, 5]]
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)
    few, all_of_them = quick(tokenizer)(pixels, keep=keep), quick(tokenizer)(pixels)
    assert few.position.tolist() == [[0, 1, 2, 4, 8], [0, 1, 2, 3, 4]]
    wanted = np.take_along_axis(np.asarray(all_of_them.x), np.asarray(few.position)[:, :, None], axis=1)
    np.testing.assert_allclose(few.x, wanted, atol=1e-6)
    # In a run: 4 of 16 patches and the class token, then the decoder's 16 and the token again.
    experiment = tiny.build(tiny.plain("mae", tokenizers__image=dict(image_size=(16, 16), patch=4)))
    assert experiment.tokens == {"mae": 5 + 17}


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    found = sines_and_cosines((2, 3), 8)
    for row in range(2):
        for column in range(3):
            wanted = []
            for place in (column, row):
                angles = [place / 10_000 ** (i / 2) for i in range(2)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(found[3 * row + column], wanted, atol=1e-6)
    table = image.position_table(image.Config((8, 12), 4, sincos=True), 8, rngs=nnx.Rngs(0)).table.get_value()
    np.testing.assert_allclose(table, np.concatenate([np.zeros((1, 8)), found]), atol=1e-6)


def test_what_is_rebuilt_is_shown_and_beside_guesses_without_a_model() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.random((2, 8, 12, 3)).astype(np.float32)
    pixels = patchify(jnp.asarray(pictures), 4)
    np.testing.assert_array_equal(unpatchify(np.asarray(pixels), (2, 3)), pictures)
    masked = jnp.asarray(rng.permutation(12).reshape(2, 6) % 2 == 0)
    scored = errors(pixels, pixels, masked, mean_patch=np.zeros((6, 48), np.float32), normalise=False)
    assert scored["error"].tolist() == [0, 0]
    for i in range(2):
        seen = np.asarray(pixels)[i][~np.asarray(masked)[i]].reshape(-1, 3).mean(axis=0)
        wanted = np.square(np.asarray(pixels)[i][np.asarray(masked)[i]].reshape(-1, 3) - seen).mean()
        np.testing.assert_allclose(scored["one_colour"][i], wanted, rtol=1e-5)
    to_uint8 = lambda x: np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)  # noqa: E731
    perfect = (pixels - pixels.mean(-1, keepdims=True)) / jnp.sqrt(pixels.var(-1, ddof=1, keepdims=True) + 1e-6)
    row = picture_rows(pixels, perfect, masked, grid=(2, 3), to_uint8=to_uint8, normalise=True)[0]
    (_, original), (_, visible), (_, rebuilt) = row.pictures
    np.testing.assert_array_equal(original, rebuilt)
    assert (original != visible).any()


@pytest.mark.parametrize("normalise", [True, False])
def test_the_mean_patch_is_measured_on_what_the_value_is_of(normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all classes of a folder in training, and at the masked places of every validation picture."""
    rng = np.random.default_rng(0)
    classes = rng.random((4, 8, 12, 3))
    pictures = {
        s: np.repeat(classes, n, axis=0) + 0.1 * rng.random((4 * n, 8, 12, 3))
        for s, n in (("train", 6), ("validation", 5))
    }
    masks = rng.permuted(np.tile(np.arange(6) < 4, (24, 1)), axis=1)
    rows: Any = {
        split: [{"id": str(i), "image": x.astype(np.float32), "masked": masks[i]} for i, x in enumerate(found)]
        for split, found in pictures.items()
    }
    one = lambda row, _: {name: row[name] for name in ("image", "masked")}  # noqa: E731

    def evaluation() -> Reconstruction:
        return Reconstruction(
            inputs=lambda _: Inputs({}, lambda split: Dataset(rows[split], one)),
            predict=lambda _, batch: {
                "pixels": patchify(batch["image"], 4),
                "predicted": jnp.zeros((len(batch["image"]), 6, 48)),
                "masked": batch["masked"],
            },
            batch_size=8,
            against=lambda untrained: better_guess(untrained, normalise=normalise),
            patch=lambda _: 4,
            normalise=normalise,
        )

    def targets(split: str) -> np.ndarray:
        x = np.stack([np.asarray(patchify(picture[None], 4))[0] for picture in pictures[split]])
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6) if normalise else x

    reader, model = MeshReader(make_mesh(data=1)), cast(Any, nnx.Module())
    score = evaluation().measure(model, reader).score
    far = np.square(targets("validation") - targets("train").mean(axis=0)).mean(axis=-1)
    assert score["mean_patch"] == pytest.approx(far[masks[:20]].mean(), rel=1e-4)
    monkeypatch.setattr("unimodal.evaluation.reconstruction.EXAMPLES", 12)
    few = evaluation().measure(model, reader, limit=2).score["mean_patch"]
    assert few < 1.3 * score["mean_patch"]  # the first two classes alone would have 1.5 times it


def test_bad_input_is_one_line() -> None:
    whole = tiny.plain("mae", tasks__mae__mask_ratio=1.0)
    with pytest.raises(UsageError, match="tasks.mae.mask_ratio leaves 0 of 4 patches visible"):
        tiny.build(whole)
    with pytest.raises(UsageError, match="must have no stride"):
        tiny.build(tiny.plain("mae", tokenizers__image=dict(image_size=(16, 16), patch=8, stride=(4, 4))))
    with pytest.raises(UsageError, match="image_size 16x16 is not divisible by patch=5"):
        tiny.build(tiny.plain("mae", tokenizers__image=dict(image_size=(16, 16), patch=5)))
    with pytest.raises(UsageError, match="image_size 4x4 is smaller than patch=8"):
        tiny.build(tiny.plain("mae", tokenizers__image=dict(image_size=(4, 4), patch=8)))
    for option, value in (("relative_buckets", 8), ("window", 2)):
        for task, fields in (("mae", {}), ("vit", dict(tasks__vit__patch_dropout=0.5))):
            with pytest.raises(UsageError, match=f"backbone.{option} counts tokens in a row, so no patches"):
                tiny.build(tiny.plain(task, **{f"backbones__shared__{option}": value}, **fields))
    with pytest.raises(UsageError, match="divisible by 4"):
        sines_and_cosines((2, 2), 6)
