"""VirTex: captions in both directions, what they may see, and how written ones are scored."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from quick import quick

from unimodal.data import write_array_record
from unimodal.data.blocks import Captions, Images
from unimodal.errors import UsageError
from unimodal.evaluation.captioning import Captioning, cider_d, likeness, prefix_accuracy
from unimodal.heads import LanguageModel
from unimodal.objectives import as_scalars, caption_targets, cross_entropy


def test_targets_by_hand() -> None:
    ids = jnp.asarray([[5, 6, 7, 0, 0], [8, 0, 0, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
    targets, weights = caption_targets(ids, 0)
    np.testing.assert_array_equal(targets, ids)
    # The end is foreseen too, except of a caption that may have been cut.
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    targets, same = caption_targets(ids, 0, backward=True)
    np.testing.assert_array_equal(targets, [[7, 6, 5, 0, 0], [8, 0, 0, 0, 0], [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(same, weights)


def test_targets_of_a_vocabulary_hold_their_end() -> None:
    ids = jnp.asarray([[5, 6, 7, 2, -1, -1], [1, 5, 6, 2, -1, -1], [1, 2, -1, -1, -1, -1], [1, 3, 4, 5, 6, 2]])
    targets, weights = caption_targets(ids, -1)
    np.testing.assert_array_equal(targets, ids)
    np.testing.assert_array_equal(weights, ids != -1)
    targets, same = caption_targets(ids, -1, backward=True)
    backward = [[7, 6, 5, 2, -1, -1], [6, 5, 1, 2, -1, -1], [1, 2, -1, -1, -1, -1], [6, 5, 4, 3, 1, 2]]
    np.testing.assert_array_equal(targets, backward)
    np.testing.assert_array_equal(same, weights)
    for level in (0.0, -100.0):  # equal logits have the loss log V, whatever they are
        _, sums = cross_entropy(jnp.full((4, 6, 9), level), targets, weights)
        np.testing.assert_allclose(sums["objective"] / sums["tokens"], np.log(9), rtol=1e-5)


WORDS = ("a", "b", "c", "<unk>")


def vocabulary(place: Path, *specials: str, around: str = "") -> str:
    """The file of a vocabulary of four words and then the specials. around: "[CLS] $A [SEP]", as they stand around a text."""
    tokenizers = pytest.importorskip("tokenizers")
    ids = {word: i for i, word in enumerate((*WORDS, *specials))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(specials))
    if around:
        pair = f"{around} {around.replace('$A', '$B')}"
        known = [(name, ids[name]) for name in specials if name in around.split()]
        made.post_processor = tokenizers.processors.TemplateProcessing(around, pair, known)
    made.save(str(place / "tokenizer.json"))
    return str(place / "tokenizer.json")


@pytest.mark.parametrize(
    ("specials", "around", "row"),
    [
        (("<|endoftext|>",), "", [0, 1, 2, 4, -1, -1]),
        (("[CLS]", "[SEP]"), "", [4, 0, 1, 2, 5, -1]),
        (("[X]", "[Y]", "[EOS]"), "[X] $A [Y]", [4, 0, 1, 2, 5, -1]),
        (("[BOS]", "[EOS]"), "[BOS] $A", [4, 0, 1, 2, 5, -1]),
        (("[X]", "[EOS]"), "[X] $A [X]", [4, 0, 1, 2, 4, 5]),
    ],
)
def test_rows_of_captions_end(tmp_path: Path, specials: tuple[str, ...], around: str, row: list[int]) -> None:
    texts = Captions(encoder=vocabulary(tmp_path, *specials, around=around), length=6)
    encoder = texts.opened
    np.testing.assert_array_equal(texts.row(encoder, "a b c"), row)
    cut = texts.row(encoder, "a b c c c c c c")
    assert texts.end == cut[-1] == [i for i in row if i >= 0][-1] and encoder.decode(cut).startswith("a b c")


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    for specials, around in (((), ""), (("</s>",), "</s> $A")):
        texts = Captions(encoder=vocabulary(tmp_path, *specials, around=around), length=6)
        with pytest.raises(UsageError, match="has no token that ends a caption and begins none, as .*EOS.*SEP"):
            texts.row(texts.opened, "a b")


def test_writing_stops_at_the_end_of_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.plain("virtex", tokenizers__text__vocabulary=5)
    config["tasks"]["virtex"]["texts"] = dict(encoder=vocabulary(tmp_path, "[EOS]"), length=16)
    experiment = tiny.build(config)
    task, model = experiment.tasks[0], experiment.program.model(experiment.program.init())
    real = LanguageModel.__call__
    likeliest = 20.0 * jax.nn.one_hot(jnp.asarray([4]), 5)
    monkeypatch.setattr(LanguageModel, "__call__", lambda self, *given: real(self, *given) + likeliest)
    ids, _ = quick(task.write)(model, jnp.zeros((2, 16, 16, 3)))
    np.testing.assert_array_equal(ids[:, 0], [[4] + 15 * [-1]] * 2)
    assert task.texts.opened.decode(ids[0, 0]) == ""


@pytest.mark.parametrize("kind", ["gpt", "gpt packed", "gpt chunked", "bert", "virtex", "dalle"])
def test_with_a_vocabulary_every_target_is_one_of_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same number added to all logits changes no loss, unless some target has no logit."""
    name, *how = kind.split()
    config = tiny.plain(name, tokenizers__text__vocabulary=6)
    texts = dict(encoder=vocabulary(tmp_path, "[EOS]", "[MASK]"), length=16, column="name")
    config["tasks"][name] |= dict(texts=texts, source="embedded:emoji")
    config["tasks"][name] |= {"packed": dict(packed=True), "chunked": dict(chunk=8)}[how[0]] if how else {}
    experiment = tiny.build(config)
    task, model = experiment.tasks[0], experiment.program.model(experiment.program.init())
    given = next(iter(experiment.train_batches(task)))
    batch = {name: jnp.asarray(given[name]) for name in task.inputs(model).spec}
    assert any((v == -1).any() for v in batch.values() if v.dtype == jnp.int32)  # there is padding
    call, factors = LanguageModel.__call__, LanguageModel.factors

    def loss(model: Any, shift: jax.Array) -> jax.Array:
        def shifted(self: Any, *given: Any) -> Any:
            hidden, kernel, bias = factors(self, *given)
            return hidden, kernel, shift + (jnp.zeros(kernel.shape[-1]) if bias is None else bias)

        with monkeypatch.context() as patch:
            patch.setattr(LanguageModel, "__call__", lambda self, *given: call(self, *given) + shift)
            patch.setattr(LanguageModel, "factors", shifted)
            return as_scalars(*task.loss(model, batch, key=jax.random.key(0), step=jnp.int32(0)))[0]

    plain, other = (float(quick(loss)(model, jnp.float32(shift))) for shift in (0, -100))
    assert other == pytest.approx(plain, rel=1e-3)


