"""Tokenizers: image patches, audio convolutions and their padding, text tables. (Against torch: `test_parity.py`.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import named, quick
from scipy.special import erf

from unimodal import Span, UsageError
from unimodal.tokenizers import audio, image, spectrogram, text

rng = np.random.default_rng(0)
AUDIO = dict(channels=8, kernels=(10, 3, 2), strides=(5, 2, 2), position_groups=2)
SAMPLES, LENGTHS = 150, jnp.asarray([150, 90, 31, 9], jnp.int32)  # the last is too short for one frame


def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))


def make(module, width, **options):
    config = module.Config(**options)
    return quick(lambda: module.Tokenizer(config, width, rngs=nnx.Rngs(0)))()


# ---- Image ---------------------------------------------------------------------------------------------------------


def test_patchify_reads_rows_first():
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    got = np.asarray(image.patchify(jnp.asarray(pixels), 2))
    assert got.shape == (2, 6, 12)
    for b, row, column in np.ndindex(2, 2, 3):
        patch = pixels[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(got[b, 3 * row + column], patch.ravel())


def test_image_tokens_are_a_strided_convolution_behind_the_registers():
    tokenizer = make(image, 5, image_size=(4, 6), patch=2, registers=2)
    assert tokenizer.config.tokens == 8 and tokenizer.config.grid == (2, 3)
    pixels = normal(2, 4, 6, 3)
    made = tokenizer(pixels)
    assert made.layout == (Span(8, False),) and made.segment is None
    w = named(tokenizer)
    kernel = jnp.asarray(w["projection.kernel"].reshape(2, 2, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    patches = jax.lax.conv_general_dilated(pixels, kernel, (2, 2), "VALID", dimension_numbers=numbers)
    place = w["position_table.table"]
    np.testing.assert_allclose(made.x[:, 2:], np.asarray(patches).reshape(2, 6, 5) + place[2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.x[:, :2], np.broadcast_to(w["registers.table"] + place[:2], (2, 2, 5)), rtol=1e-6)


def test_image_options():
    bare = make(image, 5, image_size=(4, 4), patch=2, registers=0, bias=False, norm=True)
    assert set(named(bare)) == {"projection.kernel", "position_table.table", "norm.scale", "norm.bias"}
    made = bare(normal(1, 4, 4, 3))
    assert made.x.shape == (1, 4, 5)
    np.testing.assert_allclose(made.x.mean(axis=-1), 0, atol=1e-6)  # normed


def test_wrong_image_sizes():
    with pytest.raises(UsageError, match="^image_size 30x32 is not divisible by patch=4$"):
        image.Config(image_size=(30, 32), patch=4)
    tokenizer = make(image, 5, image_size=(4, 4), patch=2)
    with pytest.raises(UsageError, match=r"shape \(4, 6, 3\) where \(4, 4, 3\) was configured"):
        tokenizer(normal(1, 4, 6, 3))


@pytest.mark.parametrize(
    ("module", "options", "shape"),
    [(image, dict(image_size=(16, 16), patch=2), (2, 16, 16, 3)), (spectrogram, dict(bins=5), (2, 80, 5))],
)
def test_dropout_falls_on_all_tokens_after_their_positions(module, options, shape):
    """As ViT (Dosovitskiy 2021, appendix B.1) and the spectrogram models have it: class token and positions included."""
    whole, dropped = (make(module, 8, **options, dropout=rate) for rate in (0.0, 0.25))
    x = normal(*shape)
    want = np.asarray(whole(x, key=jax.random.key(0)).x)
    np.testing.assert_array_equal(dropped(x).x, want)  # no key, as in evaluation: nothing is dropped
    got = np.asarray(dropped(x, key=jax.random.key(0)).x)
    kept = got != 0
    np.testing.assert_allclose(got[kept], (want / 0.75)[kept], rtol=1e-6)
    assert 0.7 < kept.mean() < 0.8 and not kept[:, 0].all()
    other = np.asarray(dropped(x, key=jax.random.key(1)).x)
    assert (other != got).any()


# ---- Audio ---------------------------------------------------------------------------------------------------------


def frames_slowly(config, samples):
    """Count the places where each kernel still fits."""
    for kernel, stride in zip(config.kernels, config.strides, strict=True):
        samples = len(range(0, samples - kernel + 1, stride))
    return samples


def test_frames_are_what_the_convolutions_make():
    config = audio.Config(**AUDIO)
    lengths = list(range(0, 200))
    want = [frames_slowly(config, n) for n in lengths]
    assert [config.frames(n) for n in lengths] == want
    np.testing.assert_array_equal(config.frames(jnp.asarray(lengths, jnp.int32)), want)
    assert [audio.Config().frames(n) for n in (16_000, 400, 399)] == [49, 1, 0]  # the paper's 49 Hz
    shapes = jax.eval_shape(lambda: audio.Tokenizer(config, 8, rngs=nnx.Rngs(0)))
    for samples in (30, 31, 149, 150):
        features = jax.eval_shape(lambda t, x: t.features(x), shapes, jax.ShapeDtypeStruct((1, samples), jnp.float32))
        assert features.shape == (1, config.frames(samples), 8)


def test_too_short_audio_and_bad_configs():
    with pytest.raises(UsageError, match="^9 audio samples are too short for one frame$"):
        make(audio, 8, **AUDIO).features(normal(1, 9))
    with pytest.raises(UsageError, match="2 kernels but 1 strides"):
        audio.Config(kernels=(3, 3), strides=(2,))
    with pytest.raises(UsageError, match="'batch' is not one of group, layer"):
        audio.Config(conv_norm="batch")
    with pytest.raises(UsageError, match="width 9 is not divisible .* position_groups=2"):
        audio.Tokenizer(audio.Config(**AUDIO), 9, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("frames", [6, 57])  # one stretch of overlap-save, and many
@pytest.mark.parametrize("taps", [1, 4, 5])
def test_both_ways_to_convolve_positions_are_the_same(taps, frames):
    """In value and gradient; and both are what one output frame's window says."""
    position = make(audio, 8, **AUDIO, position_kernel=taps).position
    x, kernel, probe = normal(2, frames + taps - 1, 8), normal(taps, 4, 8), normal(2, frames, 8)

    def run(how):
        return quick(
            jax.value_and_grad(lambda x, k: (lambda y: ((y * probe).sum(), y))(how(x, k)), (0, 1), has_aux=True)
        )

    ((_, spectral), of_spectrum), ((_, convolved), of_convolved) = (
        run(how)(x, kernel) for how in (position._by_spectrum, position._convolved)
    )
    np.testing.assert_allclose(spectral, convolved, rtol=1e-5, atol=1e-5)
    for a, b in zip(of_spectrum, of_convolved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for group in range(2):
        mine = slice(4 * group, 4 * group + 4)
        window = np.einsum("bkc,kco->bo", x[:, 2 : 2 + taps, mine], kernel[:, :, mine])
        np.testing.assert_allclose(spectral[:, 2, mine], window, rtol=1e-5, atol=1e-5)


def test_a_long_recording_is_no_longer_program():
    position, kernel = make(audio, 8, **AUDIO, position_kernel=4).position, normal(4, 4, 8)
    sizes = [
        len(jax.make_jaxpr(position._by_spectrum)(jax.ShapeDtypeStruct((1, frames, 8), jnp.float32), kernel).eqns)
        for frames in (100, 1_000_000)
    ]
    assert sizes[0] == sizes[1]


def test_position_convolution_keeps_the_length_and_its_magnitude():
    for taps in (1, 4, 5):
        tokenizer = make(audio, 8, **AUDIO, position_kernel=taps)
        assert tokenizer.position(normal(1, 7, 8)).shape == (1, 7, 8)
        w = named(tokenizer.position)
        np.testing.assert_allclose(w["magnitude"], np.sqrt((w["direction"] ** 2).sum(axis=(1, 2))), rtol=1e-5)
    scaled = nnx.clone(tokenizer.position)
    scaled.direction.set_value(scaled.direction.get_value() * 3)  # only the magnitude says how large the kernel is
    x = normal(1, 7, 8)
    np.testing.assert_allclose(scaled(x), tokenizer.position(x), rtol=1e-5, atol=1e-6)


def test_several_position_convolutions_in_a_row():
    """Each: the convolution read plainly, a norm over the channels that learns nothing, and GELU; none alters the length."""
    tokenizer = make(audio, 4, **AUDIO, position_kernel=5, position_layers=2)
    w = {name: value + 0.3 * rng.standard_normal(value.shape) for name, value in named(tokenizer.position).items()}
    assert sorted(w) == ["0.bias", "0.kernel", "1.bias", "1.kernel"]
    for i, convolution in enumerate(tokenizer.position):
        convolution.kernel.set_value(jnp.asarray(w[f"{i}.kernel"], jnp.float32))
        convolution.bias.set_value(jnp.asarray(w[f"{i}.bias"], jnp.float32))
    features = normal(2, 6, 8)
    y = projected = np.asarray(tokenizer.projection(features), np.float64)
    for i in range(2):
        padded, kernel = np.pad(y, ((0, 0), (2, 2), (0, 0))), w[f"{i}.kernel"]
        y = np.zeros_like(projected)
        for t, o in np.ndindex(6, 4):
            group = slice(2 * (o // 2), 2 * (o // 2) + 2)
            y[:, t, o] = np.einsum("bkc,kc->b", padded[:, t : t + 5, group], kernel[:, :, o]) + w[f"{i}.bias"][o]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    y = projected + y
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(tokenizer.embed(features).x, y, rtol=1e-4, atol=1e-4)


def test_padding_never_reaches_real_frames():
    """By gradient, from the padded samples to the real frames (no norm over time here), through every convolution."""
    tokenizer = make(audio, 8, **AUDIO, position_kernel=4, conv_norm="layer")
    wave, frames = normal(4, SAMPLES), np.asarray(tokenizer.config.frames(LENGTHS))
    np.testing.assert_array_equal(frames, [7, 4, 1, 0])
    real = np.arange(7)[None] < frames[:, None]
    made = tokenizer(wave, lengths=LENGTHS)
    np.testing.assert_array_equal(made.segment, real)

    def heard(wave):
        x = tokenizer(wave, lengths=LENGTHS).x
        return jnp.where(jnp.asarray(real)[:, :, None], jnp.square(x - 0.5) * x, 0).sum()

    gradient = np.abs(np.asarray(quick(jax.grad(heard))(wave)))
    reach = (frames - 1) * 20 + 30  # each frame spans 30 samples and the next begins 20 later
    for row, last in zip(gradient, np.where(frames > 0, reach, 0), strict=True):
        assert (row[:last] > 0).all() and not row[last:].any()


def test_padded_frames_enter_the_position_convolution_as_zeros():
    tokenizer = make(audio, 8, **AUDIO, position_kernel=4)
    features = normal(2, 7, 8)
    lengths = jnp.asarray([150, 90], jnp.int32)
    run = quick(lambda f: tokenizer.embed(f, lengths=lengths).x)
    poisoned = features.at[1, 4:].set(1e6)
    np.testing.assert_array_equal(run(poisoned)[0], run(features)[0])
    np.testing.assert_array_equal(run(poisoned)[1, :4], run(features)[1, :4])
    whole = quick(lambda f: tokenizer.embed(f))(features)
    assert whole.segment is None
    np.testing.assert_allclose(whole.x[0], run(features)[0], rtol=1e-5, atol=1e-6)
    assert (np.abs(np.asarray(whole.x - run(features))[1, :4]) > 1e-6).any()  # or the test shows nothing


def test_masked_frames_are_replaced():
    """What was there has no gradient any more; the mask embedding stands in its place."""
    tokenizer = make(audio, 8, **AUDIO, position_kernel=4)
    features, probe = normal(2, 7, 8), normal(2, 7, 8)
    masked = np.zeros((2, 7), bool)
    masked[0, 2:4] = masked[1, 5] = True

    def loss(tokenizer, features):
        return (tokenizer.embed(features, masked=jnp.asarray(masked)).x * probe).sum()

    parts, of_features = quick(jax.grad(loss, argnums=(0, 1)))(tokenizer, features)
    np.testing.assert_array_equal(np.abs(np.asarray(of_features)).max(axis=2) > 0, ~masked)
    assert np.abs(parts.mask_embedding.get_value()).max() > 0
    everywhere = tokenizer.embed(features, masked=jnp.ones((2, 7), bool))
    np.testing.assert_array_equal(everywhere.x[0], everywhere.x[1])
    unmasked = tokenizer.embed(features, masked=jnp.zeros((2, 7), bool))
    np.testing.assert_array_equal(unmasked.x, tokenizer.embed(features).x)


def test_group_norm_is_over_time_in_the_first_convolution_only():
    grouped, layered = (make(audio, 8, **AUDIO, conv_norm=norm) for norm in ("group", "layer"))
    assert [c.norm is not None for c in grouped.convolutions] == [True, False, False]
    assert [c.norm is not None for c in layered.convolutions] == [True, True, True]
    everywhere = jnp.ones((2, 50, 1))
    normed = audio._norm_over_time(grouped.convolutions[0].norm, normal(2, 50, 8) * 3 + 1, everywhere)
    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(axis=1), 1, atol=1e-3)


def convolved_then_normed(kernel, scale, bias, samples, stride):
    """The first convolution as it is defined: numbers [B,N] → convolution, norm over time, GELU, [B,T,C]."""
    count = (samples.shape[1] - kernel.shape[0]) // stride + 1
    seen = samples[:, stride * np.arange(count)[:, None] + np.arange(kernel.shape[0])]
    y = jnp.einsum("btk,kc->btc", seen, kernel[:, 0], precision="highest")
    y = y - y.mean(axis=1, keepdims=True)
    y = y / jnp.sqrt(jnp.square(y).mean(axis=1, keepdims=True) + 1e-5)
    y = y * jnp.reshape(scale, (1, 1, -1)) + jnp.reshape(bias, (1, 1, -1))
    return 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))


