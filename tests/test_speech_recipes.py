"""The recipes of the speech tasks: published numbers of parameters, and that the large ones can be lowered."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from configs import audio_classifier, ctc, wav2vec2
from unimodal.sharding import parameter_count, parameter_table

# Of transformers' Wav2Vec2ForPreTraining, Wav2Vec2ForCTC (29 characters) and ASTForAudioClassification (128 frames, 35 words).
PUBLISHED = {
    (wav2vec2, "paper"): 95_044_608,
    (wav2vec2, "paper_large"): 317_390_592,
    (ctc, "paper"): 94_371_712 + 768 * 29 + 29,
    (ctc, "paper_large"): 315_438_720 + 1024 * 29 + 29,
    (audio_classifier, "paper"): 85_395_491,
}


def experiment(recipe: Any, size: str) -> Any:
    config = json.loads(recipe.get_config(f"size={size}").to_json_best_effort())
    return tiny.build({**config, "mesh": dict(data=1)})


@pytest.mark.parametrize(("recipe", "size"), PUBLISHED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_parameters_are_as_many_as_published(recipe: Any, size: str) -> None:
    made = experiment(recipe, size)
    assert parameter_count(parameter_table(made.model, made.mesh)) == PUBLISHED[recipe, size]


@pytest.mark.parametrize(("recipe", "size"), [(wav2vec2, "paper"), (ctc, "paper_large")])
def test_the_step_can_be_lowered(recipe: Any, size: str) -> None:
    made = experiment(recipe, size)
    (task,) = made.tasks
    batch = {
        name: jax.ShapeDtypeStruct((task.batch_size, *spec.shape), np.dtype(spec.dtype))
        for name, spec in task.inputs(made.model).spec.items()
    }
    with jax.set_mesh(made.mesh):
        lowered = made.program.step({task.name: (task.loss, 1.0)}).lower(
            made.program.abstract_state(), {task.name: batch}
        )
    assert lowered.out_info[0].step.shape == ()


@pytest.mark.parametrize("recipe", [wav2vec2, ctc, audio_classifier], ids=lambda r: r.__name__)
@pytest.mark.parametrize("size", ["", "small", "size=tiny"])
def test_every_size_is_there(recipe: Any, size: str) -> None:
    config = recipe.get_config(size)
    assert len(config.tasks) == len(config.backbones) == len(config.tokenizers) == 1
    with pytest.raises(ValueError, match="is not a size of this recipe"):
        recipe.get_config("huge")


def test_fine_tuning_is_of_the_encoder_that_was_trained() -> None:
    for size in ("tiny", "small", "paper", "paper_large"):
        before, after = wav2vec2.get_config(size), ctc.get_config(size)
        for part in ("channels", "kernels", "conv_norm", "conv_bias", "norm", "position_kernel"):
            assert before.tokenizers.audio[part] == after.tokenizers.audio[part]
        for part in ("width", "depth", "heads", "norm_position", "final_norm", "norm_epsilon"):
            assert before.backbones.audio[part] == after.backbones.audio[part]
