import torch

from models.views import logits_over_views


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
    assert not torch.allclose(mirror, six)
