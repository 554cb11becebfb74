"""One transformer, every modality: tokenizers → `Tokens` → `Backbone` → heads, sharded with jit over any mesh."""

import importlib
from typing import TYPE_CHECKING, Any

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.model import Model
from unimodal.tokens import Layout, Span, Tokens, concat
from unimodal.visibility import visible

if TYPE_CHECKING:
    from unimodal.interop import load_huggingface, load_preprocessor, save_huggingface
    from unimodal.use import load

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Layout",
    "Model",
    "Span",
    "Tokens",
    "UsageError",
    "concat",
    "load",
    "load_huggingface",
    "load_preprocessor",
    "save_huggingface",
    "visible",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Published checkpoints are read with Pillow, SciPy and grain, which whoever only builds a model need not wait for.
    if name in ("load_huggingface", "load_preprocessor", "save_huggingface"):
        return getattr(importlib.import_module("unimodal.interop"), name)
    if name == "load":
        return importlib.import_module("unimodal.use").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