@functools.cache
def small() -> tuple[Any, Any]:
    experiment = tiny.build(tiny.plain("virtex"))
    return experiment.tasks[0], experiment.program.model(experiment.program.init())


def test_who_sees_whom() -> None:
    task, model = small()
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(8, 264, (2, 16)), jnp.int32)
    logits = jax.jit(lambda model, image, ids: task.logits(model, image, ids, "forward"))
    plain = np.asarray(logits(model, image, ids))
    assert plain.shape == (2, 16, 264)
    later = np.asarray(logits(model, image, ids.at[:, 9].set(100)))
    np.testing.assert_array_equal(later[:, :10], plain[:, :10])  # the token at 9 is read at 10
    assert (np.abs(later[:, 10:] - plain[:, 10:]).max(axis=-1) > 0).all()
    other = np.asarray(logits(model, image.at[:, -1].set(0.0), ids))
    assert (np.abs(other - plain).max(axis=-1) > 0).all()  # every word sees every patch
    backward = np.asarray(jax.jit(lambda m, i, t: task.logits(m, i, t, "backward"))(model, image, ids))
    assert (np.abs(backward - plain).max(axis=-1) > 0).all()  # each direction has its start token


def test_what_is_written_is_what_the_logits_say() -> None:
    """Greedy writing with a cache agrees with reading the written caption in one pass."""
    import dataclasses

    task, model = small()
    greedy = dataclasses.replace(task, beams=1)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16, 16, 3)), jnp.float32)
    ids, score = jax.jit(greedy.write)(model, image)
    targets, weights = caption_targets(ids[:, 0], task.texts.pad)
    logits = jax.nn.log_softmax(task.logits(model, image, targets, "forward"))
    np.testing.assert_array_equal(np.where(weights > 0, logits.argmax(axis=-1), 0), np.asarray(ids[:, 0]))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose((chosen * weights).sum(axis=1), score[:, 0], rtol=1e-4)


