"""config.json of each architecture for a model of ours, or None where it reads other inputs or has no such head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.heads import Classifier, LanguageModel, MaskedLanguageModel, PooledClassifier, Projection, Quantiser
from unimodal.interop.export.handed import Handed, Offer, Part, activation, labelled, side
from unimodal.layers import Linear

UNENDED = -1  # no text ends with a token of its own, so that an architecture that looks for one would find none


def bert(handed: Handed) -> Offer | None:
    """BertForMaskedLM, BertForPreTraining, BertForSequenceClassification."""
    if set(handed.inputs) != {"text"} or handed.inputs["text"].causal:
        return None
    part, heads = handed.inputs["text"], list(handed.heads.values())
    words = next((h for h in heads if isinstance(h, MaskedLanguageModel)), None)
    pooled = next((h for h in heads if isinstance(h, PooledClassifier)), None)
    if words is None and pooled is None:
        return None
    width = part.layers.width
    markers: dict[str, tuple[int, ...]] = {"bert.": ()}
    kind = "BertForSequenceClassification"
    if words is not None:
        kind = "BertForMaskedLM" if pooled is None else "BertForPreTraining"
        markers |= {"cls.predictions.transform.dense.weight": (width, width)}
    if pooled is not None:
        markers |= {"bert.pooler.dense.weight": (width, width)}
        count = pooled.linear.kernel.shape[-1]
        linear = "classifier" if words is None else "cls.seq_relationship"
        markers |= {f"{linear}.weight": (count, width), f"{linear}.bias": (count,)}
    c, b = part.config, part.layers
    config = dict(
        model_type="bert",
        architectures=[kind],
        vocab_size=c.vocabulary,
        **_encoder(b),
        max_position_embeddings=c.max_length or 512,
        type_vocab_size=c.types or 2,
        hidden_dropout_prob=b.dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        tie_word_embeddings=words is None or words.decoder.linear is None,
        **labelled(handed.labels if words is None else ()),
    )
    return Offer("bert", config, markers, "a masked-language head, or a classifier of the first token (pooling=first)")


def gpt2(handed: Handed) -> Offer | None:
    """GPT2LMHeadModel."""
    if (part := _writer(handed)) is None or part.layers.norm == "rms":
        return None
    c, b = part.config, part.layers
    config = dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        vocab_size=c.vocabulary,
        n_positions=c.max_length or 1024,
        n_embd=b.width,
        n_layer=b.depth,
        n_head=b.heads,
        n_inner=b.M,
        activation_function=activation(b.activation, tanh="gelu_new"),
        layer_norm_epsilon=b.norm_epsilon,
        resid_pdrop=b.dropout,
        embd_pdrop=b.dropout,
        attn_pdrop=0.0,
        tie_word_embeddings=_tied(handed),
        **_ends(handed),
    )
    return Offer("gpt2", config, {"transformer.": ()}, "a head that predicts the next id")


def llama(handed: Handed) -> Offer | None:
    """LlamaForCausalLM."""
    if (part := _writer(handed)) is None or part.layers.norm != "rms":
        return None
    c, b = part.config, part.layers
    config: dict[str, Any] = dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=c.vocabulary,
        **_sizes(b),
        num_key_value_heads=b.G,
        head_dim=b.K,
        hidden_act="silu",
        rms_norm_eps=b.norm_epsilon,
        rope_theta=b.rope_theta or 10_000.0,
        attention_bias=b.qkv_bias,
        mlp_bias=b.mlp_bias,
        max_position_embeddings=c.max_length or 2048,
        tie_word_embeddings=_tied(handed),
        **_ends(handed),
    )
    return Offer("llama", config, {"model.": ()}, "a head that predicts the next id")


def vit(handed: Handed) -> Offer | None:
    """ViTForImageClassification."""
    if set(handed.inputs) != {"image"}:
        return None
    head = next((h for h in handed.heads.values() if isinstance(h, Classifier)), None)
    if head is None:
        return None
    part = handed.inputs["image"]
    classes, width = head.linear.kernel.shape[-1], part.layers.width
    config = dict(
        model_type="vit",
        architectures=["ViTForImageClassification"],
        **_vit(part),
        **labelled(handed.labels or tuple(map(str, range(classes)))),
    )
    markers = {"vit.": (), "classifier.weight": (classes, width)}
    return Offer("vit", config, markers, "a classifier of the first token (pooling=first)")


def vit_mae(handed: Handed) -> Offer | None:
    """ViTMAEForPreTraining."""
    wanted = {"decoder_embed", "decoder_position", "decoder_mask", "patches"}
    if set(handed.inputs) != {"image"} or handed.decoder is None or not wanted <= set(handed.heads):
        return None
    part, smaller = handed.inputs["image"], handed.decoder[1]
    config = dict(
        model_type="vit_mae",
        architectures=["ViTMAEForPreTraining"],
        **_vit(part),
        decoder_hidden_size=smaller.width,
        decoder_num_hidden_layers=smaller.depth,
        decoder_num_attention_heads=smaller.heads,
        decoder_intermediate_size=smaller.M,
        mask_ratio=handed.fields.get("mask_ratio", 0.75),
        norm_pix_loss=bool(handed.fields.get("normalise", False)),
    )
    # transformers 5 writes the decoder's layers under this name, and reads them under the older one, too.
    layer = "decoder.decoder_encoder.layer.0.layernorm_before.weight"
    markers = {"vit.": (), "decoder.decoder_embed.weight": (), layer: ()}
    return Offer("vit_mae", config, markers, "a decoder of patches")


def clip(handed: Handed) -> Offer | None:
    """CLIPModel."""
    if (config := _two_towers(handed, "clip")) is None or handed.heads["temperature"].bias is not None:
        return None
    pooling = handed.heads["text"].config
    if pooling.pooling == "last" and handed.end is None:
        config["text_config"]["eos_token_id"] = UNENDED
    elif pooling.pooling == "last":
        config["text_config"]["eos_token_id"] = handed.end
    else:
        config["text_config"]["eos_token_id"] = 2 if pooling.end is None else pooling.end
    for side_of in ("text_config", "vision_config"):
        config[side_of]["projection_dim"] = config["projection_dim"]
    return Offer(
        "clip",
        config,
        {"text_projection.weight": (), "visual_projection.weight": ()},
        "a picture's first token, normalised and projected (image_head.pooling=first, image_head.norm=1e-05), and a text's "
        "end token, projected (text_head.pooling=end)",
    )


def siglip(handed: Handed) -> Offer | None:
    """SiglipModel."""
    if (config := _two_towers(handed, "siglip")) is None or handed.heads["temperature"].bias is None:
        return None
    config["text_config"]["projection_size"] = config.pop("projection_dim")
    config["text_config"]["pad_token_id"] = handed.fields.get("fill") or 0  # without any it is refused
    return Offer(
        "siglip",
        config,
        {},
        "a picture pooled by attention (image_head.pooling=attention, image_head.project=False) and a text's last place, "
        "projected with a bias (text_head.pooling=final, text_head.bias=True)",
    )


def wav2vec2(handed: Handed) -> Offer | None:
    """Wav2Vec2ForPreTraining, Wav2Vec2ForCTC."""
    if set(handed.inputs) != {"audio"} or handed.inputs["audio"].kind != "audio":
        return None
    part, heads = handed.inputs["audio"], handed.heads
    c, b = part.config, part.layers
    config: dict[str, Any] = dict(
        model_type="wav2vec2",
        **_encoder(b),
        hidden_dropout=b.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        do_stable_layer_norm=b.norm_position == "pre",
        feat_extract_norm=c.conv_norm,
        feat_extract_activation="gelu",
        conv_dim=[c.channels] * len(c.kernels),
        conv_kernel=list(c.kernels),
        conv_stride=list(c.strides),
        conv_bias=c.conv_bias,
        num_feat_extract_layers=len(c.kernels),
        num_conv_pos_embeddings=c.position_kernel,
        num_conv_pos_embedding_groups=c.position_groups,
        pad_token_id=0,
        apply_spec_augment=False,
    )
    quantiser = next((h for h in heads.values() if isinstance(h, Quantiser)), None)
    if quantiser is not None:
        groups, codes, size = quantiser.table.shape
        config |= dict(
            architectures=["Wav2Vec2ForPreTraining"],
            num_codevector_groups=groups,
            num_codevectors_per_group=codes,
            codevector_dim=groups * size,
            proj_codevector_dim=heads["target"].kernel.shape[-1],
        )
        return Offer("wav2vec2", config, {"wav2vec2.": (), "quantizer.codevectors": ()}, "a quantiser and projections")
    characters = next((name for name, h in heads.items() if isinstance(h, Linear)), None)
    if characters is None:
        return None
    config |= dict(architectures=["Wav2Vec2ForCTC"], vocab_size=heads[characters].kernel.shape[-1])
    markers = {"wav2vec2.": (), "lm_head.weight": ()}
    return Offer("wav2vec2", config, markers, "a linear layer over characters", {"ctc": characters})


def ast(handed: Handed) -> Offer | None:
    """ASTForAudioClassification."""
    if set(handed.inputs) != {"audio"} or handed.inputs["audio"].kind != "image":
        return None
    head = next((h for h in handed.heads.values() if isinstance(h, Classifier)), None)
    if head is None:
        return None
    part = handed.inputs["audio"]
    c, b, (classes, width) = part.config, part.layers, (head.linear.kernel.shape[-1], part.layers.width)
    across, along = c.stride or (c.patch, c.patch)
    config = dict(
        model_type="audio-spectrogram-transformer",
        architectures=["ASTForAudioClassification"],
        **_encoder(b),
        hidden_dropout_prob=b.dropout,
        attention_probs_dropout_prob=0.0,
        qkv_bias=b.qkv_bias,
        patch_size=c.patch,
        num_mel_bins=c.image_size[0],
        max_length=c.image_size[1],
        frequency_stride=across,
        time_stride=along,
        **labelled(handed.labels or tuple(map(str, range(classes)))),
    )
    markers = {"audio_spectrogram_transformer.": (), "classifier.dense.weight": (classes, width)}
    wants = "a classifier of the first two tokens behind a norm (pooling=first_two, head_norm as norm_epsilon)"
    return Offer("audio_spectrogram_transformer", config, markers, wants)


ARCHITECTURES: tuple[Callable[[Handed], Offer | None], ...] = (
    *(bert, gpt2, llama),
    *(vit, vit_mae, clip, siglip),
    *(wav2vec2, ast),
)


def _writer(handed: Handed) -> Part | None:
    """The part that writes text, or None for a model that does not."""
    if set(handed.inputs) != {"text"} or not any(isinstance(h, LanguageModel) for h in handed.heads.values()):
        return None
    return handed.inputs["text"]


def _tied(handed: Handed) -> bool:
    return next(h for h in handed.heads.values() if isinstance(h, LanguageModel)).linear is None


def _ends(handed: Handed) -> dict[str, Any]:
    """Name the ids that end and fill up texts, or none: the defaults are ids that a small vocabulary has not. BOS is put by
    the tokenizer."""
    return dict(bos_token_id=None, eos_token_id=handed.end, pad_token_id=handed.pad)


def _sizes(b: BackboneConfig) -> dict[str, Any]:
    return dict(hidden_size=b.width, num_hidden_layers=b.depth, num_attention_heads=b.heads, intermediate_size=b.M)


def _encoder(b: BackboneConfig) -> dict[str, Any]:
    """A backbone's options under the names of encoders that follow BERT."""
    return dict(**_sizes(b), hidden_act=activation(b.activation), layer_norm_eps=b.norm_epsilon)


