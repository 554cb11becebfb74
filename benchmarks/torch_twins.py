"""What each task trains, once more: Hugging Face models with random weights, of the sizes that an experiment has.

A twin takes the arrays of our batch and gives a module and its loss. Dropout is off, attention is
`scaled_dot_product_attention`, all else is as transformers has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch_twins_vision
import transformers as hf
from torch import nn
from torch.nn import functional as F
from torch_twins_vision import Batch, Made, channels_first, encoder
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

from unimodal.experiment import Experiment
from unimodal.training.optimizer import OptimizerConfig


class Step:
    """`count` training steps: forward, backward, clipping, AdamW. half: the forward pass under autocast to bfloat16, with
    parameters and optimizer in float32."""

    def __init__(
        self, module: nn.Module, loss: Callable[[], torch.Tensor], config: OptimizerConfig, half: bool, count: int
    ):
        self.module, self.loss, self.half, self.count = module, loss, half, count
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.device, self.clip = self.parameters[0].device.type, config.clip
        options: dict[str, Any] = dict(betas=(config.b1, config.b2), eps=config.epsilon, lr=1e-4)
        # Its fastest on CUDA and on a CPU: at 10M parameters on one core 14 ms a step, where a loop takes 45 and foreach 54.
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=config.weight_decay, fused=True, **options)
        self.last = torch.full((), float("nan"))

    def __call__(self) -> None:
        for _ in range(self.count):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
                self.last = self.loss()
            self.last.backward()
            if self.clip:
                nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()


def twin(experiment: Experiment, arrays: Mapping[str, np.ndarray], device: str) -> Made:
    """The twin of an experiment's only task on a batch of it. Raises KeyError for a task that has none."""
    (task,) = experiment.tasks
    batch = {}
    for name, array in arrays.items():
        value = torch.from_numpy(np.array(array)).to(device)
        batch[name] = value.long() if value.dtype == torch.int32 else value
    torch.manual_seed(0)
    with torch.device(device):
        module, loss = TWINS[type(task).__name__](experiment, task, batch)
    if any(backbone.remat == "full" for backbone in experiment.backbones.values()):
        module.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    return module.train(), loss


def gpt(experiment: Experiment, task: Any, batch: Batch) -> Made:
    b, text = experiment.backbones[task.backbone], experiment.tokenizers[task.tokenizer][1]
    sizes = dict(
        n_embd=b.width, n_layer=b.depth, n_head=b.heads, vocab_size=text.vocabulary, n_positions=text.max_length
    )
    none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa")
    model, ids = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **none)), batch["ids"]
    return model, lambda: model(input_ids=ids, labels=ids).loss


def bert_config(experiment: Experiment, task: Any, **more: Any) -> Any:
    text = experiment.tokenizers[task.tokenizer][1]
    sizes = dict(vocab_size=text.vocabulary, max_position_embeddings=text.max_length, type_vocab_size=text.types)
    none = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return hf.BertConfig(**encoder(experiment.backbones[task.backbone]), **sizes, **none, **more)


def real(ids: torch.Tensor, task: Any) -> torch.Tensor:
    """The attention mask: what is no padding."""
    return (ids != task.texts.pad).long()


def bert(experiment: Experiment, task: Any, batch: Batch) -> Made:
    model, ids = hf.BertForMaskedLM(bert_config(experiment, task)), batch["inputs"]
    mask, labels = real(ids, task), torch.where(batch["weights"] > 0, batch["targets"], -100)
    return model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss


def text_classifier(experiment: Experiment, task: Any, batch: Batch) -> Made:
    config = bert_config(
        experiment, task, num_labels=task.labels.size(task.source), problem_type="single_label_classification"
    )
    model, ids = hf.BertForSequenceClassification(config), batch["ids"]
    mask = real(ids, task)
    return model, lambda: model(input_ids=ids, attention_mask=mask, labels=batch["label"]).loss


class Embedder(nn.Module):
    """BERT, the mean over real tokens, and a projection to unit length."""

    def __init__(self, config: Any, size: int):
        super().__init__()
        self.bert = hf.BertModel(config, add_pooling_layer=False)
        self.projection = nn.Linear(config.hidden_size, size, bias=False)

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.bert.gradient_checkpointing_enable(options)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return F.normalize(self.projection(mean).float(), dim=-1)


def sentence(experiment: Experiment, task: Any, batch: Batch) -> Made:
    model = Embedder(bert_config(experiment, task), task.size)
    sides = [(batch[side], real(batch[side], task)) for side in ("first", "second")]
    same = torch.arange(task.batch_size)

    def loss() -> torch.Tensor:
        first, second = (model(ids, mask) for ids, mask in sides)
        logits = first @ second.T / task.temperature
        return 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))

    return model, loss


