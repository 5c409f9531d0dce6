"""Terms of the evidence lower bound of a variational autoencoder. B images, L levels of latents, in nats."""

import math

import torch
from torch import Tensor


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each element (Kingma & Welling 2013, 1312.6114, appendix B)."""
    # expm1(v) - v, not exp(v) - 1 - v: near the prior that is all rounding.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """KL terms (B, L), each counted as `floor` nats where it is less, summed over the levels: (B,).

    Kingma et al. 2016 (arXiv 1606.04934, appendix C.8) compare the mean over the minibatch with the floor. That
    would make an update depend on how its images are split over processes and micro-batches, so each image is
    held to the floor by itself. An image below it feels no pull of the prior at that level.
    """
    return kl.clamp(min=floor).sum(1)


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """Lower bound of log p(x) from K draws of the latents: (K, B) -> (B,) (Burda et al. 2015, arXiv 1509.00519).

    `log_weights` are log p(x, z) - log q(z | x) of each draw. K = 1 is the ELBO's own estimate; more draws never
    loosen the bound in expectation.
    """
    return log_weights.logsumexp(0) - math.log(log_weights.shape[0])
