"""The data room: from records, wherever they lie, to batches of numpy arrays. Imports no jax.

| module | what it does |
|---|---|
| `sources` | `open_source(uri, split)`: embedded sets, ArrayRecord files, TFDS, folders; every record has an id |
| `records`, `tfds`, `folder` | the readers behind `sources`; `write_array_record` |
| `text` | `ByteEncoder`, windows of ids, BERT's masking |
| `image` | bytes to uint8, augmentation with an explicit generator, uint8 to float |
| `audio` | bytes to waveform at a rate, cropping, wav2vec 2.0's span masks |
| `pack` | several documents in one row |
| `pipeline` | `Dataset` = source + transform; `train_batches`, `eval_batches`, `fake_batches`; the iterator's state |
| `mix` | several datasets in fixed shares |

The usual path: `open_source` → `cached` (decode once) → `Dataset(source, transform)` → `train_batches`. What the user
can mend raises `unimodal.errors.UsageError` with one line.
"""

from unimodal.data.audio import conv_frames, crop_or_pad, decode_audio, normalize, resample, span_mask
from unimodal.data.image import (
    Augmentation,
    color_jitter,
    decode_image,
    decode_picture,
    encode_image,
    random_flip,
    random_resized_crop,
    random_shift,
    resize,
    to_float,
    to_uint8,
)
from unimodal.data.mix import Mixture, mix
from unimodal.data.pack import pack
from unimodal.data.pipeline import (
    ArraySpec,
    BatchIterator,
    Dataset,
    EvalBatches,
    Examples,
    Source,
    cached,
    check_example,
    eval_batches,
    fake_batches,
    train_batches,
)
from unimodal.data.sources import EMOJI_GROUPS, open_source, write_array_record
from unimodal.data.text import (
    ByteEncoder,
    all_ids,
    fit_length,
    fixed_windows,
    mask_tokens,
    random_window,
    text_windows,
)

__all__ = [
    "EMOJI_GROUPS",
    "ArraySpec",
    "Augmentation",
    "BatchIterator",
    "ByteEncoder",
    "Dataset",
    "EvalBatches",
    "Examples",
    "Mixture",
    "Source",
    "all_ids",
    "cached",
    "check_example",
    "color_jitter",
    "conv_frames",
    "crop_or_pad",
    "decode_audio",
    "decode_image",
    "decode_picture",
    "encode_image",
    "eval_batches",
    "fake_batches",
    "fit_length",
    "fixed_windows",
    "mask_tokens",
    "mix",
    "normalize",
    "open_source",
    "pack",
    "random_flip",
    "random_resized_crop",
    "random_shift",
    "random_window",
    "resample",
    "resize",
    "span_mask",
    "text_windows",
    "to_float",
    "to_uint8",
    "train_batches",
    "write_array_record",
]
