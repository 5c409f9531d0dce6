import copy

import pytest
import torch

from training.muon import Muon, MuonAdamW, muon_groups, orthogonalize


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_end_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, n_steps=5)
    inner = u.T @ result @ vh.T  # diagonal if the singular vectors are the same
    torch.testing.assert_close(inner - torch.diag(inner.diag()), torch.zeros_like(inner), atol=2e-2, rtol=0)
    assert inner.diag().min() > 0.6 and inner.diag().max() < 1.3
    assert s.max() / s.min() > 1.5  # they were not near one another before


def test_other_groups_follow_torchs_nesterov_sgd():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))]
    theirs = copy.deepcopy(ours)
    muon = Muon([{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:]}], lr=0.1, momentum=0.8)
    sgd = torch.optim.SGD(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:]}], lr=0.1, momentum=0.8, nesterov=True
    )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        sgd.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_filter_turns_by_its_orthogonalized_momentum_from_a_fixed_norm():
    torch.manual_seed(0)
    filters = torch.nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = Muon([{"params": [filters], "orthogonal": True, "momentum": 0.6}], lr=0.2)
    buffer, expected = torch.zeros(8, 36), filters.detach().reshape(8, 36)
    for _ in range(3):
        gradient = torch.randn(8, 4, 3, 3)
        filters.grad = gradient.to(memory_format=torch.channels_last)
        optimizer.step()
        buffer = 0.6 * buffer + gradient.reshape(8, 36)
        expected = expected * (8**0.5 / expected.norm())
        expected = expected - 0.2 * orthogonalize(gradient.reshape(8, 36) + 0.6 * buffer)
        torch.testing.assert_close(filters.detach().reshape(8, 36), expected, atol=1e-5, rtol=1e-4)


def test_a_filter_that_keeps_its_norm_turns_by_the_same_share_and_goes_on_from_its_state():
    torch.manual_seed(0)
    start = 3 * torch.randn(8, 4, 3, 3)
    gradients = torch.randn(4, 8, 4, 3, 3)

    def stepped(scale: float, keeps_norm: bool, reloads: bool = False) -> torch.Tensor:
        filters = torch.nn.Parameter(scale * start)
        make = lambda: Muon([{"params": [filters], "orthogonal": True, "keeps_norm": keeps_norm}], lr=0.2)  # noqa: E731
        optimizer = make()
        for gradient in gradients:
            filters.grad = gradient.clone()
            optimizer.step()
            if reloads:
                state, optimizer = copy.deepcopy(optimizer.state_dict()), make()
                optimizer.load_state_dict(state)
        return filters.detach()

    usual = stepped(1.0, keeps_norm=False)
    for scale in (0.1, 1.0):
        kept = stepped(scale, keeps_norm=True)
        torch.testing.assert_close(kept, usual * (scale * start.norm() / 8**0.5), atol=1e-4, rtol=1e-4)
    assert torch.equal(stepped(1.0, keeps_norm=True, reloads=True), stepped(1.0, keeps_norm=True))


def test_a_state_from_before_filters_could_keep_their_norm_is_taken():
    filters = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    state = Muon([{"params": [filters], "orthogonal": True}], lr=0.1).state_dict()
    del state["param_groups"][0]["keeps_norm"]
    optimizer = Muon([{"params": [filters], "orthogonal": True}], lr=0.1)
    optimizer.load_state_dict(state)
    filters.grad = torch.randn_like(filters)
    optimizer.step()


def test_in_bf16_the_update_is_the_same_to_its_precision_and_weights_stay_fp32():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 36), torch.randn(8, 36)
    turned = []
    for dtype in (torch.float32, torch.bfloat16):
        filters = torch.nn.Parameter(start.clone())
        filters.grad = gradient.clone()
        Muon([{"params": [filters], "orthogonal": True}], lr=0.2, dtype=dtype).step()
        assert filters.dtype == torch.float32
        turned.append(filters.detach())
    difference = (turned[0] - turned[1]).norm() / (turned[0] - start * 8**0.5 / start.norm()).norm()
    assert 0 < difference < 0.02


