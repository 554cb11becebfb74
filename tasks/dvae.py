"""Discrete VAE: pictures as a few codes of a learned vocabulary, and back (Ramesh 2021, appendix A)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.answers import from_its_codes
from unimodal.data.blocks import Images, Inputs, columns
from unimodal.errors import UsageError
from unimodal.evaluation.coded_pictures import coded_pictures
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.model import Model
from unimodal.objectives import (
    Loss,
    Summary,
    TaskMetrics,
    cosine_between,
    logit_laplace,
    relaxed_codes,
    uniform_divergence,
)
from unimodal.state import RunningCodebook
from unimodal.tokenizers import codebook


@dataclass(frozen=True)
class Dvae:
    """Pictures through a bottleneck of codes: relaxed by Gumbel-softmax or, with a codebook of kind vq, the nearest vector
    (van den Oord 2017)."""

    name: str = "dvae"  # logged under it
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images(mean=(0.0,), std=(1.0,))  # the pictures, in [0, 1]
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "codes"  # one of the config's tokenizers, of kind codebook, by name
    temperature: tuple[float, float] = (1.0, 1 / 16)  # of the relaxation, at first and at last
    temperature_steps: int = 150_000  # from the one to the other, along half a cosine
    divergence: float = 6.6  # β: weight of the divergence from uniform codes, beside nats of the whole picture
    divergence_steps: int = 5_000  # from 0 to it
    commitment: float = 0.25  # of vq: how strongly vectors are drawn towards their codes
    decay: float = 0.99  # of vq: of the running means that are its codes
    revive: float = 0.05  # of vq: a code whose running count is below this share of the mean begins again

    answers = from_its_codes

    def inputs(self, model: Model) -> Inputs:
        c = model.tokenizers[self.tokenizer].config
        if (self.images.mean, self.images.std) != ((0.0,), (1.0,)):
            raise UsageError(f"{self.name} takes pixels as they are, in [0, 1]: images.mean=(0,) and images.std=(1,)")
        return columns(self.source, self.images.part(c.image_size, c.channels))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {}

    def state(self, model: Model) -> dict[str, RunningCodebook]:
        c = model.tokenizers[self.tokenizer].config
        if not isinstance(c, codebook.Config):
            raise UsageError(f"{self.name}.tokenizer={self.tokenizer!r} must be of kind codebook")
        if c.quantiser != "vq":
            return {}
        return {"codes": RunningCodebook(model, self.tokenizer, self.decay, self.revive)}

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        tokenizer, image = model.tokenizers[self.tokenizer], batch["image"].astype(jnp.float32)
        judge = self.relaxed if tokenizer.config.quantiser == "gumbel" else self.nearest
        features, noise = tokenizer.features(image), jax.random.split(key)
        loss, metrics = judge(model, image, features, noise, step)
        use = jax.nn.one_hot(tokenizer.nearest(features), tokenizer.config.vocabulary).sum(axis=(0, 1, 2))
        return loss, {**metrics, "code_perplexity": Summary(_perplexity, use)}

    def relaxed(
        self, model: Model, image: jax.Array, scores: jax.Array, keys: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        """The evidence lower bound in nats for each value of the picture, with β on the divergence (§2.1 and A.2)."""
        tokenizer, values = model.tokenizers[self.tokenizer], math.prod(image.shape[1:])
        temperature = cosine_between(*self.temperature, step, self.temperature_steps)
        beta = cosine_between(0.0, self.divergence, step, self.divergence_steps)
        weights = relaxed_codes(scores, keys[0], temperature)
        given = tokenizer.decode(weights @ tokenizer.vectors.get_value(), keys[1])
        centre, log_scale = jnp.split(given, 2, axis=-1)
        pixels = logit_laplace(codebook.mapped(image), centre, log_scale).mean()
        divergence = uniform_divergence(scores).mean() * tokenizer.config.tokens / values
        metrics = {"pixel_nats": pixels, "divergence": divergence, "temperature": temperature, "beta": beta}
        return pixels + beta * divergence, metrics

    def nearest(
        self, model: Model, image: jax.Array, vectors: jax.Array, keys: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        """Squared error and commitment; the gradient passes the choice as if it were none (van den Oord 2017, eq. 3)."""
        tokenizer = model.tokenizers[self.tokenizer]
        codes = jax.lax.stop_gradient(tokenizer.look_up(tokenizer.nearest(vectors)))
        model.state[self.name]["codes"].push(vectors)
        given = tokenizer.decode(vectors + jax.lax.stop_gradient(codes - vectors), keys[1])
        error = jnp.square(given[..., : image.shape[3]] - image).mean()
        commitment = jnp.square(vectors - codes).mean()
        return error + self.commitment * commitment, {"pixel_error": error, "commitment": commitment}

    def evaluations(self) -> dict[str, Evaluation]:
        shared: dict[str, Any] = dict(inputs=self.inputs, batch_size=self.batch_size)
        return {self.name: coded_pictures(self.images, self.tokenizer, **shared)}


def _perplexity(counts: jax.Array) -> jax.Array:
    """How many codes are in use, exp(entropy), of how often each was."""
    share = counts / counts.sum()
    return jnp.exp(-(share * jnp.log(share + 1e-10)).sum())