@pytest.mark.parametrize(("taps", "stride"), [(10, 5), (7, 3), (4, 6), (5, 5)])
def test_norm_within_the_first_convolution_is_the_norm_after_it(taps: int, stride: int):
    config = audio.Config(**AUDIO | dict(conv_norm="group", channels=8, conv_bias=True))
    convolution = audio.Convolution(1, taps, stride, "group", config, rngs=nnx.Rngs(0))
    samples = normal(2, 403) + 0.5
    probe = normal(2, (403 - taps) // stride + 1, 8)
    given = [1.0 + 0.1 * normal(*a.shape) for a in (convolution.norm.scale, convolution.norm.bias)]
    convolution.norm.scale.set_value(given[0])
    convolution.norm.bias.set_value(given[1])

    def defined(kernel, scale, bias, samples):
        return (convolved_then_normed(kernel, scale, bias, samples, stride) * probe).sum()

    plain = quick(jax.value_and_grad(defined, argnums=(0, 1, 2, 3)))(convolution.kernel.get_value(), *given, samples)
    once = jax.value_and_grad(lambda c, x: (c.normed_at_once(x[:, None], x) * probe).sum(), argnums=(0, 1))
    value, (parts, of_samples) = quick(once)(convolution, samples)
    found = [value, *(p.get_value() for p in (parts.kernel, parts.norm.scale, parts.norm.bias)), of_samples]
    for here, there in zip(found, [plain[0], *plain[1]], strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-6 * max(1.0, float(np.abs(there).max())))
    assert not np.asarray(parts.bias.get_value()).any()  # the norm takes it away


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_frames_of_pieces_are_those_of_whole_rows(norm: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = make(audio, 8, **AUDIO, conv_norm=norm)
    assert tokenizer.config.reach == 10 + 2 * 5 + 10 and tokenizer.config.hop == 20
    samples = normal(2, 20 * 131 + 17)
    probe = normal(2, tokenizer.config.frames(samples.shape[1]), 8)
    found = []
    for pieces in (8, 1):
        monkeypatch.setattr(audio, "PIECES", pieces)
        loss = lambda tokenizer, x: (tokenizer.convolved(x) * probe).sum()  # noqa: E731
        found.append(jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(tokenizer, samples)))
        assert ("[16," in str(jax.make_jaxpr(tokenizer.convolved)(samples))) == (pieces == 8)
    for some, whole in zip(*found, strict=True):
        np.testing.assert_allclose(some, whole, rtol=0, atol=1e-6 * max(1.0, float(np.abs(whole).max())))


def test_norm_within_the_first_convolution_stays_exact_where_little_is_left():
    """Smooth sound and kernels that ask for what is rough: their variance is a millionth of the samples'."""
    convolution = audio.Convolution(1, 10, 5, "group", audio.Config(channels=4, conv_norm="group"), rngs=nnx.Rngs(0))
    smooth = np.convolve(rng.standard_normal(8000), np.hanning(41), mode="same")[None]
    kernel = np.stack([np.convolve(np.diff(np.eye(1, 10, i)[0], 4), [1], "full") for i in range(4, 8)], axis=1)
    kernel = np.pad(kernel, ((2, 2), (0, 0)))[:, None]
    convolution.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    with jax.enable_x64(True):
        exact = np.asarray(convolved_then_normed(jnp.asarray(kernel), 1.0, 0.0, jnp.asarray(smooth), 5))
    short = jnp.asarray(smooth, jnp.float32)
    plain = convolved_then_normed(jnp.asarray(kernel, jnp.float32), 1.0, 0.0, short, 5)
    off = [
        float(np.abs(np.asarray(y) - exact).max()) for y in (plain, convolution.normed_at_once(short[:, None], short))
    ]
    assert off[1] < max(3 * off[0], 1e-3), off


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_audio_computes_in_its_dtype(norm: str):
    exact, short = (make(audio, 8, **AUDIO, conv_norm=norm, dtype=dtype) for dtype in (None, "bfloat16"))
    waveform = normal(2, SAMPLES)
    whole, half = exact(waveform), short(waveform)
    assert short.convolutions[0].kernel.get_value().dtype == jnp.float32
    assert whole.x.dtype == jnp.float32 and half.x.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        half.x.astype(jnp.float32), whole.x, atol=0.1
    )  # of values about 1; 8 bits, seven roundings
    assert np.abs(half.x.astype(jnp.float32) - whole.x).max() > 1e-4  # and not computed in float32 after all
    with pytest.raises(UsageError, match="^audio dtype='int8' is not one of float32, bfloat16, float16$"):
        audio.Config(dtype="int8")


