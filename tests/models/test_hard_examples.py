import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.hard_examples import HardExamples
from models.speednet import SpeedNet


class Scores(nn.Module):
    """Logits that are the images' first values, and a net that learns."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.flatten(1)[:, :3]


def test_the_net_learns_from_the_images_that_the_small_one_finds_hardest():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    proxy = Scores()
    model = HardExamples(net, proxy, share=0.3)
    images, labels = torch.randn(10, 3, 2, 2), torch.randint(3, (10,))
    output = model(images, labels)
    losses = F.cross_entropy(images.flatten(1)[:, :3], labels, reduction="none")
    assert set(output.picked.tolist()) == set(losses.argsort()[-3:].tolist())
    torch.testing.assert_close(output.logits, net(images[output.picked]))
    torch.testing.assert_close(output.proxy_logits, proxy(images[:2]))  # a quarter of them, the first
    (output.logits.sum() + output.proxy_logits.sum()).backward()
    assert net[1].weight.grad.abs().sum() > 0 and proxy.scale.grad.abs() > 0
    assert torch.equal(model.eval()(images), net(images))


def test_both_nets_are_whitened_and_a_single_image_is_enough():
    model = HardExamples(SpeedNet(3, widths=(8, 8, 8)), SpeedNet(3, widths=(8, 8, 8)), share=0.5)
    images = torch.randn(20, 3, 32, 32)
    model.init_whitening(images)
    assert torch.equal(model.net.whiten.weight, model.proxy.whiten.weight)
    output = model(images[:1], torch.tensor([2]))
    assert output.logits.shape == output.proxy_logits.shape == (1, 3)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_picks_nothing_or_all_is_refused(share):
    with pytest.raises(ValueError, match="give more than 0 and less than 1"):
        HardExamples(Scores(), Scores(), share)
