"""The report page: whole, self-contained, escaped, small, and unmoved by empty or sick input."""

import base64
import io
import json
import math
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from unimodal.evaluation.samples import AttentionMap, AudioSample, FilledText, ImageSample, TextSample
from unimodal.report import Report
from unimodal.report.views.media import encode_png, encode_wav

VOID = {"meta", "link", "img", "br", "input", "hr", "line", "circle", "path", "rect", "image"}


class Page(HTMLParser):
    """Collects elements and text, and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(key) == value for key, value in wanted.items())]


def _random(seed=0):
    return np.random.default_rng(seed)


def _picture(side=32, seed=0):
    return _random(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def _attention(heads, queries, keys, seed=0):
    weights = _random(seed).random((heads, queries, keys)).astype(np.float32)
    return weights / weights.sum(-1, keepdims=True)


def _wave(seconds=0.5, rate=16_000):
    return (0.5 * np.sin(np.arange(int(seconds * rate)) * 0.1)).astype(np.float32)


FULL = {
    "title": "One backbone",
    "subtitle": "Five tasks",
    "curves": {"gpt": [(step, 5 * 0.99**step) for step in range(1, 900)], "vit": [(1, 2.0), (2, 1.5), (3, 1.2)]},
    "eval_curves": {"vit": [(1, 0.2), (3, 0.4)]},
    "results": {
        "gpt": {"metric": "bits per byte", "value": 2.2, "baseline": 3.5, "higher_is_better": False},
        "vit": {"metric": "accuracy", "value": 0.1, "baseline": 0.2, "higher_is_better": True},
    },
    "samples": {
        "gpt": [TextSample("Call me ", "Ishmael.", "Ishmael", "greedy")],
        "bert": [FilledText("the white whale", ((4, 9, "white", "white"), (10, 15, "ship", "whale")))],
        "vit": [ImageSample(_picture(), (("cat", 0.7), ("dog", 0.3)), "dog", "tiny")],
        "wav2vec2": [AudioSample(_wave(), 16_000, ((0.1, 0.2, "picked right"), (0.3, 0.4, "picked wrong")))],
    },
    "attention": [
        AttentionMap("over patches", _picture(), None, _attention(2, 16, 16), (4, 4)),
        AttentionMap("over words", None, ("the", "white", "whale"), _attention(2, 3, 3)),
        AttentionMap("positions", None, None, _attention(9, 5, 60)),
    ],
    "parameters": [
        {"name": "layers/mlp", "shape": (2, 8, 16), "axes": ("layers", "embed", "mlp"), "spec": (None, "fsdp"),
         "bytes_per_device": 1024},
        {"name": "scale", "shape": (), "axes": (), "spec": None, "bytes_per_device": 4},
    ],
    "total_parameters": 257,
    "config_text": "seed = 0",
    "run": {"steps": 900, "fingerprint": "9f3a"},
}  # fmt: skip


def _page(tmp_path, **content):
    path = Report(**({"title": "empty"} | content)).write(tmp_path / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def test_the_command_beside_samples_is_text(tmp_path):
    command = "unimodal predict 'a <b>' --task=x"
    page = _page(tmp_path, samples=FULL["samples"], commands={next(iter(FULL["samples"])): command})
    assert "unimodal predict 'a <b>' --task=x" in page.text


def _plot_points(page):
    return [json.loads(element["data-points"]) for element in page.all("svg") if "data-points" in element]


def test_has_all_parts(tmp_path):
    page = _page(tmp_path, **FULL)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["results", "curves", "samples", "attention", "parameters", "config"]
    assert {link["href"] for link in page.all("a")} == {f"#{name}" for name in sections}
    for words in (
        "1 of 2 tasks beat their baseline", "✓ better", "✗ worse", "−37%", "0.5 × baseline", "Call me Ishmael.",
        "what followed", "1 of 2 gaps right", "first guess wrong", "1 of 2 picked right", "First 8 of 9 heads",
        "257 parameters in 2 arrays, 1 KiB per device", "layers, embed, mlp", "2 × 8 × 16", "scalar", "seed = 0",
        "fingerprint 9f3a", "loss (nats), log", "baseline 0.2",
    ):  # fmt: skip
        assert words in page.text.replace(" ,", ","), words
    assert len(page.all("audio")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_wrong_and_right_are_told_without_colour(tmp_path):
    page = _page(tmp_path, samples={"bert": FULL["samples"]["bert"]})
    assert "white ✓" in page.text and "ship ✗ whale" in page.text
    assert len(page.all("del")) == 1 and len(page.all("ins")) == 1


def test_needs_no_network(tmp_path):
    path = Report(**FULL).write(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "@import" not in text
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "#")[:5] in ("data:", "#") or attributes[name].startswith("#"), (tag, name)
    (policy,) = [meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")
    assert text.count("url(") == text.count("url(data:image/png;base64,") == 1


EVIL = "</script></style></pre><script>alert('x')</script>\"' onload=\"x\" & {{ 7 * 7 }}"


def test_escapes_everything(tmp_path):
    evil = EVIL
    picture = ImageSample(_picture(), ((evil, 0.5),), evil, evil)
    page = _page(
        tmp_path,
        title=evil,
        subtitle=evil,
        curves={evil: [(1, 1.0), (2, 2.0)]},
        eval_curves={evil: [(1, 1.0)]},
        results={evil: {"metric": evil, "value": 1.0, "baseline": 0.5, "higher_is_better": True}},
        samples={
            evil: [
                TextSample(evil, evil, evil, evil),
                FilledText(evil, ((0, 3, evil, evil), (4, 6, evil, "b")), evil),
                picture,
                AudioSample(_wave(), 16_000, ((0.0, 0.1, evil),), evil),
            ]
        },
        attention=[AttentionMap(evil, None, (evil, "b"), _attention(1, 2, 2))],
        parameters=[{"name": evil, "shape": (1,), "axes": (evil,), "spec": evil, "bytes_per_device": 4}],
        config_text=evil,
        run={evil: evil},
    )
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    assert not [attributes for _, attributes in page.elements if "onload" in attributes]
    assert page.text.count("alert('x')") >= 15
    (article,) = page.all("article", **{"class": "attention"})
    assert json.loads(article["data-labels"]) == [evil, "b"]
    assert "49" not in page.text


def test_control_characters_and_broken_text(tmp_path):
    page = _page(tmp_path, samples={"gpt": [TextSample("a\x00b", "c\x1bd\udce2e\x85f\ng")]})
    assert "a␀b" in page.text and "c␛d\ufffde\ufffdf g" in page.text


def test_empty_of_everything(tmp_path):
    page = _page(tmp_path)
    for words in ("Nothing was evaluated", "No curve", "No task showed samples", "No attention map", "no table"):
        assert words in page.text
    page = _page(tmp_path, curves={"gpt": []}, eval_curves={"gpt": []}, samples={"gpt": []}, attention=[])
    assert "no finite value" in page.text and "No task showed samples" in page.text


@pytest.mark.parametrize(
    ("points", "count", "bad"),
    [
        ([(5, 1.0)], 1, 0),
        ([(0, 1.0)], 1, 0),
        ([(1, 2.0), (2, 2.0)], 2, 0),
        ([(1, 0.0), (2, 0.0)], 2, 0),
        ([(1, math.nan), (2, 1.0), (3, math.inf)], 1, 2),
        ([(1, math.nan)], 0, 1),
        ([(1, -5.0), (2, 1e9)], 2, 0),
        ([(1, 1e-12), (2, 1e12)], 2, 0),
        ([(1, 1e-30), (2, 2e-30)], 2, 0),
        ([(step, 2.0 + 0.1 * math.sin(step)) for step in range(5000)], 240, 0),
    ],
)
def test_odd_curves(tmp_path, points, count, bad):
    page = _page(tmp_path, curves={"gpt": points})
    data = _plot_points(page)
    assert [len(curve) for curve in data] == ([count] if count else [])
    for x, y, *_ in data[0] if data else []:
        assert 46 <= x <= 328 and 10 <= y <= 172
    if bad and count:
        assert f"{bad} values not finite" in page.text
    assert "nan" not in " ".join(element.get("d", "") for element in page.all("path"))


def test_curve_coordinates_mean_the_values(tmp_path):
    (linear,) = _plot_points(_page(tmp_path, eval_curves={"vit": [(0, 0.0), (50, 0.5), (100, 1.0)]}))
    assert [point[:2] for point in linear] == [[46, 172], [183, 91], [320, 10]]
    (log,) = _plot_points(_page(tmp_path, eval_curves={"vit": [(0, 1.0), (50, 10.0), (100, 100.0)]}))
    assert [point[:2] for point in log] == [[46, 172], [183, 91], [320, 10]]
    assert [point[2:] for point in log] == [[0, 1, 1], [50, 10, 10], [100, 100, 100]]


def test_smoothing_keeps_a_straight_line_and_calms_noise(tmp_path):
    noise = _random().normal(size=400)
    (calm,) = _plot_points(_page(tmp_path, curves={"a": [(i, 5.0 + noise[i]) for i in range(400)]}))
    assert np.std([point[4] for point in calm]) < 0.4 * np.std([point[3] for point in calm])
    (flat,) = _plot_points(_page(tmp_path, curves={"a": [(i, 3.0) for i in range(400)]}))
    assert {point[4] for point in flat} == {3.0}


@pytest.mark.parametrize(
    ("value", "baseline"), [(None, None), (math.nan, 0.5), (0.5, math.nan), (math.inf, 1.0), (-3.0, -5.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("higher", [True, False])
def test_odd_results(tmp_path, value, baseline, higher):
    result = {"metric": "m", "value": value, "baseline": baseline, "higher_is_better": higher}
    page = _page(tmp_path, results={"gpt": result})
    for element in page.all("i"):
        assert 0 <= float(re.fullmatch(r"width:([\d.]+)%", element["style"])[1]) <= 100


def test_sick_samples_and_attention(tmp_path):
    page = _page(
        tmp_path,
        samples={
            "vit": [ImageSample(_picture(1), ((("cat"), math.nan),)), ImageSample(_picture(300), ())],
            "wav2vec2": [
                AudioSample(np.full(100, np.nan, np.float32), 16_000),
                AudioSample(np.zeros(0, np.float32), 16_000, ((0.0, 0.1, "masked"),)),
                AudioSample(_wave(), 44_100, ((5.0, 6.0, "late"),)),
            ],
            "bert": [FilledText("", ()), FilledText("a b", ((1, 2, "\n", " "),))],
            "gpt": [TextSample("", "")],
        },
        attention=[
            AttentionMap("sick", None, None, np.full((1, 2, 2), np.nan, np.float32)),
            AttentionMap("zero", _picture(), None, np.zeros((1, 2, 4), np.float32), (2, 2)),
        ],
    )
    assert "⏎ ✗ ␣" in page.text
    assert len(page.all("audio")) == 2


def test_stays_small(tmp_path):
    noise = _random().uniform(-1, 1, 160_000).astype(np.float32)
    path = Report(
        title="large",
        curves={f"task{i}": [(step, math.exp(math.sin(step))) for step in range(20_000)] for i in range(6)},
        samples={
            "sound": [AudioSample(noise, 16_000)] * 30,
            "picture": [ImageSample(_picture(250), (("a", 0.1),))] * 30,
        },
        attention=[AttentionMap("a", _picture(224), None, _attention(12, 196, 196), (14, 14))] * 2,
        parameters=[{"name": f"layer{i}", "shape": (8, 8), "axes": "ab", "spec": "", "bytes_per_device": 256}
                    for i in range(500)],
    ).write(tmp_path / "report.html")  # fmt: skip
    assert len(path.read_bytes()) < 2_000_000


def test_picture_and_sound_decode(tmp_path):
    pixels = _random().integers(0, 256, (5, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
    flat = np.full((9, 3, 3), 200, np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(flat)))), flat)

    page = _page(tmp_path, samples={"a": [AudioSample(_wave(0.5, 44_100), 44_100)]})
    uri = page.all("audio")[0]["src"]
    with wave.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:audio/wav;base64,")))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (14_700, 7350, 2)
    with wave.open(io.BytesIO(encode_wav(np.array([0.0, 0.5, -1.0, np.nan]), 8000))) as file:
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 0]


def test_attention_weights_on_the_page(tmp_path):
    weights = np.array([[[1.0, 0.0], [0.25, 0.75]]], np.float32)
    page = _page(tmp_path, attention=[AttentionMap("a", None, ("x", "y"), weights)])
    (article,) = page.all("article", **{"class": "attention"})
    stored = np.frombuffer(base64.b64decode(article["data-weights"]), np.uint8) / 255 * float(article["data-top"])
    np.testing.assert_allclose(stored, weights.ravel(), atol=0.5 / 255)
    (image,) = page.all("image")
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["href"].split(",")[1]))))[..., 3]
    np.testing.assert_allclose(alpha / 255, np.sqrt(weights[0]), atol=0.5 / 255)
    # One key per query is a spread of 1; 0.25 / 0.75 spreads over exp(entropy) = 1.755 keys: mean 1.4.
    assert "spread 1.4 of 2" in page.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FilledText("abc", ((2, 9, "x", "y"),)), "FilledText.spans"),
        (lambda: FilledText("abc", ((1, 2, "x", "y"), (0, 1, "x", "y"))), "FilledText.spans"),
        (lambda: ImageSample(np.zeros((4, 4), np.uint8), ()), r"ImageSample.image must be uint8.*uint8\[4, 4\]"),
        (lambda: ImageSample(np.zeros((4, 4, 3), np.float32), ()), "ImageSample.image must be uint8"),
        (lambda: ImageSample(_picture(), (("a", 3.0),)), "probability"),
        (lambda: AudioSample(np.zeros((1, 9), np.float32), 16_000), "AudioSample.waveform"),
        (lambda: AudioSample(np.zeros(9, np.float64), 16_000), "AudioSample.waveform"),
        (lambda: AudioSample(_wave(), 0), "AudioSample.rate"),
        (lambda: AudioSample(_wave(), 16_000, ((0.4, 0.2, "x"),)), "AudioSample.segments"),
        (lambda: AttentionMap("a", None, None, np.zeros((2, 2), np.float32)), "AttentionMap.weights"),
        (lambda: AttentionMap("a", None, None, _attention(1, 4, 4), (3, 2)), "3 x 2 must cover 4 keys"),
        (lambda: AttentionMap("a", None, ("x",), _attention(1, 4, 4)), "1 labels for 4 keys"),
        (lambda: AttentionMap("a", _picture(), None, _attention(1, 4, 4)), "needs a grid"),
    ],
)
def test_samples_check_their_shapes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_sample_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="cannot draw a str"):
        Report(title="x", samples={"a": ["text"]}).write(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