def test_vectors_cannot_be_orthogonalized():
    with pytest.raises(ValueError, match="vectors"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "orthogonal": True}], lr=0.1)


def test_a_batch_is_orthogonalized_matrix_by_matrix():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (3, 20, 8)):
        batch = torch.randn(shape) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
        one_by_one = torch.stack([orthogonalize(matrix) for matrix in batch])
        torch.testing.assert_close(orthogonalize(batch), one_by_one)


def some_parameters(gates: tuple[int, int] = (32, 12)) -> list[torch.nn.Parameter]:
    """An LSTM's matrix of four gates, a lying and a standing matrix, a table and a bias."""
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in (gates, (6, 9), (9, 6), (20, 6), (9,))]


def muon_adamw(parameters: list[torch.nn.Parameter]) -> MuonAdamW:
    gates, lying, standing, table, bias = parameters
    groups = [
        {"params": [gates], "orthogonal": True, "n_blocks": 4},
        {"params": [lying, standing], "orthogonal": True, "weight_decay": 0.0},
        {"params": [table]},
        {"params": [bias], "weight_decay": 0.0},
    ]
    return MuonAdamW(groups, 0.1, (0.9, 0.98))


def set_gradients(*sets: list[torch.nn.Parameter]) -> None:
    for same in zip(*sets, strict=True):
        gradient = torch.randn_like(same[0])
        for p in same:
            p.grad = gradient.clone()


def test_muon_adamw_moves_tables_and_vectors_as_torchs_adamw():
    ours = some_parameters()
    theirs = copy.deepcopy(ours)
    optimizer = muon_adamw(ours)
    adamw = torch.optim.AdamW(
        [{"params": theirs[3:4]}, {"params": theirs[4:], "weight_decay": 0.0}], 0.1, (0.9, 0.98)
    )
    for _ in range(5):
        set_gradients(ours, theirs)
        optimizer.step()
        adamw.step()
    for a, b in zip(ours[3:], theirs[3:], strict=True):
        assert torch.equal(a, b)


def test_without_a_fused_kernel_the_steps_lie_on_the_host_so_that_nothing_waits_for_the_device():
    """On the meta device whatever would be read from the device raises."""
    table, matrix = (torch.nn.Parameter(torch.zeros(8, 4, device="meta")) for _ in range(2))
    optimizer = MuonAdamW([{"params": [table]}, {"params": [matrix], "orthogonal": True}], 0.1, fused=None)
    for _ in range(2):
        table.grad, matrix.grad = torch.zeros_like(table), torch.zeros_like(matrix)
        optimizer.step()
    assert optimizer.state[table]["step"].device.type == "cpu" and optimizer.state[table]["step"] == 2


@pytest.mark.parametrize("gates", [(32, 12), (32, 8), (32, 5)])  # lying, square and standing ones
def test_muon_adamw_moves_each_block_by_its_own_orthogonalized_momentum(gates):
    parameters = some_parameters(gates)
    expected = [p.detach().clone() for p in parameters[:3]]
    buffers = [torch.zeros_like(p) for p in expected]
    optimizer = muon_adamw(parameters)
    for _ in range(3):
        set_gradients(parameters)
        optimizer.step()
        for i, n_blocks in enumerate((4, 1, 1)):
            gradient = parameters[i].grad
            buffers[i] = 0.95 * buffers[i] + 0.05 * gradient
            updates = (0.05 * gradient + 0.95 * buffers[i]).chunk(n_blocks)
            longer_side = max(updates[0].shape)
            update = torch.cat([orthogonalize(update, 5) for update in updates]) * 0.2 * longer_side**0.5
            decay = 0.01 if i == 0 else 0.0  # AdamW's default, and what the second group says
            expected[i] = expected[i] * (1 - 0.1 * decay) - 0.1 * update
            torch.testing.assert_close(parameters[i].detach(), expected[i], atol=1e-5, rtol=1e-4)


