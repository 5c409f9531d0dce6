import pytest
import torch
import torch.nn.functional as F
from token_losses import token_losses

from models.transformer import Transformer, attention, sinusoidal_positions

SIZES = {"d_model": 32, "n_heads": 4, "n_encoder_layers": 2, "n_decoder_layers": 2, "d_ff": 64, "dropout": 0.1}
VARIANTS = [
    {"tied_embeddings": "three-way"},
    {"tied_embeddings": "output", "positions": "learned", "max_positions": 64},
    {"tied_embeddings": "none", "pre_norm": False},
]


def make_model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(50, 50, **SIZES, **options).eval()


def make_batch(seed: int = 1):
    """Five sources of lengths 9 to 3, targets of 7 tokens, and labels that end in padding."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 50, (5, 9), generator=generator)
    for row, length in enumerate((9, 7, 5, 4, 3)):
        source[row, length:] = 0
    target = torch.randint(4, 50, (5, 7), generator=generator)
    labels = target.roll(-1, 1)
    labels[:, 5:] = 0
    return source, target, labels


@pytest.mark.parametrize("options", VARIANTS)
def test_a_padded_position_never_changes_a_logit(options):
    model, (source, target, _) = make_model(**options), make_batch()
    wider = F.pad(source, (0, 6))
    torch.testing.assert_close(model.logits(wider, target), model.logits(source, target), atol=1e-5, rtol=0)
    for row, length in enumerate((9, 7, 5, 4, 3)):
        alone = model.logits(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(alone[0], model.logits(source, target)[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_decoder_is_causal(options):
    model, (source, target, _) = make_model(**options), make_batch()
    changed = target.clone()
    changed[:, 4:] = torch.randint(4, 50, (5, 3))
    before, after = model.logits(source, target), model.logits(source, changed)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-3)


@pytest.mark.parametrize("options", VARIANTS)
def test_steps_with_the_cache_equal_the_whole_target_at_once(options):
    model, (source, target, _) = make_model(**options), make_batch()
    whole = model.logits(source, target)
    for use_cache in (True, False):
        state = model.begin_decoding(source, use_cache)
        for t in range(target.shape[1]):
            logits, state = model.decode_step(target[:, t], state)
            torch.testing.assert_close(logits, whole[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", VARIANTS)
def test_forward_sums_the_cross_entropy_of_the_logits(options):
    model, (source, target, labels) = make_model(**options), make_batch()
    logits = model.logits(source, target).flatten(0, 1)
    smoothed, plain = token_losses(model, source, target, labels, 0.1)
    reference = {"ignore_index": 0, "reduction": "sum"}
    expected = F.cross_entropy(logits, labels.flatten(), **reference)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-3)
    expected = F.cross_entropy(logits, labels.flatten(), label_smoothing=0.1, **reference)
    torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("options", VARIANTS)
def test_of_a_token_that_is_cut_only_its_position_is_told(options):
    model, (source, target, _) = make_model(**options), make_batch()
    cut = torch.zeros_like(source, dtype=torch.bool), torch.zeros_like(target, dtype=torch.bool)
    cut[0][1, 2] = cut[1][1, 3] = True

    def states(source, target, cut):
        return model(source, target, lambda states, weight: {"states": states}, cut=cut)["states"]

    whole, found = states(source, target, None), states(source, target, cut)
    others = [0, 2, 3, 4]
    torch.testing.assert_close(found[others], whole[others])
    assert not torch.allclose(found[1], whole[1], atol=1e-3)
    source[1, 2], target[1, 3] = 4 + (source[1, 2] - 3) % 46, 4 + (target[1, 3] - 3) % 46
    torch.testing.assert_close(states(source, target, cut), found)
    assert not torch.allclose(states(source, target, None)[1], whole[1], atol=1e-3)


def test_plain_attention_equals_the_fused_kernel():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 7, 8), torch.randn(3, 4, 9, 8), torch.randn(3, 4, 9, 8)
    mask = (torch.arange(9) < torch.tensor([[9], [5], [1]]))[:, None, None, :]
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask, False, 0.0), fused)
    fused = F.scaled_dot_product_attention(q, k[:, :, :7], v[:, :, :7], is_causal=True)
    torch.testing.assert_close(attention(q, k[:, :, :7], v[:, :, :7], None, True, 0.0), fused)


def test_long_sentences_take_the_fused_kernel_and_agree(monkeypatch):
    model, (source, target, _) = make_model(), make_batch()
    plain = model.logits(source, target)
    monkeypatch.setattr("models.transformer.CPU_PLAIN_ATTENTION_UP_TO", 0)
    torch.testing.assert_close(model.logits(source, target), plain, atol=1e-5, rtol=0)


def test_cross_attention_weights_are_a_distribution_over_real_tokens():
    model, (source, target, _) = make_model(), make_batch()
    weights = model.cross_attention_weights(source, target)
    assert weights.shape == (5, 4, 7, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 4, 7))
    assert (weights * (source == 0)[:, None, None, :]).abs().max() == 0


@pytest.mark.parametrize("tied, tables", [("three-way", 1), ("output", 2), ("none", 3)])
def test_tied_matrices_are_stored_once(tied, tables):
    model = make_model(tied_embeddings=tied)
    assert sum(t.shape == (50, 32) for t in model.state_dict().values()) == tables
    with torch.no_grad():
        model.output_weight.zero_()
    source, target, _ = make_batch()
    assert model.logits(source, target).abs().max() == 0


def test_the_peers_model_has_7_5_million_parameters():
    model = Transformer(
        8000,
        8000,
        d_model=256,
        n_heads=4,
        n_encoder_layers=3,
        n_decoder_layers=3,
        d_ff=1024,
        tied_embeddings="three-way",
    )
    # embedding + encoder and decoder layers (weights, biases, norms) + two final norms
    layer = {"attention": 4 * 256 * 256 + 2 * 256, "feed_forward": 2 * 256 * 1024 + 1024 + 256, "norm": 512}
    encoder = 3 * (layer["attention"] + layer["feed_forward"] + 2 * layer["norm"])
    decoder = 3 * (2 * layer["attention"] + layer["feed_forward"] + 3 * layer["norm"])
    assert sum(p.numel() for p in model.parameters()) == 8000 * 256 + encoder + decoder + 2 * layer["norm"]


def test_positions_are_those_of_the_paper_and_grow_on_demand():
    table = sinusoidal_positions(300, 32)
    rate = 10_000 ** (-2 * 3 / 32)
    torch.testing.assert_close(table[:, 3], torch.sin(torch.arange(300) * rate), atol=1e-4, rtol=0)
    torch.testing.assert_close(table[:, 19], torch.cos(torch.arange(300) * rate), atol=1e-4, rtol=0)
    model = make_model()
    long = torch.randint(4, 50, (1, 700))
    assert model.logits(long, long[:, :600]).isfinite().all()


def test_learned_positions_go_on_past_the_last_one():
    model = make_model(positions="learned", max_positions=16)
    long = torch.randint(4, 50, (1, 40))
    assert model.logits(long, long).isfinite().all()


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="n_heads"):
        Transformer(50, 50, d_model=30, n_heads=4)
    with pytest.raises(ValueError, match="joint vocabulary"):
        Transformer(50, 60, d_model=32, n_heads=4, tied_embeddings="three-way")


def test_bfloat16_autocast_stays_close_and_trains():
    model, (source, target, labels) = make_model(), make_batch()
    reference, _ = token_losses(model, source, target, labels, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        smoothed, plain = token_losses(model, source, target, labels, 0.1)
    assert smoothed.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(smoothed, reference, rtol=0.02, atol=0)
    smoothed.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_compiled_for_changing_shapes_without_end_of_recompilation():
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    model = make_model().train()
    counter = CompileCounter()
    model.compile(dynamic=True, backend=counter)
    for step, (rows, s, t) in enumerate(((8, 9, 7), (16, 12, 8), (24, 5, 6), (8, 20, 22), (32, 4, 5), (40, 7, 11))):
        batch = [torch.randint(4, 50, (rows, n)) for n in (s, t, t)]
        token_losses(model, *batch, 0.1)[0].backward()
        if step == 2:
            settled = counter.frame_count
    assert 1 <= counter.frame_count == settled
