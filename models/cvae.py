"""Label-conditional variational autoencoder with a global latent and, below it, spatial ones.

The global latent z has the prior N(0, I) whatever the label (Kingma & Welling 2013, arXiv 1312.6114; Sohn et al.
2015). Spatial latents have priors that the decoder's state gives, and are inferred top-down: an encoder's maps
meet the decoder's state, level for level (Sønderby et al. 2016, arXiv 1602.02282; Kingma et al. 2016, 1606.04934;
Child 2020, 2011.10650).

Shapes: B images, C channels, S the image's side, s the side of a map, W the channels of a map, D = latent_dim,
E = label_dim, L = 1 + the number of spatial latents. All random numbers come from the caller.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.elbo import kl_to_standard_normal

GROUP_CHANNELS = 16  # of a group norm; with fewer, torch's bf16 kernel for CPUs does not vectorise
COARSEST_SIDE = 7  # maps are halved down to this side or less
LOG_VARIANCE_BOUND = 10.0
SHRINKING = 0.1  # of the weights that end a branch, at the start
NARROW_LOG_VARIANCE = -3.0  # of posteriors that begin narrow, relative to the prior
SOFTPLUS_BETA = math.log(2)  # of standard deviations by softplus: one at zero
LEAST_RAW = -100.0  # below, softplus would underflow; the variance is bounded long before

Sigma = Literal["exp", "softplus"]


class Posterior(NamedTuple):
    """What the encoder says of a batch: the global latent's posterior, and maps for those of the spatial ones."""

    mean: Tensor  # (B, D) fp32
    log_variance: Tensor  # (B, D) fp32
    maps: tuple[Tensor, ...]  # (B, W, s, s), coarse to fine: one for each spatial latent


class CVAEOutput(NamedTuple):
    """Nats are of an image each. The ELBO is the likelihood's log_prob(parameters, targets) - kl.sum(1)."""

    parameters: Tensor  # (B, n_outputs, S, S): of the likelihood
    kl: Tensor  # (B, L) fp32: analytic, the global latent first; of a level given the ones drawn above it
    kl_units: Tensor  # (B, D) fp32: of the units of the global latent
    log_ratio: Tensor  # (B,) fp32: log q(z | x, y) - log p(z | y) of all drawn latents, for importance weights
    latent: Tensor  # (B, D) fp32: the drawn global latent
    latent_mean: Tensor  # (B, D) fp32


