"""`assemble`: parts by name, whose weights do not depend on what stands beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import named, quick

from unimodal import Backbone, BackboneConfig, UsageError
from unimodal.heads import Classifier
from unimodal.model import assemble, tokenizer_kinds
from unimodal.tokenizers import image, text

WIDE, NARROW = BackboneConfig(width=8, depth=1, heads=2), BackboneConfig(width=4, depth=1, heads=2)
TEXT = ("text", text.Config(vocabulary=11))
IMAGE = ("image", image.Config(image_size=(4, 4), patch=2))


def classifier(classes):
    return lambda model, rngs: {"logits": Classifier(model.backbones["shared"].config.width, classes, rngs=rngs)}


def build(key=0, **parts):
    parts = {"tokenizers": {}, "backbones": {"shared": WIDE}, "heads": {}} | parts
    return quick(lambda key: assemble(key, **parts))(jax.random.key(key))


def test_a_part_starts_the_same_whatever_stands_beside_it():
    alone = build(tokenizers={"text": TEXT}, heads={"a": classifier(3)})
    company = build(
        tokenizers={"image": IMAGE, "text": TEXT, "other": TEXT},
        backbones={"shared": WIDE, "other": NARROW},
        heads={"b": classifier(2), "a": classifier(3)},
    )
    weights, more = named(alone), named(company)
    for name, value in weights.items():
        np.testing.assert_array_equal(more[name], value, err_msg=name)
    assert len(more) > len(weights)


def test_the_key_and_the_name_decide_the_weights():
    names = ("text", "words")
    first, second = (
        build(key, tokenizers=dict.fromkeys(names, TEXT), backbones={"shared": WIDE, "b": WIDE}) for key in (0, 1)
    )
    table = {name: named(first.tokenizers[name])["table.table"] for name in names}
    assert (table["text"] != table["words"]).all()
    kernel = "layers.mlp.up.kernel"
    assert (named(first.backbones["shared"])[kernel] != named(first.backbones["b"])[kernel]).all()
    assert (named(first)["backbones.shared." + kernel] != named(second)["backbones.shared." + kernel]).all()


def test_tokenizers_have_the_width_of_their_backbone():
    """Of the one that bears their name, or else of the first."""
    model = build(tokenizers={"text": TEXT, "image": IMAGE}, backbones={"shared": WIDE, "image": NARROW})
    assert named(model.tokenizers["text"])["table.table"].shape == (11, 8)
    assert named(model.tokenizers["image"])["projection.kernel"].shape == (12, 4)


def test_heads_see_the_model_and_belong_to_their_task():
    model = build(heads={"a": classifier(3), "b": classifier(2)})
    assert set(model.heads) == {"a", "b"}
    hidden = jnp.ones((1, 2, 8))
    assert model.heads["a"]["logits"](hidden).shape == (1, 3) and model.heads["b"]["logits"](hidden).shape == (1, 2)
    assert isinstance(model.backbones["shared"], Backbone)


def test_a_whole_model_is_a_pytree_that_learns():
    model = build(tokenizers={"text": TEXT}, heads={"a": classifier(3)})
    ids, labels = jnp.asarray([[1, 2, 3], [4, 5, 6]], jnp.int32), jnp.asarray([0, 2], jnp.int32)

    @quick
    def step(model):
        def loss(model):
            hidden, _ = model.backbones["shared"](model.tokenizers["text"](ids))
            logits = jax.nn.log_softmax(model.heads["a"]["logits"](hidden))
            return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()

        value, grads = jax.value_and_grad(loss)(model)
        return value, jax.tree.map(lambda w, g: w - 0.3 * g, model, grads)

    losses = []
    for _ in range(15):
        value, model = step(model)
        losses.append(float(value))
    assert losses[0] == pytest.approx(np.log(3), rel=1e-5) and losses[-1] < 0.3 * losses[0]


def test_unknown_tokenizer_kind_and_no_backbone():
    assert {"audio", "image", "text"} <= set(tokenizer_kinds())
    with pytest.raises(UsageError, match=f"^tokenizer kind 'video' is not one of {', '.join(tokenizer_kinds())}$"):
        assemble(jax.random.key(0), tokenizers={"x": ("video", None)}, backbones={"shared": WIDE}, heads={})
    with pytest.raises(UsageError, match="^a model needs at least one backbone$"):
        assemble(jax.random.key(0), tokenizers={"text": TEXT}, backbones={}, heads={})
