"""The data room: from records, wherever they lie, to batches of numpy arrays. Imports no jax.

| module | what it does |
|---|---|
| `sources` | `open_source(uri, split)`: records from any source; every record has an id |
| `schemes` | one module for each scheme of a URI: folders, tables, tar files, ArrayRecord, TFDS, embedded sets |
| `address`, `dividing`, `joined`, `shares` | a URI's parts; splits by a hash; several sources in one; their shares |
| `records`, `metadata`, `tables`, `cells`, `files`, `line_index` | what schemes have in common; `write_array_record` |
| `values` | one column of a source, its first records, the names of its classes |
| `text` | `ByteEncoder`, windows of ids, BERT's masking |
| `encoders`, `vocabulary`, `subwords`, `sentencepieces` | `open_encoder`: bytes, WordPiece, byte-level BPE, SentencePiece |
| `tokenizer_files` | a checkpoint's tokenizer files, read for training and preprocessing alike |
| `around`, `byte_counts` | the specials around texts; the bytes of a text that each id stands for |
| `train_encoder` | makes a vocabulary from a corpus |
| `pairs` | one text or two as a row of ids; next-sentence rows |
| `pictures` | a picture in any form to uint8 |
| `image` | augmentation with an explicit generator, uint8 to float |
| `audio` | a sound in any form to a waveform at a rate, cropping, wav2vec 2.0's span masks |
| `spectrogram` | waveform to log-mel frames, Whisper's and Kaldi's |
| `marked` | marked stretches of recordings as records of their own |
| `transcripts` | one plain spelling of a transcript; `Alphabet`, characters as ids |
| `packing`, `filling`, `bucketing` | several documents in one row; what shares a row; batches of like length |
| `dataset` | `Dataset` = source + transform |
| `order` | which record comes at which position of training |
| `batches`, `stacking` | `train_batches`, `eval_batches`, the iterator's state; rows of a batch |
| `workers`, `handing` | batches made by other processes, and how they come from there |
| `spec`, `fake` | the arrays of an example, and made-up ones |
| `epochs` | how often each source has been gone through |
| `cache`, `stored` | `cached(source, decode)`: decoded records in memory, within a budget; decoded arrays on disk |
| `skipped` | records that cannot be used: left out, counted, listed |
| `mixing` | several datasets in fixed shares |

The usual path: `open_source` → `cached` (decode once) → `Dataset(source, transform)` → `train_batches`. What the user
can mend raises `unimodal.errors.UsageError` with one line.
"""

from unimodal.data.audio import crop_or_pad, decode_audio, decode_sound, normalize, resample, span_mask
from unimodal.data.batches import BatchIterator, EvalBatches, TaskBatches, eval_batches, train_batches
from unimodal.data.cache import Budget, cached
from unimodal.data.dataset import Dataset, Examples, Source
from unimodal.data.encoders import NO_ID, Encoder, encoder_for, ids_spec, open_encoder, pad_id
from unimodal.data.fake import fake_batches
from unimodal.data.image import (
    Augmentation,
    center_crop,
    color_jitter,
    encode_image,
    random_flip,
    random_resized_crop,
    random_shift,
    resize,
    to_float,
    to_uint8,
)
from unimodal.data.marked import marks, segments
from unimodal.data.mixing import Mixture, mix
from unimodal.data.packing import pack, packed_rows
from unimodal.data.pairs import (
    Rows,
    next_sentence_rows,
    pair_row,
    phrases,
    some_phrases,
    some_records,
    text_pairs,
    text_rows,
)
from unimodal.data.pictures import decode_image, decode_picture, to_rgb
from unimodal.data.records import write_array_record
from unimodal.data.schemes.embedded import EMOJI_GROUPS
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec, check_example
from unimodal.data.spectrogram import kaldi_log_mel, log_mel
from unimodal.data.stored import STORE
from unimodal.data.text import (
    ByteEncoder,
    all_ids,
    fit_length,
    mask_tokens,
    text_of,
    text_windows,
    with_text,
)
from unimodal.data.transcripts import Alphabet, collect_alphabet, spell
from unimodal.data.values import class_names, column, evenly, first

__all__ = [
    "EMOJI_GROUPS",
    "LEDGER",
    "NO_ID",
    "STORE",
    "Alphabet",
    "ArraySpec",
    "Augmentation",
    "BatchIterator",
    "Budget",
    "ByteEncoder",
    "Dataset",
    "Encoder",
    "EvalBatches",
    "Examples",
    "Mixture",
    "Rows",
    "Source",
    "TaskBatches",
    "Where",
    "all_ids",
    "cached",
    "center_crop",
    "check_example",
    "class_names",
    "collect_alphabet",
    "color_jitter",
    "column",
    "crop_or_pad",
    "decode_audio",
    "decode_image",
    "decode_picture",
    "decode_sound",
    "encode_image",
    "encoder_for",
    "eval_batches",
    "fake_batches",
    "evenly",
    "first",
    "fit_length",
    "ids_spec",
    "kaldi_log_mel",
    "log_mel",
    "marks",
    "mask_tokens",
    "mix",
    "next_sentence_rows",
    "normalize",
    "open_encoder",
    "open_source",
    "pack",
    "packed_rows",
    "pad_id",
    "pair_row",
    "phrases",
    "random_flip",
    "random_resized_crop",
    "random_shift",
    "resample",
    "resize",
    "segments",
    "some_phrases",
    "some_records",
    "span_mask",
    "spell",
    "text_of",
    "text_pairs",
    "text_rows",
    "text_windows",
    "to_float",
    "to_rgb",
    "to_uint8",
    "train_batches",
    "with_text",
    "write_array_record",
]
