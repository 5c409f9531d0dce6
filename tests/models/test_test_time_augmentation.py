import torch

from models.test_time_augmentation import least_sure, logits_over_views, pixel_logits_over_views


def test_each_scheme_is_the_weighted_mean_of_its_views():
    torch.manual_seed(0)
    weights = torch.randn(3 * 8 * 8, 5)

    def model(images):
        return torch.tanh(images.flatten(1) @ weights)  # tells every view from every other

    images = torch.randn(4, 3, 8, 8)

    def shifted(dy, dx):
        """Each pixel moved by (dy, dx); what comes in at the border is the neighbour across it."""
        reflected = torch.tensor([abs(i) if i < 8 else 14 - i for i in range(-1, 9)])
        rows, columns = reflected[1 - dy : 9 - dy], reflected[1 - dx : 9 - dx]
        return images[:, :, rows][:, :, :, columns]

    one = model(images)
    mirror = (one + model(images.flip(3))) / 2
    views = [(images, 1 / 2), (shifted(-1, -1), 1 / 4), (shifted(1, 1), 1 / 4)]
    six = sum(weight * (model(view) + model(view.flip(3))) / 2 for view, weight in views)
    torch.testing.assert_close(logits_over_views(model, images, "one"), one)
    torch.testing.assert_close(logits_over_views(model, images, "mirror"), mirror)
    torch.testing.assert_close(logits_over_views(model, images, "six"), six)
    assert torch.equal(logits_over_views(model, images, "six-unsure"), logits_over_views(model, images, "six"))
    assert not torch.allclose(mirror, six)


def test_the_quarter_that_is_least_sure():
    sure = torch.tensor([0.9, 0.5, 0.6, 0.99, 0.7, 0.8, 0.95, 0.85])
    log_probabilities = torch.stack([1 - sure, sure], 1).log()
    assert set(least_sure(log_probabilities).tolist()) == {1, 2}
    assert least_sure(log_probabilities[:2]).tolist() == [1]


def test_the_views_of_pixels_are_brought_back_to_their_places():
    torch.manual_seed(0)
    weights = torch.randn(2, 3, 3, 3)  # tells left from right
    sizes = []

    def model(images):
        sizes.append(tuple(images.shape[2:]))
        return torch.nn.functional.conv2d(images, weights, padding=1)

    images = torch.randn(2, 3, 16, 24)
    mirrored_back = model(images.flip(3)).flip(3)
    torch.testing.assert_close(pixel_logits_over_views(model, images, "one"), model(images))
    mirror = pixel_logits_over_views(model, images, "mirror")
    torch.testing.assert_close(mirror, (model(images) + mirrored_back) / 2)
    assert not torch.allclose(mirrored_back, model(images), atol=0.1)
    sizes.clear()
    assert pixel_logits_over_views(model, images, "scales").shape == (2, 2, 16, 24)
    assert sizes == [(14, 21)] * 2 + [(16, 24)] * 2 + [(18, 27)] * 2


def test_scales_of_a_smooth_picture_agree():
    """A model that answers pixel by pixel says the same at every scale, but for the resampling."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 48), indexing="ij")
    images = torch.stack([x, y, x * y])[None]
    logits = pixel_logits_over_views(lambda pictures: 3 * pictures, images, "scales")
    mirrored = pixel_logits_over_views(lambda pictures: 3 * pictures, images, "mirror")
    torch.testing.assert_close(logits, mirrored, atol=0.06, rtol=0)
    torch.testing.assert_close(mirrored, 3 * images)
