"""The one transformer.

| module | what |
|---|---|
| `config` | every option |
| `positions` | rotary angles and relative distances |
| `block` | one layer |
| `stack` | all of them: `Backbone` |
"""

from unimodal.backbone.block import Attention, Block, KVCache, LayerKind, Mlp
from unimodal.backbone.config import MLP_ACTIVATIONS, BackboneConfig
from unimodal.backbone.positions import relative_bucket, rope_table, rotate
from unimodal.backbone.stack import Backbone, Cache

__all__ = [
    "MLP_ACTIVATIONS",
    "Attention",
    "Backbone",
    "BackboneConfig",
    "Block",
    "Cache",
    "KVCache",
    "LayerKind",
    "Mlp",
    "relative_bucket",
    "rope_table",
    "rotate",
]
