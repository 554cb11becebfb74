"""Models of ours as published ones: the files, the key sets, and the way back; what has no such shape says why."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import used
from exports import AST, CLIP, FITS, SIGLIP, config_of

import unimodal
from unimodal.command import main
from unimodal.errors import UsageError
from unimodal.interop.files import open_source
from unimodal.use import card
from unimodal.use.export import Target, export
from unimodal.use.loaded import Loaded

REFERENCES = Path(__file__).parent / "reference" / "interop"


def kinds_of(names: Any) -> set[str]:
    """Names of tensors without the numbers of layers, and without copies of tied ones."""
    found = {".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names}
    return {n for n in found if not n.endswith(("decoder.weight", "decoder.bias", "position_ids", "lm_head.weight"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Workdir and export of each, made once."""
    root, done = tmp_path_factory.mktemp("exported"), {}

    def make(name: str) -> tuple[Any, Any, Path]:
        if name not in done:
            experiment, state = used.workdir(root / name, config_of(name), noise=0.05)
            target = root / f"{name}_hf"
            assert main(["unimodal", "export", str(root / name), f"huggingface:{target}"]) == 0
            done[name] = experiment, experiment.program.model(state), target
        return done[name]

    return make


@pytest.mark.parametrize("name", sorted(FITS))
def test_what_is_written_is_read_as_published_ones_are(name: str, made: Any) -> None:
    """The key set is that of a checkpoint that transformers has written; weights come back bit for bit."""
    _, model, target = made(name)
    ours, theirs = open_source(target), open_source(REFERENCES / FITS[name][3])
    mine, published = kinds_of(ours.tensors), kinds_of(theirs.tensors)
    head = {n for n in published if "pooler" in n or "mask_token" in n or "masked_spec" in n}
    assert mine - published <= {n for n in mine if "parametrizations" in n or "masked_spec" in n}
    assert {n for n in published - mine if "weight_g" not in n and "weight_v" not in n} <= head
    loaded = unimodal.load_huggingface(target)
    assert not loaded.origin.fresh
    assert (target / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name: transformers")
    theirs_values = {v.tobytes() for v in map(np.asarray, jax.tree.leaves(loaded))}
    parts = [leaf for leaf in map(np.asarray, jax.tree.leaves(model)) if leaf.ndim > 1]
    assert parts and sum(leaf.tobytes() in theirs_values for leaf in parts) > len(parts) / 2


@pytest.mark.parametrize("name", sorted(FITS))
def test_the_way_back(name: str, made: Any, tmp_path: Path) -> None:
    """workdir → huggingface → init_from: the same parameters, in the same places."""
    experiment, model, target = made(name)
    again = tiny.build({**config_of(name), "init_from": str(target)})
    back = again.program.first_model()
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not [n for n in again.start.fresh if "type_table" not in n]
    assert experiment.tasks[0].name == again.tasks[0].name


@pytest.mark.parametrize(("name", "task"), [("bert", "bert"), ("gpt2", "gpt")])
def test_output_weights_of_its_own_come_back(name: str, task: str, tmp_path: Path) -> None:
    config = config_of(name)
    config["tasks"][task]["tied"] = False
    experiment, state = used.workdir(tmp_path / "run", config, noise=0.05)
    assert main(["unimodal", "export", str(tmp_path / "run"), f"huggingface:{tmp_path / 'hf'}"]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"] is False
    back = tiny.build({**config_of(name), "init_from": str(tmp_path / "hf"), "tasks": config["tasks"]})
    assert not [n for n in back.start.fresh if "type_table" not in n]
    both = experiment.program.model(state), back.program.first_model()
    for ours, theirs in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_same_answers_from_both(made: Any) -> None:
    _, _, target = made("vit")
    workdir = target.parent / "vit"
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    ours, theirs = unimodal.load(workdir).predict(picture, top=9), unimodal.load(target).predict(picture, top=9)
    assert ours[0]["classes"] == pytest.approx(theirs[0]["classes"], abs=1e-5)
    _, _, target = made("gpt2")
    text = "What – is?"
    ours = unimodal.load(target.parent / "gpt2").predict(text, steps=4)
    theirs = unimodal.load(target).predict(text, steps=4)
    assert ours[0]["continuation"] == theirs[0]["continuation"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("packed", "ends"), [(True, (3,)), (False, ())])
def test_a_language_model_ends_where_its_rows_do(
    name: str, packed: bool, ends: tuple[int, ...], tmp_path: Path
) -> None:
    """Documents that are packed end with EOS, which is 3 of bytes; windows of long ones with nothing."""
    from unimodal.interop.writing import end_ids

    config = config_of(name)
    config["tasks"]["gpt"]["packed"] = packed
    used.workdir(tmp_path / "run", config)
    assert main(["unimodal", "export", str(tmp_path / "run"), f"huggingface:{tmp_path / 'hf'}"]) == 0
    assert end_ids(unimodal.load_huggingface(tmp_path / "hf").origin) == ends


def test_what_has_no_such_shape_says_which_option_stands_in_the_way(made: Any, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "target"
    for kind, changes, message in (
        ("vit", {}, "a classifier of the first token (pooling=first)"),
        ("vit", dict(tokenizers__image__registers=2), "tokenizers.image.registers=1 would fit"),
        ("bert", {}, "backbones.shared.norm_position=post would fit"),
        ("gpt", dict(backbones__shared__rope_theta=1e4), "backbones.shared.rope_theta=None would fit"),
        ("audio_classifier", {}, "tokenizers.spectrogram.registers=2 would fit"),
        (
            "audio_classifier",
            {**AST, "tasks__audio_classifier__head_norm": 0.0},
            "a classifier of the first two tokens",
        ),
        ("clip", CLIP | {"tasks__clip__text_head": dict(pooling="last")}, "texts of bytes end with none"),
        ("clip", SIGLIP | dict(tasks__clip__fill=None), "it sees the padding of texts; --config.tasks.clip.fill=0"),
        ("clip", SIGLIP | dict(tasks__clip__texts=dict(length=12)), "its texts have 16 ids"),
    ):
        # A model without numbers is enough: nothing of it is read before it is refused.
        config = tiny.plain(kind, **changes)
        experiment = tiny.build(config)
        tasks = {task.name: task for task in experiment.tasks}
        loaded = Loaded("run", experiment.model, config, tasks, experiment.mesh, experiment=experiment)
        with pytest.raises(UsageError, match=re.escape(message)):
            export(loaded, Target("huggingface", target))
        assert not target.exists()
    used.workdir(tmp_path / "bert", tiny.plain("bert"))
    assert main(["unimodal", "export", str(tmp_path / "bert"), f"huggingface:{target}"]) == 2
    assert "backbones.shared.norm_position=post would fit" in capsys.readouterr().err
    assert not target.exists()
    _, _, there = made("vit")
    for words, message in (
        ([str(there.parent / "vit"), "tensorrt:x"], "huggingface:DIR or stablehlo:DIR, not 'tensorrt:x'"),
        ([str(there.parent / "vit"), f"huggingface:{there}"], "is not empty"),
        ([str(there), f"huggingface:{target}"], "is a published checkpoint already"),
        ([str(there.parent / "vit"), f"stablehlo:{target}", "--gives=transcript"], "gives no transcript, but class"),
    ):
        assert main(["unimodal", "export", *words]) == 2
        assert message in capsys.readouterr().err


def test_stablehlo_runs_with_jax_alone(made: Any, tmp_path: Path) -> None:
    _, _, hf = made("vit")
    workdir, target = hf.parent / "vit", tmp_path / "stablehlo"
    assert main(["unimodal", "export", str(workdir), f"stablehlo:{target}"]) == 0
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    loaded = unimodal.load(workdir)
    answer = loaded.answers("vit")[0]
    rows = [answer.row({"id": "x", "image": picture}), answer.row({"id": "y", "image": picture[::-1].copy()})]
    np.savez(tmp_path / "in.npz", image=np.stack([row["image"] for row in rows]))
    # -I: neither the folder of this repository nor PYTHONPATH is looked into.
    code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); " \
        "assert not any(name.split('.')[0] == 'unimodal' for name in sys.modules)"  # fmt: skip
    words = [
        sys.executable,
        "-I",
        "-c",
        code,
        str(target / "run.py"),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = jax.jit(answer.predict)(loaded.model, {"image": np.stack([row["image"] for row in rows])})
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["probability"], ours["probability"], atol=1e-5)
    assert json.loads((target / "function.json").read_text())["inputs"]["image"]["shape"] == ["any", 16, 16, 3]


def test_eight_bits_keep_each_channel_within_half_a_step(made: Any) -> None:
    """Against numpy, array by array; small arrays and vectors stay as they are."""
    from unimodal.use.int8 import LEAST, Int8, in_int8, whole

    _, model, _ = made("gpt2")
    leaves, kept = jax.tree.leaves(model), in_int8(model)
    changed = [(np.asarray(w), k) for w, k in zip(leaves, kept, strict=True) if isinstance(k, Int8)]
    assert changed and all(k is not None for k in kept)
    for w, k in changed:
        assert w.ndim > 1 and w.size >= LEAST and k.whole.dtype == np.int8 and np.abs(k.whole).max() == 127
        back = np.asarray(whole(k, w.dtype))
        assert (np.abs(back - w) <= 0.5001 * k.scale).all() and k.scale.size <= w.shape[0] * w.shape[-1]
    for w, k in zip(leaves, kept, strict=True):
        if not isinstance(k, Int8):
            np.testing.assert_array_equal(np.asarray(w), k)


def test_stablehlo_in_eight_bits(made: Any, tmp_path: Path, capsys: Any) -> None:
    _, _, hf = made("vit")
    workdir, target = hf.parent / "vit", tmp_path / "stablehlo"
    capsys.readouterr()
    assert main(["unimodal", "export", str(workdir), f"stablehlo:{target}", "--int8"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"accuracy: 0\.\d+ with the weights as they are, 0\.\d+ in eight bits", said), said
    weights = np.load(target / "weights.npz")
    assert any(weights[name].dtype == np.int8 for name in weights.files)
    from jax import export as jax_export

    function = jax_export.deserialize(bytearray((target / "function.stablehlo").read_bytes()))
    image = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    found = function.call({name: weights[name] for name in weights.files}, {"image": image})["probability"]
    loaded = unimodal.load(workdir)
    exact = jax.jit(loaded.answers("vit")[0].predict)(loaded.model, {"image": image})["probability"]
    assert 0 < np.abs(np.asarray(found) - np.asarray(exact)).max() < 0.02
    assert main(["unimodal", "export", str(workdir), f"huggingface:{tmp_path / 'x'}", "--int8"]) == 2
    assert "--int8 is for stablehlo:DIR" in capsys.readouterr().err


def test_a_classes_head_that_is_not_there(tmp_path: Path) -> None:
    used.workdir(tmp_path, tiny.plain("sentence"))
    from unimodal.use.export import handed
    from unimodal.use.loaded import load

    loaded = load(tmp_path)
    with pytest.raises(UsageError, match="no published architecture reads text with the heads embed"):
        from unimodal.interop.export import match

        match(handed(loaded, "sentence"), loaded.model)


def test_the_card_has_the_scores_of_this_checkpoint(made: Any, tmp_path: Path, capsys: Any) -> None:
    _, _, hf = made("vit")
    workdir = tmp_path / "run"
    shutil.copytree(hf.parent / "vit", workdir)
    row = dict(
        metric="accuracy",
        value=0.625,
        baseline=0.25,
        baseline_is="the largest class",
        higher_is_better=True,
        details={},
        low=0.5,
        high=0.75,
    )
    for step, said in (
        (0, "| vit | accuracy | 0.625 | 0.5 to 0.75 | 0.25 (the largest class) |"),
        (7, "results.json is of step 7"),
    ):
        (workdir / "results.json").write_text(json.dumps(dict(tasks=dict(vit=row), step=step, fingerprint="")))
        assert main(["unimodal", "export", str(workdir), f"huggingface:{tmp_path / str(step)}"]) == 0
        card = (tmp_path / str(step) / "README.md").read_text(encoding="utf-8")
        assert said in card and ("Trained on 2 × cpu, 1.5 steps a second" if step else "no meters.json") in card
        (workdir / "meters.json").write_text(json.dumps(dict(chips=2, chip="cpu", steps_per_second=1.5)))
    for damaged in (
        '{"tasks": [',
        '{"tasks": {}, "step": Infinity, "fingerprint": ""}',
        '{"tasks": {"vit": 3}, "step": 0}',
    ):
        (workdir / "results.json").write_text(damaged)
        assert main(["unimodal", "export", str(workdir), f"huggingface:{tmp_path / 'damaged'}"]) == 2
        assert "results.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("evaluate_ema", [None, True, False])
def test_the_card_has_no_scores_of_the_other_weights(evaluate_ema: bool | None) -> None:
    found: Any = SimpleNamespace(step=0, by_name={})
    for ema, averaged in ((0.9, True), (0.9, False), (0.0, False)):
        run = dict(
            step=0, averaged=averaged, config={"ema": ema}, experiment=SimpleNamespace(evaluate_ema=evaluate_ema)
        )
        told = " ".join(card._table(found, SimpleNamespace(**run), ()))
        evaluated = ema > 0 and evaluate_ema is not False
        assert ("| evaluation |" in told) == (averaged == evaluated)
        which = "the average of the parameters" if evaluated else "the last parameters"
        assert (f"results.json is of {which}" in told) == (averaged != evaluated)


def vocabularies(folder: Path) -> dict[str, str]:
    """Specs of bytes, a tokenizer.json without a post-processor, a cased vocab.txt, and vocab.json with merges.txt."""
    from unimodal.data import open_source as open_data
    from unimodal.data.train_encoder import train_encoder

    made = train_encoder(open_data("embedded:emoji", "train"), size=300, fields=("name",))
    for name in ("json", "cased", "merges"):
        (folder / name).mkdir()
    made.save(str(folder / "json" / "tokenizer.json"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    (folder / "cased" / "vocab.txt").write_text("\n".join([*pieces, *"bcdefghijklmnopqrstuvwxyz"]) + "\n")
    (folder / "cased" / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=False, padding_side="left")))
    bpe = json.loads(made.to_str())["model"]
    (folder / "merges" / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    (folder / "merges" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "merges" / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=True, bos_token="[BOS]", eos_token="[EOS]"))
    )
    files = dict(json="tokenizer.json", cased="vocab.txt", merges="vocab.json")
    return {"bytes": "bytes", **{name: str(folder / name / file) for name, file in files.items()}}


def test_texts_become_the_ids_that_the_task_trains_on(tmp_path: Path) -> None:
    """Specials, letter case and spaces come along, for each vocabulary and each kind of row, and for pairs."""
    pytest.importorskip("tokenizers")
    from tasks.bert import Bert
    from tasks.clip import Clip
    from tasks.gpt import Gpt
    from tasks.text_classifier import TextClassifier
    from unimodal.data import open_encoder, pair_row
    from unimodal.data.blocks import Texts
    from unimodal.use.preparation import write_preparation

    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(dict(id=i, text="Ab cab", label=i % 2)) + "\n" for i in range(60)))
    picture = SimpleNamespace(image_size=(16, 16), channels=3)
    for kind, spec in vocabularies(tmp_path).items():
        about: dict[str, Any] = dict(source=f"jsonl:{source}", texts=Texts(encoder=spec, length=32))
        words = SimpleNamespace(vocabulary=open_encoder(spec).vocab_size)
        model: Any = SimpleNamespace(
            tokenizers=dict(text=SimpleNamespace(config=words), image=SimpleNamespace(config=picture))
        )
        towers = [SimpleNamespace(input="text", tokenizer=words, masked=True)]
        exported: Any = SimpleNamespace(description=SimpleNamespace(towers=towers))

        for task in (TextClassifier(**about), Clip(**about), Gpt(**about), Bert(**about, next_sentence=True)):
            target = tmp_path / f"{kind}_{task.name}"
            target.mkdir()
            (target / "config.json").write_text(json.dumps(dict(model_type="bert", type_vocab_size=2)))
            write_preparation(task, exported, target)
            read, pad = unimodal.load_preprocessor(target), task.texts.pad
            if isinstance(task, Clip):
                trained = task.texts.part(words.vocabulary).make(("Ab cab", []), np.random.default_rng(0), False)["ids"]
            elif isinstance(task, Bert):
                trained = pair_row(open_encoder(spec), 32, open_encoder(spec).encode("Ab cab"))[0]
            else:
                trained = task.inputs(model).dataset("train")[0]["ids"]
            np.testing.assert_array_equal(
                read(text="Ab cab")["text"][0], trained[trained != pad], f"{kind} {task.name}"
            )
            if isinstance(task, TextClassifier | Bert):
                both = [open_encoder(spec).encode(text) for text in ("Ab", "cab")]
                ids, types = pair_row(open_encoder(spec), 32, *both)
                made = read(text=[("Ab", "cab")])
                np.testing.assert_array_equal(made["text"][0], ids[ids != pad])
                np.testing.assert_array_equal(made["text_types"][0], types[ids != pad])
        # A tower without a mask sees what fills up its rows, be it a special or, as 20, a piece of text.
        for fill in (4, 20):
            task, target = Clip(**about, fill=fill), tmp_path / f"{kind}_filled{fill}"
            target.mkdir()
            places = dict(text_config=dict(max_position_embeddings=32, pad_token_id=fill))
            (target / "config.json").write_text(json.dumps(dict(model_type="siglip", **places)))
            towers[0].masked, towers[0].fill_id = False, fill
            write_preparation(task, exported, target)
            trained = task.texts.part(words.vocabulary).make(("Ab cab", []), np.random.default_rng(0), False)["ids"]
            filled = np.where(trained == task.texts.pad, fill, trained)
            read = unimodal.load_preprocessor(target)(text="Ab cab")["text"][0]
            np.testing.assert_array_equal(read, filled, f"{kind} {fill}")
    settings = json.loads((tmp_path / "cased_clip" / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "left" and settings["cls_token"] == "[CLS]"
    assert (tmp_path / "merges_clip" / "merges.txt").is_file()


def test_a_vocabulary_names_what_fills_up_rows(tmp_path: Path) -> None:
    """Rows of a task hold no id of a vocabulary there, but other programs need one, and find it in both files or in neither."""
    pytest.importorskip("tokenizers")
    specs = vocabularies(tmp_path)
    for name, pieces in (("none", ["[UNK]", "a", "b"]), ("late", ["[UNK]", "a", "<pad>"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(pieces) + "\n")
        specs[name] = str(tmp_path / name / "vocab.txt")
    named = dict(json=("[PAD]", 0), cased=("[PAD]", 0), merges=("[PAD]", 0), none=(None, None), late=("<pad>", 2))
    for kind, wanted in named.items():
        config, run, target = config_of("gpt2"), tmp_path / f"{kind}_run", tmp_path / f"{kind}_hf"
        config["tokenizers"]["text"]["vocabulary"] = 300
        config["tasks"]["gpt"]["texts"]["encoder"] = specs[kind]
        used.workdir(run, config)
        assert main(["unimodal", "export", str(run), f"huggingface:{target}"]) == 0
        settings, model = (json.loads((target / f"{n}.json").read_text()) for n in ("tokenizer_config", "config"))
        assert (settings.get("pad_token"), model["pad_token_id"]) == wanted, kind
