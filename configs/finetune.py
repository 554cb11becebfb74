"""Fine-tune a published checkpoint: its own tokenizers and backbones, and a task that reads what it reads.

python launch.py train --config=configs/finetune.py:DIR --workdir=runs/finetuned

DIR holds config.json and model.safetensors. Encoders of text with a masked-language head go on hiding tokens of the
book, others learn to classify emoji by their names; causal ones continue the book; images are classified, images with
text are matched, waveforms go on with wav2vec 2.0's task. Text is encoded by the vocabulary in DIR where the task takes
one, else as bytes, and then the table of embeddings starts afresh. Pictures and sounds are normalised, resized and sampled
as DIR says. What of DIR is used is printed by name.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.bert import Bert
from tasks.clip import Clip
from tasks.gpt import Gpt
from tasks.text_classifier import TextClassifier
from tasks.vit import Vit
from tasks.wav2vec2 import Wav2vec2
from unimodal import interop
from unimodal.data.encoders import FILES
from unimodal.data.text import ByteEncoder
from unimodal.interop.stages import MaskedVocabulary

# Columns of the embedded emoji, which these tasks read unless another source is given.
OF_EMOJI: dict[Any, dict[str, str]] = {Clip: dict(phrases="keywords"), TextClassifier: dict(column="name+keywords")}


def get_config(directory: str = "") -> ConfigDict:
    if not directory:
        raise ValueError("say which checkpoint, as in configs/finetune.py:DIR")
    found = interop.recipe(directory)
    config = common.base()
    config.init_from = directory
    config.update(steps=500, log_every=25, eval_every=250, eval_limit=4)
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 50
    for name, (kind, tokenizer) in found.tokenizers.items():
        config.tokenizers[name] = common.every(type(tokenizer), **vars(tokenizer))
        config.tokenizers[name].kind = kind
    for name, backbone in found.backbones.items():
        config.backbones[name] = common.backbone(**vars(backbone))
    # What each tower reads, and by what kind of tokenizer: a spectrogram, too, may be seen as an image.
    reads = sorted((tower.input, tower.kind) for tower in found.towers)
    if reads == [("text", "text")]:
        kind, task, more = text_task(found)
        config.tasks[kind] = common.every(task, backbone="text", **more, **text_fields(config, task, directory))
    elif reads == [("image", "image")]:
        pooling = "first" if config.tokenizers.image.registers else "mean"
        config.tasks.vit = common.every(Vit, backbone="image", pooling=pooling)
    elif reads == [("image", "image"), ("text", "text")]:
        given = pair_fields(config, found, directory)
        config.tasks.clip = common.every(Clip, image_backbone="image", text_backbone="text", **given)
    elif reads == [("audio", "audio")]:
        config.tasks.wav2vec2 = common.every(Wav2vec2, backbone="audio", **speech_fields(found))
    else:
        what = " and ".join(f"{given} through a tokenizer of {kind}" for given, kind in reads)
        raise ValueError(f"{directory} reads {what}, for which this recipe has no task; write a config of your own")
    fed = interop.preparation_of(directory, found.tokenizers, found.backbones, skip=config.init_skip)
    for task in config.tasks.values():
        task.update_from_flattened_dict(fed.of(task))
    return config


def text_task(found: interop.Recipe) -> tuple[str, Any, dict[str, Any]]:
    """The name of a task, its class, and what is to be set in it."""
    if found.towers[0].causal:
        return "gpt", Gpt, {}
    if any(isinstance(stage, MaskedVocabulary) for output in found.outputs for stage in output.stages):
        return "bert", Bert, {}
    pooled = any(output.name == "pooled" for output in found.outputs)
    return "text_classifier", TextClassifier, dict(pooling="first" if pooled else "mean")


def pair_fields(config: ConfigDict, found: interop.Recipe, directory: str) -> dict[str, Any]:
    """Fields for how the checkpoint makes embeddings of pictures and texts, and how it compares them."""
    heads, reader = found.heads, next(tower for tower in found.towers if tower.input == "text")
    given, text_head = text_fields(config, Clip, directory), dict(vars(heads["text"].config))
    if text_head["pooling"] == "end" and "encoder" not in given["texts"]:  # bytes have no end token
        text_head |= dict(pooling="last", end=None)
    if not reader.masked:  # rows are as long as those that it was trained on
        given["texts"]["length"] = config.tokenizers.text.max_length
    return dict(
        **given,
        size=heads["text"].size,
        image_head=vars(heads["image"].config),
        text_head=text_head,
        causal=reader.causal,
        objective="sigmoid" if heads["temperature"].bias else "softmax",
        fill=None if reader.masked else reader.fill_id,
    )


def speech_fields(found: interop.Recipe) -> dict[str, Any]:
    """The sizes of wav2vec 2.0's codebooks, where the checkpoint has any."""
    heads = found.heads
    if "quantiser" not in heads:
        return {}
    quantiser, size = heads["quantiser"], heads["target"].outputs
    codes = dict(groups=quantiser.groups, codes=quantiser.codes, code_size=quantiser.groups * quantiser.size)
    return dict(**codes, size=size)


def text_fields(config: ConfigDict, task: Any, directory: str) -> dict[str, Any]:
    """Fields for how the task encodes its texts; changes the config where that is to be as bytes."""
    tokenizer, length = config.tokenizers.text, task().texts.length
    texts: dict[str, Any] = dict(length=min(length, tokenizer.max_length or length), **OF_EMOJI.get(task, {}))
    if any((Path(directory) / name).is_file() for name in FILES):
        return dict(texts={**texts, "encoder": directory})
    tokenizer.vocabulary = ByteEncoder.vocab_size
    config.init_skip = r"tokenizers\.text\.table"
    return dict(texts=texts)
