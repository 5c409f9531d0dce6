import itertools

import pytest
import torch

from models.decoding import SpecialTokens, beam_search, decode_in_batches, greedy_search, length_bounds, sample
from models.transformer import Transformer

SPECIAL = SpecialTokens()


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    model = Transformer(40, 40, d_model=32, n_heads=4, n_encoder_layers=2, n_decoder_layers=2, d_ff=64)
    for parameter in model.parameters():
        parameter.data *= 1.5  # untrained logits are near uniform: make the choices clear ones
    return model.eval()


def make_sources(n: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 40, (n, 10), generator=generator)
    lengths = torch.randint(1, 11, (n,), generator=generator)
    source[torch.arange(10) >= lengths[:, None]] = 0
    return source


def test_beam_of_one_is_greedy(model):
    source = make_sources()
    assert beam_search(model, source, SPECIAL, beam_size=1) == greedy_search(model, source, SPECIAL)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_cache_changes_nothing(model, beam_size):
    source = make_sources(16)
    cached, plain = (beam_search(model, source, SPECIAL, beam_size, use_cache=c) for c in (True, False))
    assert cached == plain
    assert greedy_search(model, source, SPECIAL) == greedy_search(model, source, SPECIAL, use_cache=False)


@pytest.mark.parametrize("beam_size", [1, 5])
def test_batches_of_1_and_of_64_give_the_same(model, beam_size):
    sentences = [[t for t in row if t] for row in make_sources().tolist()]
    options = {"beam_size": beam_size, "length_penalty": 1.0, "device": torch.device("cpu")}
    one = decode_in_batches(model, sentences, SPECIAL, batch_size=1, **options)
    many = decode_in_batches(model, sentences, SPECIAL, batch_size=64, **options)
    assert one == many
    assert len({tuple(output) for output in many}) > 20  # the model does say different things


def test_no_output_holds_special_tokens_or_is_too_long(model):
    source = make_sources()
    bounds = length_bounds(source, 0).tolist()
    generators = [torch.Generator().manual_seed(i) for i in range(len(source))]
    for outputs in (
        greedy_search(model, source, SPECIAL),
        beam_search(model, source, SPECIAL, 4),
        sample(model, source, SPECIAL, generators),
    ):
        for output, bound in zip(outputs, bounds, strict=True):
            assert len(output) <= bound
            assert not {SPECIAL.pad, SPECIAL.begin, SPECIAL.end} & set(output)


class TableModel:
    """Log-probabilities of the next word by the prefix alone, so that the best translation can be enumerated."""

    def __init__(self, n_words: int, seed: int):
        self.n_words, self.seed = n_words, seed

    def log_probs(self, prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *prefix)) % 2**31)
        logits = torch.randn(self.n_words, generator=generator) * 2
        logits[[SPECIAL.pad, SPECIAL.begin]] = -torch.inf
        return logits.log_softmax(-1)

    class State:
        def __init__(self, prefixes):
            self.prefixes = prefixes

        def select(self, rows, same_sources=False):
            return TableModel.State([self.prefixes[i] for i in rows.tolist()])

    def begin_decoding(self, source, use_cache=True):
        return self.State([()] * len(source))

    def decode_step(self, tokens, state):
        prefixes = [(*p, t) for p, t in zip(state.prefixes, tokens.tolist(), strict=True)]
        return torch.stack([self.log_probs(p) for p in prefixes]), self.State(prefixes)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all_translations(monkeypatch, seed, length_penalty):
    """Words 1 and 4 to 5 and EOS, at most 4 tokens: few enough to score every translation."""
    monkeypatch.setattr("models.decoding.length_bounds", lambda source, pad: torch.full((len(source),), 4))
    model = TableModel(6, seed)
    scored = {}
    for n in range(4):
        for words in itertools.product((1, 4, 5), repeat=n):
            prefix, score = (SPECIAL.begin,), 0.0
            for word in (*words, SPECIAL.end):
                score += float(model.log_probs(prefix)[word])
                prefix = (*prefix, word)
            scored[words] = score / ((5 + n + 1) / 6) ** length_penalty
    beam_size = len(scored)  # as many hypotheses as there are translations: nothing is pruned
    found = beam_search(model, torch.ones(1, 1).long(), SPECIAL, beam_size, length_penalty)
    assert tuple(found[0]) == max(scored, key=scored.get)


def test_length_penalty_prefers_longer_translations():
    source = torch.ones(1, 6, dtype=torch.long)
    lengths = [
        sum(len(beam_search(TableModel(6, seed), source, SPECIAL, 6, penalty)[0]) for seed in range(10))
        for penalty in (0.0, 3.0)
    ]
    assert lengths[0] < lengths[1]


def test_sampling_follows_its_generator_not_the_batch(model):
    source = make_sources(8)

    def draw(rows, seeds, **options):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return sample(model, source[rows], SPECIAL, generators, **options)

    together = draw(list(range(8)), range(8))
    assert together == [draw([i], [i])[0] for i in range(8)]
    assert together != draw(list(range(8)), range(100, 108))
    assert draw(list(range(8)), range(8), top_k=1) == greedy_search(model, source, SPECIAL)
    assert draw(list(range(8)), range(8), temperature=1e-4) == greedy_search(model, source, SPECIAL)
