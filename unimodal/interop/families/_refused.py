"""Families that are near to ours and do not load, each with what stands in the way."""

from __future__ import annotations

_GRID = "it adds a learned bias by the places of two patches on their grid to the logits of every layer, which no kernel takes"
REFUSED = {
    "beit": _GRID,
    "data2vec_vision": _GRID,
    "deberta": "it attends from content to position and from position to content, which is another attention",
    "deberta_v2": "it attends from content to position and from position to content, which is another attention",
    "t5": "its decoder looks at an encoder, and there is no cross-attention",
    "wavlm": "it adds a bias by distance to the logits that each query of each layer opens and closes, which no kernel takes",
    "wav2vec2_conformer": "its layers hold convolutions between attention and MLP, which are no transformer layers",
    "wav2vec2_bert": "its layers hold convolutions between attention and MLP, which are no transformer layers",
}
