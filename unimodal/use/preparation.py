"""Files that prepare the inputs of an exported model: preprocessor_config.json, and the vocabulary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unimodal.data.around import NO_ID, Around
from unimodal.data.encoders import BESIDE, FILES, encoder_files
from unimodal.data.text import ByteEncoder
from unimodal.data.tokenizer_files import read_tokenizer
from unimodal.data.transcripts import Alphabet
from unimodal.data.vocabulary import around_of
from unimodal.errors import UsageError
from unimodal.interop.export import Exported

AST = "audio_spectrogram_transformer"
CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is


def write_preparation(task: Any, exported: Exported, directory: Path) -> list[str]:
    """Write the files for each modality that the task reads; returns their names."""
    inputs = {tower.input: tower for tower in exported.description.towers}
    written = []
    if "image" in inputs:
        config = inputs["image"].tokenizer
        written += _json(directory, "preprocessor_config.json", picture_steps(task.images, config, exported))
    if "audio" in inputs:
        steps = _filter_bank(task, inputs["audio"].tokenizer) if exported.offer.family == AST else _samples(task.sounds)
        written += _json(directory, "preprocessor_config.json", steps)
        if hasattr(task, "letters"):
            written += _characters(task.letters, directory)
    if "text" in inputs:
        fill = None if inputs["text"].masked else inputs["text"].fill_id
        written += _vocabulary(task, directory, fill)
    return written


def picture_steps(images: Any, config: Any, exported: Exported) -> dict[str, Any]:
    """preprocessor_config.json of pictures, as the data block has them."""
    three = lambda values: [float(v) for v in (values * 3 if len(values) == 1 else values)]  # noqa: E731
    height, width = config.image_size
    steps: dict[str, Any] = dict(
        do_resize=True,
        resample=int(Image.Resampling[images.resample.upper()]),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=three(images.mean),
        image_std=three(images.std),
    )
    if not images.resize:  # to what the tokenizer takes, whatever the proportions
        names = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
        name = names.get(exported.offer.family, "ViTImageProcessor")
        crop = dict(do_center_crop=False) if name == "CLIPImageProcessor" else {}
        return dict(image_processor_type=name, size=dict(height=height, width=width), **crop, **steps)
    to = images.resize
    size = dict(shortest_edge=to[0]) if len(to) == 1 else dict(height=to[0], width=to[1])
    crop_size = dict(height=height, width=width)
    return dict(image_processor_type="CLIPImageProcessor", size=size, do_center_crop=True, crop_size=crop_size, **steps)


def _samples(sounds: Any) -> dict[str, Any]:
    """preprocessor_config.json of sounds that are heard as samples."""
    return dict(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        feature_size=1,
        sampling_rate=sounds.rate,
        padding_value=0.0,
        do_normalize=sounds.normalize,
        return_attention_mask=True,
    )


def _filter_bank(task: Any, config: Any) -> dict[str, Any]:
    """preprocessor_config.json of sounds that are seen as Kaldi's log-mel frames."""
    bins, frames = config.image_size
    return dict(
        feature_extractor_type="ASTFeatureExtractor",
        feature_size=1,
        sampling_rate=task.sounds.rate,
        num_mel_bins=bins,
        max_length=frames,
        padding_value=0.0,
        do_normalize=True,
        mean=task.mean,
        std=task.deviation,
        return_attention_mask=False,
    )


def _vocabulary(task: Any, directory: Path, fill: int | None) -> list[str]:
    """The files of the encoder that the task was trained with. fill: the id that fills up rows, where no mask hides it.

    Raises UsageError where they are gone.
    """
    spec, around = task.texts.encoder, _around(task)
    if spec == "bytes":
        return byte_tokenizer(directory, around, fill or 0)
    if not Path(spec).expanduser().exists():
        raise UsageError(f"the vocabulary {spec} is gone, so it cannot come along")
    path, *beside = encoder_files(spec)
    settings = path.with_name("tokenizer_config.json")
    # config.json of the export is the model's own. A vocabulary of another name is not looked for.
    known = {*FILES, *BESIDE} - {"config.json", settings.name}
    kept = [file for file in (path, *beside) if file.name in known or file.suffix == ".model"]
    for file in kept:
        shutil.copyfile(file, directory / file.name)
    encoder, names = task.texts.opened, {file.name: None for file in kept}
    said = _specials(encoder) | (json.loads(settings.read_text(encoding="utf-8")) if settings in beside else {})
    if path.suffix != ".model":
        # One file says all that a reader would else guess from the model's family: how a text is cut, what goes around it.
        tokenizer = read_tokenizer(path).tokenizer
        whole = json.loads(tokenizer.to_str())
        word = next((piece for i, piece in enumerate(encoder.pieces) if piece and encoder.texts[i]), "a")
        if around_of(tokenizer, word) != around:
            whole["post_processor"] = _template(around, encoder.pieces)
            # A family's own class would put its own specials around, and so would these settings.
            said = {key: value for key, value in said.items() if key not in ("add_bos_token", "add_eos_token")}
            said["tokenizer_class"] = CLASS
        if fill is not None:
            whole["padding"] = _padding(fill, encoder.pieces[fill])
            said["padding_side"] = "right"
            # A word would no longer be read as text, and any other would be taken before it.
            said["pad_token"] = None if encoder.texts[fill] else encoder.pieces[fill]
        names |= dict.fromkeys(_json(directory, "tokenizer.json", whole))
    return [*names, *_json(directory, settings.name, said)]


