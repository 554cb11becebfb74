"""Models of ours that have a published shape: the tiny test config of a task, changed so that it fits."""

from __future__ import annotations

from typing import Any

import tiny

BERT: dict[str, Any] = dict(
    backbones__shared=dict(width=32, depth=2, heads=4, norm_position="post", final_norm=False, norm_epsilon=1e-6),
    tokenizers__text=dict(vocabulary=264, max_length=16, types=2, norm=True),
)
SIGLIP: dict[str, Any] = dict(
    backbones={name: dict(width=32, depth=2, heads=4, activation="gelu_tanh") for name in ("image", "text")},
    tasks__clip__image_backbone="image",
    tasks__clip__text_backbone="text",
    tokenizers__image=dict(image_size=(16, 16), patch=8, registers=0),
    tasks__clip__objective="sigmoid",
    tasks__clip__size=32,
    tasks__clip__fill=0,
    tasks__clip__image_head=dict(pooling="attention", project=False),
    tasks__clip__text_head=dict(pooling="final", bias=True),
)
CLIP: dict[str, Any] = dict(
    backbones=dict(
        image=dict(width=32, depth=2, heads=4, final_norm=False, norm_epsilon=1e-5),
        text=dict(width=32, depth=2, heads=4, norm_epsilon=1e-5),
    ),
    tokenizers__image=dict(image_size=(16, 16), patch=8, registers=1, bias=False, norm=True, norm_epsilon=1e-5),
    tasks__clip__image_backbone="image",
    tasks__clip__text_backbone="text",
    tasks__clip__causal=True,
    tasks__clip__image_head=dict(pooling="first", norm=1e-5),
    tasks__clip__text_head=dict(pooling="end"),
)
SPEECH: dict[str, Any] = dict(
    backbones__shared=dict(width=32, depth=2, heads=4, norm_position="post", final_norm=False, norm_epsilon=1e-5),
    tokenizers__audio=dict(
        channels=16,
        kernels=(40, 8),
        strides=(40, 8),
        position_kernel=4,
        position_groups=4,
        norm=True,
        norm_epsilon=1e-5,
    ),
)
AST: dict[str, Any] = dict(
    tokenizers__spectrogram=dict(kind="image", image_size=(16, 24), patch=8, channels=1, stride=(8, 4), registers=2),
    tasks__audio_classifier__pooling="first_two",
    tasks__audio_classifier__head_norm=1e-6,
)
MAE: dict[str, Any] = dict(
    backbones=dict(shared=dict(width=32, depth=2, heads=4), decoder=dict(width=24, depth=1, heads=3)),
    tasks__mae__decoder_backbone="decoder",
)
# name: task, what makes the tiny config fit, the output there, and the committed checkpoint of the same architecture.
FITS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("bert", BERT, "logits", "bert_masked_lm"),
    "text_classifier": ("text_classifier", {**BERT, "tasks__text_classifier__pooling": "first"}, "logits", "bert_classifier"),
    "gpt2": ("gpt", dict(backbones__shared__norm_epsilon=1e-5), "logits", "gpt2"),
    "llama": (
        "gpt",
        dict(
            backbones__shared=dict(
                width=32, depth=2, heads=4, kv_heads=2, mlp_width=48, norm="rms", activation="swiglu",
                qkv_bias=False, output_bias=False, mlp_bias=False, rope_theta=10_000.0,
            ),
            tokenizers__text=dict(vocabulary=264),
        ),
        "logits",
        "llama",
    ),
    "vit": ("vit", dict(tasks__vit__pooling="first"), "logits", "vit_classifier"),
    "mae": ("mae", MAE, "patches", "vit_mae"),
    "clip": ("clip", CLIP, "image_embedding", "clip"),
    "siglip": ("clip", SIGLIP, "image_embedding", "siglip"),
    "wav2vec2": ("wav2vec2", SPEECH, "projected", "wav2vec2_pretraining"),
    "ctc": ("ctc", SPEECH, "logits", "wav2vec2_ctc"),
    "ast": ("audio_classifier", AST, "logits", "audio_spectrogram_transformer"),
}  # fmt: skip


def config_of(name: str) -> dict[str, Any]:
    """The tiny config of one of these, with the tokenizers that its task names and no others."""
    task, changes, _, _ = FITS[name]
    config = tiny.plain(task, **changes)
    reads = {
        "text": ("bert", "text_classifier", "gpt", "clip"),
        "image": ("vit", "mae", "clip"),
        "audio": ("wav2vec2", "ctc"),
        "spectrogram": ("audio_classifier",),
    }
    config["tokenizers"] = {n: c for n, c in config["tokenizers"].items() if task in reads.get(n, ())}
    return config