class CVAE(nn.Module):
    """Images (B, C, S, S) float, labels (B,) int64 and noise (B, n_noise) -> `CVAEOutput`.

    `patch_size` pixels square are folded into channels before the encoder and unfolded after the decoder: with 2,
    all maps have half the side. The maps are halved down to a side of 7 or less, for S = 28 and 32 to
    28, 14, 7 and 32, 16, 8, 4; they have `width`, 2 `width` and then 4 `width` channels. `spatial_latents` are
    pairs (side of the map, channels of the latent), coarse to fine; a side may come several times. Each latent is
    followed by `n_blocks` residual blocks, and so is a side without one. `fine_width` other than 0 is the number of
    channels at the finest side instead, where most of the work is.

    `sigma` says how the standard deviations of all latents come from what a layer gives: by an exponential, or by a
    softplus, whose gradient is never more than one (Hazami et al. 2022, Efficient-VDVAE, arXiv 2203.13751).

    The one-hot label goes through an embedding. "concat" appends it to the encoder's image, as constant maps, and
    to the vectors around the latent. "film" makes it the scale and the shift of every norm (Perez et al. 2017,
    arXiv 1709.07871). An encoder that does not see the label is blind in both; the posteriors of spatial latents
    meet it nevertheless, in the decoder's state. Posteriors begin near their priors, where a latent is hardly worth
    its noise and may never come to be used; with `narrow_posteriors` those of the spatial latents tell of the
    image from the first update, at a KL that wants a warm-up. The label `no_label` = n_classes has an embedding of
    its own, which means something once trained with `drop_labels`.

    `level_sizes` are the units of the L latents, the global one first, and `n_noise` their sum: the standard
    normals that an image takes, in that order.

    Raises `ValueError` for arguments that do not fit together.
    """

    def __init__(
        self,
        n_classes: int,
        channels: int,
        image_size: int,
        n_outputs: int,
        *,
        latent_dim: int = 32,
        spatial_latents: tuple[tuple[int, int], ...] = (),
        width: int = 32,
        n_blocks: int = 1,
        patch_size: int = 1,
        label_dim: int = 32,
        conditioning: Literal["concat", "film"] = "film",
        encoder_sees_label: bool = True,
        narrow_posteriors: bool = False,
        fine_width: int = 0,
        sigma: Sigma = "exp",
    ):
        super().__init__()
        counts = {
            "n_classes": n_classes,
            "channels": channels,
            "n_outputs": n_outputs,
            "latent_dim": latent_dim,
            "n_blocks": n_blocks,
            "patch_size": patch_size,
            "label_dim": label_dim,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} {value}: give at least 1")
        if width < 1 or width % GROUP_CHANNELS:
            raise ValueError(f"width {width}: give a multiple of {GROUP_CHANNELS}, the channels of a norm's group")
        if fine_width < 0 or fine_width % GROUP_CHANNELS:
            raise ValueError(f"fine_width {fine_width}: give a multiple of {GROUP_CHANNELS}, or 0 for width")
        smallest = max(8, 4 * patch_size)
        if image_size < smallest:
            raise ValueError(f"image_size {image_size}: with patch_size {patch_size} give at least {smallest}")
        if conditioning not in ("concat", "film"):
            raise ValueError(f"unknown conditioning {conditioning}: choose one of concat, film")
        if sigma not in ("exp", "softplus"):
            raise ValueError(f"unknown sigma {sigma}: choose one of exp, softplus")
        sides = map_sides(image_size, patch_size)
        for side, latent_channels in spatial_latents:
            if side not in sides or latent_channels < 1:
                raise ValueError(
                    f"spatial latent {(side, latent_channels)}: give a side of {', '.join(map(str, sides))} and "
                    "at least one channel"
                )
        if any(coarse > fine for (coarse, _), (fine, _) in pairwise(spatial_latents)):
            raise ValueError(f"spatial latents {spatial_latents} are not in order from coarse to fine")

        self.n_classes = self.no_label = n_classes
        self.channels, self.image_size = channels, image_size
        self.latent_dim = latent_dim
        self.embedding = nn.Linear(n_classes + 1, label_dim, bias=False)
        nn.init.normal_(self.embedding.weight)
        film_dim, concat_dim = (label_dim, 0) if conditioning == "film" else (0, label_dim)
        widths = [width * min(2**i, 4) for i in range(len(sides))]
        widths[0] = fine_width or width
        seen = int(encoder_sees_label)
        self.encoder = Encoder(
            channels,
            patch_size,
            sides,
            widths,
            n_blocks,
            latent_dim,
            spatial_latents,
            film_dim * seen,
            concat_dim * seen,
            sigma,
        )
        self.decoder = Decoder(
            latent_dim,
            image_size,
            patch_size,
            sides,
            widths,
            n_blocks,
            n_outputs,
            spatial_latents,
            film_dim,
            concat_dim,
            sigma,
        )
        if narrow_posteriors:
            for latent in self.decoder.spatial_latents():
                latent.narrow_posterior()
        self.level_sizes = (latent_dim, *self.decoder.noise_sizes)
        self.n_levels, self.n_noise = len(self.level_sizes), sum(self.level_sizes)

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor) -> CVAEOutput:
        """images (B, C, S, S), labels (B,), noise (B, n_noise) standard normals: encode, draw, decode."""
        return self.draw(self.infer(images, labels), labels, noise)

    def infer(self, images: Tensor, labels: Tensor) -> Posterior:
        """The part that needs no noise: once for an image, however many latents are drawn for it."""
        return self.encoder(images, self._embed(labels))

    def draw(self, posterior: Posterior, labels: Tensor, noise: Tensor) -> CVAEOutput:
        """Draw latents (B, n_noise) from what `infer` gave for these labels, and decode them."""
        global_noise, spatial_noise = self._split(noise)
        latent = _draw(posterior, global_noise)
        parameters, kls, log_ratios = self.decoder(latent, self._embed(labels), spatial_noise, posterior.maps)
        kl_units = kl_to_standard_normal(posterior.mean, posterior.log_variance)
        log_ratio = _log_ratio(latent, posterior.log_variance, global_noise)
        return CVAEOutput(
            parameters=parameters,
            kl=torch.stack([kl_units.sum(1), *kls], 1),
            kl_units=kl_units,
            log_ratio=torch.stack([log_ratio, *log_ratios]).sum(0),
            latent=latent,
            latent_mean=posterior.mean,
        )

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The global latent's posterior: mean and log-variance, (B, D) fp32 each."""
        posterior = self.infer(images, labels)
        return posterior.mean, posterior.log_variance

    def decode(self, latent: Tensor, labels: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Global latents (B, D) -> parameters (B, n_outputs, S, S), with spatial latents from their priors.

        `noise` (B, n_noise - D) standard normals are those of the spatial latents, and are multiplied by
        `temperature`: 0 gives the priors' means.
        """
        parameters, _, _ = self.decoder(latent, self._embed(labels), temperature * noise, ())
        return parameters

    def sample(self, labels: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """New images: labels (B,), noise (B, n_noise) times `temperature` -> parameters (B, n_outputs, S, S)."""
        latent, spatial_noise = self._split(noise)
        return self.decode(temperature * latent, labels, spatial_noise, temperature)

    def reconstruct(
        self, images: Tensor, labels: Tensor, decoder_labels: Tensor, noise: Tensor, kept_levels: int
    ) -> Tensor:
        """What the images become under other labels: -> parameters (B, n_outputs, S, S).

        The first `kept_levels` of the L levels come from their posteriors, with the encoder under `labels` (B,);
        the rest from their priors. The decoder, and what it holds of posteriors and priors of spatial latents,
        runs under `decoder_labels` (B,). So kept_levels = 1 keeps the global latent only, and L with equal
        labels is the reconstruction. `noise` is (B, n_noise); zeros give the means.

        Raises `ValueError` for `kept_levels` out of 1 to L.
        """
        if not 1 <= kept_levels <= self.n_levels:
            raise ValueError(f"kept_levels {kept_levels}: give 1 to {self.n_levels}")
        posterior = self.infer(images, labels)
        global_noise, spatial_noise = self._split(noise)
        latent, maps = _draw(posterior, global_noise), posterior.maps[: kept_levels - 1]
        parameters, _, _ = self.decoder(latent, self._embed(decoder_labels), spatial_noise, maps)
        return parameters

    def _embed(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, E)."""
        # As F.one_hot, which reads the least and the largest label on a CPU, and so splits a compiled graph.
        one_hot = self.embedding.weight.new_zeros(labels.shape[0], self.n_classes + 1)
        return self.embedding(one_hot.scatter_(1, labels[:, None], 1.0))

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n_noise) -> the global latent's part (B, D) and that of the spatial ones (B, n_noise - D)."""
        if noise.shape[1] != self.n_noise:
            raise ValueError(f"noise of {noise.shape[1]} numbers an image: give n_noise, {self.n_noise}")
        return noise[:, : self.latent_dim], noise[:, self.latent_dim :]


