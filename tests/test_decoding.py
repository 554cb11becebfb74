"""Decoding after any prefix, against one plain pass over prefix and continuation; seeds, guidance, bad input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import quick

from unimodal import Backbone, BackboneConfig, Span, Tokens, UsageError, concat
from unimodal.decoding import Decoder, Sampling, beam_decode, decode, decode_from, guide, prefill, row_keys
from unimodal.generate import text_decoder, text_prefix
from unimodal.layers import Embedding
from unimodal.sharding import make_mesh
from unimodal.tokenizers import image, text
from unimodal.tokens import segment_of, tokens

V, STEPS, WIDTH = 13, 4, 8
GREEDY = Sampling(temperature=0)
LENGTHS = np.asarray([4, 2, 1], np.int32)
IDS = np.random.default_rng(0).integers(1, V, (3, 4)).astype(np.int32)
PIXELS = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 4, 3)), jnp.float32)
MODELS = {
    "rope": dict(rope_theta=100.0, norm="rms", kv_heads=2, activation="swiglu", qk_norm=True),
    "learned": dict(scan=False, norm_position="post", final_norm=False),
    "window": dict(rope_theta=100.0, window=3, global_tokens=2, kv_heads=1),
}


def build(name, places=16):
    """Backbone, text tokenizer, image tokenizer; the text has learned places where the backbone has no rotary ones."""
    options = MODELS[name]
    table = text.Config(V, max_length=None if "rope_theta" in options else places, init_std=1.0)
    patches = image.Config((4, 4), 2, init_std=1.0)
    return quick(
        lambda: (
            Backbone(BackboneConfig(width=WIDTH, depth=2, heads=4, mlp_width=12, **options), rngs=nnx.Rngs(0)),
            text.Tokenizer(table, WIDTH, rngs=nnx.Rngs(1)),
            image.Tokenizer(patches, WIDTH, rngs=nnx.Rngs(2)),
        )
    )()


BUILT = {}


@pytest.fixture(params=MODELS)
def parts(request):
    if request.param not in BUILT:
        BUILT[request.param] = build(request.param)
    return BUILT[request.param]


@pytest.fixture(scope="module")
def rope():
    return BUILT.setdefault("rope", build("rope"))


def padded(side):
    """IDS with their padding (id 7, to be noticed) at one side, and the mask."""
    ids, mask = np.full_like(IDS, 7), np.zeros_like(IDS)
    for row, n in enumerate(LENGTHS):
        place = slice(4 - n, 4) if side == "start" else slice(0, n)
        ids[row, place], mask[row, place] = IDS[row, :n], 1
    return jnp.asarray(ids), jnp.asarray(mask)


class Recorder:
    """A decoder's logits, noted as they are given out."""

    def __init__(self, decoder):
        self.seen, self.inner = [], decoder
        self.decoder = replace(decoder, logits=self.logits)

    def logits(self, hidden, place):
        found = self.inner.logits(hidden, place)
        jax.debug.callback(lambda x: self.seen.append(np.asarray(x)), found, ordered=True)
        return found

    def taken(self):
        jax.effects_barrier()
        return np.stack(self.seen, axis=1)  # [B,calls,V]


def written(parts, prefix_of, *, place=None, sampling=GREEDY, unconditional_of=None, steps=STEPS):
    """Ids and the logits that they were drawn from."""
    recorder = []

    def run(parts, key):
        recorder.append(Recorder(text_decoder(parts[0], parts[1], lambda hidden, table: table.logits(hidden))))
        other = None if unconditional_of is None else unconditional_of(parts)
        options = dict(steps=steps, sampling=sampling, place=place, unconditional=other)
        return decode(recorder[0].decoder, prefix_of(parts), key, **options)

    made = np.asarray(quick(run)(parts, jax.random.key(0)))
    return made, recorder[0].taken()


