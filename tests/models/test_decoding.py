import itertools

import pytest
import torch

from models.decoding import (
    SpecialTokens,
    batches_within,
    beam_search,
    decode_in_batches,
    greedy_search,
    length_bounds,
    sample,
)
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


def test_the_cache_grows_with_a_long_translation(model):
    source = torch.randint(4, 40, (3, 30), generator=torch.Generator().manual_seed(1))
    cached, plain = (beam_search(model, source, SPECIAL, 3, use_cache=c) for c in (True, False))
    assert cached == plain and max(map(len, cached)) > 2 * 32


@pytest.mark.parametrize("beam_size", [1, 5])
def test_batches_of_1_and_of_64_give_the_same(model, beam_size):
    sentences = [[t for t in row if t] for row in make_sources().tolist()]
    options = {"beam_size": beam_size, "length_penalty": 1.0, "device": torch.device("cpu")}
    one = decode_in_batches(model, sentences, SPECIAL, batch_size=1, **options)
    many = decode_in_batches(model, sentences, SPECIAL, batch_size=64, **options)
    assert one == many
    assert one == decode_in_batches(model, sentences, SPECIAL, batch_size=64, max_tokens=500, **options)
    assert len({tuple(output) for output in many}) > 20  # the model does say different things


@pytest.fixture
def threads():
    """Sets the number of torch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [2, 7])
def test_batches_decoded_side_by_side_are_those_decoded_one_after_the_other(model, threads, n_threads):
    sentences = [[t for t in row if t] for row in make_sources().tolist()]
    options = {"beam_size": 3, "length_penalty": 1.0, "device": torch.device("cpu"), "batch_size": 4}
    threads(1)
    alone = decode_in_batches(model, sentences, SPECIAL, **options)
    threads(n_threads)
    assert decode_in_batches(model, sentences, SPECIAL, **options) == alone
    assert torch.get_num_threads() == n_threads


def test_workers_share_the_threads_and_the_memory(model, threads):
    threads(6)
    seen = []
    begin = model.begin_decoding

    def begin_decoding(source, use_cache=True):
        seen.append((torch.get_num_threads(), len(source)))
        return begin(source, use_cache)

    model.begin_decoding = begin_decoding
    try:
        options = {"length_penalty": 1.0, "batch_size": 64, "max_tokens": 400, "device": torch.device("cpu")}
        decode_in_batches(model, [[4, 5, 3]] * 40, SPECIAL, beam_size=1, **options)
    finally:
        del model.begin_decoding
    # Of 3 tokens and at most 16 more each, five fit into a quarter of 400.
    assert set(seen) == {(1, 5)}


def test_an_error_in_one_batch_ends_the_others_and_is_raised(threads):
    threads(2)

    class Broken:
        def begin_decoding(self, source, use_cache=True):
            raise ValueError("no such token")

    options = {"beam_size": 1, "length_penalty": 1.0, "batch_size": 1, "device": torch.device("cpu")}
    with pytest.raises(ValueError, match="no such token"):
        decode_in_batches(Broken(), [[4, 3]] * 50, SPECIAL, **options)
    assert torch.get_num_threads() == 2


def test_batches_hold_no_more_tokens_than_asked_for_or_one_sentence():
    sizes = [5, 900, 30, 7, 31, 7, 1, 120]
    batches = list(batches_within(sizes, max_sentences=3, max_tokens=100))
    assert batches == [[1], [7], [4, 2, 3], [5, 0, 6]]
    assert all(len(b) == 1 or (len(b) <= 3 and len(b) * max(sizes[i] for i in b) <= 100) for b in batches)
    assert list(batches_within([], 3, 100)) == []


@pytest.mark.parametrize("beam_size", [1, 5])
def test_a_long_line_takes_its_own_share_of_memory_alone(beam_size):
    """The most rows x positions that any batch gives the model, with a line of 900 tokens and without it."""

    def largest_batch(sentences: list[list[int]]) -> int:
        model = TableModel(6, 0)
        seen = []
        begin = model.begin_decoding

        def begin_decoding(source, use_cache=True):
            bound = int(length_bounds(source, SPECIAL.pad).max())
            seen.append(beam_size * len(source) * (source.shape[1] + bound))
            return begin(source, use_cache)

        model.begin_decoding = begin_decoding
        decode_in_batches(
            model,
            sentences,
            SPECIAL,
            beam_size=beam_size,
            length_penalty=1.0,
            batch_size=64,
            device=torch.device("cpu"),
            max_tokens=4000,
        )
        return max(seen)

    short, long = [[4, 5, 3]] * 200, [4] * 200 + [3]
    assert largest_batch(short) <= 4000
    assert largest_batch([*short, long]) <= max(4000, beam_size * (len(long) + 2 * len(long) + 10))


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

        def with_beams(self, k):
            return TableModel.State([prefix for prefix in self.prefixes for _ in range(k)])

    def begin_decoding(self, source, use_cache=True):
        return self.State([()] * len(source))

    def decode_step(self, tokens, state):
        prefixes = [(*p, t) for p, t in zip(state.prefixes, tokens.tolist(), strict=True)]
        return torch.stack([self.log_probs(p) for p in prefixes]), self.State(prefixes)


@pytest.mark.parametrize("rule", ["power", "gnmt"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all_translations(monkeypatch, seed, length_penalty, rule):
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
            length = max(n, 1) if rule == "power" else (5 + n + 1) / 6
            scored[words] = score / length**length_penalty
    beam_size = len(scored)  # as many hypotheses as there are translations: nothing is pruned
    source = torch.ones(1, 1).long()
    found = beam_search(model, source, SPECIAL, beam_size, length_penalty, length_normalization=rule)
    assert tuple(found[0]) == max(scored, key=scored.get)


class Scripted(TableModel):
    """Given probabilities of the next word after each prefix; "." ends a translation, and after "?" none does."""

    WORDS = "_? .abc"  # by id

    def __init__(self, table: dict[str, dict[str, float]]):
        self.table = table

    def log_probs(self, prefix):
        probs = torch.zeros(len(self.WORDS))
        for word, p in self.table.get("".join(self.WORDS[i] for i in prefix[1:]), {}).items():
            probs[self.WORDS.index(word)] = p
        probs[SPECIAL.unknown] = 1 - probs.sum()
        return probs.log()

    def translate(self, **options) -> str:
        (output,) = beam_search(self, torch.ones(1, 2).long(), SPECIAL, 5, **options)
        return "".join(self.WORDS[i] for i in output)


def test_scores_by_hand():
    """log 0.3 = -1.204 of one word, log 0.2 = -1.609 of two, log 0.1 = -2.303 of three.

    By n ** 1 these score -1.204, -0.805 and -0.768; by ((6 + n) / 6) ** 1 -1.032, -1.207 and -1.535.
    """
    table = {
        "": {"a": 0.3, "b": 0.2, "c": 0.1},
        "a": {".": 1.0},
        "b": {"b": 1.0},
        "bb": {".": 1.0},
        "c": {"c": 1.0},
        "cc": {"c": 1.0},
        "ccc": {".": 1.0},
    }
    model = Scripted(table)
    assert model.translate(length_penalty=1.0) == "ccc"
    assert model.translate(length_penalty=0.5) == "bb"  # -1.204, -1.138, -1.329
    assert model.translate(length_penalty=0.0) == "a"
    assert model.translate(length_penalty=1.0, length_normalization="gnmt") == "a"


def test_a_hypothesis_that_would_win_if_it_ended_next_is_waited_for():
    """By gnmt: log 0.45 over 6/6 is -0.80 for "", log 0.4 over 7/6 is -0.785 for "a", which ends at no cost."""
    table = {"": {".": 0.45, "a": 0.4}, "a": {".": 1.0}}
    source = torch.ones(1, 4, dtype=torch.long)
    (output,) = beam_search(Scripted(table), source, SPECIAL, 1, length_normalization="gnmt")
    assert len(output) == 1


def test_an_empty_translation_is_scored_as_one_word():
    """log 0.4 = -0.916 of nothing against log 0.15 = -1.897 of two words, -0.949 each."""
    table = {"": {".": 0.4, "a": 0.15}, "a": {"a": 1.0}, "aa": {".": 1.0}}
    assert Scripted(table).translate(length_penalty=1.0) == ""
    assert Scripted({**table, "": {".": 0.38, "a": 0.15}}).translate(length_penalty=1.0) == "aa"


@pytest.mark.parametrize("rule", ["power", "gnmt"])
@pytest.mark.parametrize("seed", range(3))
def test_sentences_that_end_at_different_steps_do_not_meddle(seed, rule):
    source = torch.ones(5, 12, dtype=torch.long)
    source[torch.arange(12) >= torch.tensor([12, 1, 7, 3, 9])[:, None]] = SPECIAL.pad
    model = Prompted(7, seed)
    together = beam_search(model, source, SPECIAL, 3, length_normalization=rule)
    alone = [
        beam_search(model, row[row != SPECIAL.pad][None], SPECIAL, 3, length_normalization=rule)[0]
        for row in source
    ]
    assert together == alone and len({len(output) for output in alone}) > 2


class Prompted(TableModel):
    """A table model whose prefixes begin with the length of the source."""

    def begin_decoding(self, source, use_cache=True):
        return self.State([(-int(n),) for n in (source != SPECIAL.pad).sum(1)])


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
