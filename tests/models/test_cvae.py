import itertools
from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.cvae import CVAE, Posterior, _log_variance, drop_labels, map_sides
from models.elbo import importance_weighted_bound
from models.likelihoods import Bernoulli, DiscretisedGaussian, LogisticMixture

SPATIAL = ((4, 2), (4, 1), (8, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(n_outputs: int = 1, channels: int = 1, image_size: int = 16, stirred: bool = True, **options) -> CVAE:
    """A small model. `stirred` weights are far from the start, where branches and latents hardly count."""
    torch.manual_seed(0)
    options = {"latent_dim": 6, "width": 16, "label_dim": 8, "patch_size": 2} | options
    model = CVAE(5, channels, image_size, n_outputs, **options)
    if stirred:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(model: CVAE, n: int = 4, channels: int = 1, image_size: int = 16):
    images = torch.rand(n, channels, image_size, image_size, generator=generator())
    labels = torch.arange(n) % 5
    return images, labels, torch.randn(n, model.n_noise, generator=generator(1))


ARCHITECTURES = list(itertools.product(("concat", "film"), ((), SPATIAL)))
every_architecture = pytest.mark.parametrize(("conditioning", "spatial_latents"), ARCHITECTURES)


@pytest.mark.parametrize("conditioning", ["concat", "film"])
@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels", "spatial_latents"),
    [
        (28, 1, 1, ()),
        (28, 2, 1, ((7, 4), (14, 1))),
        (32, 1, 3, ((4, 3), (8, 2), (16, 1), (32, 1))),
        (32, 2, 3, ()),
        (8, 1, 1, ((8, 1),)),
        (25, 2, 3, ((7, 2), (13, 1))),
    ],
)
def test_shapes(image_size, patch_size, channels, spatial_latents, conditioning):
    model = build(
        7,
        channels,
        image_size,
        False,
        patch_size=patch_size,
        spatial_latents=spatial_latents,
        conditioning=conditioning,
    )
    sizes = (6, *(c * side * side for side, c in spatial_latents))
    assert model.level_sizes == sizes and model.n_noise == sum(sizes) and model.n_levels == len(sizes)
    images, labels, noise = inputs(model, 3, channels, image_size)
    output = model(images, labels, noise)
    assert output.parameters.shape == (3, 7, image_size, image_size)
    assert output.kl.shape == (3, len(sizes)) and output.kl_units.shape == (3, 6)
    assert output.log_ratio.shape == (3,) and output.latent.shape == output.latent_mean.shape == (3, 6)
    assert model.sample(labels, noise).shape == output.parameters.shape


def test_map_sides_are_halved_down_to_seven_or_less():
    assert map_sides(28, 1) == [28, 14, 7] and map_sides(32, 1) == [32, 16, 8, 4]
    assert map_sides(28, 2) == [14, 7] and map_sides(25, 2) == [13, 7] and map_sides(8, 1) == [8, 4]


@every_architecture
def test_all_ways_through_the_model_agree(conditioning, spatial_latents):
    model = build(conditioning=conditioning, spatial_latents=spatial_latents).eval()
    images, labels, noise = inputs(model)
    other = (labels + 1) % 5
    with torch.no_grad():
        output = model(images, labels, noise)
        mean, log_variance = model.encode(images, labels)
        torch.testing.assert_close(output.latent, mean + (log_variance / 2).exp() * noise[:, :6])
        assert torch.equal(output.latent_mean, mean)
        assert torch.equal(model.reconstruct(images, labels, labels, noise, model.n_levels), output.parameters)
        kept_global = model.reconstruct(images, labels, other, noise, 1)
        assert torch.equal(kept_global, model.decode(output.latent, other, noise[:, 6:]))
        assert not torch.allclose(kept_global, model.decode(output.latent, labels, noise[:, 6:]))
        cold = model.sample(labels, noise, temperature=0.0)
        assert torch.equal(cold, model.decode(torch.zeros(4, 6), labels, torch.zeros_like(noise[:, 6:])))
        assert torch.equal(model.sample(labels, noise), model.decode(noise[:, :6], labels, noise[:, 6:]))
        if spatial_latents:
            pictures = [model.reconstruct(images, labels, other, noise, kept) for kept in (1, 2, 3, 4)]
            assert not any(torch.allclose(a, b) for a, b in itertools.combinations(pictures, 2))


@every_architecture
def test_a_blind_encoder_ignores_the_label_and_the_decoder_does_not(conditioning, spatial_latents):
    options = {"conditioning": conditioning, "spatial_latents": spatial_latents}
    for sees in (True, False):
        model = build(encoder_sees_label=sees, **options).eval()
        images, labels, noise = inputs(model)
        mean, log_variance = model.encode(images, labels)
        other_mean, other_log_variance = model.encode(images, (labels + 1) % 5)
        assert torch.equal(mean, other_mean) is not sees
        assert torch.equal(log_variance, other_log_variance) is not sees
        latent, noise = torch.randn(4, 6), noise[:, 6:]
        rows = [model.decode(latent, torch.full((4,), label), noise) for label in range(6)]
        assert not any(torch.allclose(a, b) for a, b in itertools.combinations(rows, 2))


@pytest.mark.parametrize("conditioning", ["concat", "film"])
def test_the_priors_of_spatial_latents_know_the_label(conditioning):
    """At the coarsest side nothing but the global latent and the label comes before."""
    model = build(conditioning=conditioning, spatial_latents=SPATIAL)
    prior = []
    layer = next(layer for layer in model.decoder.layers if hasattr(layer, "prior"))
    layer.prior.register_forward_hook(lambda module, args, output: prior.append(output))
    for label in (0, 1):
        model.decode(torch.zeros(1, 6), torch.tensor([label]), torch.zeros(1, model.n_noise - 6))
    assert not torch.allclose(*prior)


@every_architecture
def test_an_image_does_not_depend_on_its_batch(conditioning, spatial_latents):
    model = build(conditioning=conditioning, spatial_latents=spatial_latents).train()
    images, labels, noise = inputs(model)
    together = model(images, labels, noise)
    alone = model(images[2:3], labels[2:3], noise[2:3])
    for name, whole, one in zip(together._fields, together, alone, strict=True):
        torch.testing.assert_close(whole[2:3], one, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text)


@every_architecture
def test_gradients_reach_every_parameter_from_the_first_update(conditioning, spatial_latents):
    model = build(stirred=False, conditioning=conditioning, spatial_latents=spatial_latents)
    images, labels, noise = inputs(model)
    output = model(images, labels, noise)
    (output.kl.sum() - Bernoulli().log_prob(output.parameters, images.round()).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_architecture
def test_every_number_of_the_noise_counts(conditioning, spatial_latents):
    model = build(conditioning=conditioning, spatial_latents=spatial_latents)
    images, labels, noise = inputs(model, 2)
    noise.requires_grad_()
    for parameters in (model(images, labels, noise).parameters, model.sample(labels, noise)):
        weights = torch.randn(parameters.shape, generator=generator(2))
        (gradient,) = torch.autograd.grad((parameters * weights).sum(), noise)
        assert (gradient != 0).all()


def posteriors_and_priors(model: CVAE, images, labels, noise):
    """The distributions of all levels, made of what the layers put out, with the latents that were drawn."""
    outputs, latents = [], []
    hooks = []
    for layer in model.decoder.layers:
        if hasattr(layer, "prior"):
            for module in (layer.prior, layer.posterior):
                hooks.append(module.register_forward_hook(lambda module, args, output: outputs.append(output)))
            hooks.append(layer.projection.register_forward_pre_hook(lambda module, args: latents.append(args[0])))
    output = model(images, labels, noise)
    for hook in hooks:
        hook.remove()

    def scale(raw):
        log_variance = raw if model.encoder.sigma == "exp" else 2 * torch.log2(1 + 2**raw).log()
        return (10 * torch.tanh(log_variance / 10) / 2).exp()

    mean, log_variance = model.encode(images, labels)
    levels = [(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros_like(mean), 1.0), output.latent)]
    for prior, relative, latent in zip(outputs[::2], outputs[1::2], latents, strict=True):
        prior_mean, prior_log_variance = prior.chunk(2, 1)
        p = Normal(prior_mean, scale(prior_log_variance))
        shift, log_shrink = relative.chunk(2, 1)
        levels.append((Normal(p.mean + shift * p.scale, p.scale * scale(log_shrink)), p, latent))
    return output, levels


@pytest.mark.parametrize("sigma", ["exp", "softplus"])
@pytest.mark.parametrize("spatial_latents", [(), SPATIAL])
@torch.no_grad()
def test_kl_and_log_ratio_are_those_of_torchs_distributions(spatial_latents, sigma):
    model = build(spatial_latents=spatial_latents, sigma=sigma)
    output, levels = posteriors_and_priors(model, *inputs(model))
    kls = [kl_divergence(q, p).flatten(1) for q, p, _ in levels]
    assert len(kls) == model.n_levels
    torch.testing.assert_close(output.kl_units, kls[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.kl, torch.stack([kl.sum(1) for kl in kls], 1), rtol=1e-4, atol=1e-3)
    log_ratio = sum((q.log_prob(z) - p.log_prob(z)).flatten(1).sum(1) for q, p, z in levels)
    torch.testing.assert_close(output.log_ratio, log_ratio, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def keep_output(kept, module, args, output):
    kept.append(output)


def test_narrow_posteriors_tell_of_the_image_from_the_start_and_wide_ones_hardly():
    shares = []  # of the spatial latents' spread that the image explains, and their KL
    for narrow in (False, True):
        model = build(stirred=False, spatial_latents=SPATIAL, narrow_posteriors=narrow)
        images, labels, noise = inputs(model, 64)
        outputs: list[torch.Tensor] = []
        for layer in model.decoder.spatial_latents():
            layer.posterior.register_forward_hook(partial(keep_output, outputs))
        kl = model(images, labels, noise).kl
        means, variances = zip(*(output.chunk(2, 1) for output in outputs), strict=True)
        signal = torch.stack([mean.var(0).mean() for mean in means])
        shares.append((signal / (signal + torch.stack([v.exp().mean() for v in variances])), kl.mean(0)))
    (wide_share, wide_kl), (narrow_share, narrow_kl) = shares
    assert (wide_share < 0.01).all() and (narrow_share > 30 * wide_share).all()
    assert (narrow_kl[1:] > 100 * wide_kl[1:]).all() and narrow_kl[0] == wide_kl[0]


def test_a_softplus_gives_a_deviation_of_one_at_zero_and_a_gradient_wherever_the_bound_leaves_one():
    raw = torch.tensor([-1e6, -200.0, -10.0, 0.0, 10.0, 1e6], requires_grad=True)
    log_variance = _log_variance(raw, "softplus")
    log_variance.sum().backward()
    assert log_variance[3] == 0 and log_variance.isfinite().all() and log_variance.abs().max() <= 10
    assert raw.grad.isfinite().all() and (raw.grad[2:5] > 0).all()
    assert (log_variance.diff() >= 0).all()
    exponential = _log_variance(raw.detach(), "exp")
    assert torch.equal(exponential, 10 * torch.tanh(raw.detach() / 10))


def test_narrow_posteriors_begin_equally_narrow_whatever_makes_sigma():
    variances = []
    for sigma in ("exp", "softplus"):
        model = build(stirred=False, spatial_latents=SPATIAL, narrow_posteriors=True, sigma=sigma)
        raw = model.decoder.spatial_latents()[0].posterior[-1].bias.detach().chunk(2)[1]
        variances.append(_log_variance(raw, sigma))
    torch.testing.assert_close(*variances)


def test_the_finest_maps_alone_are_made_narrower():
    wide, narrow = (build(width=32, image_size=32, spatial_latents=SPATIAL, fine_width=w) for w in (0, 16))
    assert [b[0].conv1.in_channels for b in wide.encoder.blocks] == [32, 64, 128]
    assert [b[0].conv1.in_channels for b in narrow.encoder.blocks] == [16, 64, 128]
    assert wide.decoder.head[0].in_channels == 32 and narrow.decoder.head[0].in_channels == 16
    images, labels, noise = inputs(narrow, image_size=32)
    assert narrow(images, labels, noise).parameters.shape == (4, 1, 32, 32)


def test_kl_is_the_mean_log_ratio():
    """Monte Carlo over whole hierarchies, where the KL of a level depends on what was drawn above it."""
    n = 4000
    model = build(spatial_latents=((4, 1),))
    images, labels, _ = inputs(model, 1)
    posterior = model.infer(images.expand(n, -1, -1, -1), labels.expand(n))
    output = model.draw(posterior, labels.expand(n), torch.randn(n, model.n_noise, generator=generator()))
    differences = output.log_ratio - output.kl.sum(1)
    assert abs(differences.mean().item()) < 4 * differences.std().item() / n**0.5
    assert output.kl.min() > 0 and output.kl[:, 1].std() > 0


@torch.no_grad()
def test_the_importance_weighted_bound_is_above_the_elbo():
    n_draws = 1600
    model = build(spatial_latents=((4, 1),))
    images, labels, _ = inputs(model, 2)
    mean, log_variance, maps = model.infer(images, labels)
    repeated = Posterior(*(t.repeat(n_draws, 1) for t in (mean, log_variance)), (maps[0].repeat(n_draws, 1, 1, 1),))
    noise = torch.randn(2 * n_draws, model.n_noise, generator=generator())
    output = model.draw(repeated, labels.repeat(n_draws), noise)
    log_prob = Bernoulli().log_prob(output.parameters, images.round().repeat(n_draws, 1, 1, 1))
    elbos, log_weights = (t.view(n_draws, 2) for t in (log_prob - output.kl.sum(1), log_prob - output.log_ratio))
    error = log_weights.std(0) / n_draws**0.5
    assert ((elbos.mean(0) - log_weights.mean(0)).abs() < 4 * error).all(), "two estimates of one ELBO"
    previous = log_weights.mean(0)
    for k in (2, 20, 200):
        bound = torch.stack([importance_weighted_bound(part) for part in log_weights.split(k)]).mean(0)
        assert (bound > previous).all()
        previous = bound


@pytest.mark.parametrize(
    ("likelihood", "channels"), [(Bernoulli(), 1), (LogisticMixture(3), 3), (DiscretisedGaussian(3), 3)]
)
def test_it_overfits_one_batch(likelihood, channels):
    model = build(likelihood.n_parameters(channels), channels, 8, False, spatial_latents=((4, 1),), patch_size=1)
    images, labels, _ = inputs(model, 4, channels, 8)
    pixels = (255 * images).to(torch.uint8)
    targets = pixels if likelihood.discrete else images.round()
    parameters = [*model.parameters(), *likelihood.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.01)
    first = None
    for step in range(60):
        output = model(targets.float() / targets.max() - 0.5, labels, torch.randn(4, model.n_noise))
        log_prob = likelihood.log_prob(output.parameters, targets)
        loss = (output.kl.sum(1) - log_prob).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite(), step
    assert loss.item() < (0.5 if channels == 1 else 0.92) * first, (first, loss.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_architecture
def test_half_precision_stays_finite(conditioning, spatial_latents, dtype):
    """Even with activations far from the usual: the logs and exponentials are in fp32 and bounded."""
    model = build(conditioning=conditioning, spatial_latents=spatial_latents)
    images, labels, noise = inputs(model)
    for scale in (1.0, 100.0):
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            output = model(scale * images, labels, scale * noise)
        for value in output[1:]:
            assert value.dtype == torch.float32 and value.isfinite().all()
        loss = output.kl.sum(1) - Bernoulli().log_prob(output.parameters, images.round())
        loss.mean().backward()
        assert loss.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


def test_it_runs_in_channels_last():
    model = build(3, 3, spatial_latents=SPATIAL)
    images, labels, noise = inputs(model, channels=3)
    expected = model(images, labels, noise).parameters
    model = model.to(memory_format=torch.channels_last)
    found = model(images.to(memory_format=torch.channels_last), labels, noise).parameters
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_it_has_as_many_parameters_as_expected():
    """Counted by hand for one residual block at each of two sides, 14 and 7, of 16 and 32 channels."""
    label, latent, classes = 8, 6, 5
    film = 2 * label + 2  # of a channel of a norm: weights and biases of its scale and shift
    block = {w: 2 * (9 * w * w + w) + 2 * w * film for w in (16, 32)}
    encoder = (9 * 4 + 1) * 16 + block[16] + (9 * 16 + 1) * 32 + block[32] + 32 * film + (32 * 49 + 1) * 2 * latent
    decoder = (latent + 1) * 32 * 49 + block[32] + (32 + 1) * 16 + block[16] + 16 * film + (9 * 16 + 1) * 4
    expected = (classes + 1) * label + encoder + decoder
    assert sum(p.numel() for p in build(image_size=28).parameters()) == expected
    default = CVAE(10, 1, 28, 1, patch_size=2)
    assert sum(p.numel() for p in default.parameters()) == 543_908


def test_dropped_labels_are_the_given_share_and_depend_on_their_uniform_alone():
    labels, uniforms = torch.arange(5).repeat(2000), torch.rand(10_000, generator=generator())
    dropped = drop_labels(labels, uniforms, 0.1, 5)
    assert (dropped[uniforms < 0.1] == 5).all() and torch.equal(dropped[uniforms >= 0.1], labels[uniforms >= 0.1])
    assert 0.08 < (dropped == 5).float().mean() < 0.12
    assert torch.equal(drop_labels(labels, torch.zeros(10_000), 0.0, 5), labels)
    model = build()
    assert model.no_label == 5
    _, _, noise = inputs(model)
    rows = [model.sample(torch.full((4,), label), noise) for label in range(6)]
    assert not any(torch.allclose(rows[5], row) for row in rows[:5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_classes": 0}, "n_classes 0"),
        ({"channels": 0}, "channels 0"),
        ({"n_outputs": 0}, "n_outputs 0"),
        ({"latent_dim": 0}, "latent_dim 0"),
        ({"n_blocks": 0}, "n_blocks 0"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"label_dim": 0}, "label_dim 0"),
        ({"width": 24}, "width 24: give a multiple of 16"),
        ({"width": 0}, "width 0"),
        ({"image_size": 7}, "image_size 7"),
        ({"image_size": 15, "patch_size": 4}, "give at least 16"),
        ({"conditioning": "none"}, "unknown conditioning none"),
        ({"sigma": "relu"}, "unknown sigma relu"),
        ({"fine_width": 24}, "fine_width 24: give a multiple of 16"),
        ({"spatial_latents": ((5, 1),)}, "give a side of 28, 14, 7"),
        ({"spatial_latents": ((7, 0),)}, "at least one channel"),
        ({"spatial_latents": ((14, 1), (7, 1))}, "not in order from coarse to fine"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CVAE(**({"n_classes": 10, "channels": 1, "image_size": 28, "n_outputs": 1} | arguments))


def test_impossible_calls_are_refused():
    model = build(spatial_latents=((4, 1),))
    images, labels, noise = inputs(model)
    with pytest.raises(ValueError, match="noise of 21 numbers an image: give n_noise, 22"):
        model(images, labels, noise[:, 1:])
    with pytest.raises(ValueError, match="noise of 15 numbers an image"):
        model.decode(torch.zeros(4, 6), labels, noise[:, 7:])
    for kept in (0, 3):
        with pytest.raises(ValueError, match=f"kept_levels {kept}: give 1 to 2"):
            model.reconstruct(images, labels, labels, noise, kept)
    with pytest.raises(RuntimeError):
        model(images, labels + 3, noise)
