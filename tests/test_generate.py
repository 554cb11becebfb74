"""Sampling: cached logits against uncached ones, the filters against a slow reading, stop ids, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import quick

from unimodal import Backbone, BackboneConfig, UsageError
from unimodal.generate import Sampling, beam_search, filter_logits, generate, sample
from unimodal.tokenizers import text

V, STEPS = 13, 6
LENGTHS = np.asarray([5, 2, 1, 4], np.int32)
PROMPT = np.where(np.arange(5)[None] < LENGTHS[:, None], np.random.default_rng(0).integers(1, V, (4, 5)), 0).astype(
    np.int32
)
GREEDY = Sampling(temperature=0)
MODELS = {
    "rope": (text.Config(V, init_std=1.0), dict(rope_theta=100.0, norm="rms", kv_heads=2, activation="swiglu")),
    "learned": (text.Config(V, max_length=10, init_std=1.0), dict(scan=False)),
    "window": (text.Config(V, init_std=1.0), dict(rope_theta=100.0, window=3, global_tokens=1)),
    "kinds of layers": (
        text.Config(V, init_std=1.0),
        dict(
            rope_theta=100.0,
            rope_layers=(0,),
            window=3,
            window_layers=(1,),
            norm_position="sandwich",
            first_attention_norm=False,
            attention_scale=1.5,
            attention_soft_cap=0.5,
        ),
    ),
    "shared layers": (text.Config(V, init_std=1.0), dict(rope_theta=100.0, shared_layers=True)),
}


def build(name):
    tokenizer, options = MODELS[name]
    config = BackboneConfig(width=8, depth=2, heads=4, mlp_width=12, **options)
    return quick(
        lambda: (
            Backbone(config, rngs=nnx.Rngs(0)),
            text.Tokenizer(tokenizer, 8, rngs=nnx.Rngs(1)),
        )
    )()


class Recorder:
    """A head that notes every logits it gives out, and how often it is traced."""

    def __init__(self):
        self.traces, self.logits = 0, []

    def __call__(self, hidden, table):
        self.traces += 1
        logits = table.logits(hidden)
        jax.debug.callback(lambda x: self.logits.append(np.asarray(x)), logits, ordered=True)
        return logits

    def taken(self):
        jax.effects_barrier()
        taken, self.logits = self.logits, []
        return np.stack(taken, axis=1)  # [B,steps,V]


class Writer:
    """One compiled `generate` per set of static options, and its recorder."""

    def __init__(self, name):
        self.parts, self.head = build(name), Recorder()
        self.run = quick(
            lambda parts, prompt, lengths, key, steps, sampling, stop: generate(
                *parts, self.head, prompt, lengths, key, steps=steps, sampling=sampling, stop=stop
            ),
            static_argnames=("steps", "sampling", "stop"),
        )

    def __call__(self, prompt=PROMPT, lengths=LENGTHS, key=0, steps=STEPS, sampling=GREEDY, stop=()):
        arrays = jnp.asarray(prompt), jnp.asarray(lengths), jax.random.key(key)
        return np.asarray(self.run(self.parts, *arrays, steps=steps, sampling=sampling, stop=stop))


@pytest.fixture(scope="module", params=MODELS)
def writer(request):
    return Writer(request.param)


@pytest.fixture(scope="module")
def rope():
    return Writer("rope")


def uncached(parts, ids, lengths, made):
    """Logits [B,steps,V] of one plain pass over prompts and what followed them."""
    backbone, tokenizer = parts
    total = ids.shape[1] + made.shape[1]
    whole, real = np.zeros((len(ids), total), np.int32), np.zeros((len(ids), total), np.int32)
    for row, length in enumerate(lengths):
        line = np.concatenate([ids[row, :length], made[row]])
        whole[row, : len(line)], real[row, : len(line)] = line, 1
    position = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32)[None], whole.shape)
    hidden, _ = quick(lambda i, s: backbone(tokenizer(i, causal=True, segment=s, position=position)))(
        jnp.asarray(whole), jnp.asarray(real)
    )
    logits = np.asarray(tokenizer.logits(hidden))
    return np.stack([logits[row, n - 1 : n - 1 + made.shape[1]] for row, n in enumerate(lengths)])


def test_cached_logits_equal_uncached_ones(writer):
    """Prompts of unequal length: a row's padding is neither seen nor counted as a position."""
    made = writer()
    logits = writer.head.taken()
    want = uncached(writer.parts, PROMPT, LENGTHS, made)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(made, want.argmax(axis=-1))
    assert len(np.unique(made)) > 2  # or it shows little


