"""`Pretrained.generate` against what transformers' `generate` wrote, prompts padded at either end."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from unimodal import UsageError, load_huggingface
from unimodal.generate import Sampling, beam_search
from unimodal.interop import writing

INTEROP = tiny.ROOT / "tests" / "reference" / "interop"
LENGTHS = (7, 4, 1)
IDS = np.random.default_rng(0).integers(3, 60, (3, 7)).astype(np.int32)
# transformers 5.23 on these prompts, padded at the left: model.generate(ids, attention_mask=mask, do_sample=False,
# max_new_tokens=8, eos_token_id=None). The likeliest id leads by 0.02 at least.
GREEDY = {
    "gpt2": [[22, 22, 13, 55, 55, 55, 55, 55], [3, 5, 5, 59, 59, 5, 5, 14], [3, 6, 6, 6, 6, 6, 6, 6]],
    "llama": [[29, 54, 51, 48, 33, 9, 16, 14], [12, 12, 4, 60, 60, 60, 60, 31], [33, 33, 0, 48, 42, 48, 42, 9]],
    "qwen3": [[60, 57, 14, 33, 56, 33, 18, 18], [54, 38, 33, 46, 46, 33, 56, 46], [33, 58, 33, 58, 33, 58, 33, 58]],
}
# The same, of the first prompt alone, with num_beams=3, num_return_sequences=3, max_new_tokens=6, length_penalty=0.0.
BEAMS = {
    "gpt2": (
        [[6, 6, 6, 6, 6, 6], [6, 6, 6, 6, 6, 5], [6, 6, 6, 6, 21, 52]],
        [-13.457775, -13.905888, -13.966576],
    ),
    "llama": (
        [[15, 25, 25, 25, 25, 0], [15, 25, 25, 25, 25, 25], [15, 25, 25, 25, 25, 51]],
        [-11.713279, -11.747732, -11.907272],
    ),
}


def padded(side, width=7):
    ids, mask = np.zeros((3, width), np.int32), np.zeros((3, width), np.int32)
    for row, n in enumerate(LENGTHS):
        place = slice(width - n, width) if side == "start" else slice(0, n)
        ids[row, place], mask[row, place] = IDS[row, :n], 1
    return {"text": ids, "text_mask": mask}


@pytest.fixture(scope="module")
def llama():
    return load_huggingface(INTEROP / "llama")


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_ids_are_those_of_transformers(name):
    model = load_huggingface(INTEROP / name)
    before = writing._generate._cache_size()
    for given in (padded("start"), padded("end"), padded("start", width=12)):
        made = model.generate(**given, steps=8)
        np.testing.assert_array_equal(made, GREEDY[name])
    assert writing._generate._cache_size() == before + 1  # one bucket, one program
    one = model.generate(text=IDS[:1], steps=8)
    np.testing.assert_array_equal(one, GREEDY[name][:1])


@pytest.mark.parametrize("name", BEAMS)
def test_beams_are_those_of_transformers(name):
    model = load_huggingface(INTEROP / name)
    parts = model.backbones["text"], model.tokenizers["text"], model.heads["lm"]
    ids, scores = beam_search(*parts, jax.numpy.asarray(IDS[:1]), jax.numpy.asarray([7]), steps=6, beams=3)
    np.testing.assert_array_equal(ids[0], BEAMS[name][0])
    np.testing.assert_allclose(scores[0], BEAMS[name][1], atol=1e-4)


def test_a_text_ends_where_the_checkpoint_says(llama, tmp_path):
    ends = {"config": 51, "generation": [33, 60]}
    folder = tmp_path / "model"
    shutil.copytree(INTEROP / "llama", folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "eos_token_id": ends["config"]}))

    def cut(stop):
        rows = []
        for row in GREEDY["llama"]:
            end = next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
            rows.append([*row[:end], *[0] * (len(row) - end)])
        return rows

    np.testing.assert_array_equal(load_huggingface(folder).generate(**padded("start"), steps=8), cut([51]))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends["generation"]}))
    model = load_huggingface(folder)
    np.testing.assert_array_equal(model.generate(**padded("start"), steps=8), cut([33, 60]))
    np.testing.assert_array_equal(model.generate(**padded("start"), steps=8, stop=()), GREEDY["llama"])


def test_sampling_wants_a_key(llama):
    warm = Sampling(top_p=0.9)
    first, again, other = (llama.generate(text=IDS, steps=8, sampling=warm, key=jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(UsageError, match="^sampling at temperature 1.0 needs a key"):
        llama.generate(text=IDS, steps=8, sampling=warm)


def test_pictures_that_are_ids_go_on():
    """The upper half of a picture, and the rest of it; its head does not know the id that begins a picture."""
    model = load_huggingface(INTEROP / "imagegpt")
    vocabulary = model.tokenizers["image"].config.vocabulary
    made = model.generate(image=IDS[:, :4] % (vocabulary - 1), steps=4)
    assert made.shape == (3, 4) and made.max() < vocabulary - 1


def test_bad_prompts_are_said_in_a_line(llama):
    gpt2 = load_huggingface(INTEROP / "gpt2")
    for line, model, given in [
        ("^give the model its prompt", llama, {}),
        ("^row 1 of text is empty", llama, {"text": IDS, "text_mask": np.asarray([[1], [0], [1]]) * np.ones((3, 7))}),
        ("^row 0 of text is empty", llama, {"text": IDS[:0]}),
        ("^row 2 of the prompt holds the id 61; the vocabulary has 61 ids", llama, {"text": IDS[:, :1] * 0 + [[1], [60], [61]]}),
        (r"^text should be ids \[B,T\]", llama, {"text": IDS[0]}),
        ("^the mask should have the shape", llama, {"text": IDS, "text_mask": np.ones((3, 6))}),
        ("^7 ids and 15 steps do not fit the position table, max_length=20", gpt2, {"text": IDS, "steps": 15}),
        ("^steps must be at least 1", gpt2, {"text": IDS, "steps": 0}),
        ("^this checkpoint has no head that predicts", load_huggingface(INTEROP / "gpt2_base"), {"text": IDS}),
        ("^this checkpoint has no head that predicts", load_huggingface(INTEROP / "bert_masked_lm"), {"text": IDS}),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=line) as raised:
            model.generate(**{"steps": 4, **given})
        assert "\n" not in str(raised.value)
    assert gpt2.generate(text=IDS, steps=14).shape == (3, 14)  # the last id is never read
