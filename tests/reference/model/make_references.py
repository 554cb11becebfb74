"""Writes the .npz files beside it: tiny randomly initialised Hugging Face models, what they say and their gradients.

    python tests/reference/model/make_references.py        # needs torch and transformers; the tests need neither

Each file holds `in/NAME` (inputs), `weight/NAME` (parameters), `grad/NAME` (of sum(hidden · probe)), `hidden` (the last
hidden states) and `probe`, which is zero where the model itself calls the output padding.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as hf

HERE = Path(__file__).parent
SIZES = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def randomise(model):
    """Published initialisations are so small that a wrong bias or norm would hardly show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "norm" in name.lower().replace("ln_", "norm") and "weight" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif "original0" in name:  # magnitudes of the weight-normed convolution
                parameter.copy_(0.5 + noise.abs())
            elif parameter.ndim < 2 or "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def write(name, model, real=None, output="last_hidden_state", **inputs):
    """Run, differentiate and save `output` as `hidden`. `real` [B,T]: where it is not padding."""
    model = model.eval()
    randomise(model)
    tensors = {key: torch.as_tensor(value) for key, value in inputs.items()}
    hidden = getattr(model(**tensors), output)
    probe = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    if real is not None:
        probe = probe * torch.as_tensor(real)[:, :, None]
    (hidden * probe).sum().backward()
    arrays = {"hidden": hidden.detach(), "probe": probe}
    for key, value in tensors.items():
        arrays[f"in/{key}"] = value
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:  # poolers and mask embeddings have no part in the hidden states
            arrays[f"weight/{key}"] = parameter.detach()
            arrays[f"grad/{key}"] = parameter.grad
    np.savez_compressed(HERE / f"{name}.npz", allow_pickle=False, **{k: v.numpy() for k, v in arrays.items()})
    print(name, tuple(hidden.shape), (HERE / f"{name}.npz").stat().st_size)


def main():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, (2, 7))
    mask = np.asarray([[1] * 7, [1] * 4 + [0] * 3])

    text = dict(vocab_size=20, max_position_embeddings=12)
    # A padding id would only make torch leave out that row of the table's gradient.
    config = hf.BertConfig(**SIZES, **NO_DROPOUT, **text, type_vocab_size=2, pad_token_id=None)
    types = rng.integers(0, 2, ids.shape)
    model = hf.BertModel(config, add_pooling_layer=False)
    write("bert", model, mask, input_ids=ids, attention_mask=mask, token_type_ids=types)

    config = hf.GPT2Config(n_embd=12, n_layer=2, n_head=3, n_inner=20, n_positions=12, vocab_size=20,
                           bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # fmt: skip
    write("gpt2", hf.GPT2Model(config), input_ids=ids)

    sizes = SIZES | dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=2)
    config = hf.LlamaConfig(**sizes, **text, pad_token_id=None)
    write("llama", hf.LlamaModel(config), input_ids=ids)

    image = dict(image_size=8, patch_size=4)
    config = hf.ViTConfig(**SIZES, **NO_DROPOUT, **image)
    pixels = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    write("vit", hf.ViTModel(config, add_pooling_layer=False), pixel_values=pixels)

    config = hf.CLIPVisionConfig(**SIZES, **image, hidden_act="quick_gelu")
    # The pooled state: CLIP's vision tower norms its class token alone, after `last_hidden_state`.
    write("clip_vision", hf.CLIPVisionModel(config), output="pooler_output", pixel_values=pixels)
    config = hf.CLIPTextConfig(**SIZES, **text, hidden_act="quick_gelu", pad_token_id=0, bos_token_id=1, eos_token_id=2)
    write("clip_text", hf.CLIPTextModel(config), mask, input_ids=ids, attention_mask=mask)

    samples, lengths = 150, (150, 88)
    wave = rng.standard_normal((2, samples)).astype(np.float32)
    heard = (np.arange(samples)[None] < np.asarray(lengths)[:, None]).astype(np.int64)
    for name, norm, stable, taps in (("wav2vec2", "group", False, 6), ("wav2vec2_stable", "layer", True, 5)):
        config = hf.Wav2Vec2Config(
            **SIZES, conv_dim=(12, 12, 12), conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), feat_extract_norm=norm,
            conv_bias=norm == "layer", num_conv_pos_embeddings=taps, num_conv_pos_embedding_groups=4,
            do_stable_layer_norm=stable, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
            activation_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
        )  # fmt: skip
        model = hf.Wav2Vec2Model(config)
        frames = model._get_feat_extract_output_lengths(torch.as_tensor(lengths)).numpy()
        real = np.arange(int(model._get_feat_extract_output_lengths(samples)))[None] < frames[:, None]
        write(name, model, real, input_values=np.where(heard, wave, 0), attention_mask=heard)


if __name__ == "__main__":
    main()