def test_what_stands_in_the_padding_does_not_matter(rope):
    made = rope()
    noisy = np.where(np.arange(5)[None] < LENGTHS[:, None], PROMPT, 7)
    np.testing.assert_array_equal(rope(prompt=noisy), made)


def test_greedy_needs_no_key_and_compiles_once(rope):
    made = rope()
    traces = rope.head.traces
    np.testing.assert_array_equal(rope(key=1), made)
    rope(prompt=PROMPT[::-1], lengths=LENGTHS[::-1])
    assert rope.head.traces == traces
    assert rope.run._cache_size() == len({(PROMPT.shape, STEPS, GREEDY, ())})


def test_same_key_same_text_other_key_other_text(rope):
    warm = Sampling(temperature=1.5, top_k=10, top_p=0.95, min_p=0.01)
    first, again, other = (rope(key=key, sampling=warm) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.min() >= 0 and first.max() < V


def test_stop_ids_end_their_row_alone_and_the_loop_when_all_have(rope):
    plain = rope()
    rope.head.taken()
    stop = (int(plain[0, 2]), int(plain[1, 1]))
    made = rope(stop=stop)
    calls = rope.head.taken().shape[1]
    ends = []
    for row, free in zip(made, plain, strict=True):
        hits = np.flatnonzero(np.isin(free, stop))
        end = hits[0] + 1 if len(hits) else STEPS
        np.testing.assert_array_equal(row[:end], free[:end])
        assert not row[end:].any()
        ends.append(end)
    assert min(ends) < STEPS and calls == max(ends)
    everything = rope(stop=tuple(range(V)))
    assert rope.head.taken().shape[1] == 1
    np.testing.assert_array_equal(everything[:, 0], plain[:, 0])
    assert not everything[:, 1:].any()


def test_position_table_too_short_and_no_steps():
    backbone, tokenizer = build("learned")

    def write(steps):
        return jax.eval_shape(
            lambda: generate(
                backbone,
                tokenizer,
                lambda h, t: t.logits(h),
                jnp.asarray(PROMPT),
                jnp.asarray(LENGTHS),
                jax.random.key(0),
                steps=steps,
            )
        )

    assert write(6).shape == (4, 6)  # the last id is never embedded
    with pytest.raises(UsageError, match="^5 ids and 7 steps do not fit the position table, max_length=10"):
        write(7)
    with pytest.raises(UsageError, match="^steps must be at least 1, but is 0"):
        write(0)


# ---- Filters -------------------------------------------------------------------------------------------------------


def allowed_slowly(logits, sampling):
    """Which ids may be drawn from one row, in the order and words of `Sampling`."""
    scaled = {i: float(x) / sampling.temperature for i, x in enumerate(logits)}
    ranked = sorted(scaled, key=lambda i: -scaled[i])
    if sampling.top_k is not None:
        ranked = ranked[: sampling.top_k]
    weights = np.exp([scaled[i] for i in ranked])
    probability = dict(zip(ranked, weights / weights.sum(), strict=True))
    if sampling.top_p is not None:
        kept, reached = [], 0.0
        for i in ranked:
            if reached >= sampling.top_p:
                break
            kept.append(i)
            reached += probability[i]
        ranked = kept
    if sampling.min_p is not None:
        ranked = [i for i in ranked if probability[i] >= sampling.min_p * probability[ranked[0]]]
    return set(ranked)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(top_k=1),
        dict(top_k=4),
        dict(top_k=99),
        dict(top_p=0.1),
        dict(top_p=0.7),
        dict(top_p=1.0),
        dict(min_p=0.2),
        dict(min_p=1.0),
        dict(temperature=2.0, top_k=9, top_p=0.8, min_p=0.3),
        dict(temperature=0.3, top_k=5, top_p=0.95),
    ],
    ids=str,
)
def test_filters_are_what_they_say(options):
    sampling = Sampling(**options)
    logits = 2 * np.random.default_rng(0).standard_normal((8, V)).astype(np.float32)
    filtered = np.asarray(quick(filter_logits, static_argnums=1)(jnp.asarray(logits), sampling))
    for row, kept in zip(logits, filtered, strict=True):
        assert set(np.flatnonzero(np.isfinite(kept))) == allowed_slowly(row, sampling)
        stays = np.isfinite(kept)
        np.testing.assert_allclose(kept[stays], row[stays] / sampling.temperature, rtol=1e-6)
        assert (kept[~stays] == -np.inf).all() and stays[row.argmax()]


