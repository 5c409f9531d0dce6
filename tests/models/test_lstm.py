import pytest
import torch
import torch.nn.functional as F
from token_losses import token_losses
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.decoding import SpecialTokens, decode_in_batches
from models.lstm import BidirectionalLayer, Seq2SeqLSTM

LENGTHS = (9, 7, 5, 4, 3)
REFERENCE = {}
ATTENTIONAL = {"attentional_layer": True, "tied_embeddings": "three-way", "embedding_dim": 20}
ONE_CALL = [
    REFERENCE,
    {"tied_embeddings": "output"},
    {"attentional_layer": True, "tied_embeddings": "three-way"},  # H = E: no map between
    ATTENTIONAL,
    {"n_layers": 1, "attentional_layer": True},
    {"n_layers": 3, "attentional_layer": True, "early_attention": True, "tied_embeddings": "output"},
]
FED = {"input_feeding": True, **ATTENTIONAL}
FED_EARLY = {"input_feeding": True, "attentional_layer": True, "n_layers": 3, "early_attention": True}
VARIANTS = [*ONE_CALL, FED, FED_EARLY]


def make_model(seed: int = 0, **options) -> Seq2SeqLSTM:
    """50 words, 24 wide, without dropout; weights doubled, so that sentences get different outputs."""
    torch.manual_seed(seed)
    model = Seq2SeqLSTM(50, 50, **{"embedding_dim": 24, "hidden_size": 24, "dropout": 0.0, **options})
    for parameter in model.parameters():
        parameter.data *= 2
    return model.eval()


