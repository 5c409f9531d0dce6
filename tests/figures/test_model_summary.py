import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from figures.model_summary import LayerRow, model_summary, summary_table, write_model_summary


class Net(nn.Module):
    """A residual connection, a module that runs twice, direct parameters, tied weights, one unused layer."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 3)
        self.head = nn.Linear(4, 10, bias=False)  # defined before the others, runs last
        self.prep = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.same = self.norm  # a second name of the same module
        self.residual = nn.Conv2d(4, 4, 3, padding=1)
        self.tied = nn.Linear(4, 10)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("n_calls", torch.zeros(()))
        self.register_buffer("last_mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.last_mean = x.mean() + 1
        x = self.same(self.norm(self.prep(x)))
        x = x + self.residual(x) * self.scale + torch.rand(())
        x = self.dropout(x).mean(dim=(2, 3))
        return self.head(x) + self.tied(x)


@pytest.fixture
def net() -> Net:
    net = Net()
    net.norm.eval()  # a frozen layer in a model that trains
    return net


def test_rows_against_hand_computed_values(net):
    rows = model_summary(net, torch.zeros(2, 3, 8, 8))
    assert rows == [
        LayerRow("(model)", "Net", (2, 10), 4, 1),
        LayerRow("prep", "Conv2d", (2, 4, 8, 8), 3 * 4 * 9, 1),
        LayerRow("norm", "BatchNorm2d", (2, 4, 8, 8), 8, 2),
        LayerRow("residual", "Conv2d", (2, 4, 8, 8), 4 * 4 * 9 + 4, 1),
        LayerRow("dropout", "Dropout", (2, 4, 8, 8), 0, 1),
        LayerRow("head", "Linear", (2, 10), 40, 1),
        LayerRow("tied", "Linear", (2, 10), 10, 1),
        LayerRow("unused", "Linear", None, 9, 0),
    ]
    assert sum(row.n_parameters for row in rows) == sum(p.numel() for p in net.parameters())


def test_table_has_runs_and_a_total(net):
    header, rows = summary_table(model_summary(net, torch.zeros(1, 3, 8, 8)))
    assert header == ["layer", "type", "output shape", "parameters"]
    assert rows[2] == ["norm", "BatchNorm2d x 2", "(1, 4, 8, 8)", "8"]
    assert rows[-2:] == [["unused", "Linear", "-", "9"], ["total", "", "", "327"]]


def test_thousands_are_told_apart():
    row = LayerRow("head", "Linear", (1, 10), 6_573_120, 1)
    assert [cells[-1] for cells in summary_table([row, row])[1]] == ["6,573,120", "6,573,120", "13,146,240"]


@pytest.mark.parametrize("size", [8, "an error"])
def test_model_and_random_numbers_stay_as_they_were(net, size):
    modes = [module.training for module in net.modules()]
    assert True in modes and False in modes
    buffers = {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}
    random_state = torch.get_rng_state()
    if size == 8:
        model_summary(net, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    else:
        with pytest.raises(RuntimeError, match="channels"):
            model_summary(net, torch.zeros(4, 5, 8, 8))
    assert [module.training for module in net.modules()] == modes
    for name, buffer in net.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_training_model_is_seen_in_evaluation_mode_without_gradients():
    seen = []
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    handle = net[1].register_forward_hook(
        lambda module, _, output: seen.append((module.training, output.requires_grad))
    )
    model_summary(net, torch.ones(1, 2))  # one example: BatchNorm would refuse it in training mode
    assert seen == [(False, False)]
    assert list(net[1]._forward_hooks) == [handle.id]
    assert net[1].num_batches_tracked == 0 and net.training and net[1].training


def test_outputs_that_are_no_tensor():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict:
            return {"none": None, "pair": [(), (x, x[0])]}

    class Nothing(nn.Module):
        def forward(self, x: dict) -> None: ...

    rows = model_summary(nn.Sequential(nn.LSTM(5, 6), Pair(), Nothing())[:1], torch.zeros(3, 2, 5))
    assert rows == [LayerRow("0", "LSTM", (3, 2, 6), 4 * 6 * (5 + 6 + 2), 1)]
    rows = model_summary(nn.Sequential(Pair(), Nothing()), torch.zeros(3, 2))
    assert [row.output_shape for row in rows] == [(3, 2), None]


def test_weights_that_a_parent_computes_with():
    """nn.MultiheadAttention owns three projections itself, and never calls its child `out_proj`."""

    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    rows = model_summary(SelfAttention(), torch.zeros(5, 1, 8))
    assert rows[0] == LayerRow("attention", "MultiheadAttention", (5, 1, 8), 3 * 8 * 8 + 3 * 8, 1)
    assert rows[1].name == "attention.out_proj"
    assert (rows[1].output_shape, rows[1].n_parameters, rows[1].n_runs) == (None, 8 * 8 + 8, 0)


def test_a_model_of_one_layer():
    assert model_summary(nn.Linear(2, 3), torch.zeros(1, 2)) == [LayerRow("(model)", "Linear", (1, 3), 9, 1)]


def test_the_table_is_written_as_a_picture(tmp_path):
    write_model_summary(
        tmp_path / "model.png", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)
    )
    with Image.open(tmp_path / "model.png") as picture:
        assert picture.width > 200 and picture.height > 50
