"""Decoding from any `Tokens` prefix: text after text, image codes after text, a caption after an image.

A `Decoder` says which backbone writes, how ids become embeddings and how hidden states become logits. `decode` samples
from it, `beam_decode` searches, `prefill` and `decode_from` write several stretches one after the other.
"""

from unimodal.decoding.beams import beam_decode
from unimodal.decoding.decoder import Decoder, decode, decode_from
from unimodal.decoding.sampling import Sampling, filter_logits, guide, row_keys, sample
from unimodal.decoding.state import DecodingState, prefill

__all__ = [
    "Decoder",
    "DecodingState",
    "Sampling",
    "beam_decode",
    "decode",
    "decode_from",
    "filter_logits",
    "guide",
    "prefill",
    "row_keys",
    "sample",
]