def drop_labels(labels: Tensor, uniforms: Tensor, share: float, no_label: int) -> Tensor:
    """Replace a share of the labels (B,) by `no_label`: those whose uniforms (B,), from [0, 1), are below it.

    So that a network learns to do without a label as well (Ho & Salimans 2022, arXiv 2207.12598).
    """
    return torch.where(uniforms < share, no_label, labels)


def map_sides(image_size: int, patch_size: int) -> list[int]:
    """The sides of the maps, fine to coarse: each half of the one before, rounded up."""
    sides = [math.ceil(image_size / patch_size)]
    while sides[-1] > COARSEST_SIDE:
        sides.append(math.ceil(sides[-1] / 2))
    return sides


class Encoder(nn.Module):
    """Images (B, C, S, S) and embeddings (B, E) -> `Posterior`. With both label widths 0 it is blind."""

    def __init__(
        self,
        channels: int,
        patch_size: int,
        sides: list[int],
        widths: list[int],
        n_blocks: int,
        latent_dim: int,
        spatial_latents: tuple[tuple[int, int], ...],
        film_dim: int,
        concat_dim: int,
        sigma: Sigma,
    ):
        super().__init__()
        self.patch_size, self.concat_dim, self.sigma = patch_size, concat_dim, sigma
        self.latent_sides = [side for side, _ in spatial_latents]
        self.stem = nn.Conv2d(channels * patch_size**2 + concat_dim, widths[0], 3, padding=1)
        self.downsamplings = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, film_dim) for _ in range(n_blocks)) for width in widths
        )
        self.norm = LabelNorm(widths[-1], film_dim)
        self.head = _shrunk(nn.Linear(widths[-1] * sides[-1] ** 2 + concat_dim, 2 * latent_dim))

    def forward(self, images: Tensor, embedding: Tensor) -> Posterior:
        padding = -images.shape[-1] % self.patch_size
        x = F.pixel_unshuffle(F.pad(images, (0, padding, 0, padding)), self.patch_size)
        if self.concat_dim:
            constant_maps = embedding[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, constant_maps.to(x.dtype)], 1)
        x = self.stem(x)
        maps: dict[int, Tensor] = {}  # by side
        for level, blocks in enumerate(self.blocks):
            if level > 0:
                x = self.downsamplings[level - 1](x)
            for block in blocks.children():
                x = block(x, embedding)
            maps[x.shape[-1]] = x
        x = F.silu(self.norm(x, embedding)).flatten(1)
        if self.concat_dim:
            x = torch.cat([x, embedding], 1)
        mean, log_variance = self.head(x).float().chunk(2, 1)
        return Posterior(
            mean, _log_variance(log_variance, self.sigma), tuple(maps[side] for side in self.latent_sides)
        )


