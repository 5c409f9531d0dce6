"""A conditional VAE from a folder that `tools.export` wrote: `from_pretrained(FOLDER)("7", 10)`.

Stands in the project and, copied, in the folder itself, so that the folder can be used alone.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.seeding import Stream, seeded_generator
from models.cvae import CVAE
from models.cvae_pictures import drawn
from models.generative_model import GenerativeModel
from models.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedGaussian, Likelihood, LogisticMixture
from tools.pretrained.folder import load_model_weights, local_folder, read_description


class PretrainedSampler:
    """A trained VAE with its class names: a label -> new pictures of it.

    `description` is config.json: the network's arguments and its classes.
    """

    def __init__(self, model: GenerativeModel, description: dict[str, Any], device: torch.device):
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()
        self.description, self.device = description, device
        self.class_names: list[str] = description["class_names"]

    def __call__(self, label: str, n: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """(n, C, S, S) in 0..1, on the CPU; below 1 the temperature makes them less varied, more typical.

        Raises DataError for a label that is no class's name.
        """
        if label not in self.class_names:
            raise DataError(f"no class is called {label}: choose one of {', '.join(self.class_names)}")
        index = self.class_names.index(label)
        labels = torch.full((n,), index, device=self.device)
        generator = seeded_generator(self.device, Stream.SAMPLES, seed, index)
        return drawn(self.model, labels, generator, temperature).cpu()

    @torch.no_grad()
    def outputs(self, labels: Tensor, noise: Tensor) -> Tensor:
        """labels (B,), noise (B, n_noise) standard normals -> pictures (B, C, S, S) in 0..1."""
        return pictures(self.model, labels.to(self.device), noise.to(self.device)).cpu()


def pictures(model: GenerativeModel, labels: Tensor, noise: Tensor) -> Tensor:
    """The mean picture of labels (B,) and latents drawn with noise (B, n_noise): (B, C, S, S) in 0..1."""
    of_global, of_spatial = noise.split([model.cvae.latent_dim, noise.shape[1] - model.cvae.latent_dim], 1)
    tempered = torch.cat([of_global, model.picture_temperature * of_spatial], 1)
    return model.likelihood.mean(model.cvae.sample(labels, tempered))


def build_model(architecture: dict[str, Any]) -> GenerativeModel:
    """The untrained model: arguments of `CVAE`, "likelihood" with "n_mixtures", and "picture_temperature"."""
    arguments = dict(architecture)
    name, n_mixtures = arguments.pop("likelihood"), arguments.pop("n_mixtures")
    temperature = arguments.pop("picture_temperature")
    likelihoods: dict[str, Callable[[], Likelihood]] = {
        "bernoulli": Bernoulli,
        "continuous_bernoulli": ContinuousBernoulli,
        "logistic_mixture": partial(LogisticMixture, n_mixtures),
        "gaussian": partial(DiscretisedGaussian, arguments["channels"]),
    }
    return GenerativeModel(CVAE(**arguments), likelihoods[name](), picture_temperature=temperature)


def from_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> PretrainedSampler:
    """The model of a folder, or of a name on the hub. Raises DataError where there is none."""
    folder = local_folder(folder)
    description = read_description(folder, "cvae")
    model = build_model(description["architecture"])
    load_model_weights(model, folder)
    return PretrainedSampler(model, description, torch.device(device))
