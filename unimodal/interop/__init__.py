"""Published checkpoints in and out: `load_huggingface`, `save_huggingface`, `load_preprocessor`.

A family is one short module in `families/`, named as its `model_type`: how its config.json becomes our configuration,
and a table of names. The engine around it is the same for all: `files` (safetensors), `table` and `match` (which tensor
is which parameter), `load`, `save`, `stages` and `pretrained` (what comes after the backbone).
"""

from unimodal.interop.load import load_huggingface
from unimodal.interop.pretrained import Pretrained
from unimodal.interop.save import save_huggingface, to_tensors

__all__ = ["Pretrained", "load_huggingface", "save_huggingface", "to_tensors"]