def followed(prefix, after):
    """One row of tokens per row: `prefix` up to its last real token, then `after` [B,steps,D], then padding."""
    segment, steps = np.asarray(segment_of(prefix)), after.shape[1]
    length = segment.shape[1]
    x, position = np.zeros((len(segment), length + steps, WIDTH), np.float32), np.zeros((len(segment), length + steps))
    real = np.zeros_like(position, np.int32)
    ends = [np.flatnonzero(row)[-1] + 1 for row in segment]
    for row, end in enumerate(ends):
        x[row, :end], x[row, end : end + steps] = prefix.x[row, :end], after[row]
        real[row, :end], real[row, end : end + steps] = segment[row, :end], segment[row, end - 1]
        position[row, :end] = prefix.position[row, :end]
        position[row, end : end + steps] = prefix.position[row, end - 1] + 1 + np.arange(steps)
    *spans, last = prefix.layout
    assert last.causal or set(ends) == {length}  # else no one layout fits all rows
    layout = (*spans, Span(last.length + steps, True)) if last.causal else (*prefix.layout, Span(steps, True))
    return Tokens(jnp.asarray(x), jnp.asarray(position, jnp.int32), jnp.asarray(real), layout), np.asarray(ends)


whole_pass = quick(lambda backbone, tokenizer, x: tokenizer.logits(backbone(x)[0]))


def plain(parts, prefix, made, place):
    """Logits [B,steps,V] without a cache."""
    backbone, tokenizer, _ = parts
    where = jnp.asarray(np.broadcast_to(place, len(made))[:, None] + np.arange(made.shape[1]), jnp.int32)
    whole, ends = followed(prefix, np.asarray(tokenizer(jnp.asarray(made), causal=True, position=where).x))
    logits = np.asarray(whole_pass(backbone, tokenizer, whole))
    return np.stack([logits[row, end - 1 : end - 1 + made.shape[1]] for row, end in enumerate(ends)])


def same(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# ---- Cached equals uncached ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["end", "start"])
def test_text_after_an_image(parts, side):
    """The image sees itself both ways, the words what came before; prompts are padded at either end."""
    ids, mask = padded(side)
    given = jnp.asarray(LENGTHS) if side == "end" else mask

    def prefix_of(parts):
        return concat(parts[2](PIXELS), text_prefix(parts[1], ids, given))

    assert prefix_of(parts).layout == (Span(5), Span(4, causal=True))
    made, logits = written(parts, prefix_of, place=jnp.asarray(LENGTHS))
    wanted = plain(parts, prefix_of(parts), made, LENGTHS)
    same(logits, wanted)
    np.testing.assert_array_equal(made, wanted.argmax(axis=-1))
    assert len(np.unique(made)) > 2  # or it shows little


def test_padding_at_the_start_or_the_end_is_the_same_to_text(parts):
    """Positions count real ids, and windows measure between them."""
    made = [
        written(parts, lambda parts, side=side: text_prefix(parts[1], *padded(side)))[0] for side in ("start", "end")
    ]
    np.testing.assert_array_equal(*made)


def test_an_image_alone(parts):
    made, logits = written(parts, lambda parts: parts[2](PIXELS), place=0)
    same(logits, plain(parts, parts[2](PIXELS), made, 0))


@pytest.mark.parametrize("name", ["rope", "window"])
def test_a_bidirectional_prefix_padded_at_its_end(name):
    """As sounds are: what is written follows the last real frame, also as windows measure it."""
    parts = BUILT.setdefault(name, build(name))
    x, lengths = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, WIDTH)), jnp.float32), (6, 3)
    made, logits = written(parts, lambda parts: tokens(x, lengths=jnp.asarray(lengths, jnp.int32)), place=0)
    for row, length in enumerate(lengths):
        alone = tokens(x[row : row + 1, :length])
        same(logits[row : row + 1], plain(parts, alone, made[row : row + 1], 0))


@pytest.mark.parametrize("name", ["rope", "window"])
def test_the_last_of_several_documents_goes_on(name):
    parts = BUILT.setdefault(name, build(name))
    first, second = IDS[:1], IDS[1:2]
    row = jnp.asarray(np.concatenate([first, second], axis=1))
    segment = jnp.asarray([[1] * 4 + [2] * 4], jnp.int32)
    position = jnp.asarray([[0, 1, 2, 3] * 2], jnp.int32)
    both = written(parts, lambda parts: parts[1](row, causal=True, segment=segment, position=position))
    alone = written(parts, lambda parts: parts[1](jnp.asarray(second), causal=True))
    np.testing.assert_array_equal(both[0], alone[0])
    same(both[1], alone[1])


