import torch

from training.ema import make_ema


def test_the_average_follows_the_formula():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema, decay = make_ema(model, 0.5), 0.5
    expected = model.weight.detach().clone()
    for n in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        ema.update_parameters(model)
        # torch's AveragedModel copies at its first update and averages from the second on
        d = min(decay, (1 + n) / (10 + n)) if n else 0.0
        expected = d * expected + (1 - d) * model.weight.detach()
        torch.testing.assert_close(ema.module.weight.detach(), expected)
    assert not torch.equal(ema.module.weight, model.weight)
