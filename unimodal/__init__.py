"""One transformer, every modality: tokenizers → `Tokens` → `Backbone` → heads, sharded with jit over any mesh."""

from unimodal.attention import attention, visible
from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.model import Model
from unimodal.tokens import Layout, Span, Tokens, concat, tokens

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Layout",
    "Model",
    "Span",
    "Tokens",
    "UsageError",
    "attention",
    "concat",
    "tokens",
    "visible",
]
__version__ = "0.1.0"