def make_batch(seed: int = 1):
    """Five sources of lengths 9 to 3, targets of 7 tokens, and labels that end in padding."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 50, (5, 9), generator=generator)
    for row, length in enumerate(LENGTHS):
        source[row, length:] = 0
    target = torch.randint(4, 50, (5, 7), generator=generator)
    labels = target.roll(-1, 1)
    for row in range(5):
        labels[row, 6 - row :] = 0
    return source, target, labels


@pytest.mark.parametrize("options", ONE_CALL)
def test_of_a_token_that_is_cut_nothing_is_told(options):
    model, (source, target, _) = make_model(**options), make_batch()
    cut = torch.zeros_like(source, dtype=torch.bool), torch.zeros_like(target, dtype=torch.bool)
    cut[0][1, 2] = cut[1][1, 3] = True
    whole, found = model.decode_target(source, target), model.decode_target(source, target, cut)
    others = [0, 2, 3, 4]
    torch.testing.assert_close(found[others], whole[others])
    assert not torch.allclose(found[1], whole[1], atol=1e-3)
    source[1, 2], target[1, 3] = 4 + (source[1, 2] - 3) % 46, 4 + (target[1, 3] - 3) % 46
    torch.testing.assert_close(model.decode_target(source, target, cut), found)


def test_tokens_cannot_be_cut_of_a_target_that_is_read_step_by_step():
    model, (source, target, _) = make_model(**FED), make_batch()
    with pytest.raises(ValueError, match="in one call"):
        model.decode_target(source, target, (source == 0, target == 0))


# --- padding ---


def test_the_encoder_equals_packed_sequences_through_torchs_lstm():
    model, (source, _, _) = make_model(), make_batch()
    reference = nn.LSTM(24, 24, num_layers=2, batch_first=True, bidirectional=True)
    for i, layer in enumerate(model.encoder_layers):
        for name, parameter in layer.lstm.named_parameters():
            reference.get_parameter(name.replace("_l0", f"_l{i}")).data.copy_(parameter)
    packed = pack_padded_sequence(model.source_embedding(source), LENGTHS, batch_first=True)
    outputs, (hidden, cell) = reference(packed)
    outputs = pad_packed_sequence(outputs, batch_first=True)[0]

    state = model.begin_decoding(source)
    expected = model.memory_projection(outputs)
    torch.testing.assert_close(state.memory, expected, atol=1e-5, rtol=0)
    for i, (initial_hidden, initial_cell) in enumerate(state.layers):
        for initial, projection, last in (
            (initial_hidden, model.initial_hidden[i], hidden),
            (initial_cell, model.initial_cell[i], cell),
        ):
            expected = projection(torch.cat([last[2 * i], last[2 * i + 1]], 1))
            torch.testing.assert_close(initial[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_at_padding_cannot_be_seen_and_gets_no_gradient(dtype):
    torch.manual_seed(0)
    layer, padding = BidirectionalLayer(6, 8), make_batch()[0] == 0
    x = torch.randn(5, 9, 6)
    found = []
    for scale in (1.0, 10.0):
        inputs = torch.where(padding[:, :, None], x * scale, x).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = layer(inputs, padding)
        assert outputs[0][padding].abs().max() == 0
        sum(output.float().square().sum() for output in outputs).backward()
        assert inputs.grad[padding].abs().max() == 0 < inputs.grad[~padding].abs().min()
        found.append((*(output.detach() for output in outputs), inputs.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("input_size", [5, 7, 8, 13])
def test_the_encoders_kernel_gets_a_multiple_of_8_inputs_and_the_same_outputs(monkeypatch, input_size):
    torch.manual_seed(0)
    layer, x = BidirectionalLayer(input_size, 8), torch.randn(3, 4, input_size)
    widths, genuine = [], torch.lstm

    def recording(x, *args, **options):
        widths.append(x.shape[2])
        return genuine(x, *args, **options)

    monkeypatch.setattr(torch, "lstm", recording)
    outputs, hidden, _ = layer(x, torch.zeros(3, 4, dtype=torch.bool))
    assert len(widths) == 1 and widths[0] % 8 == 0 and input_size < widths[0] <= input_size + 8
    expected, (last, _) = layer.lstm(x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(hidden, torch.cat([last[0], last[1]], 1))


@pytest.mark.parametrize("options", VARIANTS)
def test_a_padded_position_never_changes_a_logit_or_a_loss(options):
    model, (source, target, labels) = make_model(**options), make_batch()
    together, losses = model.logits(source, target), torch.zeros(2)
    wider = F.pad(source, (0, 6))
    torch.testing.assert_close(model.logits(wider, target), together, atol=1e-5, rtol=0)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = model.logits(source[one, :length], target[one])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
        n = 6 - row  # what is left of the target where the labels are not padding
        losses += torch.stack(
            token_losses(model, source[one, :length], target[one, :n], labels[one, :n], 0.1)
        ).detach()
    torch.testing.assert_close(
        torch.stack(token_losses(model, source, target, labels, 0.1)), losses, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("options", [REFERENCE, ATTENTIONAL, FED])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_batches_of_1_and_of_64_are_translated_alike(options, beam_size):
    generator = torch.Generator().manual_seed(0)
    sentences = [
        torch.randint(4, 50, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 11, (64,), generator=generator)
    ]
    model = make_model(**options)
    keywords = {"beam_size": beam_size, "length_penalty": 1.0, "device": torch.device("cpu")}
    one = decode_in_batches(model, sentences, SpecialTokens(), batch_size=1, **keywords)
    many = decode_in_batches(model, sentences, SpecialTokens(), batch_size=64, **keywords)
    assert one == many
    assert len({tuple(output) for output in many}) > 20  # the model does say different things


@pytest.mark.parametrize("options", [REFERENCE, FED])
def test_attention_weights_are_a_distribution_over_real_tokens(options):
    model, (source, target, _) = make_model(**options), make_batch()
    weights = model.cross_attention_weights(source, target)
    assert weights.shape == (5, 1, 7, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 1, 7))
    padding = (source == 0)[:, None, None, :].expand_as(weights)
    assert weights[padding].abs().max() == 0 < weights[~padding].min()


# --- the decoder, in one call and by steps ---


@pytest.mark.parametrize("options", ONE_CALL)
def test_step_by_step_equals_one_call_with_its_gradients(options):
    model, batch = make_model(**options).train(), make_batch()
    found = []
    for model.step_by_step in (False, True):
        model.zero_grad()
        smoothed, plain = token_losses(model, *batch, 0.1)
        (smoothed / (batch[2] != 0).sum()).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found.append([model.logits(*batch[:2]), smoothed, plain, *gradients])
    for one_call, steps in zip(*found, strict=True):
        torch.testing.assert_close(steps, one_call, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VARIANTS)
def test_decode_steps_equal_the_teacher_forced_logits(options):
    model, (source, target, _) = make_model(**options), make_batch()
    whole, state = model.logits(source, target), model.begin_decoding(source)
    for t in range(target.shape[1]):
        logits, state = model.decode_step(target[:, t], state)
        torch.testing.assert_close(logits, whole[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [REFERENCE, FED])
def test_selected_rows_go_on_as_they_were(options):
    model, (source, target, _) = make_model(**options), make_batch()
    rows = torch.tensor([3, 0, 3])
    _, state = model.decode_step(target[:, 0], model.begin_decoding(source))
    expected, _ = model.decode_step(target[:, 1], state)
    found, _ = model.decode_step(target[rows, 1], state.select(rows))
    torch.testing.assert_close(found, expected[rows], atol=1e-5, rtol=0)
    beams = state.select(torch.tensor([0, 1])).with_beams(2)
    swapped = beams.select(torch.tensor([1, 0, 3, 2]), same_sources=True)
    found, _ = model.decode_step(target[[0, 0, 1, 1], 1], swapped)
    torch.testing.assert_close(found, expected[[0, 0, 1, 1]], atol=1e-5, rtol=0)
    found, _ = model.decode_step(target[[1, 1], 1], beams.select(torch.tensor([2, 3])))
    torch.testing.assert_close(found, expected[[1, 1]], atol=1e-5, rtol=0)


def test_input_feeding_gives_the_last_attentional_vector_to_the_next_input():
    """Against torch's LSTM cells and attention one sentence at a time, written out."""
    model, (source, target, _) = make_model(**FED), make_batch()
    state = model.begin_decoding(source)
    logits = model.logits(source, target)
    combine, (h, e) = model.attentional_layer[0], (24, 20)
    for row, length in enumerate(LENGTHS):
        memory, fed = state.memory[row, :length], torch.zeros(h)
        past = [(hidden[:, row], cell[:, row]) for hidden, cell in state.layers]
        for t in range(7):
            x = torch.cat([model.target_embedding.weight[target[row, t]], fed])[None]
            for i, layer in enumerate(model.decoder_layers):
                cell = nn.LSTMCell(e + h if i == 0 else h, h)
                cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
                past[i] = cell(x, past[i])
                x = past[i][0]
            context = torch.softmax(memory @ x[0], 0) @ memory
            fed = torch.tanh(combine.weight @ torch.cat([context, x[0]]) + combine.bias)
            expected = model.target_embedding.weight @ (model.to_embedding.weight @ fed)
            torch.testing.assert_close(logits[row, t], expected, atol=1e-5, rtol=0)