def test_samples_follow_the_tempered_distribution():
    logits = np.asarray([2.0, 1.0, 0.0, -1.0, 1.5], np.float32)
    many = jnp.asarray(np.tile(logits, (20_000, 1)))
    drawn = np.asarray(quick(sample, static_argnums=2)(many, jax.random.key(0), Sampling(temperature=2.0, top_k=4)))
    assert drawn.dtype == np.int32
    weights = np.where(np.arange(5) == 3, 0, np.exp(logits / 2))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, weights / weights.sum(), atol=0.015)
    greedy = sample(many[:2], jax.random.key(0), GREEDY)
    np.testing.assert_array_equal(greedy, [0, 0])


@pytest.mark.parametrize(
    "options", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(min_p=2.0)], ids=str
)
def test_bad_sampling(options):
    with pytest.raises(UsageError, match=f"^{next(iter(options))} must be"):
        Sampling(**options)


# ---- Beam search ---------------------------------------------------------------------------------------------------


def next_nats(parts, ids):
    """Log-probabilities [V] of what follows a list of ids, without a cache; compiled for one length only."""
    backbone, tokenizer = parts
    row = np.zeros((1, 8), np.int32)
    row[0, : len(ids)] = ids
    if "next" not in COMPILED:
        COMPILED["next"] = quick(
            lambda b, t, i, last: jax.nn.log_softmax(t.logits(b(t(i, causal=True))[0])[0, last].astype(jnp.float32))
        )
    return np.asarray(COMPILED["next"](backbone, tokenizer, jnp.asarray(row), len(ids) - 1))


COMPILED = {}


def all_continuations(parts, prompt, steps, stop, penalty):
    """Every continuation with its score, by trying them all, best first."""
    found, open_ = [], [((), 0.0)]
    for step in range(steps):
        grown = []
        for ids, total in open_:
            for token, nats in enumerate(next_nats(parts, [*prompt, *ids])):
                longer = (*ids, token), total + float(nats)
                (found if token in stop or step == steps - 1 else grown).append(longer)
        open_ = grown
    return sorted(((total / len(ids) ** penalty, ids) for ids, total in found), reverse=True)


def searched(parts, *args, beams, steps, stop=(), length_penalty=0.0):
    run = quick(
        lambda parts, prompt, lengths: beam_search(
            *parts,
            lambda h, t: t.logits(h),
            prompt,
            lengths,
            steps=steps,
            beams=beams,
            stop=stop,
            length_penalty=length_penalty,
            fill=-1,
        )
    )
    return tuple(np.asarray(x) for x in run(parts, *(jnp.asarray(x) for x in args)))