# ---- Several vocabularies ------------------------------------------------------------------------------------------

CODES, END = 6, 5  # codes of pictures, of which the last ends one


def test_image_codes_after_text_and_words_after_the_codes(rope):
    """Each stretch has its own table and head; a row whose codes end early goes on right there."""
    backbone, tokenizer, _ = rope
    codebook, places = quick(
        lambda: tuple(Embedding(n, WIDTH, init_std=1.0, rngs=nnx.Rngs(n)) for n in (CODES, STEPS))
    )()

    def run(backbone, tokenizer, codebook, places, key):
        words = text_decoder(backbone, tokenizer, lambda hidden, table: table.logits(hidden))
        draw = Decoder(
            backbone,
            embed=lambda ids, place: codebook(ids) + places(place),
            logits=lambda hidden, place: codebook.logits(hidden),
            limit=STEPS,
        )
        state = prefill(backbone, text_prefix(tokenizer, *padded("end")), steps=2 * STEPS)
        codes, state = decode_from(draw, state, key, steps=STEPS, stop=(END,), fill=-1, place=0)
        recorders.append(Recorder(words))
        return codes, decode_from(recorders[0].decoder, state, key, steps=STEPS, sampling=GREEDY, place=9)[0]

    recorders, run = [], quick(run)
    for seed in range(20):  # until rows end at different places
        codes, made = map(np.asarray, run(backbone, tokenizer, codebook, places, jax.random.key(seed)))
        counts = (codes >= 0).sum(axis=1)
        if len(set(counts)) > 1:
            break
    assert len(set(counts)) > 1 and codes.max() < CODES
    found = recorders[0].taken()[:, -STEPS:]
    for row, (n, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        words = tokenizer(jnp.asarray(IDS[row : row + 1, :n]), causal=True)
        drawn = codebook(jnp.asarray(codes[row : row + 1, :count]))
        drawn = drawn + places(jnp.arange(count, dtype=jnp.int32)[None])
        same(
            found[row : row + 1],
            plain(rope, concat(words, tokens(drawn, causal=True)), made[row : row + 1], 9),
        )


def test_channels_of_pixels_take_turns(rope):
    """Red, green and blue have four values each, a table for all of them, and their place says whose turn it is."""
    backbone, tokenizer, _ = rope

    def run(backbone, tokenizer, key):
        def logits(hidden, place):
            channel = jnp.arange(V, dtype=jnp.int32)[None] // 4
            return jnp.where(channel == place[:, None] % 3, tokenizer.logits(hidden), -jnp.inf)

        decoder = Decoder(backbone, lambda ids, place: tokenizer(ids, causal=True).x, logits)
        return decode(decoder, tokenizer(jnp.asarray(IDS), causal=True), key, steps=6, place=jnp.asarray([0, 1, 2]))

    made = np.asarray(quick(run)(backbone, tokenizer, jax.random.key(0)))
    np.testing.assert_array_equal(made // 4, (np.arange(3)[:, None] + np.arange(6)) % 3)


# ---- Guidance ------------------------------------------------------------------------------------------------------


def test_guided_logits_are_the_formula():
    c, u = np.random.default_rng(0).standard_normal((2, 3, V)).astype(np.float32)
    np.testing.assert_allclose(guide(jnp.asarray(c), jnp.asarray(u), 3.5), u + 3.5 * (c - u), rtol=1e-6, atol=1e-6)
    forbidden = jnp.asarray([[-jnp.inf, 1.0], [-jnp.inf, 1.0]])
    np.testing.assert_array_equal(guide(forbidden, forbidden, 0.0), forbidden)


@pytest.mark.parametrize("name", ["rope", "window"])
def test_guided_ids_come_from_two_prefixes(name):
    """With the condition: image and words. Without: the words alone, a prefix of another length."""
    parts = BUILT.setdefault(name, build(name))
    ids, mask = padded("end")

    def with_image(parts):
        return concat(parts[2](PIXELS), text_prefix(parts[1], ids, mask))

    def without(parts):
        return text_prefix(parts[1], ids, mask)

    sampling = Sampling(temperature=0, guidance=2.5)
    options = dict(place=jnp.asarray(LENGTHS), sampling=sampling, unconditional_of=without)
    made, logits = written(parts, with_image, **options)
    c, u = plain(parts, with_image(parts), made, LENGTHS), plain(parts, without(parts), made, LENGTHS)
    same(logits[:, ::2], c)
    same(logits[:, 1::2], u)
    np.testing.assert_array_equal(made, (u + 2.5 * (c - u)).argmax(axis=-1))
    assert np.abs(c - u).max() > 0.1  # or it shows little

    def narrow(parts):
        decoder = text_decoder(parts[0], parts[1], lambda hidden, table: table.logits(hidden))
        beams = dict(steps=STEPS, beams=1, place=jnp.asarray(LENGTHS), guidance=2.5)
        return beam_decode(decoder, with_image(parts), unconditional=without(parts), **beams)

    found, score = map(np.asarray, quick(narrow)(parts))
    np.testing.assert_array_equal(found[:, 0], made)
    nats = np.asarray(jax.nn.log_softmax(jnp.asarray(u + 2.5 * (c - u)), axis=-1))
    same(score[:, 0], np.take_along_axis(nats, made[:, :, None], 2).sum((1, 2)))


# ---- Seeds ---------------------------------------------------------------------------------------------------------


def sampled(parts, ids, mask, key):
    """Text drawn at a high temperature."""

    def run(parts, ids, mask, key):
        decoder = text_decoder(parts[0], parts[1], lambda hidden, table: table.logits(hidden))
        sampling = Sampling(temperature=2.0)
        return decode(decoder, text_prefix(parts[1], ids, mask), key, steps=STEPS, sampling=sampling)

    return np.asarray(quick(run)(parts, jnp.asarray(ids), jnp.asarray(mask), key))


def test_a_key_draws_the_same_whatever_pads_the_batch_or_holds_it(rope):
    ids, mask = padded("end")
    alone = sampled(rope, ids, mask, jax.random.key(3))
    more = [np.concatenate([x, np.ones((5, 4), np.int32)]) for x in (ids, mask)]
    np.testing.assert_array_equal(sampled(rope, *more, jax.random.key(3))[:3], alone)
    longer = [np.pad(x, ((0, 0), (2, 3))) for x in (ids, mask)]
    np.testing.assert_array_equal(sampled(rope, *longer, jax.random.key(3)), alone)
    mesh = make_mesh(data=4, tensor=2)
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("data"))
        spread = [jax.device_put(jnp.asarray(x), split) for x in more]
        np.testing.assert_array_equal(sampled(rope, *spread, jax.random.key(3))[:3], alone)
    assert (sampled(rope, ids, mask, jax.random.key(4)) != alone).any()


def test_keys_of_rows_depend_on_their_real_ids_and_the_seed():
    ids = jnp.asarray([[5, 6, 7, 0], [5, 6, 7, -1], [6, 5, 7, 0], [5, 6, 0, 0]])
    lengths = jnp.asarray([3, 3, 3, 2])
    data = lambda *given: np.asarray(jax.random.key_data(row_keys(*given)))  # noqa: E731
    marks = [
        sum((int(i) + 1) * 31 ** (t + 1) for t, i in enumerate(row[:n])) % 2**32
        for row, n in zip(ids, lengths, strict=True)
    ]
    wanted = [np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(7), mark))) for mark in marks]
    np.testing.assert_array_equal(data(7, ids, lengths), wanted)
    assert marks[0] == marks[1] and len(set(marks)) == 3  # what pads a row says nothing; order and length do
    np.testing.assert_array_equal(data(7, ids[1:, :3], lengths[1:]), wanted[1:])  # nor do other rows
    assert not (data(8, ids, lengths) == np.asarray(wanted)).all(axis=1).any()


