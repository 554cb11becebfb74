"""Every kernel computes what the dense one does, in values and gradients: windows, global tokens, tiles, rings, meshes."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from test_attention import LAYOUTS, SEGMENTS, sees

from unimodal import Span, UsageError, concat, visible
from unimodal.attention import _choose, attend, attention, tile_size
from unimodal.kernels.blockwise import Tiles, tiling
from unimodal.kernels.cudnn import cudnn
from unimodal.kernels.placed import ring, zigzag_pays
from unimodal.kernels.splash import block_size, splash
from unimodal.sharding import make_mesh
from unimodal.tokens import lengths_of, tokens
from unimodal.visibility import Pattern

B, T, H, G, K = 2, 13, 4, 2, 4
PACKED = np.asarray([[1] * 5 + [2] * 6 + [0] * 2, [0] * 2 + [3] * 11], np.int32)
PATTERNS = {
    "full": Pattern((Span(T),)),
    "causal": Pattern((Span(T, True),)),
    "mixed": Pattern((Span(4), Span(5, True), Span(3), Span(1, True))),
    "window": Pattern((Span(T, True),), window=3),
    "both sides": Pattern((Span(T),), window=2),
    "longformer": Pattern((Span(T),), window=2, global_tokens=2),
    "prefix in a window": Pattern((Span(6), Span(7, True)), window=4, global_tokens=1),
}


def inputs(length=T, heads=(H, G, G), batch=B, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((batch, length, n, K), dtype=np.float32)) for n in heads]


def with_gradients(kernel, arrays, segment):
    """The result, and the gradients of a sum that weighs its entries differently."""
    weigh = jnp.cos(jnp.arange(arrays[0].size, dtype=jnp.float32)).reshape(arrays[0].shape)

    def total(q, k, v):
        out = kernel(q, k, v, segment)
        return (out * weigh).sum(), out

    (_, out), gradients = quick(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x) for x in (out, *gradients)]


def dense(pattern, **options):
    def kernel(q, k, v, segment):
        mask = visible(pattern.layout, segment, window=pattern.window, global_tokens=pattern.global_tokens)
        return attend(q, k, v, mask, **options)[0]

    return kernel


def compare(found, wanted, tolerance=1e-5):
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_windows_and_global_tokens_are_the_definition():
    rng, length = np.random.default_rng(0), SEGMENTS.shape[1]
    for _ in range(30):
        layout = LAYOUTS[rng.integers(len(LAYOUTS))]
        window, always = int(rng.integers(1, 9)), int(rng.integers(0, 3))
        found = visible(layout, jnp.asarray(SEGMENTS), window=window, global_tokens=always)
        found = np.broadcast_to(np.asarray(found), (len(SEGMENTS), length, length))
        for b, q, k in np.ndindex(found.shape):
            rank = [int((SEGMENTS[b, :t] == SEGMENTS[b, t]).sum()) for t in (q, k)]  # within its document
            near = abs(q - k) < window or min(rank) < always
            assert found[b, q, k] == (near and sees(layout, SEGMENTS[b], q, k))


def test_tiles_left_out_are_seen_by_nobody():
    for pattern in PATTERNS.values():
        seen = visible(pattern.layout, None, window=pattern.window, global_tokens=pattern.global_tokens)
        for size, count in ((3, 5), (4, 4), (13, 1)):
            mask = np.zeros((size * count,) * 2, bool)
            mask[:T, :T] = True if seen is None else seen[0]
            some = mask.reshape(count, size, count, size).any(axis=(1, 3))
            tiles = pattern.tiles(size, count)
            assert (tiles >= some).all() and (pattern.narrow or (tiles == some).all())


def test_global_tokens_of_documents_may_be_in_any_tile():
    pattern = PATTERNS["longformer"]
    assert not pattern.tiles(2, 7).all() and pattern.tiles(2, 7, anywhere=True).all()


def test_a_window_costs_linear_work():
    def seen(length):
        return Pattern((Span(length, True),), window=512).tiles(512, length // 512).sum()

    assert seen(64 * 512) == 2 * 64 - 1
    # On a ring of 8, looking back 512 places takes the next neighbour only.
    assert Tiles(Pattern((Span(64 * 512, True),), window=512), 1.0, 512, 8, 8, "sequence").steps == 2


@pytest.mark.parametrize(("name", "packed"), [("mixed", True), ("window", False), ("longformer", True)])
def test_blockwise_equals_dense(name, packed):
    pattern, arrays, segment = PATTERNS[name], inputs(), jnp.asarray(PACKED) if packed else None
    found = with_gradients(partial(ring, pattern=pattern, scale=K**-0.5, tile=4), arrays, segment)
    compare(found, with_gradients(dense(pattern), arrays, segment))


@pytest.mark.parametrize(("name", "packed"), [("full", False), ("mixed", True), ("longformer", True)])
def test_lean_equals_dense(name, packed):
    """Values and gradients; grouped heads, queries that see nothing, a cap and a bias with a gradient of its own."""
    pattern, arrays, segment = PATTERNS[name], inputs(), jnp.asarray(PACKED) if packed else None
    options: Any = dict(
        layout=pattern.layout, window=pattern.window, global_tokens=pattern.global_tokens, segment=segment
    )
    weigh, bias = jnp.cos(jnp.arange(arrays[0].size, dtype=jnp.float32)), inputs(T, heads=(T,), batch=H)[0][..., 0]

    def total(q, k, v, bias, kernel):
        out = attention(q, k, v, **options, implementation=kernel, soft_cap=0.7, bias=bias)
        return (out * weigh.reshape(out.shape)).sum(), out

    found = []
    for kernel in ("lean", "xla"):
        step = jax.value_and_grad(partial(total, kernel=kernel), argnums=(0, 1, 2, 3), has_aux=True)
        (_, out), gradients = quick(step)(*arrays, bias)
        found.append([np.asarray(x) for x in (out, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


RINGS: dict[str, Any] = {
    "sequence=4": (dict(data=1, sequence=4), ["longformer", "window"]),
    "data=2,sequence=2,tensor=2": (dict(data=2, sequence=2, tensor=2), ["mixed"]),
}


@pytest.mark.parametrize("mesh", RINGS)
def test_ring_equals_one_device(mesh):
    sizes, names = RINGS[mesh]
    arrays, segment = inputs(), jnp.asarray(PACKED)
    for name in names:
        pattern = PATTERNS[name]
        wanted = with_gradients(dense(pattern), arrays, segment)
        with jax.set_mesh(make_mesh(**sizes)):
            # 13 tokens over 4 devices: padded. Two tiles a device.
            found = with_gradients(partial(ring, pattern=pattern, scale=K**-0.5, tile=2), arrays, segment)
        compare(found, wanted)


@pytest.mark.parametrize("name", ["causal", "both sides", "prefix in a window"])
def test_a_row_in_a_zigzag_equals_one_device(name):
    arrays, segment, pattern = inputs(), None if name == "causal" else jnp.asarray(PACKED), PATTERNS[name]
    with jax.set_mesh(make_mesh(data=1, sequence=3, devices=jax.devices()[:3])):
        # 13 tokens over 3 devices, twice two tiles each: padded to 24.
        found = with_gradients(partial(ring, pattern=pattern, scale=K**-0.5, tile=2, zigzag=True), arrays, segment)
    compare(found, with_gradients(dense(pattern), arrays, segment))


def test_in_a_zigzag_all_devices_have_the_same_to_do():
    length, devices, tile = 65_536, 8, 512
    for layout, in_order, in_zigzag in (
        ((Span(length, True),), 1.86, 1.0),
        ((Span(length // 8), Span(length - length // 8, True)), 1.95, 1.08),
        ((Span(length),), 1.0, 1.0),
    ):
        pattern = Pattern(layout)
        for zigzag, wanted in ((False, in_order), (True, in_zigzag)):
            size, count = tiling(length, devices, tile, zigzag=zigzag)
            tiles = Tiles(pattern, 1.0, size, count, devices, "sequence", zigzag)
            np.testing.assert_array_equal(np.sort(tiles.places(), axis=None), np.arange(devices * count))
            work = tiles.work()  # [steps,devices], and at each step all wait for the slowest
            assert work.sum() == pattern.tiles(size, devices * count).sum()  # those that nobody sees are skipped
            assert work.max(axis=1).sum() / work.mean(axis=1).sum() == pytest.approx(wanted, abs=0.01)
        assert zigzag_pays(pattern, devices, tile, 8, 8, 2) == (in_order > 1)
    for pattern in (Pattern((Span(8192, True),)), Pattern((Span(length, True),), window=1024)):  # short; near
        assert not zigzag_pays(pattern, devices, tile, 8, 8, 2)


def test_ulysses_equals_one_device():
    arrays, segment, pattern = inputs(), jnp.asarray(PACKED), PATTERNS["prefix in a window"]
    far = dict(window=pattern.window, global_tokens=pattern.global_tokens)
    dealt: Any = partial(attention, layout=pattern.layout, implementation="ulysses", **far)
    with jax.set_mesh(make_mesh(data=2, sequence=2)):
        found = with_gradients(lambda q, k, v, segment: dealt(q, k, v, segment=segment), arrays, segment)
    compare(found, with_gradients(dense(pattern), arrays, segment))


def test_soft_caps_of_every_kernel():
    """Against the dense kernel, whose own is read plainly in test_backbone; cuDNN has none."""
    arrays, segment, pattern = inputs(), jnp.asarray(PACKED), PATTERNS["window"]
    wanted = with_gradients(dense(pattern, soft_cap=0.5), arrays, segment)
    plain = with_gradients(dense(pattern), arrays, segment)
    assert np.abs(wanted[0] - plain[0]).max() > 0.1 and np.abs(wanted[1] - plain[1]).max() > 0.1
    tiles: Any = partial(ring, pattern=pattern, scale=K**-0.5, soft_cap=0.5, tile=2)
    compare(with_gradients(tiles, arrays, segment), wanted)
    with jax.set_mesh(make_mesh(data=1, sequence=4)):
        compare(with_gradients(tiles, arrays, segment), wanted)
    fused: Any = partial(splash, pattern=pattern, scale=K**-0.5, soft_cap=0.5, interpret=True)
    compare(with_gradients(fused, arrays, segment), wanted)
    with pytest.raises(UsageError, match="'cudnn' has no attention_soft_cap: choose 'xla', 'blockwise' or 'auto'"):
        attention(*arrays, layout=(Span(T),), implementation="cudnn", soft_cap=0.5)
    assert _choose("auto", "gpu", "bfloat16", 64, Pattern((Span(64),)), capped=True) == ("xla", "")


def test_heads_that_cannot_be_dealt_out():
    with (
        jax.set_mesh(make_mesh(data=1, sequence=4)),
        pytest.raises(UsageError, match="over sequence=4, but 2 key/value heads do not divide: choose 'ring'"),
    ):
        attention(*inputs(), layout=(Span(T),), implementation="ulysses")


def test_splash_equals_dense():
    """In JAX's interpreter, for want of a TPU: masks loaded and computed, grouped heads, packed rows, padding."""
    length = 130  # 256 to the kernel
    q, k, v = inputs(length, heads=(2, 1, 1), batch=1)
    segment = jnp.asarray(np.repeat(np.asarray([[1, 0]], np.int32), [110, 20], 1))
    pattern = Pattern((Span(40), Span(90, True)), window=20, global_tokens=2)
    kernel = partial(splash, scale=K**-0.5, interpret=True)
    found = with_gradients(partial(kernel, pattern=pattern), (q, k, v), segment)
    compare(found, with_gradients(dense(pattern), (q, k, v), segment))
    computed, packed = Pattern((Span(length, True),), window=9), jnp.where(jnp.arange(length)[None] < 60, 2, segment)
    out = quick(partial(kernel, pattern=computed))(q, k, v, packed)
    np.testing.assert_allclose(out, dense(computed)(q, k, v, packed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "kernels"), [(1000, 2), (300, 3)])
