import pytest
import torch
from torch import Tensor, nn

from models.lstm import BidirectionalLayer, Seq2SeqLSTM
from models.lstm_kernel import kernel_weights, run_lstm

PRECISIONS = [torch.float32, torch.bfloat16]


@pytest.fixture
def as_for_cudnn(monkeypatch):
    """What is done on CUDA, with this machine's kernel."""
    return lambda: monkeypatch.setattr("models.lstm_kernel._is_cudnns", lambda device: True)


def layer(bidirectional: bool) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(16, 8, batch_first=True, bidirectional=bidirectional)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_gets_one_chunk_of_memory_matrices_first_in_autocasts_dtype(as_for_cudnn, bidirectional):
    lstm = layer(bidirectional)
    weights = [w for direction in lstm.all_weights for w in direction]
    assert all(given is w for given, w in zip(kernel_weights(weights), weights, strict=True))  # on a CPU
    as_for_cudnn()
    with torch.autocast("cpu", torch.bfloat16):
        given = kernel_weights(weights)
    for view, weight in zip(given, weights, strict=True):
        assert torch.equal(view, weight.bfloat16()) and view.is_contiguous()
    matrices = [view for view in given if view.ndim == 2]
    biases = [view for view in given if view.ndim == 1]
    place = 0
    for view in (*matrices, *biases):
        assert view.storage_offset() == place
        assert view.untyped_storage().data_ptr() == given[0].untyped_storage().data_ptr()
        place += view.numel()
    assert given[0].untyped_storage().nbytes() == 2 * place
    assert all(w.dtype == torch.float32 for w in kernel_weights(weights))  # without autocast


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_calculates_what_torchs_module_does(as_for_cudnn, precision, bidirectional):
    lstm, x = layer(bidirectional), torch.randn(5, 7, 16)
    state = torch.randn(1 + bidirectional, 5, 8), torch.randn(1 + bidirectional, 5, 8)
    weights = [w for direction in lstm.all_weights for w in direction]

    def results(run) -> list[Tensor]:
        lstm.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            outputs, (hidden, cell) = run()
        assert outputs.dtype == precision
        (outputs.float().sum() + hidden.float().square().sum() + cell.float().square().sum()).backward()
        return [outputs, hidden, cell, *(w.grad.clone() for w in weights)]

    def ours() -> tuple:
        return run_lstm(x, state, kernel_weights(weights), training=True, bidirectional=bidirectional)

    expected = results(lambda: lstm(x, state))
    for _ in range(2):
        for found, value in zip(results(ours), expected, strict=True):
            assert torch.equal(found, value)
        as_for_cudnn()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_is_off_and_all_are_of_one_dtype_where_cudnn_runs(as_for_cudnn, monkeypatch, precision):
    calls, genuine = [], torch.lstm

    def recording(x, state, weights, **options):
        calls.append(({t.dtype for t in (x, *state, *weights)}, torch.is_autocast_enabled("cpu")))
        return genuine(x, state, weights, **options)

    torch.manual_seed(0)
    model = Seq2SeqLSTM(20, 20, embedding_dim=8, hidden_size=8)
    source, target = torch.randint(4, 20, (3, 5)), torch.randint(4, 20, (3, 6))
    as_for_cudnn()
    monkeypatch.setattr(torch, "lstm", recording)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        model.logits(source, target)
    assert calls == [({precision}, False)] * 4  # two layers of the encoder, two of the decoder


def test_step_by_step_the_decoders_weights_are_cast_once(as_for_cudnn, monkeypatch):
    made, genuine = [], kernel_weights

    def counted(weights):
        made.append(len(weights))
        return genuine(weights)

    monkeypatch.setattr("models.lstm.kernel_weights", counted)
    as_for_cudnn()
    torch.manual_seed(0)
    model = Seq2SeqLSTM(20, 20, embedding_dim=8, hidden_size=8, step_by_step=True)
    model.logits(torch.randint(4, 20, (3, 5)), torch.randint(4, 20, (3, 6)))
    assert made == [8, 8, 4, 4]


def test_the_encoders_numbers_are_those_of_autocast(as_for_cudnn):
    torch.manual_seed(0)
    encoder, x = BidirectionalLayer(15, 8), torch.randn(3, 5, 15)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.autocast("cpu", torch.bfloat16):
        expected = encoder(x, padding)
        as_for_cudnn()
        found = encoder(x, padding)
    assert all(map(torch.equal, found, expected))