def _around(task: Any) -> Around | None:
    """The specials around a text in the task's rows, or before a prompt; None: there are none."""
    encoder, fields = task.texts.opened, vars(task)
    if "packed" in fields:  # a language model, whose documents begin with BOS where they are packed
        begun = fields["packed"] and encoder.BOS not in (NO_ID, encoder.EOS)
        return Around((encoder.BOS,), (), (), (), 0) if begun else None
    windows = not fields.get("next_sentence", True)
    captions = task.texts.encoder == "bytes" and "pair" in fields  # which are their bytes alone
    return None if windows or captions or not encoder.around.count(two=True) else encoder.around


def _template(around: Around | None, pieces: Sequence[str] | Mapping[int, str]) -> dict[str, Any] | None:
    """The post-processor of tokenizer.json that puts these ids around texts."""
    if around is None:
        return None
    special = lambda ids, kind: [dict(SpecialToken=dict(id=pieces[i], type_id=kind)) for i in ids]  # noqa: E731
    text = lambda name, kind: dict(Sequence=dict(id=name, type_id=kind))  # noqa: E731
    first, kind = [*special(around.before, 0), text("A", 0)], around.second_type
    between = [one for i, k in zip(around.between, around.between_types, strict=True) for one in special([i], k)]
    used = {i: pieces[i] for i in (*around.before, *around.between, *around.after)}
    return dict(
        type="TemplateProcessing",
        single=[*first, *special(around.after, 0)],
        pair=[*first, *between, text("B", kind), *special(around.after, kind)],
        special_tokens={name: dict(id=name, ids=[i], tokens=[name]) for i, name in used.items()},
    )


def _padding(fill: int, piece: str) -> dict[str, Any]:
    """The padding of tokenizer.json, to the longest of a batch."""
    how = dict(strategy="BatchLongest", direction="Right", pad_to_multiple_of=None)
    return dict(**how, pad_id=fill, pad_type_id=0, pad_token=piece)


def byte_tokenizer(directory: Path, around: Around | None = None, fill: int = ByteEncoder.PAD) -> list[str]:
    """Bytes as a vocabulary of byte-level pieces without merges: the ids of `ByteEncoder`, with these around a text, and
    `fill` behind it."""
    names = {0: "[PAD]", 1: "[MASK]", 2: "[BOS]", 3: "[EOS]", 4: "[SEP]", 5: "[CLS]", 6: "[SPARE6]", 7: "[SPARE7]"}
    first = ByteEncoder.first_ordinary_id
    pieces = {**{name: i for i, name in names.items()}, **{c: first + b for b, c in byte_pieces().items()}}
    special = [
        dict(id=i, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, name in names.items()
    ]
    whole = dict(
        version="1.0",
        added_tokens=special,
        pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False),
        post_processor=_template(around, names),
        decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        model=dict(type="BPE", vocab=pieces, merges=[]),
    )
    _json(directory, "tokenizer.json", whole)
    settings = dict(
        tokenizer_class=CLASS, pad_token=next(p for p, i in pieces.items() if i == fill), mask_token="[MASK]"
    )
    return ["tokenizer.json", *_json(directory, "tokenizer_config.json", settings)]


def byte_pieces() -> dict[int, str]:
    """Map each byte to its sign in byte-level vocabularies (Radford 2019): itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [b for b in range(256) if b not in seen]
    return {b: chr(b) if b in seen else chr(256 + unseen.index(b)) for b in range(256)}


def _characters(letters: Alphabet, directory: Path) -> list[str]:
    """The alphabet of a transcript: the blank is the padding, a space the delimiter of words."""
    vocabulary = {"<pad>": 0, **{{" ": "|"}.get(c, c): i for i, c in enumerate(letters.characters, 1)}}
    settings = dict(
        tokenizer_class="Wav2Vec2CTCTokenizer",
        pad_token="<pad>",
        unk_token="<pad>",
        bos_token=None,
        eos_token=None,
        word_delimiter_token="|",
        do_lower_case=False,
    )
    return [*_json(directory, "vocab.json", vocabulary), *_json(directory, "tokenizer_config.json", settings)]


def padding(encoder: Any) -> int | None:
    """The id that fills up rows for whoever reads an export, or None. Our own rows of a vocabulary hold none of its ids there."""
    if encoder.PAD != NO_ID:
        return encoder.PAD
    return next((i for i, piece in enumerate(encoder.pieces) if piece in ("[PAD]", "<pad>", "<|pad|>")), None)


def _specials(encoder: Any) -> dict[str, Any]:
    roles = dict(MASK="mask_token", BOS="bos_token", EOS="eos_token", SEP="sep_token", CLS="cls_token")
    there = {role: getattr(encoder, name) for name, role in roles.items()} | {"pad_token": padding(encoder)}
    known = {role: encoder.surface(int(i)) for role, i in there.items() if i not in (None, NO_ID)}
    return dict(tokenizer_class=CLASS, **known)


def _json(directory: Path, name: str, value: Any) -> list[str]:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    (directory / name).write_text(text + "\n", encoding="utf-8")
    return [name]
