"""One transformer, every modality: tokenizers → `Tokens` → `Backbone` → heads, sharded with jit over any mesh."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimodal.backbone import Backbone, BackboneConfig
    from unimodal.errors import UsageError
    from unimodal.interop import load_huggingface, load_preprocessor, save_huggingface
    from unimodal.model import Model
    from unimodal.tokens import Layout, Span, Tokens, concat
    from unimodal.use import load
    from unimodal.visibility import visible

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

_HOMES = {
    "backbone": ("Backbone", "BackboneConfig"),
    "errors": ("UsageError",),
    "interop": ("load_huggingface", "load_preprocessor", "save_huggingface"),
    "model": ("Model",),
    "tokens": ("Layout", "Span", "Tokens", "concat"),
    "use": ("load",),
    "visibility": ("visible",),
}


def __getattr__(name: str) -> Any:
    # Import a name's module once it is asked for: the command line starts without waiting for JAX, and whoever builds a
    # model does not wait for what reads checkpoints.
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"unimodal.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