# ---- Text ----------------------------------------------------------------------------------------------------------


def test_text_adds_its_tables():
    tokenizer = make(text, 6, vocabulary=11, max_length=5, types=2, scale=True)
    ids, types = (jnp.asarray(rng.integers(0, n, (2, 4)), jnp.int32) for n in (11, 2))
    position = jnp.asarray([[0, 1, 0, 1], [2, 3, 4, 0]], jnp.int32)
    w = named(tokenizer)
    for at, kind in ((None, None), (position, types)):
        made = tokenizer(ids, causal=True, position=at, types=kind)
        place = np.asarray([[0, 1, 2, 3]] * 2) if at is None else np.asarray(at)
        sort = np.zeros((2, 4), int) if kind is None else np.asarray(kind)
        want = w["table.table"][ids] * 6**0.5 + w["position_table.table"][place] + w["type_table.table"][sort]
        np.testing.assert_allclose(made.x, want, rtol=1e-5, atol=1e-6)
        assert made.layout == (Span(4, True),)
        np.testing.assert_array_equal(made.position, place)
    hidden = normal(2, 4, 6)
    np.testing.assert_allclose(tokenizer.logits(hidden), hidden @ w["table.table"].T, rtol=1e-5, atol=1e-6)


def test_text_tables_may_be_narrower_than_the_backbone():
    tokenizer = make(text, 6, vocabulary=10, max_length=4, types=2, embedding_width=3, norm=True, norm_bias=False)
    w = named(tokenizer)
    assert {name: value.shape for name, value in w.items()} == {
        "table.table": (10, 3),
        "position_table.table": (4, 3),
        "type_table.table": (2, 3),
        "norm.scale": (3,),
        "projection.kernel": (3, 6),
        "projection.bias": (6,),
    }
    ids = jnp.asarray([[1, 7, 3]], jnp.int32)
    y = w["table.table"][ids] + w["position_table.table"][:3] + w["type_table.table"][0]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokenizer(ids).x, y @ w["projection.kernel"], rtol=1e-4, atol=1e-5)
    assert tokenizer.logits(normal(2, 3)).shape == (2, 10)
    with pytest.raises(UsageError, match="hidden states of width 6 have no logits by a table of embedding_width 3"):
        tokenizer.logits(normal(2, 6))
    with pytest.raises(UsageError, match="embedding_width must be at least 1"):
        text.Config(10, embedding_width=0)


