"""Compare variants of every published family with transformers: each must give equal numbers, or be refused in one line.

    python benchmarks/interop_variants.py [FAMILY …]

A variant is a class of transformers, a change of its configuration and an input. The model is built small and random, saved,
and loaded with ours. Outputs that both have must be equal to 1e-4 at real tokens, and what transformers gives out (hidden
states, pooled states, logits) must be there. Needs torch and transformers beside unimodal; exit code 1 if a variant fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers as t

import unimodal.interop as interop
from unimodal.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference" / "interop"))
from make_references import BERT, CLIP_TEXT, CONVOLUTIONS, DECODER, SIZES, VIT, Arrays
from make_references import randomise as random_weights

IDS = np.random.default_rng(0).integers(3, 59, (2, 9)).astype(np.int32)
END, START = np.ones((2, 9), np.int32), np.ones((2, 9), np.int32)
END[1, 5:] = 0
START[1, :4] = 0


def masked(mask: np.ndarray, pad: int = 0) -> Arrays:
    return {"text": np.where(mask == 1, IDS, pad).astype(np.int32), "text_mask": mask}


PLAIN: dict[str, Arrays] = {"plain": {"text": IDS}}
TEXTS = {**PLAIN, "padded at the end": masked(END), "padded at the start": masked(START)}


def picture(height: int, width: int, channels: int = 3) -> Arrays:
    return {"image": np.random.default_rng(1).standard_normal((2, height, width, channels)).astype(np.float32)}


def sound(samples: int, real: int | None = None) -> Arrays:
    value = np.random.default_rng(2).standard_normal((2, samples)).astype(np.float32)
    if real is None:
        return {"audio": value}
    mask = np.ones((2, samples), np.int32)
    mask[1, real:] = 0
    return {"audio": value * np.float32(mask), "audio_mask": mask}


def frames(count: int, bins: int) -> Arrays:
    return {"audio": np.random.default_rng(3).standard_normal((2, count, bins)).astype(np.float32)}


@dataclass(frozen=True)
class Family:
    """classes: of transformers, and fields that they need; config: of a small model; changes: of its configuration (a key
    `json` changes config.json after saving); inputs by name, the first with every change, all with none."""

    config: Any
    fields: dict[str, Any]
    classes: tuple[Any, ...]
    changes: tuple[dict[str, Any], ...]
    inputs: dict[str, Arrays]
    needs: dict[str, dict[str, Any]] = field(default_factory=dict)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPES = (
    dict(json=dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=16), rope_parameters=None, rope_theta=500.0)),
    dict(json=dict(rope_scaling=LLAMA3, rope_parameters=None, rope_theta=500.0)),
    dict(json=dict(rope_scaling=LLAMA3, rope_parameters=None, original_max_position_embeddings=12)),
    dict(json=dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=16), original_max_position_embeddings=12)),
    dict(json=dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=16), rope_theta=77.0)),
    dict(json=dict(rope_scaling=dict(type="linear", factor=3.0), rope_parameters=None)),
    dict(json=dict(rope_scaling=dict(type="linear", factor=3.0))),
    dict(json=dict(rope_scaling=dict(type="dynamic", factor=3.0), rope_parameters=None)),
    dict(json=dict(rope_scaling=dict(type="yarn", factor=3.0), rope_parameters=None)),
    dict(json=dict(rope_scaling=None, rope_parameters=None, rope_theta=77.0)),
    dict(json=dict(rope_scaling={}, rope_parameters=None, rope_theta=77.0)),
    dict(json=dict(rope_parameters=dict(LLAMA3, rope_theta=500.0))),
    dict(json=dict(rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))),
    dict(json=dict(partial_rotary_factor=0.5)),
)  # fmt: skip
DECODERS = (
    {}, dict(num_key_value_heads=2), dict(num_key_value_heads=1), dict(head_dim=12), dict(rms_norm_eps=1e-2),
    dict(tie_word_embeddings=True), dict(tie_word_embeddings=False), dict(hidden_act="gelu"), dict(hidden_act="relu"),
    dict(hidden_act="gelu_pytorch_tanh"), dict(attention_bias=True), dict(is_causal=False), dict(pretraining_tp=2), *ROPES,
)  # fmt: skip
BERTS = (
    {}, dict(layer_norm_eps=1e-2), dict(hidden_act="gelu_new"), dict(hidden_act="relu"), dict(hidden_act="silu"),
    dict(type_vocab_size=1), dict(type_vocab_size=3), dict(is_decoder=True), dict(add_cross_attention=True, is_decoder=True),
    dict(position_embedding_type="relative_key"), dict(tie_word_embeddings=False), dict(num_labels=1), dict(is_causal=True),
    dict(pad_token_id=5), dict(pad_token_id=None), dict(chunk_size_feed_forward=3),
)  # fmt: skip
PICTURES = (
    {}, dict(qkv_bias=False), dict(layer_norm_eps=1e-2), dict(hidden_act="gelu_new"), dict(num_channels=1),
    dict(image_size=[16, 24]), dict(image_size=20), dict(patch_size=4), dict(patch_size=[8, 8]), dict(patch_size=[8, 4]),
    dict(num_labels=1), dict(pooler_act="relu"), dict(pooler_output_size=12),
    dict(use_mask_token=True), dict(drop_path_rate=0.3), dict(hidden_dropout_prob=0.1),
)  # fmt: skip
SIZED = {"16x16": picture(16, 16), "24x32": picture(24, 32), "19x26": picture(19, 26)}
SPEECH = (
    {}, dict(layer_norm_eps=1e-2), dict(do_stable_layer_norm=True), dict(do_stable_layer_norm=True, layer_norm_eps=1e-2),
    dict(feat_extract_norm="layer", conv_bias=True), dict(feat_extract_norm="layer", layer_norm_eps=1e-2),
    dict(conv_bias=True), dict(hidden_act="relu"), dict(feat_extract_activation="relu"), dict(conv_dim=(16, 16, 12)),
    dict(num_conv_pos_embeddings=7), dict(num_conv_pos_embedding_groups=1), dict(use_weighted_layer_sum=True),
    dict(add_adapter=True), dict(adapter_attn_dim=6), dict(adapter_attn_dim=6, do_stable_layer_norm=True),
    dict(mask_time_prob=0.0), dict(apply_spec_augment=False), dict(feat_proj_layer_norm=False),
    dict(conv_pos_batch_norm=True), dict(num_labels=1), dict(classifier_proj_size=8), dict(vocab_size=7),
)  # fmt: skip
SOUNDS = {"padded": sound(331, 241), "plain": sound(331), "long": sound(700, 500)}
GPT2 = dict(vocab_size=61, n_positions=20, n_embd=32, n_layer=2, n_head=4)
GPTS = (
    {}, dict(n_inner=48), dict(activation_function="relu"), dict(activation_function="gelu"), dict(layer_norm_epsilon=1e-2),
    dict(tie_word_embeddings=False), dict(tie_word_embeddings=True), dict(scale_attn_weights=False),
    dict(scale_attn_by_inverse_layer_idx=True), dict(reorder_and_upcast_attn=True), dict(add_cross_attention=True),
    dict(is_causal=False), dict(pad_token_id=5), dict(num_labels=1),
)  # fmt: skip
TOWERS = (
    {}, dict(text_config=dict(layer_norm_eps=1e-2)), dict(vision_config=dict(layer_norm_eps=1e-2)),
    dict(text_config=dict(hidden_act="relu")), dict(vision_config=dict(hidden_act="gelu")), dict(projection_dim=20),
    dict(text_config=dict(eos_token_id=2)), dict(text_config=dict(eos_token_id=7)), dict(vision_config=dict(image_size=24)),
    dict(vision_config=dict(patch_size=4)), dict(vision_config=dict(num_channels=1)),
    dict(text_config=dict(projection_size=20)), dict(vision_config=dict(vision_use_head=False)),
    dict(text_config=dict(is_causal=True)), dict(text_config=dict(is_causal=False)),
)  # fmt: skip


def ending(ids: np.ndarray) -> np.ndarray:
    ids = ids.copy()
    ids[0, 8] = ids[1, 4] = 60
    return ids


PAIRS = {
    name: {**value, **picture(16, 16)}
    for name, value in {
        "padded at the end": {"text": ending(masked(END)["text"]), "text_mask": END},
        "plain": {"text": ending(IDS)},
        "padded at the start": {"text": ending(masked(START)["text"]), "text_mask": START},
    }.items()
}
DECODER_LABELS = dict(pad_token_id=0)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        t.BertConfig, dict(**SIZES, **BERT),
        (t.BertModel, t.BertForMaskedLM, t.BertForPreTraining, t.BertForSequenceClassification, t.BertForTokenClassification,
         t.BertForMultipleChoice, t.BertForQuestionAnswering, t.BertForNextSentencePrediction, t.BertLMHeadModel),
        BERTS, TEXTS,
    ),
    "roberta": Family(
        t.RobertaConfig, dict(**SIZES, vocab_size=61, max_position_embeddings=20, type_vocab_size=1, pad_token_id=1),
        (t.RobertaModel, t.RobertaForMaskedLM, t.RobertaForSequenceClassification, t.RobertaForTokenClassification,
         t.RobertaForMultipleChoice, t.RobertaForQuestionAnswering, t.RobertaForCausalLM),
        BERTS, {**PLAIN, "padded at the end": masked(END, 1), "padded at the start": masked(START, 1),
                "pad id in the text": {"text": masked(END, 1)["text"]}},
    ),
    "distilbert": Family(
        t.DistilBertConfig, dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=61, max_position_embeddings=20),
        (t.DistilBertModel, t.DistilBertForMaskedLM, t.DistilBertForSequenceClassification,
         t.DistilBertForTokenClassification, t.DistilBertForMultipleChoice, t.DistilBertForQuestionAnswering),
        ({}, dict(activation="relu"), dict(activation="silu"), dict(tie_word_embeddings=False), dict(num_labels=1),
         dict(sinusoidal_pos_embds=True), dict(tie_weights_=False), dict(is_causal=True), dict(qa_dropout=0.5)),
        TEXTS,
    ),
    "gpt2": Family(
        t.GPT2Config, GPT2,
        (t.GPT2Model, t.GPT2LMHeadModel, t.GPT2ForSequenceClassification, t.GPT2ForTokenClassification,
         t.GPT2ForQuestionAnswering, t.GPT2DoubleHeadsModel),
        GPTS, TEXTS, {"GPT2ForSequenceClassification": DECODER_LABELS},
    ),
    "imagegpt": Family(
        t.ImageGPTConfig, dict(GPT2, vocab_size=60),
        (t.ImageGPTModel, t.ImageGPTForCausalImageModeling, t.ImageGPTForImageClassification),
        GPTS, {"plain": {"image": IDS}},
    ),
    **{
        name: Family(
            getattr(t, f"{kind}Config"), dict(DECODER, **fields),
            tuple(getattr(t, kind + head) for head in ("Model", "ForCausalLM", "ForSequenceClassification",
                  "ForTokenClassification", "ForQuestionAnswering") if hasattr(t, kind + head)),
            (*DECODERS, *changes), TEXTS, {f"{kind}ForSequenceClassification": DECODER_LABELS},
        )
        for name, kind, fields, changes in (
            ("llama", "Llama", {}, (dict(mlp_bias=True),)),
            ("qwen2", "Qwen2", dict(num_key_value_heads=2), (
                dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
                dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
                dict(use_sliding_window=True, sliding_window=4, max_window_layers=2), dict(qkv_bias=False))),
            ("qwen3", "Qwen3", dict(num_key_value_heads=2, head_dim=12), (
                dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),)),
            ("mistral", "Mistral", dict(num_key_value_heads=2), (dict(sliding_window=4), dict(sliding_window=None))),
            ("gemma", "Gemma", dict(num_key_value_heads=1, head_dim=12), (
                dict(use_bidirectional_attention=True), dict(hidden_activation="gelu"),
                dict(hidden_activation="gelu_pytorch_tanh"), dict(json=dict(hidden_act="gelu")))),
        )
    },
    "vit": Family(
        t.ViTConfig, VIT, (t.ViTModel, t.ViTForImageClassification, t.ViTForMaskedImageModeling), PICTURES, SIZED,
        {"ViTForMaskedImageModeling": dict(encoder_stride=8)},
    ),
    "deit": Family(
        t.DeiTConfig, VIT,
        (t.DeiTModel, t.DeiTForImageClassification, t.DeiTForImageClassificationWithTeacher, t.DeiTForMaskedImageModeling),
        PICTURES, SIZED, {"DeiTForMaskedImageModeling": dict(encoder_stride=8)},
    ),
    "dinov2": Family(
        t.Dinov2Config, dict(VIT, mlp_ratio=2), (t.Dinov2Model, t.Dinov2ForImageClassification),
        (*PICTURES, dict(use_swiglu_ffn=True), dict(layerscale_value=0.1), dict(use_mask_token=False)), SIZED,
    ),
    "dinov2_with_registers": Family(
        t.Dinov2WithRegistersConfig, dict(VIT, mlp_ratio=2),
        (t.Dinov2WithRegistersModel, t.Dinov2WithRegistersForImageClassification),
        (*PICTURES, dict(use_swiglu_ffn=True), dict(num_register_tokens=2), dict(num_register_tokens=0)), SIZED,
    ),
    "vit_mae": Family(
        t.ViTMAEConfig,
        dict(VIT, mask_ratio=0.0, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
             decoder_intermediate_size=40),
        (t.ViTMAEModel, t.ViTMAEForPreTraining), (*PICTURES, dict(norm_pix_loss=True)), SIZED,
    ),
    "audio_spectrogram_transformer": Family(
        t.ASTConfig, dict(SIZES, patch_size=8, frequency_stride=6, time_stride=5, max_length=29, num_mel_bins=20),
        (t.ASTModel, t.ASTForAudioClassification),
        ({}, dict(qkv_bias=False), dict(layer_norm_eps=1e-2), dict(hidden_act="relu"), dict(frequency_stride=8),
         dict(num_labels=1), dict(patch_size=[8, 8]), dict(patch_size=[8, 4])), {"plain": frames(29, 20)},
    ),
    "wav2vec2": Family(
        t.Wav2Vec2Config, dict(**SIZES, **CONVOLUTIONS),
        (t.Wav2Vec2Model, t.Wav2Vec2ForCTC, t.Wav2Vec2ForPreTraining, t.Wav2Vec2ForSequenceClassification,
         t.Wav2Vec2ForAudioFrameClassification, t.Wav2Vec2ForXVector),
        (*SPEECH, dict(num_codevector_groups=1), dict(codevector_dim=32)), SOUNDS,
        {name: dict(num_codevectors_per_group=7, codevector_dim=12, proj_codevector_dim=10)
         for name in ("Wav2Vec2ForPreTraining",)},
    ),
    "hubert": Family(
        t.HubertConfig, dict(**SIZES, **CONVOLUTIONS), (t.HubertModel, t.HubertForCTC, t.HubertForSequenceClassification),
        SPEECH, SOUNDS,
    ),
    "whisper": Family(
        t.WhisperConfig,
        dict(vocab_size=31, num_mel_bins=8, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48,
             decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, max_source_positions=10,
             max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3),
        (t.WhisperModel, t.WhisperForConditionalGeneration, t.WhisperForAudioClassification, t.WhisperForCausalLM),
        ({}, dict(activation_function="relu"), dict(scale_embedding=True), dict(tie_word_embeddings=False),
         dict(use_weighted_layer_sum=True), dict(num_labels=1)), {"plain": frames(20, 8)},
    ),
    "clip": Family(
        t.CLIPConfig,
        dict(text_config=CLIP_TEXT, vision_config=dict(**VIT, projection_dim=24), projection_dim=24),
        (t.CLIPModel, t.CLIPForImageClassification), TOWERS, PAIRS,
    ),
    "siglip": Family(
        t.SiglipConfig,
        dict(text_config=dict(**SIZES, vocab_size=61, max_position_embeddings=12, projection_size=32),
             vision_config=dict(**VIT)),
        (t.SiglipModel, t.SiglipForImageClassification), TOWERS, PAIRS,
    ),
}  # fmt: skip


HEADS = {"tie_word_embeddings", "num_labels", "pad_token_id", "hidden_act", "use_weighted_layer_sum", "qkv_bias"}


def variants(family: Family, quick: bool) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Every class with every change and the first input, and with no change and the other inputs.

    quick: what concerns no head is changed in the first class alone.
    """
    first, *others = family.inputs
    for kind in family.classes:
        for change in family.changes:
            if not quick or kind is family.classes[0] or change.keys() <= HEADS:
                yield kind, change, first
        for name in others:
            yield kind, {}, name