def test_early_attention_gives_the_first_layers_context_to_the_layers_above():
    """Against torch's LSTM cells and attention one sentence at a time, written out."""
    model, (source, target, _) = make_model(n_layers=3, early_attention=True), make_batch()
    state = model.begin_decoding(source)
    logits = model.logits(source, target)
    cells = [nn.LSTMCell(24 if i == 0 else 48, 24) for i in range(3)]
    for cell, layer in zip(cells, model.decoder_layers, strict=True):
        cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    for row, length in enumerate(LENGTHS):
        memory = state.memory[row, :length]
        past = [(hidden[:, row], cell[:, row]) for hidden, cell in state.layers]
        for t in range(7):
            x = model.target_embedding.weight[target[row, t]][None]
            past[0] = cells[0](x, past[0])
            context = torch.softmax(memory @ past[0][0][0], 0) @ memory
            past[1] = cells[1](torch.cat([past[0][0], context[None]], 1), past[1])
            past[2] = cells[2](torch.cat([past[1][0], context[None]], 1), past[2])
            expected = model.output.weight @ torch.cat([context, past[2][0][0]])
            torch.testing.assert_close(logits[row, t], expected, atol=1e-5, rtol=0)


# --- scheduled sampling ---


@pytest.mark.parametrize("options", [REFERENCE, ATTENTIONAL, FED])
def test_at_ratio_0_the_decoder_reads_its_own_tokens(options):
    model, (source, target, labels) = make_model(**options, teacher_forcing_ratio=0.0), make_batch()
    state, tokens, loss = model.begin_decoding(source), target[:, 0], 0.0
    own = []
    for t in range(7):
        own.append(tokens)
        logits, state = model.decode_step(tokens, state)
        loss += F.cross_entropy(logits, labels[:, t], ignore_index=0, reduction="sum")
        tokens = logits.argmax(1)
    assert (torch.stack(own, 1) != target).float().mean() > 0.5
    model.train()
    torch.testing.assert_close(token_losses(model, source, target, labels)[1], loss, rtol=1e-5, atol=1e-3)


def test_the_ratio_is_the_share_of_true_tokens_drawn_for_each_sentence(monkeypatch):
    model = make_model(teacher_forcing_ratio=0.7).train()
    source, target = torch.full((400, 3), 5), torch.full((400, 11), 49)  # a token the model never chooses
    with torch.no_grad():
        model.output.weight[49] = 0
    read, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda tokens, state: read.append(tokens) or decode(tokens, state))
    model.decode_target(source, target)
    true = torch.cat(read, 1) == 49
    assert true[:, 0].all()
    share = true[:, 1:].float()
    assert abs(share.mean() - 0.7) < 0.03  # 4,000 draws: four standard deviations
    assert 0.05 < share.mean(1).std() < 0.25 and share.mean(0).std() < 0.08  # a draw per sentence and position