def test_baselines_leave_out_captions_that_cannot_be_read(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        said = ["a red heart", "a red heart", 5, "a cat"]
        rows = ({"id": str(i), "caption": caption} for i, caption in enumerate(said))
        write_array_record(tmp_path / f"{split}.array_record", rows)
    source, texts = f"array_record:{tmp_path}", Captions(length=16)
    wanted = likeness(["a red heart"] * 3, ["a red heart", "a red heart", "a cat"])["chrf"]
    asked: Any = dict(inputs=None, predict=None, batch_size=4, source=source, texts=texts, images=Images())
    assert Captioning(**asked).baseline({}) == (pytest.approx(wanted), "the commonest caption")
    assert prefix_accuracy(source, texts)({})[0] > 0.5


def test_a_captioner_learns_what_it_sees(tmp_path: Path) -> None:
    colours = dict(red=(220, 30, 30), green=(30, 200, 30), blue=(30, 30, 220))
    for split in ("train", "validation"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name, colour in colours.items():
            for i in range(8):
                place = tmp_path / "data" / split / f"{i}{name}"  # neighbours differ
                pixels = np.clip(np.array(colour) + np.random.default_rng(i).integers(-20, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place.with_suffix(".png"))
                place.with_suffix(".txt").write_text(f"it is {name}")
    config = tiny.plain("virtex", steps=250, log_every=50, tasks__virtex__source=f"folder:{tmp_path / 'data'}")
    config["optimizer"]["learning_rate"] = 5e-3
    run = tiny.train(config, tmp_path / "run")
    model, found = run.experiment.program.model(run.state), run.experiment.evaluations
    measured = {name: evaluation.measure(model, run.experiment.reader) for name, evaluation in found.items()}
    score = measured["virtex"].score
    baseline, what = found["virtex"].baseline({})
    assert what == "the likeliest token without the picture" and baseline < score["value"]
    assert score["after_another_picture"] < score["value"]
    captions = measured["virtex_captions"]
    assert captions.score["exact"] == 1.0
    assert captions.score["value"] == pytest.approx(100) and captions.score["bleu"] == pytest.approx(100)
    assert found["virtex_captions"].baseline({})[0] < 90
    sample = found["virtex_captions"].samples(model, captions.shown)[0]
    assert sample.guesses[0][0] == sample.truth and len(sample.guesses) == 2


def test_the_likeliest_token_without_the_picture(tmp_path: Path) -> None:
    """Training: "ab" twice, "ac" once; validation: "ac", "zb". By hand: a ✓, then b for c ✗, end ✓; a for z ✗, b after z, which
    training never saw: the commonest token of all (the end, 3 times) ✗, end ✓."""
    for split, texts in (("train", ("ab", "ab", "ac")), ("validation", ("ac", "zb"))):
        (tmp_path / split).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / split / f"{i}.txt").write_text(text)
    value, _ = prefix_accuracy(f"folder:{tmp_path}", Captions(length=8))({})
    assert value == pytest.approx(3 / 6)
    for split, texts in (("train", ("a b", "a b", "a c")), ("validation", ("a c", "c b"))):
        for i, text in enumerate(texts):
            (tmp_path / split / f"{i}.txt").write_text(text)
    words = Captions(encoder=vocabulary(tmp_path, "[EOS]"), length=8)
    assert prefix_accuracy(f"folder:{tmp_path}", words)({})[0] == pytest.approx(3 / 6)


def test_likeness_knows_its_ends() -> None:
    same = ["a red square on the left", "two blue circles in a row"]
    assert likeness(same, [text.upper() for text in same]) == pytest.approx(dict(bleu=100, chrf=100, cider=10, exact=1))
    assert likeness(["x"] * 2, same) == pytest.approx(dict(bleu=0, chrf=0, cider=0, exact=0), abs=1)


def test_cider_as_the_coco_evaluation_has_it() -> None:
    """The values are those of pycocoevalcap 1.2, `Cider().compute_score`."""
    true = ["a red car on the road", "two dogs play in the snow", "a cat sleeps on a red sofa"]
    true += ["a man rides a horse on the beach", "the cat"]
    written = ["a red car on a road in the snow", "two two two dogs play", "A cat, on a sofa.", true[3], "a dog"]
    assert cider_d(written, true) == pytest.approx(3.875547824820007, rel=1e-12)
    assert cider_d(true, true) == pytest.approx(9.0)  # two words have no trigram
    assert cider_d(["nothing"], ["of this"]) == 0


def test_marks_that_combine_with_letters_do_not_cut_words() -> None:
    true = ["एक लाल सेब मेज पर है", "दो बिल्ली घर में है", "नीला आसमान बहुत सुंदर है"]
    plain = ["a b c d e f", "g h i j f", "k l m n f"]  # the same words, each a letter
    written = [true[0], "एक बिल्ली घर में है", "लाल सेब बहुत सुंदर है"]
    assert cider_d(written, true) == cider_d(["a b c d e f", "a h i j f", "b c m n f"], plain)
    accents = ["a café by the sea", "the naïve man sat here", "one two three four"]
    assert cider_d([unicodedata.normalize("NFD", text) for text in accents], accents) == cider_d(accents, accents)
