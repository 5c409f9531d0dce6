"""A conditional VAE with the likelihood of its images, and what reads labels beside it.

What is trained on is put together in train_cvae.py, from the terms that come from here, of each image by itself.
Shapes as in models/cvae.py.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.auxiliary_classifier import LabelClassifier
from models.cvae import CVAE, CVAEOutput
from models.elbo import importance_weighted_bound
from models.likelihoods import Likelihood

CONTRAST = 0.42  # standard deviation of the values, from -1 to 1, of a photograph: the median of CIFAR-10


class GenerativeModel(nn.Module):
    """p(image | label): the CVAE and the likelihood of its outputs; in training also what makes it heed the label.

    With `probe_weight` > 0 a probe reads the label from the latent and the encoder learns against it, so that the
    latent does not tell the label and the decoder must take it from where it is given (Klys, Snell and Zemel 2018,
    arXiv 1812.06190; the gradient is turned round as in Ganin and Lempitsky 2015, arXiv 1409.7495).

    With `classifier_weight` > 0 a classifier learns the labels of the real images, and the decoder learns that it
    sees the label given in what becomes of them under a wrong one (as Hu et al. 2017, arXiv 1703.00955, have it
    for text). The bound on the likelihood does not count it. A classifier of photographs is fooled by patterns
    that no other one takes for a label. With `classifier_noise` > 0 it sees all pictures under normal noise, which
    asks for shapes (Kaur et al. 2019, arXiv 1910.08640), of up to that share of the contrast that photographs have;
    more contrast than theirs is taken from a picture first, or it would drown the noise. With `classifier_pooling`
    > 1 it sees squares of so many pixels averaged, and no finer pattern moves it. Drawing images a second time and
    showing them takes much of an update. With `classifier_every` > 1 that is done with the first of each so many
    images alone, which then count for all.

    `picture_temperature` scales the noise of spatial latents in pictures that are made for a label, here and in
    models/cvae_pictures.py: at 0 they are drawn at the means of their priors.

    `n_noise` are the standard normals that an image takes: those of the network, then, where there is a classifier,
    one for the wrong label and those of what it sees.

    Raises `ValueError` for a negative number, for one in less than one image, and for squares that are larger than
    the image.
    """

    def __init__(
        self,
        cvae: CVAE,
        likelihood: Likelihood,
        probe_weight: float = 0.0,
        classifier_weight: float = 0.0,
        classifier_noise: float = 0.0,
        classifier_pooling: int = 1,
        classifier_every: int = 1,
        picture_temperature: float = 1.0,
    ):
        super().__init__()
        numbers = {
            "probe_weight": probe_weight,
            "classifier_weight": classifier_weight,
            "classifier_noise": classifier_noise,
            "picture_temperature": picture_temperature,
        }
        for name, value in numbers.items():
            if value < 0:
                raise ValueError(f"{name} {value}: give 0 or more")
        if not 1 <= classifier_pooling <= cvae.image_size:
            raise ValueError(f"classifier_pooling {classifier_pooling}: give 1 to {cvae.image_size} pixels")
        if classifier_every < 1:
            raise ValueError(f"classifier_every {classifier_every}: give 1 or more")
        self.cvae, self.likelihood = cvae, likelihood
        self.probe_weight, self.classifier_weight = probe_weight, classifier_weight
        self.classifier_noise, self.classifier_every = classifier_noise, classifier_every
        self.picture_temperature = picture_temperature
        hazy = classifier_weight > 0 and classifier_noise > 0
        of_classifier = 1 + (1 + cvae.channels * cvae.image_size**2) * hazy
        self.n_noise = cvae.n_noise + (of_classifier if classifier_weight > 0 else 0)
        if probe_weight > 0:
            self.probe = nn.Sequential(nn.Linear(cvae.latent_dim, 256), nn.SiLU(), nn.Linear(256, cvae.n_classes))
        if classifier_weight > 0:
            self.classifier = LabelClassifier(cvae.channels, cvae.n_classes, classifier_pooling)

    def forward(
        self, targets: Tensor, labels: Tensor, decoder_labels: Tensor, noise: Tensor
    ) -> tuple[Tensor, CVAEOutput, Tensor]:
        """Returns the log-likelihood (B,), the network's output and the loss of probe and classifier (B,), in nats.

        Targets are (B, C, S, S), labels (B,), noise (B, n_noise). The network is given `decoder_labels`, some of
        which may be `no_label`; probe and classifier are after `labels`.
        """
        noise, of_classifier = noise.split([self.cvae.n_noise, self.n_noise - self.cvae.n_noise], 1)
        output = self.cvae(scaled(targets), decoder_labels, noise)
        log_prob = self.likelihood.log_prob(output.parameters, targets)
        label_loss = torch.zeros_like(log_prob)
        if self.probe_weight > 0:
            # The same value with the gradient turned round: the probe learns to read, the encoder to hide.
            latent = (1 + self.probe_weight) * output.latent.detach() - self.probe_weight * output.latent
            label_loss = label_loss + F.cross_entropy(self.probe(latent).float(), labels, reduction="none")
        if self.classifier_weight > 0:
            each = (targets, labels, output.latent.detach(), noise, of_classifier)
            some = [tensor[:: self.classifier_every] for tensor in each]
            loss = torch.zeros_like(log_prob)
            loss[:: self.classifier_every] = self._classifier_loss(*some) * (len(labels) / len(some[0]))
            label_loss = label_loss + loss
        return log_prob, output, label_loss

    def _classifier_loss(
        self, targets: Tensor, labels: Tensor, latent: Tensor, noise: Tensor, of_classifier: Tensor
    ) -> Tensor:
        """(B,): the classifier's loss on the images, and the decoder's on the same latents under wrong labels.

        Of the classifier's noise (B, 1 or 2 + C S S) the first decides which of the other labels is an image's
        wrong one, and the second how strong the rest is: from 0 to `classifier_noise`, evenly.
        """
        images, haze = scaled(targets), None
        if of_classifier.shape[1] > 1:
            strength = self.classifier_noise * torch.special.ndtr(of_classifier[:, 1:2])
            haze = (strength * of_classifier[:, 2:]).view_as(images)
        seen = F.cross_entropy(self.classifier(_hazy(images, haze)).float(), labels, reduction="none")
        others = self.cvae.n_classes - 1
        steps = 1 + (torch.special.ndtr(of_classifier[:, 0]) * others).long().clamp(0, others - 1)
        given = (labels + steps) % self.cvae.n_classes
        spatial_noise = noise[:, self.cvae.latent_dim :]
        pictures = self.likelihood.mean(self.cvae.decode(latent, given, spatial_noise, self.picture_temperature))
        fixed = {name: p.detach() for name, p in self.classifier.named_parameters()}
        logits = functional_call(self.classifier, fixed, (_hazy(2 * pictures - 1, haze),))
        return seen + self.classifier_weight * F.cross_entropy(logits.float(), given, reduction="none")

    @torch.no_grad()
    def bounds(
        self, targets: Tensor, labels: Tensor, n_draws: int, generator: torch.Generator
    ) -> tuple[Tensor, CVAEOutput, Tensor]:
        """Of one draw of the latents the log-likelihood (B,) and the output, of `n_draws` >= 1 the bound (B,).

        That is the importance-weighted one (models/elbo.py), in nats. The noise is of `generator`, on the device.
        """
        posterior = self.cvae.infer(scaled(targets), labels)
        log_weights = []
        for draw in range(n_draws):
            noise = torch.randn(len(labels), self.cvae.n_noise, generator=generator, device=targets.device)
            output = self.cvae.draw(posterior, labels, noise)
            log_prob = self.likelihood.log_prob(output.parameters, targets)
            log_weights.append(log_prob - output.log_ratio)
            if draw == 0:
                first = log_prob, output
        return *first, importance_weighted_bound(torch.stack(log_weights))


def scaled(targets: Tensor) -> Tensor:
    """Targets, uint8 or floats from 0 to 1, as the encoder takes them: floats from -1 to 1."""
    return targets.float() / 127.5 - 1 if targets.dtype == torch.uint8 else 2 * targets - 1


def _hazy(pictures: Tensor, haze: Tensor | None) -> Tensor:
    """Pictures (B, C, S, S) around 0 with at most `CONTRAST`, in its units, and normal noise of that shape.

    Without noise as they are.
    """
    if haze is None:
        return pictures
    centred = pictures - pictures.mean((1, 2, 3), keepdim=True)
    contrast = centred.square().mean((1, 2, 3), keepdim=True).clamp(min=CONTRAST**2).sqrt()
    return centred / contrast + haze