def test_splash_backward_in_one_kernel_or_two(length: int, kernels: int):
    """One writes the queries' gradient for each block of keys; blocks that nobody sees are zeros of it."""
    pattern, (q, k, v) = Pattern((Span(length, True),)), inputs(length, heads=(2, 1, 1), batch=1)
    kernel = partial(splash, scale=K**-0.5, interpret=True, pattern=pattern)
    run = lambda q, k, v: jnp.sin(kernel(q, k, v, None)).sum()  # noqa: E731
    assert str(jax.make_jaxpr(jax.grad(run))(q, k, v)).count("pallas_call[") == kernels
    compare(with_gradients(kernel, (q, k, v), None), with_gradients(dense(pattern, scale=K**-0.5), (q, k, v), None))


def test_splash_has_no_global_tokens_for_each_of_several_documents():
    options: Any = dict(layout=(Span(T),), window=2, global_tokens=1)
    with pytest.raises(UsageError, match="'splash' has no global_tokens for each of several documents"):
        attention(*inputs(), segment=jnp.asarray(PACKED), implementation="splash", **options)
    assert _choose("auto", "tpu", "bfloat16", 64, Pattern((Span(4096),), 128, 1), True) == ("blockwise", "")
    assert _choose("auto", "tpu", "bfloat16", 64, Pattern((Span(4096),), 128, 1)) == ("splash", "")