def test_the_root_mean_square_of_a_muon_update_is_that_of_adamws():
    for shape in ((64, 64), (64, 256), (256, 64)):
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        MuonAdamW([{"params": [p], "orthogonal": True}], 1.0, (0.9, 0.98)).step()
        assert 0.15 < p.detach().square().mean().sqrt() < 0.25


def test_muon_adamw_goes_on_from_its_state_bit_for_bit():
    straight, resumed = some_parameters(), some_parameters()
    optimizer = muon_adamw(straight)
    gradients = []
    for _ in range(4):
        set_gradients(straight)
        gradients.append([p.grad.clone() for p in straight])
    saved = muon_adamw(resumed).state_dict()
    for start, end in ((0, 2), (2, 4)):
        restarted = muon_adamw(resumed)
        restarted.load_state_dict(saved)
        for step in range(start, end):
            for parameters, opt in ((straight, optimizer), (resumed, restarted)):
                for p, gradient in zip(parameters, gradients[step], strict=True):
                    p.grad = gradient.clone()
                opt.step()
        saved = copy.deepcopy(restarted.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


@pytest.mark.parametrize(("shape", "n_blocks"), [((3,), 1), ((6, 4), 4), ((4, 2, 3, 3), 1)])
def test_muon_adamw_refuses_what_is_no_matrix_of_equal_blocks(shape, n_blocks):
    group = {"params": [torch.nn.Parameter(torch.zeros(shape))], "orthogonal": True, "n_blocks": n_blocks}
    with pytest.raises(ValueError, match="equal blocks"):
        MuonAdamW([group], 0.1, (0.9, 0.98))


def test_muon_groups_hold_every_parameter_once_and_gates_as_four_blocks():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(20, 6)
            self.lstm = torch.nn.LSTM(6, 8, bidirectional=True)
            self.query, self.key_value = torch.nn.Linear(8, 8), torch.nn.Linear(8, 16, bias=False)
            self.head = torch.nn.Linear(8, 20)

    model = Model()
    names = {p: name for name, p in model.named_parameters()}
    groups = muon_groups(model, model.head.weight, {"weight_ih": 4, "weight_hh": 4, "key_value": 2})
    found = {
        (group.get("orthogonal", False), group.get("n_blocks"), group.get("weight_decay")): {
            names[p] for p in group["params"]
        }
        for group in groups
    }
    gates = {name for name in names.values() if "lstm.weight" in name}
    assert len(gates) == 4
    assert found == {
        (False, None, None): {"embedding.weight", "head.weight"},
        (False, None, 0.0): {name for name in names.values() if "bias" in name},
        (True, 4, None): gates,
        (True, 2, None): {"key_value.weight"},
        (True, 1, None): {"query.weight"},
    }
    assert sum(len(group["params"]) for group in groups) == len(names)
    MuonAdamW(groups, 0.1)  # fits


@pytest.mark.parametrize("kind", ["muon", "muon_adamw"])
def test_matrices_of_a_shape_are_one_batch_on_a_gpu_with_the_same_updates(monkeypatch, kind):
    shapes = [(8, 6), (8, 6), (6, 8), (8, 6), (16, 4)]
    batches, genuine = [], orthogonalize

    def noted(matrices, n_steps):
        batches.append(tuple(matrices.shape))
        return genuine(matrices, n_steps)

    monkeypatch.setattr("training.muon.orthogonalize", noted)
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr("training.muon._launches_kernels", lambda device, on_gpu=on_gpu: on_gpu)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        group = {"params": params, "orthogonal": True}
        optimizer = Muon([group], 0.1) if kind == "muon" else MuonAdamW([group | {"n_blocks": 2}], 0.1)
        for _ in range(3):
            set_gradients(params)
            optimizer.step()
        results.append([p.detach() for p in params])
    for alone, batched in zip(*results, strict=True):
        torch.testing.assert_close(batched, alone)
    assert len(batches) == 3 * len(shapes) + 3 * 3
    assert {shape[0] for shape in batches[3 * len(shapes) :]} == {3, 1}