@pytest.fixture(scope="module")
def small():
    config = BackboneConfig(width=8, depth=1, heads=2, mlp_width=8, rope_theta=100.0)
    return quick(
        lambda: (Backbone(config, rngs=nnx.Rngs(0)), text.Tokenizer(text.Config(4, init_std=1.0), 8, rngs=nnx.Rngs(1)))
    )()


@pytest.mark.parametrize(("stop", "penalty"), [((), 0.0), ((2,), 0.0), ((2,), 1.0)])
def test_a_beam_that_holds_everything_is_an_exhaustive_search(small, stop, penalty):
    prompt, lengths = np.asarray([[1, 3, 2], [3, 0, 0]], np.int32), np.asarray([3, 1], np.int32)
    ids, scores = searched(small, prompt, lengths, beams=16, steps=3, stop=stop, length_penalty=penalty)
    assert ids.shape == (2, 16, 3)
    for row in range(2):
        truth = all_continuations(small, prompt[row, : lengths[row]], 3, stop, penalty)[:16]
        np.testing.assert_allclose(scores[row], [score for score, _ in truth], rtol=1e-4, atol=1e-5)
        for made, (_, wanted) in zip(ids[row][:5], truth, strict=False):
            assert made.tolist() == [*wanted, *[-1] * (3 - len(wanted))]


def beam_slowly(parts, prompt, steps, beams, stop, penalty):
    """The docstring of `beam_decode`, word by word: (score, ids), best first."""
    held = [((), 0.0, False)]
    for _ in range(steps):
        ways = []
        for ids, total, done in held:
            if done:
                ways.append((ids, total, True))
                continue
            nats = next_nats(parts, [*prompt, *ids])
            ways += [((*ids, token), total + float(nats[token]), token in stop) for token in range(len(nats))]
        held = sorted(ways, key=lambda way: -way[1] / len(way[0]) ** penalty)[:beams]
    return [(total / len(ids) ** penalty, ids) for ids, total, _ in held]


@pytest.mark.parametrize(("beams", "stop", "penalty"), [(2, (), 0.0), (3, (2,), 0.6), (3, (1, 2), 1.0)])
def test_a_narrow_beam_is_the_slow_reading_of_it(small, beams, stop, penalty):
    prompt, lengths = np.asarray([[1, 3, 2], [3, 0, 0]], np.int32), np.asarray([3, 1], np.int32)
    ids, scores = searched(small, prompt, lengths, beams=beams, steps=4, stop=stop, length_penalty=penalty)
    for row in range(2):
        truth = beam_slowly(small, prompt[row, : lengths[row]], 4, beams, stop, penalty)
        np.testing.assert_allclose(scores[row], [score for score, _ in truth], rtol=1e-4, atol=1e-5)
        for made, (_, wanted) in zip(ids[row], truth, strict=True):
            assert made.tolist() == [*wanted, *[-1] * (4 - len(wanted))]


def test_a_beam_of_one_is_greedy_and_a_wider_one_never_worse(rope):
    greedy = rope()
    narrow, low = searched(rope.parts, PROMPT, LENGTHS, beams=1, steps=STEPS)
    np.testing.assert_array_equal(narrow[:, 0], greedy)
    wide, high = searched(rope.parts, PROMPT, LENGTHS, beams=5, steps=STEPS)
    assert (high[:, 0] >= low[:, 0] - 1e-5).all() and (np.diff(high, axis=1) <= 0).all()
    assert all(len({tuple(ids) for ids in row}) == 5 for row in wide)
    # The score is the sum of the log-probabilities that a plain pass gives.
    nats = jax.nn.log_softmax(uncached(rope.parts, PROMPT, LENGTHS, wide[:, 0]), axis=-1)
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(nats), wide[:, 0, :, None], 2).sum((1, 2)), high[:, 0], atol=1e-4
    )


def test_no_beams(small):
    with pytest.raises(UsageError, match="^beams must be at least 1, but is 0"):
        searched(small, PROMPT[:1], LENGTHS[:1], beams=0, steps=1)
