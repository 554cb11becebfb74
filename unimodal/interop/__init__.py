"""Published checkpoints in and out: `load_huggingface`, `save_huggingface`, `load_preprocessor`.

A family is one short module in `families/`, named as its `model_type`: how its config.json becomes our configuration,
and a table of names. The engine around it is the same for all: `files` (safetensors), `table` and `match` (which tensor
is which parameter), `load`, `save`, `stages` and `pretrained` (what comes after the backbone), `preprocess` and its parts
(what comes before the tokenizers), `recipes`, `preparation` and `start` (training that begins with published weights, and
is fed as they were).
"""

from unimodal.interop.load import load_huggingface
from unimodal.interop.preprocess import Preprocessor, load_preprocessor
from unimodal.interop.pretrained import Pretrained
from unimodal.interop.recipes import Recipe, recipe
from unimodal.interop.save import save_huggingface, to_tensors
from unimodal.interop.start import Start, preparation_of, start_from

__all__ = [
    "Preprocessor",
    "Pretrained",
    "Recipe",
    "Start",
    "load_huggingface",
    "load_preprocessor",
    "preparation_of",
    "recipe",
    "save_huggingface",
    "start_from",
    "to_tensors",
]
