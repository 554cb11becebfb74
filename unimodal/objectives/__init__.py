"""Objectives: pure functions of arrays → (loss `[B]` float32, sums over the batch).

An objective takes arrays of any float dtype and works in float32. It knows no module, config or mesh. A fully padded example
has loss 0 and a finite gradient. A batch that is sharded over devices needs nothing special.

| file | holds |
|---|---|
| `reduction` | from values at positions to a loss per example and sums; `ratio` of two sums |
| `terms` | parts of a task's loss and metrics that know what they divide by, for gradient accumulation |
| `softmax` | softmax cross-entropy, dense and chunked, which the others use |
| `causal` | next token (GPT) |
| `masked` | hidden tokens (BERT) |
| `pixels` | hidden patches (MAE) |
| `classification` | one class, soft labels, many labels (ViT, heads) |
| `codebooks` | discrete VAE: likelihood of pixels, relaxed codes, their divergence from uniform |
| `mixing` | pictures and labels mixed in pairs (mixup, CutMix) |
| `contrastive` | CLIP, SigLIP, SimCLR, MoCo: two views against the global batch |
| `rows` | rows of a batch in chunks, where each is compared with all |
| `clusters` | SwAV: assignments that use all clusters alike, and their prediction |
| `collapse` | do features still tell examples apart? |
| `speech` | wav2vec 2.0: distractors, contrastive, code diversity, Gumbel codes |
| `ctc` | transcripts without alignment |
"""

from unimodal.objectives.causal import (
    caption_targets,
    causal_lm,
    chunked_causal_lm,
    next_token_targets,
    shifted_right,
)
from unimodal.objectives.classification import classification_loss, sigmoid_classification, softmax_classification
from unimodal.objectives.clusters import prototype_use, sinkhorn, swapped_prediction
from unimodal.objectives.codebooks import cosine_between, logit_laplace, relaxed_codes, uniform_divergence
from unimodal.objectives.collapse import feature_deviation
from unimodal.objectives.contrastive import clip, info_nce, nt_xent, siglip, unit, whole_batch
from unimodal.objectives.ctc import ctc_loss
from unimodal.objectives.identity import row_codes
from unimodal.objectives.masked import masked_lm
from unimodal.objectives.mixing import mixed
from unimodal.objectives.pixels import masked_pixels, patch_statistics, restored, visible_first
from unimodal.objectives.reduction import Metrics, example_sum, ratio
from unimodal.objectives.softmax import chunked_cross_entropy, cross_entropy, in_chunks, position_cross_entropy
from unimodal.objectives.speech import (
    code_perplexity,
    diversity,
    diversity_term,
    gumbel_codes,
    sample_negatives,
    wav2vec2_contrastive,
)
from unimodal.objectives.terms import Loss, Mean, Sum, Summary, TaskMetrics, WholeBatch, as_scalars

__all__ = [
    "Loss",
    "Mean",
    "Metrics",
    "Sum",
    "Summary",
    "TaskMetrics",
    "WholeBatch",
    "as_scalars",
    "caption_targets",
    "causal_lm",
    "chunked_causal_lm",
    "chunked_cross_entropy",
    "classification_loss",
    "clip",
    "cosine_between",
    "code_perplexity",
    "cross_entropy",
    "ctc_loss",
    "diversity",
    "diversity_term",
    "example_sum",
    "feature_deviation",
    "gumbel_codes",
    "in_chunks",
    "info_nce",
    "logit_laplace",
    "masked_lm",
    "masked_pixels",
    "mixed",
    "next_token_targets",
    "nt_xent",
    "patch_statistics",
    "position_cross_entropy",
    "prototype_use",
    "ratio",
    "relaxed_codes",
    "restored",
    "row_codes",
    "sample_negatives",
    "shifted_right",
    "siglip",
    "sigmoid_classification",
    "sinkhorn",
    "softmax_classification",
    "swapped_prediction",
    "unit",
    "uniform_divergence",
    "visible_first",
    "wav2vec2_contrastive",
    "whole_batch",
]