def _viewer(part: Part) -> dict[str, Any]:
    c, b = part.config, part.layers
    return dict(
        image_size=side(c.image_size),
        patch_size=c.patch,
        num_channels=c.channels,
        **_encoder(b),
    )


def _vit(part: Part) -> dict[str, Any]:
    """What ViT and MAE call the options of a picture's encoder."""
    b = part.layers
    dropout = dict(hidden_dropout_prob=b.dropout, attention_probs_dropout_prob=0.0)
    return dict(**_viewer(part), **dropout, qkv_bias=b.qkv_bias)


def _two_towers(handed: Handed, kind: str) -> dict[str, Any] | None:
    heads = handed.heads
    if set(handed.inputs) != {"text", "image"} or "temperature" not in heads:
        return None
    if not all(isinstance(heads.get(name), Projection) for name in ("text", "image")):
        return None
    text, image = handed.inputs["text"], handed.inputs["image"]
    c, b = text.config, text.layers
    size = b.width if heads["text"].linear is None else heads["text"].linear.kernel.shape[-1]
    words = dict(
        model_type=f"{kind}_text_model",
        vocab_size=c.vocabulary,
        max_position_embeddings=c.max_length or 77,
        **_encoder(b),
        bos_token_id=None,
        attention_dropout=0.0,
    )
    pixels = dict(model_type=f"{kind}_vision_model", **_viewer(image), attention_dropout=0.0)
    name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    return dict(model_type=kind, architectures=[name], projection_dim=size, text_config=words, vision_config=pixels)
