"""Observation models of images: what a decoder's feature maps say about the pixels.

Shapes: B images, C channels of a pixel, H x W pixels, P feature maps that a model's parameters take, K components
of a mixture. Everything is computed in fp32 at least, under autocast too. A model may hold a parameter that is
learned with the network, so all are modules.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Continuous Bernoulli: below it the series' next term is under fp32's resolution; above, the closed form is exact.
SERIES_BELOW = 0.5
# Logistic mixture, in units of half the range of a pixel. At the least scale one bin holds nearly everything.
MIN_LOG_SCALE = -7.0
LOG_SCALE_RANGE = 14.0  # beyond, a bin's probability would underflow
SCALE_SHIFT = 5.5  # log-scale of about -1.5 at zero: neighbours of ten components overlap
# Discretised Gaussian, in units of the range of a pixel.
MIN_LOG_SIGMA = -6.0
HALF_BIN = 1 / 510


class Likelihood(nn.Module):
    """The interface of all observation models. Pixels are independent given the parameters."""

    discrete = False  # over the 256 values of uint8 targets; otherwise over floats from 0 to 1

    def n_parameters(self, channels: int) -> int:
        """P, the feature maps that images of so many channels need."""
        return channels

    def targets(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the probability is of: images (B, C, H, W) uint8 -> themselves, or floats from 0 to 1.

        Only `Bernoulli` takes random numbers, from a generator on the images' device.
        """
        return images if self.discrete else images.float() / 255

    def log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        """Sum over pixels and channels, in nats: parameters (B, P, H, W), targets (B, C, H, W) -> (B,).

        Raises `ValueError` for parameters that are not of the targets' shape, and for targets of the wrong kind.
        """
        n_images, channels, height, width = targets.shape
        expected = (n_images, self.n_parameters(channels), height, width)
        if parameters.shape != expected:
            raise ValueError(f"parameters of shape {tuple(parameters.shape)}: these targets need {expected}")
        if (targets.dtype == torch.uint8) != self.discrete:
            kind = "uint8" if self.discrete else "float"
            raise ValueError(f"{type(self).__name__} takes {kind} targets, not {targets.dtype}")
        with torch.autocast(parameters.device.type, enabled=False):
            return self._log_prob(_at_least_fp32(parameters), targets).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image: (B, P, H, W) -> (B, C, H, W) from 0 to 1."""
        return self._mean(_at_least_fp32(parameters))

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """A drawn image: (B, P, H, W) -> (B, C, H, W) from 0 to 1.

        The random numbers come from the generator's device, so that one on the CPU gives the same anywhere.
        """
        return self._sample(_at_least_fp32(parameters), generator)

    def _log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities whose sum over all dimensions but the first is that of the image."""
        raise NotImplementedError

    def _mean(self, parameters: Tensor) -> Tensor:
        raise NotImplementedError

    def _sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Pixels that are 0 or 1; the parameters are the logits of 1, one for each channel."""

    def targets(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return binarise(images, torch.rand(images.shape, generator=generator, device=images.device))

    def _log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(parameters, targets.to(parameters.dtype), reduction="none")

    def _mean(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid()

    def _sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        return (_uniforms(parameters.shape, parameters, generator) < parameters.sigmoid()).to(parameters.dtype)


class ContinuousBernoulli(Likelihood):
    """Density over grey values from 0 to 1 (Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845).

    With the logit l of the paper's lambda the density is exp(l x) l / (exp(l) - 1). Around x = 1/2 that is
    exp(l (x - 1/2)) a / sinh(a), a = |l| / 2, which is even in l and has a plain series at l = 0.
    """

    def _log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        half = parameters.abs() / 2
        square = half.clamp(max=SERIES_BELOW).square()
        series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
        large = half.clamp(min=SERIES_BELOW)
        log_sinhc = large + torch.log1p(-torch.exp(-2 * large)) - torch.log(2 * large)
        return parameters * (targets - 0.5) - torch.where(half < SERIES_BELOW, series, log_sinhc)

    def _mean(self, parameters: Tensor) -> Tensor:
        half = parameters / 2  # Langevin's function coth(half) - 1 / half goes from -1 to 1
        small = half.clamp(-SERIES_BELOW, SERIES_BELOW)
        square = small.square()
        series = small * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
        large = half.abs().clamp(min=SERIES_BELOW)
        langevin = half.sign() * (1 / torch.tanh(large) - 1 / large)
        return 0.5 + 0.5 * torch.where(half.abs() < SERIES_BELOW, series, langevin)

    def _sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        uniforms = _uniforms(parameters.shape, parameters, generator)
        rate = parameters.abs().clamp(min=1e-6)  # at 1e-6 the quantile is already u in fp32
        from_zero = torch.log1p(uniforms * torch.expm1(-rate)) / -rate  # the quantile for -|l|: dark
        return torch.where(parameters < 0, from_zero, 1 - from_zero)


class LogisticMixture(Likelihood):
    """Mixture of K discretised logistics over the 256 values (Salimans et al. 2017, arXiv 1701.05517, section 2).

    The channels of a pixel share the component. The mean of each channel is linear in the true values of the
    earlier ones, with coefficients from -1 to 1. The outermost bins reach to infinity. P is 3 K for one channel
    and 10 K for three.

    Parameters of zero give components that share the range evenly, so that none are alike and any pixel has a
    fair probability before the first update. Log-scales come through a softplus above `MIN_LOG_SCALE`: a hard
    limit would leave a component that has reached it without a gradient.
    """

    discrete = True

    def __init__(self, n_mixtures: int):
        super().__init__()
        if n_mixtures < 1:
            raise ValueError(f"a mixture of {n_mixtures} components: give at least one")
        self.n_mixtures = n_mixtures
        centres = (2 * torch.arange(n_mixtures) + 1) / n_mixtures - 1  # within -1 to 1, the range of the pixels
        self.register_buffer("centres", centres[:, None, None, None], persistent=False)

    def n_parameters(self, channels: int) -> int:
        # Of each component: a logit, means, log-scales, and a coefficient for each pair of channels.
        return self.n_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        logits, means, log_scales, coefficients = self._split(parameters)
        x = _to_unit_range(targets.to(parameters.dtype))
        log_probs = logits.log_softmax(1)  # (B, K, H, W)
        for c in range(x.shape[1]):
            earlier = [x[:, None, j] for j in range(c)]
            centred = x[:, None, c] - _conditional_mean(means, coefficients, earlier)
            inverse_scale = torch.exp(-log_scales[:, :, c])
            upper = inverse_scale * (centred + 1 / 255)
            lower = inverse_scale * (centred - 1 / 255)
            # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): each factor has an exact logarithm,
            # and each of the first two is missing in an outermost bin, with the third.
            black, white = targets[:, None, c] == 0, targets[:, None, c] == 255
            log_probs = log_probs - torch.where(white, 0.0, F.softplus(-upper))
            log_probs = log_probs - torch.where(black, 0.0, F.softplus(lower))
            log_probs = log_probs + torch.where(black | white, 0.0, _log1mexp(inverse_scale * (2 / 255)))
        return log_probs.logsumexp(1)

    def _mean(self, parameters: Tensor) -> Tensor:
        """The components' means, each cut to the range of the pixels, averaged by their probabilities."""
        logits, means, _, coefficients = self._split(parameters)
        values: list[Tensor] = []  # (B, K, H, W) each
        for _ in range(means.shape[2]):
            values.append(_conditional_mean(means, coefficients, values).clamp(-1, 1))
        weights = logits.softmax(1)[:, :, None]  # (B, K, 1, H, W)
        return ((weights * torch.stack(values, 2)).sum(1) + 1) / 2

    def _sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        logits, means, log_scales, coefficients = self._split(parameters)
        n_images, _, channels, height, width = means.shape
        uniforms = _uniforms((n_images, 1 + channels, height, width), parameters, generator)
        # cumsum is not deterministic on CUDA.
        cumulative = torch.stack(list(itertools.accumulate(logits.softmax(1).unbind(1))), 1)
        chosen = (cumulative <= uniforms[:, :1]).sum(1).clamp(max=self.n_mixtures - 1)
        index = chosen[:, None, None]  # (B, 1, 1, H, W)
        means, log_scales, coefficients = (
            t.gather(1, index.expand(-1, 1, t.shape[2], -1, -1)) for t in (means, log_scales, coefficients)
        )
        levels: list[Tensor] = []  # (B, 1, H, W) each, 0 to 255
        for c in range(channels):
            mean = _conditional_mean(means, coefficients, [_to_unit_range(level) for level in levels])
            x = mean + log_scales[:, :, c].exp() * torch.logit(uniforms[:, None, 1 + c])
            levels.append(((x + 1) * 127.5).clamp(0, 255).round())
        return torch.cat(levels, 1) / 255

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, P, H, W) -> logits (B, K, H, W); means, log-scales (B, K, C, H, W); coefficients (B, K, ., H, W)."""
        n_images, n_maps, height, width = parameters.shape
        channels = 1
        while self.n_parameters(channels) < n_maps:
            channels += 1
        if self.n_parameters(channels) != n_maps:
            raise ValueError(f"{n_maps} feature maps do not make a mixture of {self.n_mixtures} components")
        parts = parameters.view(n_images, self.n_mixtures, -1, height, width)
        n_pairs = channels * (channels - 1) // 2
        logits, means, log_scales, coefficients = parts.split([1, channels, channels, n_pairs], 2)
        log_scales = MIN_LOG_SCALE + F.softplus(log_scales + SCALE_SHIFT).clamp(max=LOG_SCALE_RANGE)
        return logits[:, :, 0], means + self.centres, log_scales, coefficients.tanh()


class DiscretisedGaussian(Likelihood):
    """Gaussian around the decoder's image with a learned width: the sigma-VAE (Rybkin et al. 2020, 2006.13202).

    A value's probability is that of its bin of 1/255, and the outermost bins reach to infinity, so that it can
    be stated in bits per dimension. The parameters are the means, -1 for black and 1 for white; each channel has
    one log-sigma, in units of the range from black to white.
    """

    discrete = True

    def __init__(self, channels: int):
        super().__init__()
        # As wide as the pixels of photographs spread: the learning rate should not have to bring it there.
        self.raw_log_sigma = nn.Parameter(torch.full((channels, 1, 1), math.log(0.25)))

    @property
    def log_sigma(self) -> Tensor:
        """(C, 1, 1), bounded from below smoothly, where nearly all of a Gaussian is within one bin."""
        return MIN_LOG_SIGMA + F.softplus(self.raw_log_sigma - MIN_LOG_SIGMA)

    def _log_prob(self, parameters: Tensor, targets: Tensor) -> Tensor:
        centred = targets.to(parameters.dtype) / 255 - (parameters + 1) / 2
        inverse_sigma = torch.exp(-self.log_sigma)
        black, white = targets == 0, targets == 255
        # Of the two edges of the bin the one nearer to the mean bounds the tail that holds the bin; the other
        # bounds the rest of that tail. Both as arguments of the lower tail, where its logarithm is exact.
        below = white | ((centred > 0) & ~black)
        distance = torch.where(below, centred, -centred)  # along that tail, from the mean to the bin's centre
        log_tail = _LogNdtr.apply((HALF_BIN - distance) * inverse_sigma)
        log_rest = _LogNdtr.apply((-HALF_BIN - distance) * inverse_sigma)
        # Far out both are so large that their difference may be rounded away.
        log_share = _log1mexp((log_tail - log_rest).clamp(min=1e-6))
        return log_tail + torch.where(black | white, 0.0, log_share)

    def _mean(self, parameters: Tensor) -> Tensor:
        return ((parameters + 1) / 2).clamp(0, 1)

    def _sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        normals = torch.randn(parameters.shape, generator=generator, device=generator.device, dtype=torch.float32)
        x = (parameters + 1) / 2 + self.log_sigma.exp() * normals.to(parameters.device)
        return (255 * x).clamp(0, 255).round() / 255


def bits_per_dim(nats: Tensor, n_dims: int) -> Tensor:
    """Nats of whole images, of any shape, in bits for each of their n_dims = C H W values."""
    return nats / (n_dims * math.log(2))


def binarise(images: Tensor, uniforms: Tensor) -> Tensor:
    """Dynamic binarisation (Salakhutdinov & Murray 2008): images uint8 -> 1. with probability pixel / 255, else 0.

    `images` and `uniforms` from [0, 1) are (B, C, H, W). White is always 1 and black always 0.
    """
    return (uniforms * 255 < images).float()


def _at_least_fp32(parameters: Tensor) -> Tensor:
    """In channels-first order: a mixture's maps are sliced and reduced along them."""
    return parameters.to(torch.promote_types(parameters.dtype, torch.float32)).contiguous()


def _uniforms(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32).to(like.device)


class _LogNdtr(torch.autograd.Function):
    """Logarithm of the standard normal's CDF.

    torch's own gradient takes the exponential of a difference of two logarithms, density's and probability's. Far
    down the tail fp32 rounds that difference away: the gradient is wrong, and then infinite or zero.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.special.log_ndtr(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * math.sqrt(2 / math.pi) / torch.special.erfcx(x / -math.sqrt(2))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x > 0."""
    return torch.log(-torch.expm1(-x))


def _to_unit_range(levels: Tensor) -> Tensor:
    """0 to 255 -> -1 to 1."""
    return levels / 127.5 - 1


def _conditional_mean(means: Tensor, coefficients: Tensor, earlier: list[Tensor]) -> Tensor:
    """Means (B, K, H, W) of the channel that follows the `earlier` ones, of shape (B, K or 1, H, W) each."""
    c = len(earlier)
    mean, first = means[:, :, c], c * (c - 1) // 2
    for j, x in enumerate(earlier):
        mean = mean + coefficients[:, :, first + j] * x
    return mean