def test_rows_with_keys_of_their_own_may_change_places(rope):
    ids, mask = padded("end")
    keys = jax.random.split(jax.random.key(0), 3)
    straight = sampled(rope, ids, mask, keys)
    np.testing.assert_array_equal(sampled(rope, ids[::-1], mask[::-1], keys[::-1])[::-1], straight)
    twice = sampled(rope, ids[jnp.asarray([0, 0, 0])], mask[jnp.asarray([0, 0, 0])], keys)
    assert len({tuple(row) for row in twice}) == 3


def test_no_gradient_flows_into_what_is_written(rope):
    """A loss over its own text, as in policy gradients, has the gradient of the loss over that text as data."""

    def loss(parts, made):
        backbone, tokenizer, _ = parts
        if made is None:
            decoder = text_decoder(backbone, tokenizer, lambda hidden, table: table.logits(hidden))
            made = decode(decoder, text_prefix(tokenizer, *padded("end")), jax.random.key(0), steps=STEPS)
        nats = jax.nn.log_softmax(tokenizer.logits(backbone(tokenizer(made, causal=True))[0]), axis=-1)
        return jnp.take_along_axis(nats, made[:, :, None], axis=2).mean(), made

    gradient = quick(jax.grad(loss, has_aux=True))
    through, made = gradient(rope, None)
    fixed, _ = gradient(rope, made)
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(fixed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def score(parts):
        decoder = text_decoder(*parts[:2], lambda hidden, table: table.logits(hidden))
        return beam_decode(decoder, text_prefix(parts[1], *padded("end")), steps=2, beams=2)[1].sum()

    assert all(not np.asarray(g).any() for g in jax.tree.leaves(quick(jax.grad(score))(rope)))


# ---- Bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_said_in_a_line(rope):
    backbone, tokenizer, _ = rope
    learned, places, _ = BUILT.setdefault("learned", build("learned"))
    ids, key = jnp.asarray(IDS), jax.random.key(0)

    def complain(line, prefix, *, decoder=(backbone, tokenizer), **options):
        decoder = text_decoder(*decoder, lambda hidden, table: table.logits(hidden))
        with pytest.raises(UsageError, match=line) as raised:
            decode(decoder, prefix() if callable(prefix) else prefix, key, **{"steps": 2, **options})
        assert "\n" not in str(raised.value)

    fine = tokenizer(ids, causal=True)
    complain("^the prefix is empty", tokenizer(ids[:, :0], causal=True))
    complain("^row 1 of the prefix is all padding", text_prefix(tokenizer, ids, jnp.asarray([4, 0, 1])))
    complain("^row 2 of the prompt holds the id 13; the vocabulary has 13", lambda: text_prefix(
        tokenizer, ids.at[2, 3].set(V), jnp.asarray([4, 4, 4])))  # fmt: skip
    complain("^row 0 of the prompt holds the id -1", lambda: text_prefix(
        tokenizer, ids.at[0, 0].set(-1), jnp.ones_like(ids)))  # fmt: skip
    complain("^a prompt should be ids", lambda: text_prefix(tokenizer, ids.astype(jnp.float32), jnp.ones_like(ids)))
    complain("^lengths should be", lambda: text_prefix(tokenizer, ids, jnp.ones((3, 5), jnp.int32)))
    complain("^steps must be at least 1", fine, steps=0)
    complain("^guidance=2.0 needs a second prefix", fine, sampling=Sampling(guidance=2.0))
    complain("^an unconditional prefix is given", fine, unconditional=fine)
    one = jax.tree.map(lambda x: x[:1], fine)
    complain("^the unconditional prefix has 1 rows, but the prefix 3", fine, unconditional=one)
    table = places(ids, causal=True)
    complain("^4 ids and 14 steps do not fit the position table", table, decoder=(learned, places), steps=14)
    complain("^16 ids and 2 steps do not fit", table, decoder=(learned, places), place=16)
    with pytest.raises(UsageError, match="^3 steps do not fit the 2 free slots"):
        decode_from(
            text_decoder(backbone, tokenizer, lambda h, t: t.logits(h)), prefill(backbone, fine, steps=2), key, steps=3
        )
    for temperature in (-0.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="^temperature must be 0"):
            Sampling(temperature=temperature)
    with pytest.raises(UsageError, match="^guidance must be a finite number"):
        Sampling(guidance=float("nan"))
