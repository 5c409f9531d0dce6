import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Normal

from models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedGaussian,
    LogisticMixture,
    binarise,
    bits_per_dim,
)

ALL = [Bernoulli(), ContinuousBernoulli(), LogisticMixture(4), DiscretisedGaussian(3)]
LEVELS = torch.arange(256, dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets_for(likelihood, channels: int = 3, n: int = 2, side: int = 4):
    pixels = torch.randint(256, (n, channels, side, side), generator=generator(), dtype=torch.uint8)
    pixels[0, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    if likelihood.discrete:
        return pixels
    return (pixels > 127).float() if isinstance(likelihood, Bernoulli) else pixels / 255


def parameters_for(likelihood, channels: int = 3, n: int = 2, side: int = 4, scale: float = 1.0):
    return scale * torch.randn(n, likelihood.n_parameters(channels), side, side, generator=generator(1))


def named(likelihood) -> str:
    return type(likelihood).__name__


def test_bernoulli_is_torchs():
    logits, targets = parameters_for(ALL[0], scale=5), targets_for(ALL[0])
    expected = TorchBernoulli(logits=logits).log_prob(targets).sum((1, 2, 3))
    torch.testing.assert_close(ALL[0].log_prob(logits, targets), expected)
    torch.testing.assert_close(ALL[0].mean(logits), logits.sigmoid())


def test_continuous_bernoulli_is_torchs_in_double_precision():
    logits = torch.tensor([-14.0, -3, -1.01, -0.99, -0.3, 0.2, 0.999, 1.001, 5, 14], dtype=torch.float64)
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid, targets = logits[:, None, None, None].expand(-1, 1, 1, 11), x.expand(10, 1, 1, 11)
    torch_one = TorchContinuousBernoulli(logits=grid, lims=(0.499, 0.501))
    expected = torch_one.log_prob(targets).sum((1, 2, 3))
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        found = ContinuousBernoulli().log_prob(grid.to(dtype), targets.to(dtype))
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        means = ContinuousBernoulli().mean(grid.to(dtype))
        torch.testing.assert_close(means.double(), torch_one.mean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("logit", [0.0, 1e-6, -1e-3, 0.5, -0.999, 1.001, 8.0, -60.0])
def test_continuous_bernoulli_integrates_to_one_and_to_its_mean(logit):
    x = torch.linspace(0, 1, 20001)
    logits = torch.full((len(x), 1, 1, 1), logit)
    density = ContinuousBernoulli().log_prob(logits, x[:, None, None, None]).exp()
    assert torch.trapezoid(density.double(), x.double()).item() == pytest.approx(1, abs=1e-5)
    mean = torch.trapezoid((density * x).double(), x.double()).item()
    assert ContinuousBernoulli().mean(logits[:1]).item() == pytest.approx(mean, abs=1e-5)


def test_mixture_of_grey_values_sums_to_one():
    likelihood = LogisticMixture(5)
    for scale in (0.0, 1.0, 10.0):
        parameters = parameters_for(likelihood, 1, n=3, side=1, scale=scale)
        for row in parameters:
            log_probs = likelihood.log_prob(row.expand(256, -1, 1, 1), LEVELS[:, None, None, None])
            assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_mixture_is_the_difference_of_logistic_cdfs():
    """Against the definition written out in double precision, channel by channel and component by component."""
    likelihood, k = LogisticMixture(3), 3
    parameters = parameters_for(likelihood, n=4, side=1).double()
    targets = torch.tensor([[0, 255, 128], [7, 0, 255], [100, 130, 90], [255, 1, 0]], dtype=torch.uint8)
    expected = []
    for row, pixel in zip(parameters[:, :, 0, 0], targets.tolist(), strict=True):
        per_component = row.view(k, -1)
        weights = per_component[:, 0].softmax(0)
        total = 0.0
        for component in range(k):
            _, m0, m1, m2, s0, s1, s2, a, b, c = per_component[component]
            x0, x1, _ = (value / 127.5 - 1 for value in pixel)
            centre = (2 * component + 1) / k - 1
            means = (m0, m1 + torch.tanh(a) * x0, m2 + torch.tanh(b) * x0 + torch.tanh(c) * x1)
            probability = weights[component]
            for mean, raw_scale, value in zip(means, (s0, s1, s2), pixel, strict=True):
                scale = torch.exp(-7 + torch.log1p(torch.exp(raw_scale + 5.5)))
                # Edges half a level around the value.
                upper = 1.0 if value == 255 else torch.sigmoid(((value + 0.5) / 127.5 - 1 - mean - centre) / scale)
                lower = 0.0 if value == 0 else torch.sigmoid(((value - 0.5) / 127.5 - 1 - mean - centre) / scale)
                probability = probability * (upper - lower)
            total = total + probability
        expected.append(total.log())
    found = likelihood.log_prob(parameters, targets[:, :, None, None])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(likelihood.log_prob(parameters.float(), targets[:, :, None, None]), found.float())


def test_each_channel_of_the_mixture_sums_to_one_given_the_earlier_ones():
    """Two channels in full, 256 x 256; and with three, blue's sum is the same as the other two without it."""
    likelihood = LogisticMixture(3)
    pairs = torch.cartesian_prod(LEVELS, LEVELS)[:, :, None, None]
    two = parameters_for(likelihood, 2, n=1, side=1)
    assert likelihood.log_prob(two.expand(len(pairs), -1, 1, 1), pairs).exp().sum().item() == pytest.approx(
        1, abs=1e-4
    )

    three = parameters_for(likelihood, 3, n=1, side=1)
    columns = three.view(3, 10)
    without_blue = columns[:, [0, 1, 2, 4, 5, 7]].reshape(1, -1, 1, 1)
    for red, green in ((0, 255), (17, 200)):
        pixels = torch.stack([torch.full_like(LEVELS, red), torch.full_like(LEVELS, green), LEVELS], 1)[
            :, :, None, None
        ]
        summed = likelihood.log_prob(three.expand(256, -1, 1, 1), pixels).logsumexp(0)
        torch.testing.assert_close(
            summed, likelihood.log_prob(without_blue, pixels[:1, :2])[0], rtol=1e-5, atol=1e-4
        )


def test_zero_parameters_of_the_mixture_give_any_pixel_a_fair_probability():
    log_probs = LogisticMixture(10).log_prob(torch.zeros(256, 30, 1, 1), LEVELS[:, None, None, None])
    bits = bits_per_dim(-log_probs, 1)
    assert bits[1:-1].max() < 9 and bits.min() > 2
    parameters = torch.zeros(1, 100, 4, 4, requires_grad=True)
    likelihood = LogisticMixture(10)
    likelihood.log_prob(parameters, targets_for(likelihood, n=1)).sum().backward()
    gradients = parameters.grad.view(10, 10, 4, 4)[:, 1]  # of the means of red
    assert len({tuple(g.flatten().tolist()) for g in gradients}) == 10, "components are alike"


@pytest.mark.parametrize("log_sigma", [-9.0, -5.5, -3.0, -1.0, 1.0])
def test_gaussian_is_the_difference_of_normal_cdfs(log_sigma):
    likelihood = DiscretisedGaussian(1)
    likelihood.raw_log_sigma.data.fill_(log_sigma)
    sigma = likelihood.log_sigma.exp().double().item()
    for raw in (-3.0, -1.0, 0.013, 0.7, 1.0, 2.0):
        found = likelihood.log_prob(torch.full((256, 1, 1, 1), raw), LEVELS[:, None, None, None]).detach()
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-4)
        normal = Normal(torch.tensor((raw + 1) / 2, dtype=torch.float64), sigma)
        inner = torch.arange(255, dtype=torch.float64)
        below = torch.cat([torch.zeros(1), normal.cdf((inner + 0.5) / 255), torch.ones(1)])
        probabilities = below.diff()
        resolved = probabilities > 1e-9  # beyond, the difference of two doubles near 1 loses digits itself
        torch.testing.assert_close(found.double()[resolved], probabilities.log()[resolved], rtol=1e-4, atol=2e-3)


def test_gaussian_is_right_far_out_in_either_tail():
    """Against log of phi times the bin's width, corrected for its slope: the bin is narrow beside sigma."""
    likelihood = DiscretisedGaussian(1)
    likelihood.raw_log_sigma.data.fill_(math.log(0.1))
    sigma = likelihood.log_sigma.item()
    for raw, level in ((7.0, 10), (-7.0, 250)):
        z = (level / 255 - (raw + 1) / 2) / math.exp(sigma)
        half = 1 / 510 / math.exp(sigma)
        log_density = -z * z / 2 - math.log(2 * math.pi) / 2
        expected = log_density + math.log(2 * math.sinh(abs(z) * half) / abs(z))
        found = likelihood.log_prob(
            torch.full((1, 1, 1, 1), raw), torch.full((1, 1, 1, 1), level, dtype=torch.uint8)
        )
        assert found.item() == pytest.approx(expected, abs=2e-3)


def test_gaussian_has_one_learned_width_a_channel():
    likelihood = DiscretisedGaussian(3)
    assert sum(p.numel() for p in likelihood.parameters()) == 3
    targets = torch.randint(100, 156, (1, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    # The likeliest width is the root of the mean square distance: the gradient leads there from both sides.
    likeliest = (targets / 255 - 0.5).square().mean((0, 2, 3)).sqrt()
    for factor, sign in ((0.97, 1), (1.03, -1)):
        log_sigma = (factor * likeliest).log()
        raw = -6 + torch.log(torch.expm1(log_sigma + 6))
        likelihood.raw_log_sigma.data.copy_(raw[:, None, None])
        torch.testing.assert_close(likelihood.log_sigma.flatten(), log_sigma)
        likelihood.zero_grad()
        likelihood.log_prob(torch.zeros(1, 3, 8, 8), targets).sum().backward()
        assert (likelihood.raw_log_sigma.grad.sign() == sign).all()


@pytest.mark.parametrize("likelihood", ALL, ids=named)
def test_gradients_are_right(likelihood):
    targets = targets_for(likelihood, n=1, side=2)
    likelihood = likelihood.double()
    parameters = parameters_for(likelihood, n=1, side=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, targets), (parameters,))
    likelihood.float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("likelihood", ALL, ids=named)
def test_extreme_parameters_stay_finite(likelihood, dtype):
    targets = targets_for(likelihood, n=8)
    n_maps = likelihood.n_parameters(3)
    for size in (0.0, 1e-7, 1.0, 100.0, 65504.0 if dtype == torch.float16 else 1e8):
        signs = torch.randint(2, (8, n_maps, 4, 4), generator=generator(3)) * 2 - 1
        signs[0], signs[1] = 1, -1
        parameters = (size * signs).to(dtype)
        log_probs = likelihood.log_prob(parameters, targets)
        assert log_probs.dtype == torch.float32 and log_probs.isfinite().all(), (size, log_probs)
        leaf = parameters.float().requires_grad_()  # what flows back into fp16 is the gradient scaler's to mind
        likelihood.log_prob(leaf, targets).sum().backward()
        assert leaf.grad.isfinite().all(), size
        for image in (likelihood.mean(parameters), likelihood.sample(parameters, generator())):
            assert image.shape == targets.shape and image.dtype == torch.float32
            assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("likelihood", ALL, ids=named)
def test_half_precision_and_autocast_change_nothing_but_the_input(likelihood):
    targets = targets_for(likelihood)
    for dtype in (torch.float16, torch.bfloat16):
        parameters = parameters_for(likelihood).to(dtype)
        expected = likelihood.log_prob(parameters.float(), targets)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(likelihood.log_prob(parameters, targets), expected)
    assert torch.equal(likelihood.log_prob(parameters.to(memory_format=torch.channels_last), targets), expected)


@pytest.mark.parametrize("likelihood", ALL, ids=named)
def test_samples_follow_the_distribution(likelihood):
    """Their mean, and for discrete ones the frequency of each value, against log_prob."""
    n, one = 20_000, parameters_for(likelihood, 3, n=1, side=1, scale=0.7)
    samples = likelihood.sample(one.expand(n, -1, -1, -1), generator())[:, :, 0, 0]  # (n, 3)
    assert torch.equal(samples[:5], likelihood.sample(one.expand(n, -1, -1, -1), generator())[:5, :, 0, 0])
    spread = samples.std(0) / math.sqrt(n)
    if not isinstance(likelihood, LogisticMixture | DiscretisedGaussian):
        assert ((samples.mean(0) - likelihood.mean(one)[0, :, 0, 0]).abs() < 5 * spread).all()
        return
    levels = (samples * 255).round().to(torch.uint8)
    torch.testing.assert_close(levels / 255, samples)
    # The entropy of the pixel: minus the mean log-probability of its own samples, and of the model's
    # probabilities over red, in sixteen bands.
    if isinstance(likelihood, DiscretisedGaussian):
        red = DiscretisedGaussian(1)
        red.raw_log_sigma.data.copy_(likelihood.raw_log_sigma[:1])
        parameters = one[:, :1]
    else:
        red, parameters = likelihood, one.view(4, 10)[:, [0, 1, 4]].reshape(1, -1, 1, 1)
    probabilities = red.log_prob(parameters.expand(256, -1, 1, 1), LEVELS[:, None, None, None]).detach().exp()
    bands = probabilities.view(16, 16).sum(1)
    frequencies = torch.bincount(levels[:, 0].long() // 16, minlength=16) / n
    assert ((frequencies - bands).abs() < 5 * (bands / n).sqrt() + 1e-4).all()


def test_later_channels_of_a_mixture_follow_the_drawn_earlier_ones():
    """Green's mean is 0.9 times red's value: its samples must follow red's, and log_prob must agree."""
    likelihood = LogisticMixture(1)
    parameters = torch.zeros(1, 10, 1, 1)
    parameters[0, 5:7] = -5.0  # narrow green and blue
    parameters[0, 7] = math.atanh(0.9)
    samples = likelihood.sample(parameters.expand(2000, -1, -1, -1), generator())[:, :, 0, 0] * 2 - 1
    assert (samples[:, 1] - 0.9 * samples[:, 0]).abs().max() < 0.1
    assert samples[:, 0].std() > 0.2
    assert abs(likelihood.mean(parameters)[0, 1, 0, 0].item() - 0.5) < 1e-6


def test_bad_parameters_and_targets_are_refused():
    targets = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="need \\(2, 3, 4, 4\\)"):
        DiscretisedGaussian(3).log_prob(torch.zeros(2, 1, 4, 4), targets)
    with pytest.raises(ValueError, match="need \\(2, 20, 4, 4\\)"):
        LogisticMixture(2).log_prob(torch.zeros(2, 6, 4, 4), targets)
    with pytest.raises(ValueError, match="float targets"):
        Bernoulli().log_prob(torch.zeros(2, 3, 4, 4), targets)
    with pytest.raises(ValueError, match="uint8 targets"):
        DiscretisedGaussian(3).log_prob(torch.zeros(2, 3, 4, 4), targets.float())
    with pytest.raises(ValueError, match="do not make a mixture"):
        LogisticMixture(2).mean(torch.zeros(2, 7, 4, 4))
    with pytest.raises(ValueError, match="at least one"):
        LogisticMixture(0)


def test_bits_per_dim():
    assert bits_per_dim(torch.tensor([math.log(256) * 12]), 12).item() == pytest.approx(8)


def test_binarise():
    images = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    last = 1 - 2**-24  # the largest uniform in fp32
    for uniform, expected in ((0.0, [0, 1, 1]), (0.5, [0, 1, 1]), (0.51, [0, 1, 0]), (last, [0, 1, 0])):
        bits = binarise(images, torch.full((1, 3, 1, 1), uniform))
        assert bits.dtype == torch.float32 and bits.flatten().tolist() == expected
    grey = torch.full((1, 1, 200, 200), 51, dtype=torch.uint8)
    share = binarise(grey, torch.rand(grey.shape, generator=generator())).mean().item()
    assert share == pytest.approx(0.2, abs=0.01)
