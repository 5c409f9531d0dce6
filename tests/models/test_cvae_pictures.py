import torch

from models.cvae import CVAE
from models.cvae_pictures import drawn, interpolated, reconstructed, relabelled, wrong_labels
from models.generative_model import GenerativeModel, scaled
from models.likelihoods import Bernoulli

LABELS = torch.tensor([0, 1, 2, 1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make() -> tuple[GenerativeModel, torch.Tensor]:
    torch.manual_seed(0)
    cvae = CVAE(3, 1, 8, 1, latent_dim=4, width=16, spatial_latents=((4, 2),))
    return GenerativeModel(cvae, Bernoulli()).eval(), (torch.rand(4, 1, 8, 8) < 0.5).float()


def test_wrong_labels_are_never_the_true_one_and_all_others_occur_alike():
    labels = torch.arange(10).repeat(900)
    given = wrong_labels(labels, 10, generator())
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((labels, given), torch.ones_like(labels), accumulate=True)
    assert counts.diagonal().sum() == 0
    others = counts[~torch.eye(10, dtype=torch.bool)]
    assert others.min() > 60 and others.max() < 145  # 100 each, within some four standard deviations


def test_pictures_are_what_the_network_makes_of_the_same_noise():
    model, targets = make()
    noise = torch.randn(4, model.cvae.n_noise, generator=generator())
    given = (LABELS + 1) % 3
    with torch.no_grad():
        under_others = model.cvae.reconstruct(scaled(targets), LABELS, given, noise, kept_levels=1).sigmoid()
        under_own = model.cvae(scaled(targets), LABELS, noise).parameters.sigmoid()
        new = model.cvae.sample(LABELS, noise, 0.5).sigmoid()
    torch.testing.assert_close(relabelled(model, targets, LABELS, given, generator()), under_others)
    torch.testing.assert_close(reconstructed(model, targets, LABELS, generator()), under_own)
    torch.testing.assert_close(drawn(model, LABELS, generator(), temperature=0.5), new)
    assert not torch.allclose(under_others, under_own, atol=1e-3)


def test_the_picture_temperature_scales_spatial_latents_alone():
    model, targets = make()
    model.picture_temperature = 0.5
    noise = torch.randn(4, model.cvae.n_noise, generator=generator())
    given, scales = (LABELS + 1) % 3, torch.tensor([1.0] * 4 + [0.5] * (model.cvae.n_noise - 4))
    with torch.no_grad():
        under_others = model.cvae.reconstruct(scaled(targets), LABELS, given, scales * noise, 1).sigmoid()
        new = model.cvae.sample(LABELS, scales * noise).sigmoid()
        under_own = model.cvae(scaled(targets), LABELS, noise).parameters.sigmoid()
    torch.testing.assert_close(relabelled(model, targets, LABELS, given, generator()), under_others)
    torch.testing.assert_close(drawn(model, LABELS, generator()), new)
    torch.testing.assert_close(reconstructed(model, targets, LABELS, generator()), under_own)  # none from a prior


def test_an_interpolation_begins_and_ends_at_the_two_latents():
    model, targets = make()
    pictures = interpolated(model, targets[:2], LABELS[:2], targets[2:], LABELS[2:], n_steps=5)
    assert pictures.shape == (2, 5, 1, 8, 8)
    no_noise = torch.zeros(2, model.cvae.n_noise - 4)
    with torch.no_grad():
        for step, images, labels in ((0, targets[:2], LABELS[:2]), (-1, targets[2:], LABELS[2:])):
            latent, _ = model.cvae.encode(scaled(images), labels)
            expected = model.cvae.decode(latent, LABELS[:2], no_noise).sigmoid()
            torch.testing.assert_close(pictures[:, step], expected)