def test_blocks_of_splash_waste_less_than_a_quarter():
    assert [block_size(n) for n in (1, 128, 197, 257, 577, 1024, 1500, 4097)] == [
        128,
        128,
        256,
        128,
        256,
        512,
        512,
        512,
    ]
    assert [block_size(n, full=True) for n in (1, 128, 197, 577, 781, 896, 897)] == [128, 128, 256, 640, 896, 896, 512]


@pytest.fixture
def asked(monkeypatch):
    """What cuDNN is asked for: flag, window, mask, lengths. There is no GPU here: XLA's own kernel answers the call."""
    found, fused = [], jax.nn.dot_product_attention

    def answer(*arrays, implementation, **options):
        assert implementation == "cudnn"
        given = [options.get(name) is not None for name in ("mask", "query_seq_lengths", "key_value_seq_lengths")]
        found.append((options["is_causal"], options.get("local_window_size"), *given))
        return fused(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_cudnn_is_asked_for_what_dense_computes(name, asked):
    pattern, (q, k, v) = PATTERNS[name], inputs()
    for segment in (None, PACKED):
        given = None if segment is None else jnp.asarray(segment)
        real = np.ones((B, T), bool) if segment is None else segment != 0
        found = np.asarray(cudnn(q, k, v, given, pattern, scale=K**-0.5))
        np.testing.assert_allclose(found[real], np.asarray(dense(pattern)(q, k, v, given))[real], rtol=1e-5, atol=1e-5)
    flags = {"full": (False, None, False), "causal": (True, None, False), "window": (True, (2, 0), False)}
    assert asked[0] == (*flags.get(name, (False, None, True)), False, False)
    assert asked[1] == (name == "causal", None, True, False, False)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("full", (False, None, False, True, True)),
        ("causal", (True, None, False, True, True)),
        ("window", (True, (2, 0), False, False, False)),
    ],
)
def test_padding_at_the_end_needs_no_mask(name, wanted, asked):
    """Values and gradients, also of a row that is padding alone."""
    segment = jnp.arange(T, dtype=jnp.int32)[None] < jnp.asarray([[9], [0]])
    pattern, arrays, segment = PATTERNS[name], inputs(), segment.astype(jnp.int32)
    found = with_gradients(partial(cudnn, pattern=pattern, scale=K**-0.5, right_padded=True), arrays, segment)
    compare(found, with_gradients(dense(pattern), arrays, segment))
    assert asked == [wanted]


