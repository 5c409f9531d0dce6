import torch
from torch.nn import functional as F

from models.resnet import ResNet9


def n_parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_it_has_the_parameters_of_the_course():
    assert n_parameters(ResNet9()) == 6_573_120
    assert n_parameters(ResNet9(n_classes=100)) == 6_573_120 + 90 * 512
    weighted = (m for m in ResNet9().modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    assert all(m.bias is None for m in weighted)


def test_the_forward_pass_is_the_drawn_one():
    """Against the same network written out with functions, on its own weights."""
    torch.manual_seed(0)
    model = ResNet9().eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    w = model.state_dict()

    def block(x, prefix, pool=False):
        x = F.conv2d(x, w[f"{prefix}.0.weight"], padding=1)
        x = F.max_pool2d(x, 2) if pool else x
        x = F.batch_norm(
            x,
            w[f"{prefix}.2.running_mean"],
            w[f"{prefix}.2.running_var"],
            w[f"{prefix}.2.weight"],
            w[f"{prefix}.2.bias"],
        )
        return F.relu(x)

    images = torch.randn(3, 3, 32, 32)
    x = block(images, "prep")
    x = block(x, "layer1.0", pool=True)
    x = x + block(block(x, "layer1.1.branch.0"), "layer1.1.branch.1")
    x = block(x, "layer2", pool=True)
    x = block(x, "layer3.0", pool=True)
    x = x + block(block(x, "layer3.1.branch.0"), "layer3.1.branch.1")
    expected = F.max_pool2d(x, 4).flatten(1) @ w["classifier.weight"].T / 8
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


def test_a_whitened_net_begins_with_fixed_filters_of_its_images():
    torch.manual_seed(0)
    plain, model = ResNet9(), ResNet9(whitened=True, activation="gelu")
    images = torch.randn(50, 3, 32, 32)
    images = images + images.mean(1, keepdim=True)  # channels that go together
    model.init_whitening(images)
    responses = model.whiten(images)[:, :27, 2:-2, 2:-2].transpose(0, 1).flatten(1)
    moments = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(moments, torch.eye(27), atol=0.05, rtol=0)
    assert not model.whiten.weight.requires_grad and model.prep[0].kernel_size == (1, 1)
    logits = model(images)
    logits.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert logits.shape == (50, 10) and all(p.grad.abs().sum() > 0 for p in trained)
    assert sum(isinstance(m, torch.nn.GELU) for m in model.modules()) == 8
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.init_whitening(images)  # has none
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