class Decoder(nn.Module):
    """Global latents (B, D), embeddings (B, E) and noise -> the likelihood's parameters (B, n_outputs, S, S)."""

    def __init__(
        self,
        latent_dim: int,
        image_size: int,
        patch_size: int,
        sides: list[int],
        widths: list[int],
        n_blocks: int,
        n_outputs: int,
        spatial_latents: tuple[tuple[int, int], ...],
        film_dim: int,
        concat_dim: int,
        sigma: Sigma,
    ):
        super().__init__()
        self.image_size, self.concat_dim = image_size, concat_dim
        self.noise_sizes = [c * side * side for side, c in spatial_latents]
        self.coarsest = (widths[-1], sides[-1], sides[-1])
        self.stem = nn.Linear(latent_dim + concat_dim, math.prod(self.coarsest))
        layers: list[nn.Module] = []
        width = widths[-1]
        for side, out_width in zip(reversed(sides), reversed(widths), strict=True):
            if side != sides[-1]:
                layers.append(Upsampling(width, out_width, side))
            width = out_width
            latents: list[SpatialLatent | None] = [
                SpatialLatent(width, c, film_dim, sigma) for at_side, c in spatial_latents if at_side == side
            ]
            for latent in latents or [None]:
                layers += [latent] if latent else []
                layers += [ResidualBlock(width, film_dim) for _ in range(n_blocks)]
        self.layers = nn.ModuleList(layers)
        self.norm = LabelNorm(width, film_dim)
        self.head = nn.Sequential(
            nn.Conv2d(width, n_outputs * patch_size**2, 3, padding=1), nn.PixelShuffle(patch_size)
        )

    def forward(
        self, latent: Tensor, embedding: Tensor, noise: Tensor, maps: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the parameters, and the KL and log-ratio (B,) of each spatial latent that was inferred.

        `noise` (B, n) is that of all spatial latents, one after the other. The first ones are inferred from the
        encoder's `maps`, as many as are given, and the rest drawn from their priors.
        """
        if noise.shape[1] != sum(self.noise_sizes):
            raise ValueError(f"noise of {noise.shape[1]} numbers an image: spatial latents take {self.noise_sizes}")
        vectors = torch.cat([latent, embedding], 1) if self.concat_dim else latent
        x = self.stem(vectors).view(-1, *self.coarsest)
        kls: list[Tensor] = []
        log_ratios: list[Tensor] = []
        remaining_noise, remaining_maps = iter(noise.split(self.noise_sizes, 1)), iter(maps)
        for layer in self.layers:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding)
            elif isinstance(layer, Upsampling):
                x = layer(x)
            else:
                x, kl, log_ratio = layer(x, embedding, next(remaining_noise), next(remaining_maps, None))
                if kl is not None:
                    kls.append(kl)
                    log_ratios.append(log_ratio)
        x = self.head(F.silu(self.norm(x, embedding)))
        return x[:, :, : self.image_size, : self.image_size], kls, log_ratios

    def spatial_latents(self) -> list["SpatialLatent"]:
        """Coarse to fine."""
        return [layer for layer in self.layers if isinstance(layer, SpatialLatent)]


class SpatialLatent(nn.Module):
    """A map of latents that is drawn given the decoder's state, and added to it.

    The posterior is stated relative to the prior, in the prior's standard deviations from its mean (Vahdat &
    Kautz 2020, arXiv 2007.03898, section 3.2): the KL does not blow up when the prior moves or narrows.
    """

    def __init__(self, width: int, channels: int, film_dim: int, sigma: Sigma):
        super().__init__()
        self.sigma = sigma
        self.state_norm = LabelNorm(width, film_dim)
        self.map_norm = LabelNorm(width, 0)
        self.prior = _shrunk(nn.Conv2d(width, 2 * channels, 3, padding=1))
        self.posterior = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(), _shrunk(nn.Conv2d(width, 2 * channels, 1))
        )
        self.projection = nn.Conv2d(channels, width, 1)

    @torch.no_grad()
    def narrow_posterior(self) -> None:
        """Begin with a posterior that is narrow, and whose mean follows the image as much as a fresh layer does."""
        weight, bias = self.posterior[-1].parameters()
        weight.div_(SHRINKING)
        narrow = NARROW_LOG_VARIANCE
        if self.sigma == "softplus":
            narrow = math.log(math.expm1(SOFTPLUS_BETA * math.exp(NARROW_LOG_VARIANCE / 2))) / SOFTPLUS_BETA
        bias[len(bias) // 2 :] = narrow

    def forward(
        self, state: Tensor, embedding: Tensor, noise: Tensor, encoder_map: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """state (B, W, s, s), noise (B, channels s s), encoder_map (B, W, s, s) -> state, KL, log-ratio (B,).

        Without an encoder's map the latent comes from the prior, and there is neither KL nor log-ratio.
        """
        h = F.silu(self.state_norm(state, embedding))
        prior_mean, prior_log_variance = self.prior(h).float().chunk(2, 1)
        noise = noise.view_as(prior_mean)
        relative, kl, log_ratio = noise, None, None
        if encoder_map is not None:
            h = torch.cat([h, F.silu(self.map_norm(encoder_map, embedding))], 1)
            mean, log_variance = self.posterior(h).float().chunk(2, 1)
            log_variance = _log_variance(log_variance, self.sigma)
            relative = mean + torch.exp(log_variance / 2) * noise
            kl = kl_to_standard_normal(mean, log_variance).flatten(1).sum(1)
            log_ratio = _log_ratio(relative, log_variance, noise)
        latent = prior_mean + torch.exp(_log_variance(prior_log_variance, self.sigma) / 2) * relative
        return state + self.projection(latent), kl, log_ratio


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, and the way around them: (B, W, s, s) -> (B, W, s, s)."""

    def __init__(self, width: int, film_dim: int):
        super().__init__()
        self.norm1, self.norm2 = LabelNorm(width, film_dim), LabelNorm(width, film_dim)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = _shrunk(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, embedding)))
        return x + self.conv2(F.silu(self.norm2(h, embedding)))