def test_programs_for_gpus_call_cudnn_without_a_mask(monkeypatch):
    """Lowered, which takes no GPU, but for its library's version."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(fused, "check_cudnn_version"):
        pytest.skip("this version of JAX finds cuDNN otherwise")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    x, ids = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 128), jnp.int32)

    def total(x, segment, layout, options):
        out = attention(x, x, x, layout, segment, implementation="cudnn", **options)
        return out.astype(jnp.float32).sum()

    for causal, segment, options, said in (
        (False, None, {}, "NO_MASK"),
        (True, None, {}, "CAUSAL"),
        (True, None, dict(window=32), "CAUSAL"),
        (False, ids, dict(right_padded=True), "PADDING"),
        (True, ids, dict(right_padded=True), "PADDING_CAUSAL"),
        (False, ids, {}, None),
    ):
        traced = jax.jit(jax.grad(partial(total, layout=(Span(128, causal),), options=options))).trace(x, segment)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
        calls = set(re.findall(r"@__cudnn\$(\w+)", program))
        assert calls == (
            {"fmhaSoftmax", "fmhaSoftmaxBackward"} if said else {"fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"}
        )
        assert set(re.findall(r"mask_type\\22: \\22(\w+)\\22", program)) == {said or "NO_MASK"}


def test_tasks_promise_padding_at_the_end():
    ids = jnp.asarray([[5, 0, 7, 0], [0, 0, 0, 0], [1, 2, 3, 4]], jnp.int32)
    np.testing.assert_array_equal(lengths_of(ids, 0), [3, 0, 4])
    made = tokens(jnp.zeros((3, 4, 2)), lengths=lengths_of(ids, 0))
    np.testing.assert_array_equal(made.segment, [[1, 1, 1, 0], [0] * 4, [1] * 4])
    plain = tokens(jnp.zeros((3, 2, 2)))
    assert made.right_padded and concat(plain, made).right_padded and not concat(made, plain).right_padded
    with pytest.raises(ValueError, match="by segment or by lengths, not by both"):
        tokens(jnp.zeros((3, 4, 2)), lengths=lengths_of(ids, 0), segment=ids)


def test_kernels_are_chosen_by_platform_pattern_and_mesh():
    causal, short = Pattern((Span(1024, True),)), Pattern((Span(64),))
    narrow = Pattern((Span(4096, True),), window=128)
    both = Pattern((Span(4096),), window=128)
    for platform, pattern, kernel in (
        ("tpu", causal, "splash"),
        ("tpu", both, "splash"),
        ("tpu", short, "lean"),
        ("gpu", causal, "cudnn"),
        ("gpu", narrow, "cudnn"),
        ("gpu", both, "blockwise"),
        ("cpu", causal, "blockwise"),  # a quarter of the tiles is never seen
        ("cpu", Pattern((Span(512, True),)), "xla"),
        ("cpu", Pattern((Span(1024),)), "xla"),
        ("cpu", narrow, "blockwise"),
        ("cpu", Pattern((Span(8192, True),)), "blockwise"),
    ):
        assert _choose("auto", platform, "bfloat16", 64, pattern) == (kernel, ""), (platform, pattern)
    assert _choose("auto", "gpu", "bfloat16", 64, narrow, True) == ("blockwise", "")  # packed: flags do not do
    assert _choose("auto", "gpu", "bfloat16", 64, short, True) == ("cudnn", "")
    assert _choose("auto", "gpu", "bfloat16", 64, Pattern((Span(63),)), True) == ("xla", "")  # a mask of odd length
    assert _choose("auto", "cpu", "float32", 64, causal, False, 4) == ("blockwise", "ring")
    assert _choose("auto", "tpu", "bfloat16", 64, causal, False, 4) == ("splash", "ulysses")
    assert _choose("auto", "tpu", "bfloat16", 64, causal, False, 4, False) == ("blockwise", "ring")
    assert _choose("auto", "tpu", "bfloat16", 64, Pattern((Span(197),)), False, 4) == ("splash", "ulysses")
    assert _choose("xla", "cpu", "float32", 64, causal, False, 4) == ("xla", "")
    assert [tile_size(p) for p in (causal, narrow, Pattern((Span(4096),), window=300))] == [512, 128, 512]


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(window=0), "window must be at least 1"), (dict(global_tokens=-1), "global_tokens must be 0 or more")],
)
def test_refused_patterns(options, message):
    with pytest.raises(UsageError, match=message):
        visible((Span(4),), None, **options)
