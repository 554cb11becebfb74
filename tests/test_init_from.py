"""Training that starts from published weights: what is loaded is the checkpoint's, what is not is said, slips are one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from unimodal import interop
from unimodal.errors import UsageError
from unimodal.sharding import path_name

REFERENCES = Path(__file__).parent / "reference" / "interop"
RECIPE = f"--config={tiny.ROOT / 'configs' / 'finetune.py'}"
QUICK = ("--config.steps=2", "--config.log_every=1", "--config.eval_every=0", "--config.eval_limit=1")
TASKS = {  # the task that reads what a checkpoint reads, small
    "bert": dict(length=8),
    "gpt": dict(length=8),
    "vit": {},
    "wav2vec2": tiny.SMALL["wav2vec2"],
}


def config_for(name: str, task: str, **changes: Any) -> dict[str, Any]:
    """A config whose parts are the checkpoint's."""
    found = interop.recipe(REFERENCES / name)
    (part,) = found.backbones
    tokenizers = {n: {"kind": kind, **dataclasses.asdict(c)} for n, (kind, c) in found.tokenizers.items()}
    backbones = {n: dataclasses.asdict(c) for n, c in found.backbones.items()}
    config = tiny.plain(task, init_from=str(REFERENCES / name))
    config |= dict(tokenizers=tokenizers, backbones=backbones)
    config["tasks"] = {task: dict(batch_size=8, tokenizer=part, backbone=part, **TASKS[task])}
    for field, value in changes.items():
        *path, last = field.split("__")
        place = config
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return config


def started(config: dict[str, Any]) -> tuple[Any, Any]:
    """The experiment without its task's data (the vocabularies here are too small for bytes), and the first model."""
    experiment = tiny.build(config)
    return experiment, experiment.program.model(experiment.program.init())


def values(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize(
    ("name", "scan"),
    [("bert_base", False), ("roberta_masked_lm", True), ("gpt2", True), ("llama", False), ("minilm_sentence", True)],
)
def test_text_computes_what_the_checkpoint_does(name: str, scan: bool) -> None:
    task = "gpt" if name in ("gpt2", "llama") else "bert"
    experiment, model = started(config_for(name, task, backbones__text__scan=scan))
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 61, (2, 8)), jnp.int32)
    tokens = model.tokenizers.text(ids, causal=task == "gpt")
    found = jax.jit(lambda backbone: backbone(tokens)[0])(model.backbones.text)
    wanted = interop.load_huggingface(REFERENCES / name)(text=ids)["hidden"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert all(line.startswith("heads.") for line in experiment.start.fresh)


def test_images_and_their_classifier() -> None:
    name, classes = "vit_classifier", tuple("abcde")
    config = config_for(name, "vit", tasks__vit__pooling="first", tasks__vit__labels__classes=classes)
    experiment, model = started(config)
    assert experiment.start.fresh == ()
    assert experiment.start.unused == ()
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 16, 3)), jnp.float32)
    found = jax.jit(experiment.tasks[0].logits)(model, image)
    np.testing.assert_allclose(found, interop.load_huggingface(REFERENCES / name)(image=image)["logits"], atol=1e-5)


def test_audio_and_its_quantiser() -> None:
    experiment, model = started(config_for("wav2vec2_base", "wav2vec2"))
    wave = jnp.asarray(np.random.default_rng(0).normal(size=(2, 400)), jnp.float32)
    found = jax.jit(lambda m, wave: m.backbones.audio(m.tokenizers.audio(wave))[0])(model, wave)
    theirs = interop.load_huggingface(REFERENCES / "wav2vec2_base")
    wanted = jax.jit(lambda m, wave: m(audio=wave)["hidden"])(theirs, wave)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert {line.split(".")[1] for line in experiment.start.fresh} == {"wav2vec2"}


def test_heads_of_another_size_are_fresh_and_the_rest_is_as_it_was_initialised() -> None:
    config = config_for("vit_classifier", "vit", tasks__vit__pooling="first")
    experiment, model = started(config)
    heads = {"heads.vit.classify.linear.bias", "heads.vit.classify.linear.kernel"}
    assert set(experiment.start.fresh) == heads
    assert set(experiment.start.unused) == {"classifier.weight", "classifier.bias"}
    _, untouched = started({**config, "init_from": None})
    before, after = values(untouched), values(model)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert heads <= same
    assert not [name for name in same - heads if name.endswith("kernel")]


def test_masked_language_head_comes_too() -> None:
    _, model = started(config_for("bert_masked_lm", "bert"))
    ours, theirs = values(model), values(interop.load_huggingface(REFERENCES / "bert_masked_lm"))
    for end in ("transform.kernel", "transform.bias", "norm.scale", "norm.bias", "decoder.bias"):
        assert np.array_equal(ours[f"heads.bert.language.{end}"], theirs[f"heads.masked_lm.{end}"]), end