def test_sampling_is_for_training_alone():
    source, target, _ = make_batch()
    forced, sampled = make_model(), make_model(teacher_forcing_ratio=0.0)
    assert torch.equal(sampled.logits(source, target), forced.logits(source, target))
    difference = sampled.train().logits(source, target) - forced.logits(source, target)
    by_position = difference.abs().mean((0, 2))
    assert by_position[0] < 1e-5 and by_position[1:].min() > 1e-3


# --- loss, gradients, sizes ---


@pytest.mark.parametrize("options", VARIANTS)
def test_forward_sums_the_cross_entropy_of_the_logits(options):
    model, (source, target, labels) = make_model(**options), make_batch()
    log_probs = model.logits(source, target).log_softmax(-1)
    smoothed, plain = token_losses(model, source, target, labels, 0.1)
    expected_plain = expected_smoothed = 0.0
    for row, t in (labels != 0).nonzero().tolist():
        nll = -log_probs[row, t, labels[row, t]]
        expected_plain += nll
        expected_smoothed += 0.9 * nll - 0.1 * log_probs[row, t].mean()
    torch.testing.assert_close(plain, expected_plain, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(smoothed, expected_smoothed, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_reach_every_parameter(options, precision, ratio):
    model = make_model(**options, dropout=0.1, teacher_forcing_ratio=ratio).train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        smoothed, plain = token_losses(model, *make_batch(), 0.1)
    assert smoothed.dtype == plain.dtype == torch.float32
    smoothed.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [REFERENCE, FED])
def test_bfloat16_autocast_stays_close(options):
    model, batch = make_model(**options), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        smoothed, _ = token_losses(model, *batch, 0.1)
    torch.testing.assert_close(smoothed, token_losses(model, *batch, 0.1)[0], rtol=0.02, atol=0)


def test_dropout_acts_in_training_alone():
    model, batch = make_model(dropout=0.3), make_batch()
    assert token_losses(model, *batch)[1] == token_losses(model, *batch)[1]
    model.train()
    assert token_losses(model, *batch)[1] != token_losses(model, *batch)[1]


@pytest.mark.parametrize("tied, tables", [("three-way", 1), ("output", 2), ("none", 3)])
def test_tied_matrices_are_stored_once(tied, tables):
    model = make_model(tied_embeddings=tied, attentional_layer=True)
    assert sum(t.shape == (50, 24) for t in model.state_dict().values()) == tables
    with torch.no_grad():
        model.output_weight.zero_()
    assert model.logits(*make_batch()[:2]).abs().max() == 0


def test_parameters_of_the_reference_setting_counted_by_hand():
    model = Seq2SeqLSTM(9000, 7000)
    embeddings = 9000 * 64 + 7000 * 64
    # 4 gates of 128, each over the input and the hidden state, with two biases; two directions
    encoder = 2 * (4 * 128 * (64 + 128) + 2 * 4 * 128) + 2 * (4 * 128 * (256 + 128) + 2 * 4 * 128)
    states = 2 * 2 * (256 * 128 + 128)  # two layers, hidden and cell
    memory = 256 * 128 + 128
    decoder = 4 * 128 * (64 + 128) + 2 * 4 * 128 + 4 * 128 * (128 + 128) + 2 * 4 * 128
    total = embeddings + encoder + states + memory + decoder + 256 * 7000
    assert sum(p.numel() for p in model.parameters()) == total


def test_forget_gates_begin_open():
    lstm = Seq2SeqLSTM(50, 50, hidden_size=8).decoder_layers[0]
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).unflatten(0, (4, 8))
    assert bias.tolist() == [[0.0] * 8, [1.0] * 8, [0.0] * 8, [0.0] * 8]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="joint vocabulary"):
        Seq2SeqLSTM(50, 60, tied_embeddings="three-way")
    with pytest.raises(ValueError, match="attentional_layer"):
        Seq2SeqLSTM(50, 50, input_feeding=True)
    with pytest.raises(ValueError, match="two layers"):
        Seq2SeqLSTM(50, 50, n_layers=1, early_attention=True)
    with pytest.raises(ValueError, match="probability"):
        Seq2SeqLSTM(50, 50, teacher_forcing_ratio=1.5)