def merged(fields: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    nested = {key: {**fields.get(key, {}), **value} for key, value in change.items() if key.endswith("_config")}
    return {**fields, **{key: value for key, value in change.items() if key != "json"}, **nested}


def build(family: Family, kind: Any, change: dict[str, Any], directory: str) -> Any:
    """The torch model, saved in `directory`, and opened again where its config.json is changed there."""
    config = family.config(
        **{
            "num_labels": 2 if "Answering" in kind.__name__ else 5,
            **merged({**family.fields, **family.needs.get(kind.__name__, {})}, change),
        }
    )
    model = kind(config).eval()
    random_weights(model)
    model.save_pretrained(directory)
    if "json" in change:
        path = Path(directory) / "config.json"
        values = json.loads(path.read_text())
        rope = values.get("rope_parameters") or {}
        values["rope_theta"] = rope.get("rope_theta", 10_000.0)
        values |= change["json"]
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        model = kind.from_pretrained(directory).eval()
    return model


def theirs(model: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    """What transformers makes of the inputs, by our names."""
    x = {name: torch.from_numpy(value) for name, value in inputs.items()}
    name = type(model).__name__
    seen: dict[str, Any] = {}
    base = getattr(model, model.base_model_prefix, model)
    hook = base.register_forward_hook(lambda _, __, out: seen.update(hidden=out.get("last_hidden_state"), pooled=out.get("pooler_output")))  # fmt: skip
    arguments: dict[str, Any] = {}
    if "text" in x:
        ids = x["text"].long()
        arguments = dict(input_ids=ids, attention_mask=x.get("text_mask"))
        if "GPT2" in name and "text_mask" in x:  # as `generate` does
            arguments["position_ids"] = (x["text_mask"].cumsum(1) - 1).clamp(min=0)
        if "MultipleChoice" in name:
            arguments = {key: None if value is None else value[:, None] for key, value in arguments.items()}
        if "DoubleHeads" in name:
            arguments["mc_token_ids"] = torch.full((2,), 8)
    if "image" in x and x["image"].ndim == 2:
        arguments = dict(input_ids=x["image"].long())
    elif "image" in x:
        if name in ("CLIPForImageClassification", "SiglipForImageClassification"):
            arguments = {}
        arguments["pixel_values"] = x["image"].permute(0, 3, 1, 2)
        if "MAE" in name:
            noise = torch.arange(10_000)[None].repeat(2, 1).float()
            size = model.config.patch_size
            down, across = (size, size) if isinstance(size, int) else size
            noise = noise[:, : (x["image"].shape[1] // down) * (x["image"].shape[2] // across)]
            arguments["noise"] = noise
        if "Dino" not in name:
            arguments["interpolate_pos_encoding"] = True
    if "audio" in x:
        if "Whisper" in name:
            encoder = model.model.encoder if hasattr(model, "model") else model.encoder
            hidden = encoder(x["audio"].transpose(1, 2)).last_hidden_state
            found = {"hidden": hidden}
            if "Classification" in name:
                found["logits"] = model(x["audio"].transpose(1, 2)).logits
            return {key: value.detach().numpy() for key, value in found.items()}
        arguments = dict(input_values=x["audio"])
        if "audio_mask" in x:
            arguments["attention_mask"] = x["audio_mask"]
    with torch.no_grad():
        out = model(**arguments)
    hook.remove()
    return {key: value.numpy() for key, value in named(model, out, seen).items() if value is not None}


def named(model: Any, out: Any, seen: dict[str, Any]) -> dict[str, Any]:
    if "text_embeds" in out and "image_embeds" in out:
        return {
            "text_hidden": out.text_model_output.last_hidden_state,
            "image_hidden": out.vision_model_output.last_hidden_state,
            "text_embedding": out.text_embeds,
            "image_embedding": out.image_embeds,
            "logits": out.logits_per_image,
        }
    if "projected_states" in out:
        return {"projected": out.projected_states, "quantised": out.projected_quantized_states}
    found = {"hidden": out.get("last_hidden_state", seen.get("hidden")), "pooled": out.get("pooler_output")}
    found["logits"] = out.get("logits")
    if "prediction_logits" in out:
        found |= {"logits": out.prediction_logits, "next_sentence_logits": out.seq_relationship_logits}
    if "start_logits" in out:
        found["answer_logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    if "reconstruction" in out:
        found["reconstruction"] = out.reconstruction
    if "embeddings" in out and found["logits"] is not None:
        found["xvector"] = out.embeddings
    if "MAE" in type(model).__name__ and found["logits"] is not None:
        found["patches"] = found.pop("logits")
    if "NextSentence" in type(model).__name__:
        found["next_sentence_logits"] = found.pop("logits")
    return found


def real_places(inputs: Arrays, model: Any) -> np.ndarray | None:
    if "text_mask" in inputs:
        return inputs["text_mask"] == 1
    if "audio_mask" in inputs:
        base = getattr(model, model.base_model_prefix, model)
        count = base._get_feat_extract_output_lengths
        real = count(torch.from_numpy(inputs["audio_mask"].sum(1))).numpy()
        return np.arange(int(count(torch.tensor(inputs["audio"].shape[1]))))[None] < real[:, None]
    return None


def call(model: interop.Pretrained, inputs: Arrays) -> dict[str, jax.Array]:
    """Operation by operation: these are compiled once for all variants, where each model would be compiled anew."""
    with jax.disable_jit():
        return model(**inputs)


def check(family: Family, kind: Any, change: dict[str, Any], inputs: Arrays) -> tuple[str, str]:
    """The verdict and what it rests on."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        try:
            model = build(family, kind, change, directory)
            wanted = theirs(model, inputs if "num_channels" not in str(change) else narrowed(inputs))
        except Exception as error:
            return "not built", f"{type(error).__name__}: {error}".splitlines()[0][:150]
        try:
            ours = interop.load_huggingface(directory)
            found = call(ours, inputs if "num_channels" not in str(change) else narrowed(inputs))
        except UsageError as error:
            line = str(error).replace(directory, "DIR")
            return ("refused" if "\n" not in line else "LINES"), line
        except Exception as error:
            return "TRACEBACK", f"{type(error).__name__}: {error}".splitlines()[0][:200]
    arrays, real = {key: np.asarray(value) for key, value in found.items()}, real_places(inputs, model)
    skipped = pooled_padding(family, real)
    if skipped is not None and "MultipleChoice" not in kind.__name__:
        one_per_row = [key for key, value in wanted.items() if value.shape[:2] != skipped.shape[:1] + IDS.shape[1:]]
        wanted = {key: value[~skipped] if key in one_per_row else value for key, value in wanted.items()}
        arrays = {key: value[~skipped] if key in one_per_row else value for key, value in arrays.items()}
    return compared(wanted, arrays, real, ours)


def pooled_padding(family: Family, real: np.ndarray | None) -> np.ndarray | None:
    """Rows whose first token is padding, where that is what is pooled: it has no meaning, here or there."""
    encoder = family in (FAMILIES["bert"], FAMILIES["roberta"], FAMILIES["distilbert"])
    return ~real[:, 0] if real is not None and encoder else None


def narrowed(inputs: Arrays) -> Arrays:
    return {key: value[..., :1] if key == "image" else value for key, value in inputs.items()}


def compared(wanted: Arrays, found: Arrays, real: np.ndarray | None, ours: Any) -> tuple[str, str]:
    missing = [key for key in wanted if key not in found]
    if missing and missing != ["pooled"]:
        return "DROPPED", f"{missing}; unread {list(ours.origin.unused)[:3]}"
    worst = 0.0
    for key, value in wanted.items():
        if key not in found:
            continue
        here = found[key]
        if key == "logits" and here.shape != value.shape and here.size == value.size:
            here = here.reshape(value.shape)  # choices side by side
        if here.shape != value.shape:
            return "WRONG", f"{key} is {here.shape}, not {value.shape}"
        if real is not None and value.shape[:2] == real.shape:
            here, value = here[real], value[real]
        worst = max(worst, float(np.abs(here - value).max()))
    unread = f"; unread {list(ours.origin.unused)[:3]}" if ours.origin.unused else ""
    return ("equal" if worst <= 1e-4 else "WRONG"), f"{worst:.1e} {','.join(wanted)}{unread}"


def main(names: list[str], quick: bool, show: Callable[[str], bool]) -> int:
    counts: Counter[str] = Counter()
    for name in names:
        family = FAMILIES[name]
        for kind, change, inputs in variants(family, quick):
            verdict, why = check(family, kind, change, family.inputs[inputs])
            counts[verdict] += 1
            if show(verdict):
                said = ", ".join(f"{key}={value}" for key, value in change.items()) or "-"
                print(f"{verdict:<9} | {kind.__name__} | {said} | {inputs} | {why}", flush=True)
    print(", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items())))
    return int(any(verdict.isupper() for verdict in counts))


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="by default all")
    parser.add_argument(
        "--all", action="store_true", help="print every variant, not only those that fail or are refused"
    )
    parser.add_argument("--quick", action="store_true", help="change what concerns no head in one class of a family")
    arguments = parser.parse_args()
    sys.exit(main(arguments.families, arguments.quick, lambda verdict: arguments.all or verdict != "equal"))