def test_read_into_shards_of_the_mesh_and_their_dtype() -> None:
    config = config_for(
        "vit_base", "vit", mesh=dict(data=1, fsdp=2, tensor=2), backbones__image__param_dtype="bfloat16"
    )
    experiment, model = started(config)
    _, whole = started(config_for("vit_base", "vit"))
    state = experiment.program.init()
    wanted = experiment.program.abstract_state()
    for (path, leaf), abstract in zip(
        jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(wanted), strict=True
    ):
        assert leaf.sharding == abstract.sharding, path_name(path)
        assert leaf.dtype == abstract.dtype, path_name(path)
    query = model.backbones.image.layers.attention.query.kernel.get_value()
    assert query.dtype == jnp.bfloat16
    assert query.sharding.shard_shape(query.shape) == (2, 16, 2, 8)  # embed by fsdp, heads by tensor
    for name, value in values(whole).items():
        np.testing.assert_allclose(values(model)[name].astype(np.float32), value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_another_modality_may_borrow_the_backbone() -> None:
    config = config_for("bert_base", "bert")
    config["tokenizers"] = dict(image=dict(image_size=(16, 16), patch=8))
    config["tasks"] = dict(vit=dict(batch_size=8, backbone="text"))
    experiment, _ = started(config)
    assert {name.split(".")[0] for name in experiment.start.loaded} == {"backbones"}
    assert {name.split(".")[0] for name in experiment.start.fresh} == {"tokenizers", "heads"}
    assert "embeddings.word_embeddings.weight" in experiment.start.unused


def test_what_is_skipped_is_fresh() -> None:
    skip = r"tokenizers\.text\.(table|position)"
    config = config_for(
        "bert_base", "bert", tokenizers__text__vocabulary=264, tokenizers__text__max_length=8, init_skip=skip
    )
    experiment, _ = started(config)
    tables = {"tokenizers.text.table.table", "tokenizers.text.position_table.table"}
    assert {name for name in experiment.start.fresh if name.startswith("tokenizers")} == tables


def test_every_checkpoint_is_accounted_for() -> None:
    """Loaded, fresh and unused together are all parameters and all tensors, each once."""
    for name, task in (("bert_pretraining", "bert"), ("vit_base", "vit"), ("gpt2_base", "gpt")):
        experiment = tiny.build(config_for(name, task))
        start = experiment.start
        parameters = list(values(jax.tree.map(lambda leaf: 0, experiment.model)))
        assert sorted([*start.loaded, *start.fresh]) == sorted(parameters)
        used = {piece.source for pieces in start.loaded.values() for piece in pieces}
        tied = {second.source for second, _ in start.matched.tied}
        assert used | tied | set(start.unused) == set(start.source.tensors)
        assert not used & set(start.unused)
        report = start.report()
        assert all(f"  loaded  {line}" in report for line in start.loaded)
        assert all(f"  fresh   {line}" in report for line in start.fresh)
        assert all(f"  unused  {line}" in report for line in start.unused)


SLIPS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "width": (
        "vit_base", "vit", dict(backbones__image__width=64),
        "backbones.image.width is 64, but 32 in {dir}: set --config.backbones.image.width=32",
    ),
    "depth": ("vit_base", "vit", dict(backbones__image__depth=3), "backbones.image.depth is 3, but 2 in"),
    "activation": (
        "vit_base", "vit", dict(backbones__image__activation="relu"), "activation is relu, but gelu in"
    ),
    "default MLP": ("vit_base", "vit", dict(backbones__image__mlp_width=None), "mlp_width is 128, but 48 in"),
    "vocabulary": (
        "bert_base", "bert", dict(tokenizers__text__vocabulary=264),
        "vocabulary is 264, but 61 in {dir}: set --config.tokenizers.text.vocabulary=61, or "
        "--config.init_skip=tokenizers.text.table to start that table afresh",
    ),
    "places": ("bert_base", "bert", dict(tokenizers__text__max_length=512), "max_length is 512, but 20 in"),
    "places of RoBERTa": (
        "roberta_masked_lm", "bert", dict(tokenizers__text__max_length=20), "max_length is 20, but 18 in"
    ),
    "picture": (
        "vit_base", "vit", dict(tokenizers__image__image_size=(32, 32)),
        'image_size is (32, 32), but (16, 16) in {dir}: set --config.tokenizers.image.image_size="(16, 16)"',
    ),
    "no directory": ("vit_base", "vit", dict(init_from="/nowhere/at/all"), "/nowhere/at/all is not a directory"),
    "no expression": ("vit_base", "vit", dict(init_skip="("), "init_skip='(' is no regular expression"),
    "nothing to skip": ("vit_base", "vit", dict(init_skip="pathc"), "init_skip='pathc' is found in no parameter's path"),
    "all skipped": ("vit_base", "vit", dict(init_skip="."), "goes into this model"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_what_does_not_agree_is_named(slip: str) -> None:
    name, task, changes, words = SLIPS[slip]
    experiment = tiny.build(config_for(name, task, **changes))
    with pytest.raises(UsageError) as caught:
        experiment.start.report()
    assert words.replace("{dir}", str(REFERENCES / name)) in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_towers_need_backbones_of_their_own() -> None:
    config = tiny.plain("clip", init_from=str(REFERENCES / "clip"))
    with pytest.raises(UsageError, match="the text and image towers of .* would both fill backbones.shared"):
        tiny.build(config).start.report()
    config = tiny.plain("gpt", init_from=str(REFERENCES / "clip"))
    config["tokenizers"].pop("image")
    config["tokenizers"].pop("text")
    config["tokenizers"] |= dict(a=dict(kind="text", vocabulary=264), b=dict(kind="text", vocabulary=264))
    config["tasks"]["gpt"]["tokenizer"] = "a"
    with pytest.raises(UsageError, match="tokenizers a and b are both of kind text; name the one"):
        tiny.build(config).start.report()


@dataclasses.dataclass(frozen=True)
class Ended:
    scratch: Path
    by_name: dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """launch.py from a copy of a checkpoint, then again without it."""
    scratch = tmp_path_factory.mktemp("init_from")
    weights, run = scratch / "weights", f"--workdir={scratch / 'run'}"
    shutil.copytree(REFERENCES / "vit_base", weights)
    fed = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": 0.25}
    (weights / "preprocessor_config.json").write_text(json.dumps(fed))
    recipe = (f"{RECIPE}:{weights}", *QUICK)
    first = {
        "dry": ("train", *recipe, "--dry_run"),
        "wrong": ("train", *recipe, "--config.backbones.image.width=48", f"--workdir={scratch / 'wrong'}"),
        "start": ("train", *recipe, "--config.stop_after=1", run),
    }
    plain = f"--config={scratch / 'same.py'}"  # the recipe as it came out, since a recipe reads the directory
    for name in ("logs1", "logs2"):
        (scratch / name).mkdir()
    found = dict(zip(first, tiny.launches(list(first.values()), scratch / "logs1", devices=1), strict=True))
    config = json.loads((scratch / "run" / "config.json").read_text("utf-8"))
    config.pop("fake_data")
    assert config["tasks"]["vit"]["images"]["mean"] == [0.4, 0.5, 0.6]
    config["tasks"]["vit"]["images"] |= dict(mean=None, std=None)  # as the recipe of a user who leaves them unset
    text = f"import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict(json.loads({json.dumps(config)!r}))\n"
    (scratch / "same.py").write_text(text, "utf-8")
    weights.rename(scratch / "gone")
    second = {
        "another": ("train", plain, f"--config.init_from={scratch / 'gone'}", "--config.stop_after=2", run),
        "resume": ("train", plain, "--config.stop_after=2", run),
        "without": ("train", plain, "--config.stop_after=2", f"--workdir={scratch / 'new'}"),
    }
    found |= dict(zip(second, tiny.launches(list(second.values()), scratch / "logs2", devices=1), strict=True))
    return Ended(scratch, found)


def test_a_run_says_what_it_starts_from(ended: Ended) -> None:
    for name in ("dry", "start"):
        code, out, err = ended.by_name[name]
        assert code == 0, err
        assert f"starting from {ended.scratch / 'weights'}: 22 parameters loaded, 2 fresh; 2 tensors unused" in out
        assert "  fresh   heads.vit.classify.linear.kernel" in out
        assert "  input   tasks.vit.images.mean is (0.4, 0.5, 0.6), as there" in out
        assert "  unused  pooler.dense.weight" in out
        assert "tokenizers.image.projection.kernel" in out
    assert "mesh " in ended.by_name["dry"][1]


def test_a_config_that_disagrees_writes_nothing(ended: Ended) -> None:
    code, out, err = ended.by_name["wrong"]
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "backbones.image.width is 48, but 32 in" in err
    assert not (ended.scratch / "wrong").exists()


def test_resuming_needs_no_checkpoint_but_its_own(ended: Ended) -> None:
    code, out, err = ended.by_name["resume"]
    assert code == 0, err
    assert "resuming" in out + err
    assert "loaded" not in out
    assert "is not a directory" in out  # so 'untrained' is of random weights, and says so
    results = json.loads((ended.scratch / "run" / "results.json").read_text("utf-8"))
    assert results["step"] == 2
    kept = json.loads((ended.scratch / "run" / "config.json").read_text("utf-8"))["tasks"]["vit"]["images"]
    assert (kept["mean"], kept["std"]) == ([0.4, 0.5, 0.6], [0.25])


def test_the_start_is_part_of_the_config(ended: Ended) -> None:
    code, _, err = ended.by_name["another"]
    assert code == 2
    assert "belongs to another config (init_from: " in err
    code, _, err = ended.by_name["without"]
    assert code == 2
    assert "weights is not a directory" in err
    assert not (ended.scratch / "new").exists()
