"""Pictures that a conditional VAE makes: under other labels, from the prior, and between two images.

Shapes: N images, C channels, S the side, K classes, T steps. Pictures are the likelihood's means, in 0..1. All
random numbers come from a generator on the images' device.
"""

import torch
from torch import Tensor

from models.generative_model import GenerativeModel, scaled


def wrong_labels(labels: Tensor, n_classes: int, generator: torch.Generator) -> Tensor:
    """For each of `labels` (N,) one of the K - 1 others, all equally likely."""
    steps = torch.randint(1, n_classes, labels.shape, generator=generator, device=labels.device)
    return (labels + steps) % n_classes


@torch.no_grad()
def relabelled(
    model: GenerativeModel, targets: Tensor, labels: Tensor, given: Tensor, generator: torch.Generator
) -> Tensor:
    """What the images of `targets` (N, C, S, S) with `labels` (N,) become under the labels `given`: (N, C, S, S).

    The global latent is drawn from the image's posterior; spatial ones from the prior under the label given, at the
    model's `picture_temperature`.
    """
    noise = _tempered_noise(model, len(targets), generator)
    return model.likelihood.mean(model.cvae.reconstruct(scaled(targets), labels, given, noise, kept_levels=1))


@torch.no_grad()
def reconstructed(model: GenerativeModel, targets: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The images under their own labels, all latents drawn from their posteriors: (N, C, S, S)."""
    noise = torch.randn(len(targets), model.cvae.n_noise, generator=generator, device=targets.device)
    return model.likelihood.mean(model.cvae(scaled(targets), labels, noise).parameters)


@torch.no_grad()
def drawn(model: GenerativeModel, labels: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """New pictures (N, C, S, S) of `labels` (N,) from the prior; a lower `temperature` is nearer to its mean.

    It scales the noise of all latents, that of spatial ones on top of the model's `picture_temperature`.
    """
    noise = _tempered_noise(model, len(labels), generator)
    return model.likelihood.mean(model.cvae.sample(labels, noise, temperature))


@torch.no_grad()
def interpolated(
    model: GenerativeModel, targets: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, n_steps: int
) -> Tensor:
    """From `targets` (N, C, S, S) to `others`, in T = `n_steps` equal steps of the global latent: (N, T, C, S, S).

    All under the label of the first image, `labels` (N,); spatial latents are the means of their priors.
    """
    first, _ = model.cvae.encode(scaled(targets), labels)
    last, _ = model.cvae.encode(scaled(others), other_labels)
    no_noise = first.new_zeros(len(first), model.cvae.n_noise - model.cvae.latent_dim)
    steps = [
        model.likelihood.mean(model.cvae.decode(torch.lerp(first, last, t), labels, no_noise))
        for t in torch.linspace(0, 1, n_steps).tolist()
    ]
    return torch.stack(steps, 1)


def _tempered_noise(model: GenerativeModel, n: int, generator: torch.Generator) -> Tensor:
    """Noise (n, n_noise) for the network, that of the spatial latents scaled by `picture_temperature`."""
    noise = torch.randn(n, model.cvae.n_noise, generator=generator, device=generator.device)
    noise[:, model.cvae.latent_dim :] *= model.picture_temperature
    return noise
