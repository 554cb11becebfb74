"""Recipes by the size of their model: the papers' have the published numbers of parameters, and can be lowered whole."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import jax
import pytest
import tiny

# (recipe, size) → parameters, as published (rounded there) and as the authors' checkpoints have them.
PUBLISHED = {
    # Devlin 2019, §3: 110M and 340M; with the heads of pre-training, as in the checkpoints.
    ("bert", "paper"): (110e6, 110_106_428),
    ("bert", "paper_large"): (340e6, 336_226_108),
    # Radford 2019, table 2 says 117M and 1542M; the authors corrected the first to 124M.
    ("gpt", "paper"): (124e6, 124_439_808),
    ("gpt", "paper_xl"): (1542e6, 1_557_611_200),
    # Touvron 2023a, table 2: 6.7B.
    ("llama", "7b"): (6.7e9, 6_738_415_616),
    # Dosovitskiy 2021, table 1: 86M and 307M, with a head of a thousand classes.
    ("vit", "paper"): (86e6, 86_567_656),
    ("vit", "paper_large"): (307e6, 304_326_632),
    ("vit", "paper_huge"): (632e6, 632_045_800),
    ("vit", "deit_small"): (22e6, 22_050_664),  # Touvron 2021, table 1
    # He 2022: ViT-B's 86M and ViT-L's 304M; with the decoder, as in the checkpoints.
    ("mae", "paper"): (112e6, 111_907_840),
    ("mae", "paper_large"): (330e6, 329_541_888),
    # Chen 2020, §3.3: 76M, 455M and 1.36B (there 1.4B); as in the authors' checkpoints of 32×32 pixels.
    ("imagegpt", "paper"): (76e6, 76_682_240),
    ("imagegpt", "paper_medium"): (455e6, 455_489_536),
    ("imagegpt", "paper_large"): (1.36e9, 1_362_914_304),
    # The authors' checkpoints.
    ("clip", "paper"): (150e6, 149_620_737),
    ("clip", "paper_large"): (428e6, 427_616_513),
    # BERT with its pooler and an answer of two classes.
    ("bert_finetune", "paper"): (110e6, 109_482_240 + 2 * 769),
    ("bert_finetune", "paper_large"): (340e6, 335_141_888 + 2 * 1025),
    # BERT without its pooler, and a projection of 768 to 768.
    ("sentence", "paper"): (110e6, 108_891_648 + 768 * 768),
    # The authors' code: an encoder of 53,786,240 and a decoder of 43,829,766, whose first layer has a bias of 128 beside the
    # vectors of the codes.
    ("dvae", "paper"): (98e6, 53_786_240 + 43_829_766 - 128),
}


SPEECH = ("audio_classifier", "ctc", "wav2vec2")


def sizes() -> dict[str, tuple[str, ...]]:
    """The sizes of each recipe that has the paper's, as it lists them, but for variants of tiny and small. Recipes of speech are
    in test_speech_recipes."""
    found = {}
    for path in sorted((tiny.ROOT / "configs").glob("*.py")):
        get_config = getattr(importlib.import_module(f"configs.{path.stem}"), "get_config", None)
        try:
            if get_config is not None and inspect.signature(get_config).parameters:
                get_config("size=?")
        except ValueError as error:
            found[path.stem] = tuple(str(error).rpartition("give :size=")[2].split("|"))
        except Exception:  # a recipe of something else than a size
            continue
    ordered = {n: tuple(s for s in each if not s.startswith(("tiny_", "small_"))) for n, each in found.items()}
    return {n: each for n, each in ordered.items() if "paper" in each and n not in SPEECH}


SIZES = sizes()
# Encoders of methods that compare views: Chen 2021, table 1 says 22M and 86M. Exactly: ViT's without its head.
ENCODERS = {"paper_small": (22, 21_665_664), "paper": (86, 86_567_656 - 769 * 1000)}


def experiment(name: str, size: str) -> Any:
    """Everything abstract: no data is read, and no array made."""
    import launch

    config = launch.as_plain(importlib.import_module(f"configs.{name}").get_config(f"size={size}"))
    return tiny.build({**config, "mesh": dict(data=1)})


def parameters(found: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found.model))


@pytest.mark.parametrize(("name", "size"), PUBLISHED)
def test_published_parameter_counts(name: str, size: str) -> None:
    rounded, exact = PUBLISHED[name, size]
    count = parameters(experiment(name, size))
    assert count == exact
    assert abs(count / rounded - 1) < 0.015


@pytest.mark.parametrize("size", ENCODERS)
@pytest.mark.parametrize("name", ["simclr", "moco", "swav"])
def test_published_encoders(name: str, size: str) -> None:
    model = experiment(name, size).model
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((model.tokenizers, model.backbones)))
    assert (round(count / 1e6), count) == ENCODERS[size]


def test_the_prior_of_text_and_codes_has_twelve_billion() -> None:
    """Ramesh 2021, §1 and appendix B.2: 12 billion, in 64 layers of 62 heads of 64."""
    model = experiment("dalle", "paper").model
    layers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.backbones["shared"]))
    assert abs(layers / 12e9 - 1) < 0.015


@pytest.mark.parametrize("name", SIZES)
def test_sizes_grow_and_others_are_refused(name: str) -> None:
    counts = [parameters(experiment(name, size)) for size in SIZES[name]]
    assert counts == sorted(counts) and counts[0] < 2e6
    get_config = importlib.import_module(f"configs.{name}").get_config
    assert get_config().to_dict() == get_config("tiny").to_dict() == get_config("size=tiny").to_dict()
    with pytest.raises(ValueError, match=r"'size=huge' is not a size of this recipe: give :size=tiny\|(\w+\|)*paper"):
        get_config("size=huge")


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_step_can_be_lowered(name: str) -> None:
    found = experiment(name, "paper")
    (task,) = found.tasks
    step = found.program.step({task.name: (task.loss, task.weight)})
    spec = task.inputs(found.model).spec.items()
    batch = {k: jax.ShapeDtypeStruct((task.batch_size, *a.shape), a.dtype) for k, a in spec}
    with jax.set_mesh(found.mesh):
        lowered = step.lower(found.program.abstract_state(), {task.name: batch})
    state, metrics = lowered.out_info
    assert state.step.shape == () and metrics[task.name]["loss"].dtype == jax.numpy.float32