def test_text_without_tables():
    assert set(named(make(text, 6, vocabulary=11))) == {"table.table"}
    normed = make(text, 6, vocabulary=11, norm=True)(jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_allclose(normed.x.mean(axis=-1), 0, atol=1e-6)


def test_text_longer_than_its_position_table():
    tokenizer, ids = make(text, 6, vocabulary=11, max_length=5), jnp.zeros((1, 6), jnp.int32)
    with pytest.raises(UsageError, match="^text of 6 tokens is longer than the position table, max_length=5$"):
        tokenizer(ids)
    packed = tokenizer(ids, position=jnp.asarray([[0, 1, 2, 0, 1, 2]], jnp.int32))  # two short texts in one row
    np.testing.assert_array_equal(packed.x[0, :3], packed.x[0, 3:])


def test_dropout_only_with_a_key():
    """Of every modality; the noise falls on the finished tokens."""
    made = {
        text: (dict(vocabulary=11), jnp.zeros((40, 9), jnp.int32)),
        image: (dict(image_size=(4, 4), patch=2), normal(40, 4, 4, 3)),
        audio: (AUDIO, normal(40, SAMPLES)),
    }
    for module, (options, raw) in made.items():
        tokenizer = make(module, 8, **options, dropout=0.25)
        run = quick(lambda raw, key=None, tokenizer=tokenizer: tokenizer(raw, key=key).x)
        assert (np.asarray(run(raw)) != 0).all()
        np.testing.assert_allclose((np.asarray(run(raw, jax.random.key(0))) == 0).mean(), 0.25, atol=0.04)
