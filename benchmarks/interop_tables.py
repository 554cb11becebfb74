"""What benchmarks/interop_variants.py varies: for each published family its classes, changes of its configuration, and inputs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import transformers as t

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference" / "interop"))
from make_references import (
    BERT,
    CLIP_TEXT,
    CONVOLUTIONS,
    DATA2VEC,
    DECODER,
    ELECTRA,
    MODERNBERT,
    MPNET,
    SIZES,
    SMALL,
    SMALL_ROBERTA,
    SMALL_TEXT,
    VIT,
    Arrays,
)

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

ROW_ONE = {**PLAIN, "padded at the end": masked(END, 1), "padded at the start": masked(START, 1)}  # 1 is padding
GEMMAS = (
    {}, dict(num_key_value_heads=1), dict(head_dim=12), dict(rms_norm_eps=1e-2), dict(attention_bias=True),
    dict(hidden_activation="gelu"), dict(query_pre_attn_scalar=7), dict(sliding_window=3), dict(final_logit_softcapping=None),
    dict(attn_logit_softcapping=None), dict(final_logit_softcapping=2.0), dict(layer_types=["full_attention"] * 2),
    dict(layer_types=["sliding_attention"] * 2), dict(use_bidirectional_attention=True), dict(tie_word_embeddings=False),
    dict(is_causal=False),
)  # fmt: skip
ENCODER_HEADS = ("MaskedLM", "SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering")


def encoder_classes(kind: str, *more: str) -> tuple[Any, ...]:
    names = [f"{kind}Model", *(f"{kind}For{head}" for head in ENCODER_HEADS), *more]
    return tuple(getattr(t, name) for name in names if hasattr(t, name))


FAMILIES |= {
    "albert": Family(
        t.AlbertConfig, {**ELECTRA, "num_hidden_layers": 3}, encoder_classes("Albert", "AlbertForPreTraining"),
        (*BERTS, dict(inner_group_num=2), dict(num_hidden_groups=3), dict(embedding_size=16)), TEXTS,
    ),
    "electra": Family(
        t.ElectraConfig, ELECTRA, encoder_classes("Electra", "ElectraForPreTraining", "ElectraForCausalLM"),
        (*BERTS, dict(embedding_size=16), dict(summary_activation="relu"), dict(summary_type="last")), TEXTS,
    ),
    "mpnet": Family(
        t.MPNetConfig, MPNET, encoder_classes("MPNet"),
        ({}, dict(layer_norm_eps=1e-2), dict(hidden_act="relu"), dict(relative_attention_num_buckets=16), dict(num_labels=1),
         dict(pad_token_id=5), dict(tie_word_embeddings=False), dict(is_causal=True)), ROW_ONE,
    ),
    "data2vec_text": Family(
        t.Data2VecTextConfig, SMALL_ROBERTA, encoder_classes("Data2VecText", "Data2VecTextForCausalLM"), BERTS, ROW_ONE,
    ),
    "data2vec_audio": Family(
        t.Data2VecAudioConfig, dict(**SMALL, **DATA2VEC),
        (t.Data2VecAudioModel, t.Data2VecAudioForCTC, t.Data2VecAudioForSequenceClassification,
         t.Data2VecAudioForAudioFrameClassification, t.Data2VecAudioForXVector),
        ({}, dict(layer_norm_eps=1e-2), dict(conv_bias=True), dict(hidden_act="relu"), dict(feat_extract_activation="relu"),
         dict(conv_pos_kernel_size=4), dict(num_conv_pos_embeddings=1), dict(num_conv_pos_embedding_groups=1),
         dict(add_adapter=True), dict(use_weighted_layer_sum=True), dict(num_labels=1)), SOUNDS,
    ),
    "modernbert": Family(
        t.ModernBertConfig, MODERNBERT, encoder_classes("ModernBert"),
        ({}, dict(norm_eps=1e-2), dict(norm_bias=True), dict(attention_bias=True), dict(mlp_bias=True), dict(local_attention=4),
         dict(local_attention=5), dict(global_attn_every_n_layers=1), dict(hidden_activation="relu"), dict(decoder_bias=False),
         dict(classifier_pooling="mean"), dict(classifier_bias=True), dict(classifier_activation="relu"), dict(num_labels=1),
         dict(layer_types=["sliding_attention"] * 2), dict(tie_word_embeddings=False), dict(sparse_prediction=True),
         dict(is_causal=True)), TEXTS,
    ),
    "smollm3": Family(
        t.SmolLM3Config, dict(**SMALL_TEXT, num_key_value_heads=2, no_rope_layers=[1, 0], pad_token_id=0, eos_token_id=1),
        tuple(getattr(t, f"SmolLM3{head}") for head in ("Model", "ForCausalLM", "ForSequenceClassification",
              "ForTokenClassification", "ForQuestionAnswering")),
        (*DECODERS, dict(no_rope_layers=[0, 0]), dict(use_sliding_window=True, sliding_window=4),
         dict(use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"])), TEXTS,
    ),
    "gemma2": Family(
        t.Gemma2Config, dict(**SMALL_TEXT, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
        (t.Gemma2Model, t.Gemma2ForCausalLM, t.Gemma2ForSequenceClassification, t.Gemma2ForTokenClassification), GEMMAS, TEXTS,
        {"Gemma2ForSequenceClassification": DECODER_LABELS},
    ),
    "gemma3_text": Family(
        t.Gemma3TextConfig, dict(**SMALL_TEXT, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
        (t.Gemma3TextModel, t.Gemma3ForCausalLM), GEMMAS, TEXTS,
    ),
    "clip_text_model": Family(
        t.CLIPTextConfig, CLIP_TEXT, (t.CLIPTextModel, t.CLIPTextModelWithProjection),
        ({}, dict(layer_norm_eps=1e-2), dict(hidden_act="relu"), dict(eos_token_id=2), dict(projection_dim=20)),
        {name: {key: value for key, value in inputs.items() if key != "image"} for name, inputs in PAIRS.items()},
    ),
    "clip_vision_model": Family(
        t.CLIPVisionConfig, dict(**VIT, projection_dim=24), (t.CLIPVisionModel, t.CLIPVisionModelWithProjection),
        ({}, dict(layer_norm_eps=1e-2), dict(hidden_act="gelu"), dict(image_size=24), dict(patch_size=4), dict(num_channels=1)),
        {"16x16": picture(16, 16)},
    ),
}  # fmt: skip
