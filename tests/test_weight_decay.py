"""What weight decay is for, in the models of all tasks, by name."""

from __future__ import annotations

import re

import pytest
import tiny
from flax import nnx

from unimodal.training.parameters import described

MATRICES = """
    backbones.shared.layers.attention.{query,key,value,output}.kernel backbones.shared.layers.mlp.{up,down}.kernel
    heads.audio_classifier.classify.linear.kernel heads.bert.language.transform.kernel heads.clip.{image,text}.linear.kernel
    heads.ctc.characters.kernel heads.sentence.embed.linear.kernel heads.text_classifier.classify.{pooler,linear}.kernel
    heads.imagegpt.colours.linear.kernel heads.mae.decoder_{mask,position}.table heads.mae.{decoder_embed,patches}.kernel
    heads.vit.classify.linear.kernel heads.wav2vec2.{context,target}.kernel heads.wav2vec2.quantiser.scores.kernel
    heads.wav2vec2.quantiser.table tokenizers.audio.convolutions.kernel tokenizers.audio.position.direction
    tokenizers.{audio,image,spectrogram}.projection.kernel tokenizers.{image,spectrogram}.{position_table,registers}.table
    tokenizers.text.{position_table,table}.table
    heads.simclr.projector.linear.kernel heads.moco.projector.linear.kernel
    heads.moco.predictor.linear.kernel heads.swav.projector.linear.kernel heads.swav.prototypes.table
    heads.composed.embed.linear.kernel heads.virtex.start.table heads.dalle.start.table
    heads.dalle.{words,codes}.linear.kernel tokenizers.codes.{embedding,rows,columns}.table tokenizers.codes.vectors
    tokenizers.codes.encoder.first.kernel tokenizers.codes.{encoder,decoder}.last.kernel
    tokenizers.codes.{encoder,decoder}.groups.{skip,convolutions}.kernel
"""
VECTORS = """
    backbones.shared.layers.attention.{query,key,value,output}.bias backbones.shared.layers.mlp.{up,down}.bias
    backbones.shared.layers.attention.{query_norm,key_norm}.{scale,bias}
    backbones.shared.layers.{attention_norm,mlp_norm}.{scale,bias} backbones.shared.layers.{attention_scale,mlp_scale}
    backbones.shared.final_norm.{scale,bias}
    heads.audio_classifier.classify.linear.bias heads.bert.language.transform.bias heads.bert.language.norm.{scale,bias}
    heads.bert.language.decoder.bias heads.clip.temperature.log_scale heads.ctc.characters.bias
    heads.text_classifier.classify.{pooler,linear}.bias heads.vit.classify.linear.bias heads.wav2vec2.{context,target}.bias
    heads.wav2vec2.quantiser.scores.bias tokenizers.audio.convolutions.bias tokenizers.audio.convolutions.norm.{scale,bias}
    heads.mae.{decoder_embed,patches}.bias heads.composed.temperature.log_scale
    tokenizers.audio.{feature_norm,norm}.{scale,bias} tokenizers.audio.mask_embedding
    heads.{simclr,swav}.projector.linear.bias heads.moco.projector.linear.bias heads.moco.predictor.linear.bias
    heads.{simclr,swav,moco}.projector.norm.{scale,bias}
    heads.moco.projector.norm.{scale,bias} heads.moco.predictor.norm.{scale,bias}
    tokenizers.audio.position.{magnitude,bias} tokenizers.{audio,image,spectrogram}.projection.bias
    tokenizers.codes.encoder.first.bias tokenizers.codes.{encoder,decoder}.last.bias
    tokenizers.codes.{encoder,decoder}.groups.{skip,convolutions}.bias
"""


def spelt_out(text: str) -> set[str]:
    """a.{b,c} → a.b and a.c."""
    names = set(text.split())
    while short := next((name for name in names if "{" in name), None):
        names.remove(short)
        head, words, tail = re.fullmatch(r"(.*?)\{(.*?)\}(.*)", short).groups()  # pyright: ignore[reportOptionalMemberAccess]
        names |= {f"{head}{word}{tail}" for word in words.split(",")}
    return names


WEIGHTS = {name.rpartition(".")[2] for name in spelt_out(MATRICES)}


@pytest.mark.parametrize("scan", [True, False])
def test_what_decays_in_every_task(scan: bool) -> None:
    audio = {**tiny.plain()["tokenizers"]["audio"], "conv_bias": True}
    rich = dict(backbones__shared__qk_norm=True, backbones__shared__layer_scale=1e-4, tokenizers__audio=audio)
    experiment = tiny.build(tiny.plain(**rich, backbones__shared__scan=scan), fake_data=True)
    assert {task.name for task in experiment.tasks} == set(tiny.KINDS)
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for p in described(nnx.state(experiment.model, nnx.Param)):
        assert "kind" in p.metadata, f"{p.name} does not say what kind it is"
        found[p.decays].add(re.sub(r"\.\d+(?=\.)", "", p.name))
        assert p.stacked == (scan and ".layers." in p.name), p.name
    for decays, named in ((True, spelt_out(MATRICES)), (False, spelt_out(VECTORS))):
        assert named <= found[decays], named - found[decays]
        # The heads of a new task are not named above: they are judged by the last word of their names.
        for name in found[decays] - named:
            assert name.startswith("heads.") and (name.rpartition(".")[2] in WEIGHTS) == decays, name
