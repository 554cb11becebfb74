"""Write tiny randomly initialised checkpoints with their outputs and gradients, for tests/test_interop_families.py.

    python tests/reference/interop/make_references.py [NAME …]

Needs torch and transformers (the tests do not). Each NAME becomes a directory with config.json, model.safetensors and
reference.npz: the inputs (`in/…`), the outputs (`out/…`), which places are real (`valid`), and the gradients of one
scalar loss: whole for the tensors that the case names (`grad/…`), and as a digest for every tensor of the file
(`digested`, their names, and `digests`). `check_saved.py` goes the other way.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from safetensors.numpy import load_file

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
DECODER = dict(**SIZES, vocab_size=61, max_position_embeddings=64)


@dataclass(frozen=True)
class Case:
    """make() → a torch model; run(model, inputs) → outputs by our names; which tensors to take gradients of."""

    make: Callable[[], Any]
    inputs: Callable[[], Arrays]
    run: Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    gradients: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()  # outputs that the loss leaves out


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def text(length: int = 11, *, padded: bool = True, least: int = 3, vocabulary: int = 60, pad: int = 0) -> Arrays:
    ids = random().integers(least, vocabulary, (2, length)).astype(np.int32)
    if not padded:
        return {"text": ids}
    mask = np.ones((2, length), np.int32)
    mask[1, length - 4 :] = 0
    return {"text": np.where(mask == 1, ids, pad).astype(np.int32), "text_mask": mask}


def text_types() -> Arrays:
    """Two sentences in each row."""
    made = text(7, padded=False)
    return {**made, "text_types": (np.arange(7)[None] >= np.array([[3], [5]])).astype(np.int32)}


def left_padded() -> Arrays:
    ids = text(9, padded=False)["text"]
    mask = np.ones((2, 9), np.int32)
    mask[1, :3] = 0
    return {"text": np.where(mask == 1, ids, 0).astype(np.int32), "text_mask": mask}


def image(height: int = 16, width: int = 16) -> Arrays:
    return {"image": random().standard_normal((2, height, width, 3)).astype(np.float32)}


def audio(samples: int = 331) -> Arrays:
    mask = np.ones((2, samples), np.int32)
    mask[1, samples - 90 :] = 0
    return {"audio": random().standard_normal((2, samples)).astype(np.float32) * np.float32(mask), "audio_mask": mask}


def spectrogram(frames: int, bins: int) -> Arrays:
    return {"audio": random().standard_normal((2, frames, bins)).astype(np.float32)}


def pixels(x: dict[str, torch.Tensor]) -> torch.Tensor:
    return x["image"].permute(0, 3, 1, 2)


def run_text(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(input_ids=x["text"].long(), attention_mask=x.get("text_mask"), output_hidden_states=True)
    return picked(out)


def run_image(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return picked(model(pixel_values=pixels(x), output_hidden_states=True))


def run_any_size(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return picked(model(pixel_values=pixels(x), output_hidden_states=True, interpolate_pos_encoding=True))


def picked(out: Any) -> dict[str, torch.Tensor]:
    """Whichever of hidden, pooled and logits there is."""
    hidden = out.get("last_hidden_state")
    found = {"hidden": hidden, "pooled": out.get("pooler_output"), "logits": out.get("logits")}
    return {name: value for name, value in found.items() if value is not None}


def run_with_base(base: str) -> Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Also the hidden states, of the part of the model that is called `base`."""

    def run(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen = {}
        hook = getattr(model, base).register_forward_hook(lambda _, __, out: seen.update(picked(out)))
        try:
            arguments = dict(input_ids=x["text"].long(), attention_mask=x.get("text_mask")) if "text" in x else {}
            if "image" in x:
                arguments = dict(input_ids=x["image"].long()) if x["image"].ndim == 2 else dict(pixel_values=pixels(x))
            if "audio" in x:
                arguments = dict(input_values=x["audio"])
                if "audio_mask" in x:
                    arguments["attention_mask"] = x["audio_mask"]
            out = model(**arguments)
        finally:
            hook.remove()
        return {**seen, **picked(out)}

    return run


def run_any_size_with_base(base: str) -> Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """As `run_with_base`, for pictures of another size than the position table was made for."""

    def run(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        hidden = getattr(model, base)(pixel_values=pixels(x), interpolate_pos_encoding=True).last_hidden_state
        return {"hidden": hidden, **run_any_size(model, x)}

    return run


def run_two_sentences(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(input_ids=x["text"].long(), token_type_ids=x["text_types"].long())
    return {"logits": out.prediction_logits, "next_sentence_logits": out.seq_relationship_logits}


def run_first_token(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    hidden = run_text(model, x)["hidden"]
    return {"hidden": hidden, "pooled": hidden[:, 0]}


def run_sentence(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    hidden, mask = run_text(model, x)["hidden"], x["text_mask"][:, :, None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return {"hidden": hidden, "pooled": torch.nn.functional.normalize(mean, dim=-1)}


def run_two_towers(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(
        input_ids=x["text"].long(),
        attention_mask=x.get("text_mask"),
        pixel_values=pixels(x),
        interpolate_pos_encoding=True,
    )
    return {
        "text_hidden": out.text_model_output.last_hidden_state,
        "image_hidden": out.vision_model_output.last_hidden_state,
        "text_embedding": out.text_embeds,
        "image_embedding": out.image_embeds,
        "logits": out.logits_per_image,
        "logit_scale": model.logit_scale.exp().reshape(()),
    }


def run_speech(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return picked(model(input_values=x["audio"], attention_mask=x["audio_mask"]))


def run_pretraining(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(input_values=x["audio"], attention_mask=x["audio_mask"])
    return {"projected": out.projected_states, "quantised": out.projected_quantized_states}


def run_whisper(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"hidden": model.model.encoder(x["audio"].transpose(1, 2)).last_hidden_state}


def run_autoencoder(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    side, (height, width) = model.config.patch_size, x["image"].shape[1:3]
    count = (height // side) * (width // side)
    resize = dict(interpolate_pos_encoding=count != model.vit.embeddings.patch_embeddings.num_patches)
    noise = torch.arange(count)[None].repeat(len(x["image"]), 1).float()  # sorted noise: no shuffling
    out = model.vit(pixel_values=pixels(x), noise=noise, **resize)
    patches = model.decoder(out.last_hidden_state, out.ids_restore, **resize).logits
    return {"hidden": out.last_hidden_state, "patches": patches}


def run_counted(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With positions as `generate` makes them, which count what is real."""
    mask = x["text_mask"]
    place = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=x["text"].long(), attention_mask=mask, position_ids=place, output_hidden_states=True)
    return {"hidden": out.hidden_states[-1], "logits": out.logits}


def run_answers(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(input_ids=x["text"].long(), attention_mask=x["text_mask"])
    return {"answer_logits": torch.stack([out.start_logits, out.end_logits], -1)}


def run_choices(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows are the choices of one question."""
    return {"logits": model(input_ids=x["text"].long()[None], attention_mask=x["text_mask"][None]).logits.T}


def run_whisper_classifier(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    frames = x["audio"].transpose(1, 2)
    return {"hidden": model.encoder(frames).last_hidden_state, "logits": model(frames).logits}


def short() -> Arrays:
    return text(9, vocabulary=31)


def tiny_image() -> Arrays:
    return image(8, 8)


CONVOLUTIONS = dict(
    conv_dim=(16, 16, 16), conv_kernel=(5, 3, 2), conv_stride=(4, 2, 2), num_feat_extract_layers=3,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, vocab_size=23, pad_token_id=0,
)  # fmt: skip
POOLING = json.dumps(
    {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
)
FIRST = json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
MODULES = json.dumps(
    [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
    ]
)
BERT = dict(vocab_size=61, max_position_embeddings=20)
ROBERTA = dict(**SIZES, vocab_size=61, max_position_embeddings=20, type_vocab_size=1, pad_token_id=1)
VIT = dict(image_size=16, patch_size=8, **SIZES)
CLIP_TEXT = dict(**SIZES, vocab_size=61, max_position_embeddings=12, eos_token_id=60, projection_dim=24)
CLIP = dict(text_config=CLIP_TEXT, vision_config=dict(**VIT, projection_dim=24), projection_dim=24)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip


TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
TINY_TEXT = dict(**TINY, vocab_size=61, max_position_embeddings=12)
TINY_DISTIL = dict(dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=61, max_position_embeddings=12)
TINY_GPT = dict(vocab_size=61, n_positions=12, n_embd=16, n_layer=1, n_head=2, n_inner=24)
TINY_VIT = dict(**TINY, image_size=8, patch_size=4, qkv_bias=False)
TINY_SOUND = dict(
    conv_dim=(8, 8), conv_kernel=(5, 3), conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, vocab_size=7, pad_token_id=0,
)  # fmt: skip


def clip_text() -> Arrays:
    ids = random().integers(3, 60, (3, 9)).astype(np.int32)
    ids[0, 8] = ids[1, 5] = ids[2, 7] = 60
    mask = np.ones((3, 9), np.int32)
    mask[1, 6:] = mask[2, 8:] = 0
    return {"text": ids, "text_mask": mask, **image(24, 16)}


def labelled(config: Any, labels: int = 5) -> Any:
    config.num_labels = labels
    return config


def decoder(config: Any, model: Any, **fields: Any) -> Callable[[], Any]:
    return lambda: model(config(**{**DECODER, **fields}))


def tiny_decoder(config: Any, model: Any, **fields: Any) -> Callable[[], Any]:
    sizes = dict(TINY_TEXT, num_key_value_heads=1)
    return lambda: model(labelled(config(**{**sizes, **fields})))


def vit_config(**fields: Any) -> Any:
    return t.ViTConfig(**{**VIT, **fields})


LAYER = "encoder.layer.1."
SPEECH = "encoder.layers.1.attention.k_proj.weight"

CASES: dict[str, Case] = {
    "bert_masked_lm": Case(
        lambda: t.BertForMaskedLM(t.BertConfig(**SIZES, **BERT)), text, run_with_base("bert"),
        ("bert.embeddings.word_embeddings.weight", f"bert.{LAYER}attention.self.key.weight", "cls.predictions.transform.dense.weight"),
    ),
    "bert_base": Case(
        lambda: t.BertModel(t.BertConfig(**SIZES, **BERT)), text, run_text,
        ("embeddings.LayerNorm.weight", f"{LAYER}attention.output.dense.weight", "pooler.dense.weight"),
    ),
    "bert_pretraining": Case(
        lambda: t.BertForPreTraining(t.BertConfig(**SIZES, **BERT)), text_types, run_two_sentences,
        ("bert.embeddings.token_type_embeddings.weight", f"bert.{LAYER}intermediate.dense.weight", "cls.seq_relationship.weight"),
    ),
    "bert_token_classifier": Case(
        lambda: t.BertForTokenClassification(labelled(t.BertConfig(**SIZES, **BERT))), lambda: text(9), run_with_base("bert"),
        ("bert.embeddings.position_embeddings.weight", f"bert.{LAYER}attention.self.query.weight", "classifier.bias"),
    ),
    "bert_classifier": Case(
        lambda: t.BertForSequenceClassification(labelled(t.BertConfig(**SIZES, **BERT))), text, run_with_base("bert"),
        ("bert.pooler.dense.weight", f"bert.{LAYER}output.dense.weight", "classifier.weight"),
    ),
    "minilm_sentence": Case(
        lambda: t.BertModel(t.BertConfig(**SIZES, **BERT)), text, run_sentence,
        ("embeddings.token_type_embeddings.weight", f"{LAYER}attention.self.value.weight", f"{LAYER}output.LayerNorm.bias"),
        files=(("1_Pooling/config.json", POOLING), ("modules.json", MODULES)),
    ),
    "gpt2": Case(
        lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=61, n_positions=20, n_embd=32, n_layer=2, n_head=4, n_inner=48)),
        text, run_with_base("transformer"),
        ("transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "transformer.h.0.mlp.c_proj.bias"),
    ),
    "gpt2_base": Case(
        lambda: t.GPT2Model(t.GPT2Config(vocab_size=61, n_positions=20, n_embd=32, n_layer=2, n_head=4)),
        lambda: text(13, padded=False), run_text,
        ("wpe.weight", "h.1.attn.c_attn.bias", "ln_f.weight"),
    ),
    "llama": Case(
        decoder(t.LlamaConfig, t.LlamaForCausalLM, num_key_value_heads=2), text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"),
    ),
    "llama_biased": Case(
        decoder(
            t.LlamaConfig, t.LlamaModel, attention_bias=True, mlp_bias=True,
            rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0),
        ),
        left_padded, run_text,
        ("embed_tokens.weight", "layers.1.self_attn.o_proj.bias", "layers.0.mlp.up_proj.bias"),
    ),
    "llama3_rope": Case(
        decoder(t.LlamaConfig, t.LlamaForCausalLM, rope_parameters=LLAMA3), lambda: text(31, padded=False), run_with_base("model"),
        ("model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    ),
    "smollm": Case(
        decoder(t.LlamaConfig, t.LlamaForCausalLM, num_key_value_heads=1, tie_word_embeddings=True), text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight", "model.layers.0.input_layernorm.weight"),
    ),
    "qwen2": Case(
        decoder(t.Qwen2Config, t.Qwen2ForCausalLM, num_key_value_heads=2), text, run_with_base("model"),
        ("model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight"),
    ),
    "vit_classifier": Case(
        lambda: t.ViTForImageClassification(labelled(vit_config(image_size=(24, 16)))), lambda: image(24, 16), run_with_base("vit"),
        ("vit.embeddings.patch_embeddings.projection.weight", f"vit.{LAYER}attention.attention.key.weight", "classifier.weight"),
    ),
    "vit_base": Case(
        lambda: t.ViTModel(vit_config()), lambda: image(24, 32), run_any_size,
        ("embeddings.position_embeddings", f"{LAYER}output.dense.weight", "pooler.dense.weight"),
    ),
    "dino": Case(
        lambda: t.ViTModel(vit_config(patch_size=4), add_pooling_layer=False), lambda: image(20, 12), run_any_size,
        ("embeddings.position_embeddings", f"{LAYER}attention.attention.query.weight", "layernorm.bias"),
    ),
    "clip": Case(
        lambda: t.CLIPModel(t.CLIPConfig(**CLIP)), clip_text, run_two_towers,
        ("text_model.embeddings.token_embedding.weight", "vision_model.encoder.layers.1.self_attn.k_proj.weight", "visual_projection.weight"),
    ),
    "wav2vec2_base": Case(
        lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**SIZES, **CONVOLUTIONS)), audio, run_speech,
        ("feature_extractor.conv_layers.0.conv.weight", SPEECH, "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ),
    "wav2vec2_ctc": Case(
        lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**SIZES, **CONVOLUTIONS)), audio, run_with_base("wav2vec2"),
        ("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0", f"wav2vec2.{SPEECH}", "lm_head.weight"),
    ),
    "wav2vec2_pretraining": Case(
        lambda: t.Wav2Vec2ForPreTraining(
            t.Wav2Vec2Config(
                **SIZES, **CONVOLUTIONS, num_codevector_groups=2, num_codevectors_per_group=7, codevector_dim=12, proj_codevector_dim=10
            )
        ),
        audio, run_pretraining,
        ("project_hid.weight", f"wav2vec2.{SPEECH}", "quantizer.codevectors"),
    ),
    "wav2vec2_large": Case(
        lambda: t.Wav2Vec2Model(
            t.Wav2Vec2Config(**SIZES, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
        ),
        audio, run_speech,
        ("feature_extractor.conv_layers.1.layer_norm.weight", SPEECH, "encoder.layer_norm.weight"),
    ),
    "roberta_masked_lm": Case(
        lambda: t.RobertaForMaskedLM(t.RobertaConfig(**ROBERTA)), lambda: text(pad=1), run_with_base("roberta"),
        ("roberta.embeddings.position_embeddings.weight", f"roberta.{LAYER}attention.self.key.weight", "lm_head.dense.weight"),
    ),
    "roberta_sentence": Case(
        lambda: t.RobertaModel(t.RobertaConfig(**ROBERTA)), lambda: text(9, pad=1), run_first_token,
        ("embeddings.position_embeddings.weight", f"{LAYER}attention.self.value.weight", f"{LAYER}output.LayerNorm.weight"),
        files=(("1_Pooling/config.json", FIRST),),
    ),
    "roberta_classifier": Case(
        lambda: t.RobertaForSequenceClassification(labelled(t.RobertaConfig(**ROBERTA))), lambda: text(pad=1), run_with_base("roberta"),
        ("roberta.embeddings.word_embeddings.weight", f"roberta.{LAYER}output.dense.weight", "classifier.dense.weight"),
    ),
    "distilbert_masked_lm": Case(
        lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=61, max_position_embeddings=20)
        ),
        text, run_with_base("distilbert"),
        ("distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.1.attention.q_lin.weight", "vocab_transform.weight"),
    ),
    "distilbert_classifier": Case(
        lambda: t.DistilBertForSequenceClassification(
            labelled(t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=61, max_position_embeddings=20))
        ),
        text, run_with_base("distilbert"),
        ("distilbert.embeddings.LayerNorm.bias", "distilbert.transformer.layer.1.ffn.lin1.weight", "pre_classifier.weight"),
    ),
    "imagegpt": Case(
        lambda: t.ImageGPTForCausalImageModeling(
            t.ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=32, n_layer=2, n_head=4)
        ),
        lambda: {"image": random().integers(0, 17, (2, 15)).astype(np.int32)}, run_with_base("transformer"),
        ("transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "lm_head.weight"),
    ),
    "imagegpt_classifier": Case(
        lambda: t.ImageGPTForImageClassification(
            labelled(t.ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=32, n_layer=2, n_head=4))
        ),
        lambda: {"image": random().integers(0, 17, (2, 15)).astype(np.int32)}, run_with_base("transformer"),
        ("transformer.wpe.weight", "transformer.h.1.mlp.c_fc.weight", "score.weight"),
    ),
    "deit_plain_classifier": Case(
        lambda: t.DeiTForImageClassification(labelled(t.DeiTConfig(**VIT))), lambda: image(32, 24), run_any_size_with_base("deit"),
        ("deit.embeddings.position_embeddings", f"deit.{LAYER}intermediate.dense.weight", "classifier.weight"),
    ),
    "deit_classifier": Case(
        lambda: t.DeiTForImageClassificationWithTeacher(labelled(t.DeiTConfig(**VIT))), image, run_with_base("deit"),
        ("deit.embeddings.distillation_token", f"deit.{LAYER}attention.attention.key.weight", "distillation_classifier.weight"),
    ),
    "deit_base": Case(
        lambda: t.DeiTModel(t.DeiTConfig(**VIT)), image, run_image,
        ("embeddings.cls_token", f"{LAYER}attention.output.dense.weight", "layernorm.weight"),
    ),
    "dinov2": Case(
        lambda: t.Dinov2Model(t.Dinov2Config(**{**VIT, "image_size": 24}, mlp_ratio=2)), lambda: image(16, 32), run_image,
        ("embeddings.position_embeddings", f"{LAYER}layer_scale1.lambda1", f"{LAYER}mlp.fc1.weight"),
    ),
    "dinov2_classifier": Case(
        lambda: t.Dinov2ForImageClassification(labelled(t.Dinov2Config(**VIT, mlp_ratio=2))), lambda: image(19, 26),
        run_with_base("dinov2"),
        ("dinov2.embeddings.cls_token", f"dinov2.{LAYER}layer_scale2.lambda1", "classifier.weight"),
    ),
    "dinov2_with_registers": Case(
        lambda: t.Dinov2WithRegistersForImageClassification(
            labelled(
                t.Dinov2WithRegistersConfig(
                    **{**VIT, "image_size": 24}, mlp_ratio=2, num_register_tokens=3, use_swiglu_ffn=True
                )
            )
        ),
        lambda: image(16, 40), run_with_base("dinov2_with_registers"),
        ("dinov2_with_registers.embeddings.register_tokens", f"dinov2_with_registers.{LAYER}mlp.weights_in.weight", "classifier.weight"),
    ),
    "vit_mae": Case(
        lambda: t.ViTMAEForPreTraining(
            t.ViTMAEConfig(
                **VIT, mask_ratio=0.0, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
                decoder_intermediate_size=40,
            )
        ),
        image, run_autoencoder,
        ("vit.embeddings.cls_token", f"vit.{LAYER}attention.attention.value.weight", "decoder.decoder_embed.weight"),
    ),
    "siglip": Case(
        lambda: t.SiglipModel(
            t.SiglipConfig(
                text_config=dict(**SIZES, vocab_size=61, max_position_embeddings=12, projection_size=32),
                vision_config=dict(**VIT),
            )
        ),
        lambda: {**text(9, padded=False), **image(16, 32)}, run_two_towers,
        ("vision_model.head.attention.in_proj_weight", "vision_model.head.probe", "text_model.head.weight"),
    ),
    "hubert_ctc": Case(
        lambda: t.HubertForCTC(t.HubertConfig(**SIZES, **CONVOLUTIONS)), audio, run_with_base("hubert"),
        ("hubert.feature_projection.projection.weight", f"hubert.{SPEECH}", "lm_head.bias"),
    ),
    "hubert_large_ctc": Case(
        lambda: t.HubertForCTC(
            t.HubertConfig(**SIZES, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
        ),
        lambda: audio(301), run_with_base("hubert"),
        ("hubert.feature_extractor.conv_layers.2.conv.bias", "hubert.encoder.layer_norm.bias", "lm_head.weight"),
    ),
    "whisper": Case(
        lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                vocab_size=31, num_mel_bins=8, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, max_source_positions=10, max_target_positions=8,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
            )
        ),
        lambda: spectrogram(20, 8), run_whisper,
        ("model.encoder.conv1.weight", "model.encoder.layers.1.self_attn.q_proj.weight", "model.encoder.layer_norm.weight"),
    ),
    "audio_spectrogram_transformer": Case(
        lambda: t.ASTForAudioClassification(
            labelled(t.ASTConfig(**SIZES, patch_size=8, frequency_stride=6, time_stride=5, max_length=29, num_mel_bins=20))
        ),
        lambda: spectrogram(29, 20), run_with_base("audio_spectrogram_transformer"),
        (
            "audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight",
            f"audio_spectrogram_transformer.{LAYER}attention.attention.key.weight",
            "classifier.dense.weight",
        ),
    ),
    "gemma": Case(
        decoder(t.GemmaConfig, t.GemmaForCausalLM, num_key_value_heads=1, head_dim=12), text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight"),
    ),
    "mistral": Case(
        decoder(t.MistralConfig, t.MistralForCausalLM, num_key_value_heads=2, sliding_window=4), text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"),
    ),
    "qwen3": Case(
        decoder(t.Qwen3Config, t.Qwen3ForCausalLM, num_key_value_heads=2, head_dim=12), text, run_with_base("model"),
        ("model.layers.0.self_attn.q_norm.weight", "model.layers.1.self_attn.o_proj.weight", "lm_head.weight"),
    ),
    # Variants of the above, as small as they can be.
    "gpt2_untied": Case(
        lambda: t.GPT2LMHeadModel(t.GPT2Config(**TINY_GPT, tie_word_embeddings=False)), left_padded, run_counted, ("lm_head.weight",),
    ),
    "gpt2_classifier": Case(
        lambda: t.GPT2ForSequenceClassification(labelled(t.GPT2Config(**TINY_GPT, pad_token_id=0))), short, run_with_base("transformer"),
        ("score.weight",),
    ),
    "gpt2_token_classifier": Case(
        lambda: t.GPT2ForTokenClassification(labelled(t.GPT2Config(**TINY_GPT))), short, run_with_base("transformer"), ("classifier.bias",),
    ),
    "gpt2_answers": Case(lambda: t.GPT2ForQuestionAnswering(t.GPT2Config(**TINY_GPT)), short, run_answers, ("qa_outputs.weight",)),
    "llama_classifier": Case(
        tiny_decoder(t.LlamaConfig, t.LlamaForSequenceClassification, pad_token_id=0), left_padded, run_with_base("model"), ("score.weight",),
    ),
    "llama_token_classifier": Case(
        tiny_decoder(t.LlamaConfig, t.LlamaForTokenClassification), short, run_with_base("model"), ("score.bias",),
    ),
    "llama_answers": Case(tiny_decoder(t.LlamaConfig, t.LlamaForQuestionAnswering), short, run_answers, ("qa_outputs.bias",)),
    "llama_both_ways": Case(
        tiny_decoder(t.LlamaConfig, t.LlamaModel, is_causal=False), short, run_text, ("embed_tokens.weight",),
    ),
    "qwen2_classifier": Case(
        tiny_decoder(t.Qwen2Config, t.Qwen2ForSequenceClassification, pad_token_id=0), short, run_with_base("model"), ("score.weight",),
    ),
    "qwen3_biased": Case(
        tiny_decoder(t.Qwen3Config, t.Qwen3Model, attention_bias=True, head_dim=6), short, run_text, ("layers.0.self_attn.o_proj.bias",),
    ),
    "gemma_biased": Case(
        tiny_decoder(t.GemmaConfig, t.GemmaModel, attention_bias=True, head_dim=6), short, run_text, ("layers.0.self_attn.q_proj.bias",),
    ),
    "imagegpt_tied": Case(
        lambda: t.ImageGPTForCausalImageModeling(t.ImageGPTConfig(**TINY_GPT, tie_word_embeddings=True)),
        lambda: {"image": random().integers(0, 31, (2, 9)).astype(np.int32)}, run_with_base("transformer"), ("transformer.wte.weight",),
    ),
    "bert_untied": Case(
        lambda: t.BertForMaskedLM(t.BertConfig(**TINY_TEXT, tie_word_embeddings=False)), short, run_with_base("bert"),
        ("cls.predictions.decoder.bias",),
    ),
    "bert_answers": Case(lambda: t.BertForQuestionAnswering(t.BertConfig(**TINY_TEXT)), short, run_answers, ("qa_outputs.weight",)),
    "roberta_untied": Case(
        lambda: t.RobertaForMaskedLM(t.RobertaConfig(**TINY_TEXT, pad_token_id=1, tie_word_embeddings=False)),
        lambda: text(9, vocabulary=31, pad=1), run_with_base("roberta"), ("lm_head.decoder.weight",),
    ),
    "roberta_choices": Case(
        lambda: t.RobertaForMultipleChoice(t.RobertaConfig(**TINY_TEXT, pad_token_id=1)),
        lambda: text(9, vocabulary=31, pad=1), run_choices, ("classifier.weight",),
    ),
    "roberta_token_classifier": Case(
        lambda: t.RobertaForTokenClassification(labelled(t.RobertaConfig(**TINY_TEXT, pad_token_id=1))),
        lambda: text(9, vocabulary=31, pad=1), run_with_base("roberta"), ("classifier.weight",),
    ),
    "distilbert_untied": Case(
        lambda: t.DistilBertForMaskedLM(t.DistilBertConfig(**TINY_DISTIL, tie_word_embeddings=False)), short, run_with_base("distilbert"),
        ("vocab_projector.weight",),
    ),
    "distilbert_token_classifier": Case(
        lambda: t.DistilBertForTokenClassification(labelled(t.DistilBertConfig(**TINY_DISTIL))), short, run_with_base("distilbert"),
        ("classifier.weight",),
    ),
    "distilbert_answers": Case(
        lambda: t.DistilBertForQuestionAnswering(t.DistilBertConfig(**TINY_DISTIL)), short, run_answers, ("qa_outputs.weight",),
    ),
    "vit_unbiased": Case(lambda: t.ViTModel(t.ViTConfig(**TINY_VIT)), tiny_image, run_image, ("layernorm.weight",)),
    "deit_unbiased": Case(lambda: t.DeiTModel(t.DeiTConfig(**TINY_VIT)), tiny_image, run_image, ("layernorm.weight",)),
    "dinov2_unbiased": Case(
        lambda: t.Dinov2Model(t.Dinov2Config(**TINY_VIT, mlp_ratio=2)), tiny_image, run_image, ("layernorm.weight",),
    ),
    "dinov2_with_registers_unbiased": Case(
        lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**TINY_VIT, mlp_ratio=2)), tiny_image, run_image, ("layernorm.weight",),
    ),
    "vit_mae_larger": Case(
        lambda: t.ViTMAEForPreTraining(
            t.ViTMAEConfig(
                **TINY_VIT, mask_ratio=0.0, decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
                decoder_intermediate_size=16,
            )
        ),
        lambda: image(12, 16), run_autoencoder, ("decoder.decoder_pos_embed",),
    ),
    "audio_spectrogram_transformer_unbiased": Case(
        lambda: t.ASTModel(
            t.ASTConfig(**TINY, qkv_bias=False, patch_size=4, frequency_stride=3, time_stride=3, max_length=13, num_mel_bins=10)
        ),
        lambda: spectrogram(13, 10), run_speech, ("layernorm.weight",),
    ),
    "wav2vec2_epsilon": Case(
        lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**TINY, **TINY_SOUND, layer_norm_eps=0.01, feat_extract_norm="layer")),
        lambda: audio(131), run_speech, ("feature_extractor.conv_layers.0.layer_norm.weight",),
    ),
    "hubert_epsilon": Case(
        lambda: t.HubertForCTC(t.HubertConfig(**TINY, **TINY_SOUND, layer_norm_eps=0.01, do_stable_layer_norm=True)),
        lambda: audio(131), run_with_base("hubert"), ("lm_head.weight",),
    ),
    "wav2vec2_classifier": Case(
        lambda: t.Wav2Vec2ForSequenceClassification(labelled(t.Wav2Vec2Config(**TINY, **TINY_SOUND, classifier_proj_size=8))),
        lambda: audio(131), run_with_base("wav2vec2"), ("projector.weight",),
    ),
    "wav2vec2_frame_classifier": Case(
        lambda: t.Wav2Vec2ForAudioFrameClassification(labelled(t.Wav2Vec2Config(**TINY, **TINY_SOUND))),
        lambda: audio(131), run_with_base("wav2vec2"), ("classifier.weight",),
    ),
    "hubert_classifier": Case(
        lambda: t.HubertForSequenceClassification(labelled(t.HubertConfig(**TINY, **TINY_SOUND, classifier_proj_size=8))),
        lambda: audio(131), run_with_base("hubert"), ("projector.weight",),
    ),
    "whisper_classifier": Case(
        lambda: t.WhisperForAudioClassification(
            labelled(
                t.WhisperConfig(
                    vocab_size=31, num_mel_bins=6, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24,
                    max_source_positions=10, classifier_proj_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                )
            )
        ),
        lambda: spectrogram(20, 6), run_whisper_classifier, ("projector.weight",),
    ),
}  # fmt: skip


def randomise(model: Any) -> None:
    """Weights, norms and biases all different from zero and one, so that a slip in any of them shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("original0", "weight_g")):
                value.copy_(noise.abs() + 0.5)
            elif value.ndim >= 2:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.add_(0.2 * noise)


def weights(size: int) -> np.ndarray:
    """The fixed weights of the scalar loss, also in tests/test_interop_families.py."""
    return np.cos(0.37 * np.arange(size)).astype(np.float32)


def valid_places(model: Any, inputs: Arrays) -> np.ndarray | None:
    """[B,T] bool: which tokens are real."""
    if "text_mask" in inputs:
        return inputs["text_mask"] == 1
    if "audio_mask" in inputs:
        base = getattr(model, model.base_model_prefix, model)
        frames = base._get_feat_extract_output_lengths(torch.from_numpy(inputs["audio_mask"].sum(1))).numpy()
        length = int(base._get_feat_extract_output_lengths(torch.tensor(inputs["audio"].shape[1])))
        return np.arange(length)[None] < frames[:, None]
    return None


def digest(value: np.ndarray) -> np.ndarray:
    """A norm and four sums with fixed weights, which other gradients would not have; also in tests/test_interop_families.py."""
    x, i = value.astype(np.float64).ravel(), np.arange(value.size)
    phase = np.sqrt([[2.0], [3.0], [5.0], [7.0]]) * (i * i + i) % 1.0
    return np.array([np.linalg.norm(x), *(np.cos(2 * np.pi * phase) @ x)])


def scalar_loss(outputs: dict[str, torch.Tensor], valid: np.ndarray | None, drop: tuple[str, ...]) -> torch.Tensor:
    total = torch.zeros(())
    for name, value in sorted(outputs.items()):
        if name in drop:
            continue
        if valid is not None and tuple(value.shape[:2]) == valid.shape:
            value = value * torch.from_numpy(valid[:, :, None])
        total = total + (value.flatten() * torch.from_numpy(weights(value.numel()))).sum() / value.numel() ** 0.5
    return total


def run(case: Case, model: Any, inputs: Arrays) -> dict[str, torch.Tensor]:
    return case.run(model, {name: torch.from_numpy(value) for name, value in inputs.items()})


def saved_gradients(model: Any) -> Arrays:
    """Gradients under the names that a checkpoint has (which may not be those of the modules)."""
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.zeros_like(value) if value.grad is None else value.grad)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def make(name: str) -> None:
    case, directory = CASES[name], HERE / name
    torch.manual_seed(0)
    model = case.make().eval()
    randomise(model)
    inputs = case.inputs()
    model.requires_grad_(True)  # tables of fixed positions, too: ours are parameters like all others
    outputs, valid = run(case, model, inputs), valid_places(model, inputs)
    scalar_loss(outputs, valid, case.drop).backward()
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    for path, content in case.files:
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(content)
    arrays = {f"in/{n}": v for n, v in inputs.items()} | {f"out/{n}": v.detach().numpy() for n, v in outputs.items()}
    gradients = saved_gradients(model)
    lost = [n for n in case.gradients if n not in gradients or abs(gradients[n]).max() < 1e-5]
    assert not lost, f"{name}: no gradient for {lost}; there is {list(gradients)}"
    arrays |= {f"grad/{n}": gradients[n] for n in case.gradients}
    arrays |= {"digested": np.array(list(gradients)), "digests": np.stack([*map(digest, gradients.values())])}
    if valid is not None:
        arrays["valid"] = valid
    np.savez_compressed(directory / "reference.npz", **arrays)
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    print(f"{name:<32} {size / 1024:6.0f} KB   {', '.join(f'{n} {tuple(v.shape)}' for n, v in outputs.items())}")


def run_text_tower(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With its projection to unit length, if it has one."""
    out = model(input_ids=x["text"].long(), attention_mask=x.get("text_mask"))
    found = {"hidden": out.last_hidden_state}
    if "text_embeds" in out:
        return {**found, "text_embedding": torch.nn.functional.normalize(out.text_embeds, dim=-1)}
    return {**found, "pooled": out.pooler_output}


def run_image_tower(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same for pictures of another size than the position table was made for."""
    out = model(pixel_values=pixels(x), interpolate_pos_encoding=True)
    found = {"hidden": out.last_hidden_state}
    if "image_embeds" in out:
        return {**found, "image_embedding": torch.nn.functional.normalize(out.image_embeds, dim=-1)}
    return found if out.pooler_output is None else {**found, "pooled": out.pooler_output}


def run_discriminator(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = run_with_base("electra")(model, x)
    return {**found, "logits": found["logits"][:, :, None]}


def run_order(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = model(input_ids=x["text"].long(), token_type_ids=x["text_types"].long())
    return {"logits": out.prediction_logits, "sentence_order_logits": out.sop_logits}


def run_language_model(model: Any, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text model of one that sees pictures, given none."""
    seen = {}
    hook = model.model.language_model.register_forward_hook(lambda _, __, out: seen.update(picked(out)))
    try:
        out = model(input_ids=x["text"].long(), attention_mask=x["text_mask"])
    finally:
        hook.remove()
    return {**seen, "logits": out.logits}


def clip_words() -> Arrays:
    return {name: value for name, value in clip_text().items() if name != "image"}


SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
SMALL_TEXT = dict(**SMALL, vocab_size=61, max_position_embeddings=40)
SMALL_ROBERTA = dict(**SMALL_TEXT, type_vocab_size=1, pad_token_id=1)
SMALL_VIT = dict(**SMALL, image_size=8, patch_size=4)
SMALL_CLIP = dict(**SMALL, vocab_size=61, max_position_embeddings=12, eos_token_id=60, projection_dim=12)
SIGLIP_TEXT = dict(**SMALL, vocab_size=61, max_position_embeddings=12, projection_size=12)
ELECTRA = dict(**SMALL, embedding_size=8, vocab_size=61, max_position_embeddings=20)
MODERNBERT = dict(
    **SMALL, vocab_size=61, max_position_embeddings=40, local_attention=6, global_attn_every_n_layers=2, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    rope_parameters=dict(
        full_attention=dict(rope_type="default", rope_theta=1000.0), sliding_attention=dict(rope_type="default", rope_theta=50.0)
    ),
)  # fmt: skip
TINY_VISION = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
MPNET = dict(**SMALL, vocab_size=61, max_position_embeddings=40)
DATA2VEC = {**CONVOLUTIONS, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}

CASES |= {
    "clip_text_model": Case(
        lambda: t.CLIPTextModel(t.CLIPTextConfig(**SMALL_CLIP)), clip_words, run_text_tower,
        ("embeddings.token_embedding.weight", "encoder.layers.1.self_attn.k_proj.weight", "final_layer_norm.weight"),
    ),
    "clip_text_projection": Case(
        lambda: t.CLIPTextModelWithProjection(t.CLIPTextConfig(**SMALL_CLIP)), clip_words, run_text_tower,
        ("text_model.embeddings.position_embedding.weight", "text_model.encoder.layers.1.mlp.fc1.weight", "text_projection.weight"),
    ),
    "clip_vision_model": Case(
        lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SMALL_VIT, projection_dim=12)), lambda: image(12, 8), run_image_tower,
        ("embeddings.class_embedding", "encoder.layers.1.self_attn.v_proj.weight", "post_layernorm.weight"),
    ),
    "clip_vision_projection": Case(
        lambda: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**SMALL_VIT, projection_dim=12)), lambda: image(12, 8), run_image_tower,
        ("vision_model.pre_layrnorm.bias", "vision_model.encoder.layers.1.self_attn.k_proj.weight", "visual_projection.weight"),
    ),
    "siglip_text_model": Case(
        lambda: t.SiglipTextModel(t.SiglipTextConfig(**SIGLIP_TEXT)), lambda: text(9, padded=False), run_text_tower,
        ("embeddings.token_embedding.weight", "encoder.layers.1.self_attn.k_proj.weight", "head.weight"),
    ),
    "siglip_vision_model": Case(
        lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**SMALL_VIT)), lambda: image(8, 16), run_image_tower,
        ("embeddings.position_embedding.weight", "encoder.layers.1.self_attn.k_proj.weight", "head.probe"),
    ),
    "siglip_vision_headless": Case(
        lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**SMALL_VIT, vision_use_head=False)), lambda: image(8, 8), run_image_tower,
        ("embeddings.patch_embedding.weight", "encoder.layers.1.mlp.fc2.weight", "post_layernorm.weight"),
    ),
    "electra_discriminator": Case(
        lambda: t.ElectraForPreTraining(t.ElectraConfig(**ELECTRA)), text, run_discriminator,
        ("electra.embeddings.word_embeddings.weight", f"electra.{LAYER}attention.self.key.weight", "discriminator_predictions.dense.weight"),
    ),
    "electra_masked_lm": Case(
        lambda: t.ElectraForMaskedLM(t.ElectraConfig(**ELECTRA)), text, run_with_base("electra"),
        ("electra.embeddings_project.weight", f"electra.{LAYER}attention.self.value.weight", "generator_predictions.dense.weight"),
    ),
    "electra_classifier": Case(
        lambda: t.ElectraForSequenceClassification(labelled(t.ElectraConfig(**{**ELECTRA, "embedding_size": 16}))), text,
        run_with_base("electra"),
        ("electra.embeddings.LayerNorm.weight", f"electra.{LAYER}output.dense.weight", "classifier.dense.weight"),
    ),
    "electra_token_classifier": Case(
        lambda: t.ElectraForTokenClassification(labelled(t.ElectraConfig(**ELECTRA))), lambda: text(9), run_with_base("electra"),
        ("electra.embeddings.token_type_embeddings.weight", f"electra.{LAYER}intermediate.dense.weight", "classifier.weight"),
    ),
    "data2vec_text": Case(
        lambda: t.Data2VecTextForMaskedLM(t.Data2VecTextConfig(**SMALL_ROBERTA)), lambda: text(pad=1), run_with_base("data2vec_text"),
        ("data2vec_text.embeddings.position_embeddings.weight", f"data2vec_text.{LAYER}attention.self.key.weight", "lm_head.dense.weight"),
    ),
    "data2vec_audio": Case(
        lambda: t.Data2VecAudioForCTC(t.Data2VecAudioConfig(**SMALL, **DATA2VEC)), audio, run_with_base("data2vec_audio"),
        ("data2vec_audio.encoder.pos_conv_embed.layers.0.conv.weight", f"data2vec_audio.{SPEECH}", "lm_head.weight"),
    ),
    "albert_pretraining": Case(
        lambda: t.AlbertForPreTraining(t.AlbertConfig(**{**ELECTRA, "num_hidden_layers": 3})), text_types, run_order,
        (
            "albert.embeddings.word_embeddings.weight",
            "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.key.weight",
            "albert.encoder.embedding_hidden_mapping_in.weight",
        ),
    ),
    "albert_classifier": Case(
        lambda: t.AlbertForSequenceClassification(labelled(t.AlbertConfig(**{**ELECTRA, "embedding_size": 16}))), text,
        run_with_base("albert"),
        ("albert.pooler.weight", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "classifier.weight"),
    ),
    "modernbert_masked_lm": Case(
        lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(**MODERNBERT)), lambda: text(13), run_with_base("model"),
        ("model.embeddings.norm.weight", "model.layers.0.attn.Wqkv.weight", "model.layers.1.attn_norm.weight"),
    ),
    "modernbert_classifier": Case(
        lambda: t.ModernBertForSequenceClassification(
            labelled(t.ModernBertConfig(**MODERNBERT, classifier_pooling="mean", norm_bias=True, attention_bias=True, mlp_bias=True))
        ),
        left_padded, run_with_base("model"),
        ("model.layers.1.attn_norm.bias", "model.layers.1.attn.Wqkv.bias", "head.dense.weight"),
    ),
    "modernbert_token_classifier": Case(
        lambda: t.ModernBertForTokenClassification(
            labelled(t.ModernBertConfig(**MODERNBERT, layer_types=["sliding_attention"] * 2, classifier_bias=True))
        ),
        lambda: text(9), run_with_base("model"),
        ("model.embeddings.tok_embeddings.weight", "model.layers.0.mlp.Wi.weight", "head.dense.bias"),
    ),
    "smollm3": Case(
        decoder(t.SmolLM3Config, t.SmolLM3ForCausalLM, **SMALL, num_key_value_heads=2, no_rope_layers=[1, 0], pad_token_id=0, eos_token_id=1),
        text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
    ),
    "gemma2": Case(
        decoder(
            t.Gemma2Config, t.Gemma2ForCausalLM, **SMALL, num_key_value_heads=2, head_dim=12, sliding_window=4, query_pre_attn_scalar=10,
            attn_logit_softcapping=0.5, final_logit_softcapping=1.5,
        ),
        text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.0.post_feedforward_layernorm.weight"),
    ),
    "gemma3_text": Case(
        decoder(
            t.Gemma3TextConfig, t.Gemma3ForCausalLM, **SMALL, num_key_value_heads=1, head_dim=12, sliding_window=4, query_pre_attn_scalar=20,
            layer_types=["full_attention", "sliding_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
                sliding_attention=dict(rope_type="default", rope_theta=50.0),
            ),
        ),
        text, run_with_base("model"),
        ("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight", "model.layers.1.self_attn.k_proj.weight"),
    ),
    "gemma3": Case(
        lambda: t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(
                text_config=dict(
                    **SMALL_TEXT, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, pad_token_id=0,
                    layer_types=["sliding_attention", "full_attention"],
                ),
                vision_config=dict(**{**TINY_VISION, "intermediate_size": 16}, image_size=8, patch_size=4), mm_tokens_per_image=1,
                image_token_index=60, boi_token_index=59, eoi_token_index=58,
            )
        ),
        text, run_language_model,
        (
            "language_model.model.embed_tokens.weight", "language_model.model.layers.0.self_attn.k_norm.weight",
            "language_model.model.layers.1.mlp.gate_proj.weight",
        ),
    ),
    "qwen2_5_vl": Case(
        lambda: t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(
                text_config=dict(
                    **SMALL_TEXT, num_key_value_heads=2, rope_parameters=dict(rope_type="default", rope_theta=500.0, mrope_section=[1, 1, 2])
                ),
                vision_config=dict(depth=1, hidden_size=8, num_heads=2, intermediate_size=8, out_hidden_size=16, patch_size=2, spatial_merge_size=1),
                image_token_id=60, video_token_id=59, vision_start_token_id=58, vision_end_token_id=57,
            )
        ),
        left_padded, run_language_model,
        (
            "model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight",
        ),
    ),
    "mpnet_masked_lm": Case(
        lambda: t.MPNetForMaskedLM(t.MPNetConfig(**MPNET)), lambda: text(31, pad=1), run_with_base("mpnet"),
        ("mpnet.encoder.relative_attention_bias.weight", f"mpnet.{LAYER}attention.attn.k.weight", "lm_head.dense.weight"),
    ),
    "mpnet_sentence": Case(
        lambda: t.MPNetModel(t.MPNetConfig(**MPNET)), lambda: text(9, pad=1), run_sentence,
        ("encoder.relative_attention_bias.weight", "embeddings.position_embeddings.weight", f"{LAYER}attention.attn.o.bias"),
        files=(("1_Pooling/config.json", POOLING), ("modules.json", MODULES)),
    ),
    "mpnet_classifier": Case(
        lambda: t.MPNetForSequenceClassification(labelled(t.MPNetConfig(**MPNET))), lambda: text(pad=1), run_with_base("mpnet"),
        ("mpnet.embeddings.word_embeddings.weight", f"mpnet.{LAYER}output.dense.weight", "classifier.dense.weight"),
    ),
}  # fmt: skip


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    for chosen in sys.argv[1:] or CASES:
        make(chosen)
