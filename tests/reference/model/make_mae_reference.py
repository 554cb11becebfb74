"""Writes mae.npz: transformers' own masked autoencoder on the tiny reference checkpoint.

Run with torch and transformers: python tests/reference/model/make_mae_reference.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import ViTMAEForPreTraining

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "interop" / "vit_mae"
WEIGHTS = (
    "vit.embeddings.cls_token",
    "vit.embeddings.patch_embeddings.projection.bias",
    "vit.layers.1.attention.v_proj.weight",
    "decoder.decoder_embed.weight",
    "decoder.mask_token",
    "decoder.decoder_pred.bias",
)


def main() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.tensor(rng.standard_normal((3, 3, 16, 16), np.float32))
    noise = torch.tensor(rng.random((3, 4), np.float32))
    made = {"image": pixels.permute(0, 2, 3, 1).numpy(), "noise": noise.numpy()}
    for name, normalise in (("plain", False), ("normalised", True)):
        model = ViTMAEForPreTraining.from_pretrained(CHECKPOINT, mask_ratio=0.5, norm_pix_loss=normalise)
        torch.nn.init.normal_(model.decoder.mask_token, generator=torch.Generator().manual_seed(1))
        out = model(pixels, noise=noise)
        out.loss.backward()
        made |= {"mask_token": model.decoder.mask_token.detach().numpy()[0], "mask": out.mask.numpy()}
        made |= {"logits": out.logits.detach().numpy(), f"{name}/loss": out.loss.detach().numpy()}
        named = dict(model.named_parameters())
        made |= {f"{name}/grad/{weight}": named[weight].grad.numpy() for weight in WEIGHTS}
    np.savez_compressed(HERE / "mae.npz", **made)


if __name__ == "__main__":
    main()