class LabelNorm(nn.Module):
    """Group norm, (B, W, s, s) -> (B, W, s, s). Scale and shift come from the embedding (B, film_dim), with
    film_dim = 0 they are learned alone. An image never depends on its batch."""

    def __init__(self, width: int, film_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(width // GROUP_CHANNELS, width, affine=film_dim == 0)
        self.film = _shrunk(nn.Linear(film_dim, 2 * width)) if film_dim else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.norm(x)
        if self.film is None:
            return x
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class Upsampling(nn.Module):
    """1x1 convolution, then each pixel fourfold: (B, W, s, s) -> (B, out_width, side, side), cut from 2 s.

    The convolution comes first because it costs a quarter there; the next residual block smooths.
    """

    def __init__(self, width: int, out_width: int, side: int):
        super().__init__()
        self.conv, self.side = nn.Conv2d(width, out_width, 1), side

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.conv(x), scale_factor=2, mode="nearest")
        return x[:, :, : self.side, : self.side]


def _shrunk(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer that ends a branch, begun small: blocks begin near the identity and posteriors near the prior.

    Not at zero, which would hold up the gradients of the whole branch.
    """
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.mul_(SHRINKING)
        layer.bias.zero_()
    return layer


def _log_variance(raw: Tensor, sigma: Sigma) -> Tensor:
    """From what a layer gives, zero for one: smoothly within +-`LOG_VARIANCE_BOUND`.

    So no exponential of it leaves the range of fp16 by far.
    """
    log_variance = raw
    if sigma == "softplus":
        log_variance = 2 * torch.log(F.softplus(raw.clamp(min=LEAST_RAW), beta=SOFTPLUS_BETA))
    return LOG_VARIANCE_BOUND * torch.tanh(log_variance / LOG_VARIANCE_BOUND)


def _draw(posterior: Posterior, noise: Tensor) -> Tensor:
    return posterior.mean + torch.exp(posterior.log_variance / 2) * noise


def _log_ratio(latent: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """log q - log p of latents drawn with `noise`, relative to a standard normal prior: (B, ...) -> (B,)."""
    return 0.5 * (latent.square() - noise.square() - log_variance).flatten(1).sum(1)
