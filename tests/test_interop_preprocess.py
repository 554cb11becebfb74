"""Preprocessing read from checkpoint directories against what the published tools make (tests/reference/interop/preprocess)."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import shutil
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import unimodal
from unimodal.errors import UsageError
from unimodal.interop import Preprocessor, Pretrained, load_huggingface, load_preprocessor, preprocess_audio
from unimodal.interop.preprocess_text import TextEncoder

REFERENCES = Path(__file__).parent / "reference" / "interop"
HERE = REFERENCES / "preprocess"
ARGUMENTS = set(inspect.signature(Pretrained.__call__).parameters)


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / name / "reference.npz") as file:
        return dict(file)


INPUTS: dict[str, np.ndarray] = dict(np.load(HERE / "inputs.npz"))
TEXTS: dict[str, Any] = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
SPEECH = INPUTS["speech"]
# `kind` of what each directory's reference holds → the directories.
NAMES = {
    kind: sorted(
        p.parent.name for p in HERE.glob("*/reference.npz") if any(k.startswith(kind) for k in reference(p.parent.name))
    )
    for kind in ("texts", "image", "audio")
}


def group(name: str, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{prefix}/"): v for k, v in reference(name).items() if k.startswith(f"{prefix}/")}


def test_every_kind_has_references() -> None:
    assert {kind: len(names) for kind, names in NAMES.items()} == {"texts": 9, "image": 10, "audio": 4}


@pytest.mark.parametrize("name", NAMES["texts"])
def test_text(name: str) -> None:
    preprocessor = load_preprocessor(HERE / name)
    for part, texts, choices in (
        ("texts", TEXTS["texts"], {}),
        ("special", TEXTS["special"], {}),
        ("pairs", TEXTS["pairs"], {}),
        ("cut", TEXTS["texts"], {"max_length": 7}),
        ("texts", TEXTS["texts"], {}),  # nothing is left of the cut
    ):
        if wanted := group(name, part):
            found = preprocessor(text=texts, **choices)
            assert set(found) == set(wanted) and set(found) <= ARGUMENTS
            for key, value in wanted.items():
                assert found[key].dtype == np.int32
                np.testing.assert_array_equal(found[key], value, f"{part} {key}")


def test_one_string_is_a_batch_of_one_and_ids_decode() -> None:
    for name, wanted in (
        ("bert", "call me ishmael."),
        ("gpt2", "Call me Ishmael."),
        ("clip", "call me ishmael ."),
        ("llama", "Call me Ishmael."),
    ):
        preprocessor = load_preprocessor(HERE / name)
        ids = preprocessor(text="Call me Ishmael.")["text"]
        assert ids.shape[0] == 1
        assert preprocessor.decode(ids[0]) == wanted
        assert preprocessor.decode(ids) == [wanted]


@pytest.mark.parametrize("name", NAMES["image"])
def test_image(name: str) -> None:
    preprocessor, worst = load_preprocessor(HERE / name), 0.0
    for part, wanted in group(name, "image").items():
        arrays = [INPUTS[p] for p in (("wide", "tall") if part == "both" else (part,))]
        for pictures in (
            arrays,
            [Image.fromarray(a) for a in arrays],
            arrays[0] if len(arrays) == 1 else tuple(arrays),
        ):
            found = preprocessor(image=pictures)["image"]  # pyright: ignore[reportArgumentType]
            assert found.shape == wanted.shape and found.dtype == (np.int32 if wanted.ndim == 2 else np.float32)
            worst = float(np.maximum(worst, np.abs(found - wanted).max()))  # NaN stays
    print(f"{name}: {worst:.1e}")
    assert worst <= (0 if name == "imagegpt" else 1e-6)


# Of log-mel frames the published tool of Whisper computes in float32, ours in float64.
TOLERANCE = {"whisper": 2e-5, "ast": 2e-6, "wav2vec2": 2e-6, "wav2vec2_large": 2e-6}


@pytest.mark.parametrize("name", NAMES["audio"])
def test_audio(name: str) -> None:
    preprocessor, wanted = load_preprocessor(HERE / name), group(name, "audio")
    parts = [SPEECH[100 : 100 + length] for length in reference(name)["lengths"]]
    for sounds in (parts, [part.astype(np.float32) / 32768 for part in parts]):
        found = preprocessor(audio=sounds, rate=16000)
        assert set(found) == set(wanted) and set(found) <= ARGUMENTS
        for key, value in wanted.items():
            error = np.abs(found[key] - value).max()
            print(f"{name} {key}: {error:.1e} of {np.abs(value).max():.1e}")
            assert found[key].shape == value.shape and found[key].dtype == value.dtype
            assert error <= TOLERANCE[name]


def test_what_is_given_out_runs_the_model() -> None:
    model, preprocessor = load_huggingface(REFERENCES / "wav2vec2_large"), load_preprocessor(HERE / "wav2vec2_large")
    run = jax.jit(lambda model, inputs: model(**inputs)["hidden"])
    one, other, shorter = SPEECH[:400], SPEECH[900:1300], SPEECH[400:700]
    beside_one = run(model, preprocessor(audio=[one, shorter], rate=16000))
    beside_other = run(model, preprocessor(audio=[other, shorter], rate=16000))
    assert not np.allclose(beside_one[0], beside_other[0], atol=1e-2)
    np.testing.assert_allclose(beside_one[1, :15], beside_other[1, :15], atol=1e-6)  # its 300 samples are 18 frames


def test_sound_of_many_forms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocessor = load_preprocessor(HERE / "wav2vec2_large")

    def made(audio: Any, rate: int | None = 16000) -> np.ndarray:
        return preprocessor(audio=audio, rate=rate)["audio"]

    samples = SPEECH[:3000]
    wanted = made(samples)
    both = np.stack([samples, samples // 3], axis=1)
    np.testing.assert_allclose(made([both]), made(both.astype(np.float64).mean(axis=1) / 32768), atol=1e-5)
    np.testing.assert_allclose(made(samples.astype(np.int32) * 65536), wanted, atol=1e-5)
    np.testing.assert_array_equal(made(np.stack([samples, samples])), np.concatenate([wanted, wanted]))
    np.testing.assert_allclose(made((samples / 32768).tolist()), wanted, atol=1e-5)

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(samples.astype("<i2").tobytes())
    np.testing.assert_allclose(made(tmp_path / "a.wav", None), wanted, atol=1e-5)

    preprocess_audio._say_resampled.cache_clear()
    with caplog.at_level(logging.WARNING):
        fast = np.sin(np.arange(24000) * 2 * np.pi * 440 / 24000).astype(np.float32)
        slow = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000).astype(np.float32)
        np.testing.assert_allclose(made(fast, 24000)[0, 500:-500], made(slow)[0, 500:-500], atol=2e-2)
        made(fast, 24000)
    assert [r.getMessage() for r in caplog.records] == [
        "audio at 24000 Hz is resampled to 16000 Hz, the rate of the checkpoint"
    ]


def test_pictures_of_many_forms(tmp_path: Path) -> None:
    preprocessor = load_preprocessor(HERE / "vit")
    picture = INPUTS["wide"]
    wanted = preprocessor(image=picture)["image"]
    Image.fromarray(picture).save(tmp_path / "a.png")
    gray = picture[..., 0]
    with_alpha = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=2)
    for same in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        with_alpha,
        picture[None],
    ):
        np.testing.assert_array_equal(preprocessor(image=same)["image"], wanted)
    three = preprocessor(image=[gray, gray[..., None], Image.fromarray(gray)])["image"]
    assert (
        (three == three[:1]).all()
        and (three[..., 0] == wanted[..., 0]).all()
        and (three[..., 1] == three[..., 0]).all()
    )
    clear = np.concatenate([picture, np.zeros_like(picture[..., :1])], axis=2)
    assert (preprocessor(image=clear)["image"] == 1.0).all()  # white


def test_settings_inside_processor_config(tmp_path: Path) -> None:
    for name, key in (("vit", "image_processor"), ("wav2vec2", "feature_extractor")):
        whole = {"processor_class": "X", key: json.loads((HERE / name / "preprocessor_config.json").read_text())}
        (tmp_path / "processor_config.json").write_text(json.dumps(whole))
        ours, wanted = load_preprocessor(tmp_path), load_preprocessor(HERE / name)
        assert ours.audio == wanted.audio and (ours.image is None) == (wanted.image is None)
        if ours.image is not None and wanted.image is not None:
            assert str(dataclasses.asdict(ours.image)) == str(dataclasses.asdict(wanted.image))


def test_the_family_stands_in_for_a_missing_type(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 8000}')
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    steps = load_preprocessor(tmp_path).audio
    assert isinstance(steps, preprocess_audio.Waveforms) and steps.rate == 8000


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """copy(NAME, file=content or None, …) → a directory of the references, changed."""

    def make(name: str, **files: Any) -> Path:
        shutil.copytree(HERE / name, tmp_path, dirs_exist_ok=True)
        for stem, content in files.items():
            if content is None:
                (tmp_path / f"{stem}.json").unlink()
            else:
                (tmp_path / f"{stem}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return make


def test_directories_that_do_not_do(copy: Any, tmp_path: Path) -> None:
    def refused(directory: Path, *words: str) -> None:
        with pytest.raises(UsageError) as error:
            load_preprocessor(directory)
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)

    refused(tmp_path / "nowhere", "nowhere is not a directory")
    refused(tmp_path, "has no tokenizer", "no preprocessor_config.json")
    refused(
        copy("vit", preprocessor_config={"image_processor_type": "VitImageProcessor"}), "VitImageProcessor", "mean ViT?"
    )
    refused(copy("vit", preprocessor_config={"do_resize": True}), "names no image_processor_type")
    refused(copy("vit", preprocessor_config="{"), "preprocessor_config.json is not JSON")
    vit = {"image_processor_type": "ViTImageProcessor"}
    refused(copy("vit", preprocessor_config={**vit, "size": {"longest_edge": 3}}), "size=", "height and width")
    refused(copy("vit", preprocessor_config={**vit, "resample": 9}), "resample=9")
    refused(
        copy("vit", preprocessor_config={**vit, "image_std": [1, 0, 1]}), "image_std should be one number per channel"
    )
    refused(copy("vit", preprocessor_config={**vit, "do_pad": True}), "do_pad=True is not supported")
    refused(
        copy("imagegpt", preprocessor_config={"image_processor_type": "ImageGPTImageProcessor"}),
        "clusters should be rows",
    )
    sound = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": "16000"}
    refused(copy("vit", preprocessor_config=sound), "sampling_rate='16000' should be a int")


def test_tokenizers_that_do_not_do(copy: Any, tmp_path: Path) -> None:
    def refused(directory: Path, *words: str) -> None:
        with pytest.raises(UsageError) as error:
            load_preprocessor(directory)(text="a")
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)

    refused(copy("llama", tokenizer="{}"), "its tokenizer cannot be read")
    refused(copy("llama", tokenizer=None), "has no tokenizer: no tokenizer.json")
    (tmp_path / "tokenizer.model").touch()
    refused(tmp_path, "only as tokenizer.model", "save_pretrained")
    (tmp_path / "tokenizer.model").unlink()
    refused(copy("gpt2", config={"model_type": "qwen2"}), "do not say how a text is cut")
    settings = {"added_tokens_decoder": {"999": {"content": "Ahab"}}}
    refused(
        copy("gpt2", tokenizer_config=settings, config={"model_type": "gpt2"}), "'Ahab' should have the id 999, not 38"
    )
    refused(copy("roberta", special_tokens_map={"cls_token": "<cls>"}, tokenizer_config={}), "lacks '<cls>'")
    (tmp_path / "merges.txt").unlink()
    shutil.copy(HERE / "vit" / "preprocessor_config.json", tmp_path)
    refused(tmp_path, "vocab.json without merges.txt")
    assert load_preprocessor(tmp_path)(image=INPUTS["wide"])["image"].ndim == 4


def test_calls_that_do_not_do(tmp_path: Path) -> None:
    text, image, audio = (load_preprocessor(HERE / name) for name in ("bert", "dinov2_whole", "wav2vec2"))

    def refused(preprocessor: Preprocessor, line: str, **arguments: Any) -> None:
        with pytest.raises(UsageError, match=line) as error:
            preprocessor(**arguments)
        assert "\n" not in str(error.value)

    refused(text, "give the preprocessor something")
    refused(text, "text is an empty list", text=[])
    refused(text, "text 1 should be a string or a pair", text=["a", 3])
    refused(text, "max_length=2 leaves no room", text="a", max_length=2)
    refused(text, "no preprocessor_config.json that says how image", image=INPUTS["wide"])
    refused(image, "dinov2_whole has no tokenizer", text="a")
    refused(image, "image is an empty list", image=[])
    refused(image, "different sizes", image=[INPUTS["wide"], INPUTS["tall"]])
    refused(image, r"image 0 should be uint8 \[height,width,3\].*float32", image=np.zeros((4, 4, 3), np.float32))
    refused(image, r"uint8\[3, 8, 8\]", image=np.zeros((3, 8, 8), np.uint8))
    refused(image, "has no pixels", image=np.zeros((0, 4, 3), np.uint8))
    refused(image, "there is no file", image=[tmp_path / "none.png"])
    refused(image, "is a int", image=[3])
    refused(audio, "rate=16000", audio=SPEECH)
    refused(audio, "rate=16000", audio=SPEECH, rate=0)
    refused(audio, "audio 0 is empty", audio=SPEECH[:0], rate=16000)
    refused(audio, "audio 1 is empty", audio=[SPEECH, []], rate=16000)
    refused(audio, "audio is an empty list", audio=[], rate=16000)
    refused(audio, "not finite", audio=np.array([1.0, np.nan]), rate=16000)
    refused(audio, r"int16\[2, 900\]; transpose it", audio=[SPEECH[:1800].reshape(2, 900)], rate=16000)
    refused(audio, r"should be \[B,samples\].*int16\[900, 2\]", audio=SPEECH[:1800].reshape(900, 2), rate=16000)
    refused(audio, "audio 0 should be floats.*uint8", audio=SPEECH.astype(np.uint8), rate=16000)
    refused(audio, "there is no file", audio=[tmp_path / "none.wav"])
    refused(load_preprocessor(HERE / "ast"), "399 samples are too few", audio=SPEECH[:399], rate=16000)


def test_texts_that_no_tokenizer_takes() -> None:
    preprocessor = load_preprocessor(HERE / "gpt2")
    for text, wanted in (("a\ud83d b", "a? b"), ([("a", "\ud83d")], [("a", "?")])):
        np.testing.assert_array_equal(preprocessor(text=text)["text"], preprocessor(text=wanted)["text"])

    class Broken:
        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 0

        def no_truncation(self) -> None: ...

        def encode_batch(self, texts: Any) -> Any:
            raise Exception("no\nunknown token")

    with pytest.raises(UsageError, match="^the tokenizer cannot encode 'a': no unknown token$"):
        TextEncoder(Broken(), 0)("a")


def test_threads_that_cut_at_other_lengths() -> None:
    preprocessor, text = load_preprocessor(HERE / "gpt2"), "hello world " * 1000
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: preprocessor(text=text, max_length=i)["text"].shape[1], range(100, 160)))
    assert found == list(range(100, 160))


def test_exported_lazily_and_without_tokenizers() -> None:
    assert unimodal.load_preprocessor is load_preprocessor and unimodal.load_huggingface is load_huggingface
    code = f"""
import sys
import unimodal
assert "unimodal.interop" not in sys.modules and "PIL" not in sys.modules
sys.modules["tokenizers"] = None  # as where it is not installed
from unimodal import UsageError, load_preprocessor
load_preprocessor({str(HERE / "vit")!r})
try:
    load_preprocessor({str(HERE / "bert")!r})
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install tokenizers" in done.stdout and done.stdout.count("\n") == 1
