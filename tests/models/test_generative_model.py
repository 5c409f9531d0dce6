import pytest
import torch
from torch.nn import functional as F

from models.cvae import CVAE
from models.generative_model import CONTRAST, GenerativeModel, scaled
from models.likelihoods import Bernoulli, LogisticMixture

LABELS = torch.tensor([0, 1, 2, 1])


def make(
    probe_weight: float = 0.0, spatial_latents=(), classifier_weight: float = 0.0, **options
) -> GenerativeModel:
    torch.manual_seed(0)
    cvae = CVAE(3, 1, 8, 1, latent_dim=4, width=16, spatial_latents=spatial_latents, encoder_sees_label=False)
    return GenerativeModel(cvae, Bernoulli(), probe_weight, classifier_weight, **options)


def test_the_terms_are_those_of_the_network_and_the_likelihood():
    model, targets = make(), (torch.rand(4, 1, 8, 8) < 0.5).float()
    noise = torch.randn(4, model.cvae.n_noise)
    log_prob, output, probe_loss = model(targets, LABELS, LABELS, noise)
    expected = model.cvae(2 * targets - 1, LABELS, noise)
    torch.testing.assert_close(output.kl, expected.kl)
    bce = F.binary_cross_entropy_with_logits(expected.parameters, targets, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(log_prob, -bce)
    assert probe_loss.tolist() == [0.0] * 4 and not hasattr(model, "probe")


def test_the_probe_learns_to_read_what_the_encoder_learns_to_hide():
    weight = 0.7
    model, targets = make(weight), (torch.rand(4, 1, 8, 8) < 0.5).float()
    noise = torch.randn(4, model.cvae.n_noise)
    _, output, probe_loss = model(targets, LABELS, LABELS, noise)
    torch.testing.assert_close(probe_loss, F.cross_entropy(model.probe(output.latent), LABELS, reduction="none"))
    head, reader = model.cvae.encoder.head.weight, model.probe[0].weight
    reversed_gradient, of_probe = torch.autograd.grad(probe_loss.sum(), (head, reader))
    _, output, _ = model(targets, LABELS, LABELS, noise)
    plain = F.cross_entropy(model.probe(output.latent), LABELS, reduction="sum")
    expected, expected_of_probe = torch.autograd.grad(plain, (head, reader))
    torch.testing.assert_close(reversed_gradient, -weight * expected)
    torch.testing.assert_close(of_probe, expected_of_probe)


def test_the_classifier_learns_from_real_images_and_the_decoder_from_it_under_wrong_labels():
    weight = 0.7
    model, targets = make(classifier_weight=weight, spatial_latents=((4, 2),)), torch.rand(4, 1, 8, 8).round()
    noise = torch.randn(4, model.n_noise)
    _, output, loss = model(targets, LABELS, LABELS, noise)
    on_real = F.cross_entropy(model.classifier(2 * targets - 1), LABELS, reduction="none")
    steps = torch.where(noise[:, -1] < 0, 1, 2)  # of three classes two are wrong, divided at the median
    given = (LABELS + steps) % 3
    pictures = model.cvae.decode(output.latent, given, noise[:, 4:-1]).sigmoid()
    on_made = F.cross_entropy(model.classifier(2 * pictures - 1), given, reduction="none")
    torch.testing.assert_close(loss, on_real + weight * on_made)
    classifier, decoder = model.classifier.head.weight, model.cvae.decoder.head[0].weight
    encoder = model.cvae.encoder.head.weight
    ours = torch.autograd.grad(loss.sum(), (classifier, decoder, encoder), allow_unused=True)
    torch.testing.assert_close(ours[0], torch.autograd.grad(on_real.sum(), classifier)[0])
    torch.testing.assert_close(ours[1], torch.autograd.grad(weight * on_made.sum(), decoder)[0])
    assert ours[2] is None  # the encoder does not learn from it


@pytest.mark.parametrize("every, shown", [(2, [0, 2]), (3, [0, 3]), (9, [0])])
def test_of_so_many_images_the_classifier_sees_one_which_counts_for_all(every, shown):
    weights = make(classifier_weight=0.7, spatial_latents=((4, 2),)).state_dict()
    losses = []
    targets, noise = torch.rand(4, 1, 8, 8).round(), None
    for classifier_every in (1, every):
        model = make(classifier_weight=0.7, spatial_latents=((4, 2),), classifier_every=classifier_every)
        model.load_state_dict(weights)
        noise = torch.randn(4, model.n_noise) if noise is None else noise
        losses.append(model(targets, LABELS, LABELS, noise)[2])
    expected = torch.zeros(4)
    expected[shown] = losses[0][shown] * (4 / len(shown))
    torch.testing.assert_close(losses[1], expected)


def test_the_classifier_sees_images_and_pictures_under_the_same_noise_of_even_strengths():
    model = make(classifier_weight=1.0, classifier_noise=0.3)
    n_images = 600
    assert model.n_noise == model.cvae.n_noise + 2 + 64
    targets, labels = torch.rand(n_images, 1, 8, 8), torch.arange(n_images) % 3
    targets = 0.5 + (targets.round() - 0.5) * targets[:, :, :1, :1]  # of every contrast
    noise = torch.randn(n_images, model.n_noise)
    shown = []
    model.classifier.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    with torch.no_grad():
        model(targets, labels, labels, noise)
        model.classifier_noise = 0.0
        model(targets, labels, labels, noise)
    images, pictures, clear_images, clear_pictures = shown
    haze = images - clear_images
    torch.testing.assert_close(pictures - haze, clear_pictures, atol=1e-5, rtol=0)
    strengths = haze.flatten(1).std(1)
    assert strengths.max() < 0.3 * 1.3 and abs(strengths.mean() - 0.15) < 0.02 and strengths.min() < 0.01
    assert abs(torch.corrcoef(torch.stack([haze[:, 0, 0, 0], haze[:, 0, 4, 4]]))[0, 1]) < 0.15

    contrast = (2 * targets - 1).flatten(1).std(1, correction=0)
    seen = clear_images.flatten(1).std(1, correction=0)
    low = contrast < CONTRAST
    assert 100 < low.sum() < 500
    torch.testing.assert_close(seen[low], contrast[low] / CONTRAST)
    torch.testing.assert_close(seen[~low], torch.ones_like(seen[~low]))
    torch.testing.assert_close(clear_images.flatten(1).mean(1), torch.zeros(n_images), atol=1e-5, rtol=0)


def test_the_classifier_sees_squares_averaged_and_no_finer_pattern():
    classifier = make(classifier_weight=1.0, classifier_pooling=2).classifier
    pictures = torch.rand(4, 1, 8, 8)
    pattern = torch.tensor([[0.3, -0.3], [-0.3, 0.3]]).tile(4, 4)
    torch.testing.assert_close(classifier(pictures + pattern), classifier(pictures), atol=1e-5, rtol=1e-5)
    plain = make(classifier_weight=1.0).classifier
    assert not torch.allclose(plain(pictures + pattern), plain(pictures), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier_weight": -1.0}, "classifier_weight -1.0: give 0 or more"),
        ({"classifier_noise": -0.1}, "classifier_noise -0.1: give 0 or more"),
        ({"picture_temperature": -1.0}, "picture_temperature -1.0: give 0 or more"),
        ({"classifier_pooling": 0}, "classifier_pooling 0: give 1 to 8 pixels"),
        ({"classifier_every": 0}, "classifier_every 0: give 1 or more"),
        ({"classifier_pooling": 9}, "classifier_pooling 9: give 1 to 8 pixels"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_pictures_that_the_classifier_sees_are_of_the_picture_temperature():
    model = make(spatial_latents=((4, 2),), classifier_weight=1.0, picture_temperature=0.0)
    shown = []
    model.classifier.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    noise = torch.randn(4, model.n_noise)
    with torch.no_grad():
        _, output, _ = model(torch.rand(4, 1, 8, 8).round(), LABELS, LABELS, noise)
        given = (LABELS + torch.where(noise[:, -1] < 0, 1, 2)) % 3
        expected = model.cvae.decode(output.latent, given, torch.zeros(4, 32)).sigmoid()
    torch.testing.assert_close(shown[1], 2 * expected - 1)


def test_every_wrong_label_is_asked_for_and_never_the_right_one():
    model = make(classifier_weight=1.0)
    seen = set()
    genuine = model.cvae.decode
    model.cvae.decode = lambda latent, given, *noise: (
        seen.update(zip(labels.tolist(), given.tolist(), strict=True)) or (genuine(latent, given, *noise))
    )
    labels = torch.arange(600) % 3
    noise = torch.randn(600, model.n_noise)
    noise[:4, -1] = torch.tensor([-50.0, 50.0, -torch.inf, torch.inf])
    with torch.no_grad():
        model(torch.zeros(600, 1, 8, 8), labels, labels, noise.nan_to_num(posinf=9, neginf=-9))
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


@pytest.mark.parametrize("classifier_noise", [0.0, 0.3])
def test_the_wrong_label_hangs_together_with_nothing_else_that_is_drawn(classifier_noise):
    model, n = make(classifier_weight=1.0, classifier_noise=classifier_noise), 3000
    labels, noise = torch.arange(n) % 3, torch.randn(n, model.n_noise)
    asked, seen, genuine = [], [], model.cvae.decode
    model.cvae.decode = lambda latent, given, *noise: asked.append(given) or genuine(latent, given, *noise)
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        _, output, _ = model(torch.zeros(n, 1, 8, 8), labels, labels, noise)
    steps = (asked[-1] - labels) % 3  # the last is the classifier's
    others = [output.latent, noise[:, : model.cvae.n_noise], seen[0].flatten(1)]
    others = torch.cat([columns[:, columns.std(0) > 0] for columns in others], 1)
    correlations = torch.corrcoef(torch.cat([steps[:, None].float(), others], 1).T)[0, 1:]
    assert set(steps.tolist()) == {1, 2} and correlations.abs().max() < 5 / n**0.5


@pytest.mark.parametrize("spatial_latents", [(), ((4, 2),)])
def test_more_draws_never_loosen_the_bound_and_one_is_the_elbos_estimate(spatial_latents):
    model, targets = make(spatial_latents=spatial_latents), (torch.rand(4, 1, 8, 8) < 0.5).float()
    with torch.no_grad():  # a posterior away from the prior
        model.cvae.encoder.head.weight.mul_(30)
    log_prob, output, one = model.bounds(targets, LABELS, 1, torch.Generator().manual_seed(1))
    torch.testing.assert_close(one, log_prob - output.log_ratio)
    elbo = torch.stack([model.bounds(targets, LABELS, 1, torch.Generator().manual_seed(i))[2] for i in range(200)])
    _, _, many = model.bounds(targets, LABELS, 200, torch.Generator().manual_seed(2))
    error = elbo.std(0) / 200**0.5
    assert (many > elbo.mean(0) - 3 * error).all() and many.mean() > elbo.mean()


def test_scaled_targets_reach_from_minus_one_to_one():
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    assert scaled(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]


def test_targets_are_what_the_likelihood_takes():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    drawn = [Bernoulli().targets(images, torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert set(drawn[0].unique().tolist()) == {0.0, 1.0}
    assert LogisticMixture(2).targets(images, torch.Generator()) is images