def clip(experiment: Experiment, task: Any, batch: Batch) -> Made:
    image, text = (experiment.tokenizers[name][1] for name in (task.image_tokenizer, task.text_tokenizer))
    config = hf.CLIPConfig(
        vision_config={
            **encoder(experiment.backbones[task.image_backbone]),
            **dict(image_size=image.image_size[0], patch_size=image.patch),
        },
        text_config={
            **encoder(experiment.backbones[task.text_backbone]),
            **dict(vocab_size=text.vocabulary, max_position_embeddings=text.max_length),
        },
        projection_dim=task.size,
        attn_implementation="sdpa",
    )
    model, pixels, ids = hf.CLIPModel(config), channels_first(batch["image"]), batch["ids"]
    mask = torch.ones_like(ids)
    return model, lambda: model(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True).loss


def speech_config(experiment: Experiment, task: Any, **more: Any) -> Any:
    b, audio = experiment.backbones[task.backbone], experiment.tokenizers[task.tokenizer][1]
    names = ("hidden", "activation", "attention", "feat_proj", "feat_quantizer", "final")
    return hf.Wav2Vec2Config(
        **encoder(b),
        **{f"{name}_dropout": 0.0 for name in names},
        layerdrop=0.0,
        conv_dim=(audio.channels,) * len(audio.kernels),
        conv_kernel=audio.kernels,
        conv_stride=audio.strides,
        conv_bias=audio.conv_bias,
        feat_extract_norm=audio.conv_norm,
        do_stable_layer_norm=b.norm_position == "pre",
        num_conv_pos_embeddings=audio.position_kernel,
        num_conv_pos_embedding_groups=audio.position_groups,
        **{"mask_time_prob": 0.0, **more},
    )


def wav2vec2(experiment: Experiment, task: Any, batch: Batch) -> Made:
    """Masks and distractors are drawn once, as its data collator would; ours draws distractors in the step."""
    config = speech_config(
        experiment,
        task,
        mask_time_prob=task.mask / task.span,  # else it has no mask embedding; the masks are given
        num_codevector_groups=task.groups,
        num_codevectors_per_group=task.codes,
        codevector_dim=task.code_size,
        proj_codevector_dim=task.size,
        num_negatives=task.negatives,
        contrastive_logits_temperature=task.temperature,
        diversity_loss_weight=task.diversity,
    )
    model, masked = hf.Wav2Vec2ForPreTraining(config), batch["masked"]
    drawn = _sample_negative_indices(tuple(masked.shape), task.negatives, masked.cpu().numpy())
    inputs = dict(
        input_values=batch["audio"],
        mask_time_indices=masked,
        sampled_negative_indices=torch.as_tensor(drawn).long().to(masked.device),
    )
    count = masked.sum()
    return model, lambda: model(**inputs).loss / count


def ctc(experiment: Experiment, task: Any, batch: Batch) -> Made:
    audio, text = experiment.tokenizers[task.tokenizer][1], batch["text"]
    known = dict(vocab_size=task.letters.classes, pad_token_id=0, ctc_loss_reduction="mean", ctc_zero_infinity=True)
    model = hf.Wav2Vec2ForCTC(speech_config(experiment, task, **known))
    if audio.feature_gradient == 0:
        model.freeze_feature_encoder()
    labels = torch.where(text > 0, text, -100)
    return model, lambda: model(input_values=batch["audio"], labels=labels).loss


def audio_classifier(experiment: Experiment, task: Any, batch: Batch) -> Made:
    image = experiment.tokenizers[task.tokenizer][1]
    (bins, frames), (down, across) = image.image_size, image.stride
    sizes = dict(num_mel_bins=bins, max_length=frames, frequency_stride=down, time_stride=across)
    config = hf.ASTConfig(
        **encoder(experiment.backbones[task.backbone]), **sizes, patch_size=image.patch, num_labels=task.classes
    )
    model, values = hf.ASTForAudioClassification(config), batch["spectrogram"][..., 0].transpose(1, 2).contiguous()
    return model, lambda: model(input_values=values, labels=batch["label"]).loss


TWINS: dict[str, Callable[[Experiment, Any, Batch], Made]] = {
    **torch_twins_vision.TWINS,
    "Gpt": gpt,
    "Bert": bert,
    "TextClassifier": text_classifier,
    "Sentence": sentence,
    "Clip": clip,
    "Wav2vec2": wav2vec2,
    "Ctc": ctc,
    "AudioClassifier": audio_classifier,
}
