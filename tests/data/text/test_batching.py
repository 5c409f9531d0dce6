from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.text.batching import BatchPlanner, Shape, Update, make_buckets
from data.text.corpus import TranslationCorpus, load_text_splits
from data.text.padded_batches import GatheredPairs, PairBatch
from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID
from data.text.tokenized_text import TokenizedPairs, TokenizedText


def some_lengths(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated source and target lengths, 1 to about 60 tokens, as in real text."""
    rng = np.random.default_rng(seed)
    source = rng.gamma(4, 5, n).astype(int) + 1
    target = np.maximum(1, (source * rng.normal(1.05, 0.2, n)).astype(int))
    return np.minimum(source, 60), np.minimum(target, 60)


def pairs_of(source_lengths: np.ndarray, target_lengths: np.ndarray) -> TokenizedPairs:
    """Pairs of sentences that have so many tokens."""
    return TokenizedPairs(
        *(TokenizedText.from_lists([[9] * n for n in lengths]) for lengths in (source_lengths, target_lengths))
    )


@pytest.mark.parametrize("batching", ["bucketed", "sorted", "padded"])
@pytest.mark.parametrize("n_parts", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 5, 3000])
def test_each_sentence_counts_exactly_once_an_epoch(batching, n_parts, n):
    planner = BatchPlanner(pairs_of(*some_lengths(n)), 512, n_parts, batching, seed=1)
    for epoch in (0, 1):
        counted = []
        for update in planner.plan_epoch(epoch):
            parts = [update.share(part, n_parts) for part in range(n_parts)]
            assert len(parts) == n_parts and len({len(sentences) for sentences, _ in parts}) == 1
            assert len(parts[0][0]) > 0  # every process has work
            counted += [s for sentences, count in parts for s in sentences[:count].tolist()]
        assert sorted(counted) == list(range(n))


@pytest.mark.parametrize("batching", ["bucketed", "sorted", "padded"])
@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_the_budget_counts_padding_and_holds_for_each_process(batching, n_parts):
    source, target = some_lengths()
    planner = BatchPlanner(pairs_of(source, target), 512, n_parts, batching)
    for update in planner.plan_epoch(0):
        assert update.shape.source >= source[update.sentences].max() + 1  # + EOS
        assert update.shape.target >= target[update.sentences].max() + 1
        assert update.target_tokens == target[update.sentences].sum() + len(update.sentences)
        rows = len(update.share(0, n_parts)[0])
        assert rows * update.shape.cost <= 512 + (update.shape.cost if len(update.sentences) % n_parts else 0)


def test_the_same_updates_for_accumulation_processes_and_a_doubled_budget():
    lengths = some_lengths()
    plans = [
        BatchPlanner(pairs_of(*lengths), budget, parts, seed=4) for budget, parts in ((512, 2), (1024, 1), (256, 4))
    ]
    for epoch in (0, 3):
        first, *others = [planner.plan_epoch(epoch) for planner in plans]
        for other in others:
            assert len(first) == len(other)
            for a, b in zip(first, other, strict=True):
                assert a.shape == b.shape and a.target_tokens == b.target_tokens
                np.testing.assert_array_equal(a.sentences, b.sentences)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = some_lengths()

    def order(seed, epoch):
        updates = BatchPlanner(pairs_of(*lengths), 512, seed=seed).plan_epoch(epoch)
        return np.concatenate([u.sentences for u in updates]).tolist()

    assert order(0, 2) == order(0, 2)
    assert order(0, 2) != order(0, 3)
    assert order(0, 2) != order(1, 2)


def test_bucketed_epochs_have_the_same_few_shapes():
    planner = BatchPlanner(pairs_of(*some_lengths(20_000)), 2048)
    shapes = [
        sorted((len(u.sentences), u.shape.source, u.shape.target) for u in planner.plan_epoch(e)) for e in (0, 1)
    ]
    assert shapes[0] == shapes[1]
    assert len(planner.shapes) <= 48
    assert len(set(shapes[0])) <= 2 * len(planner.shapes)
    full = sum((len(u.sentences) % 8) == 0 for u in planner.plan_epoch(0))
    assert full > 0.9 * len(shapes[0])


def test_padding_shrinks_from_padded_to_bucketed_and_is_counted_right():
    lengths = some_lengths(20_000)
    shares = {}
    for batching in ("padded", "sorted", "bucketed"):
        planner = BatchPlanner(pairs_of(*lengths), 2048, batching=batching)
        updates = planner.plan_epoch(0)
        cells = sum(len(u.sentences) * (u.shape.source + u.shape.target) for u in updates)
        real = sum(int(x.sum()) + len(x) for x in lengths)
        shares[batching] = planner.padding_share(updates)
        assert shares[batching] == pytest.approx(1 - real / cells)
    assert shares["padded"] > 0.5 and shares["bucketed"] < 0.1 and shares["sorted"] < 0.1


def test_rows_that_fill_a_part_count_as_padding():
    planner = BatchPlanner(pairs_of([3, 3, 3], [3, 3, 3]), 4, n_parts=2)
    assert planner.padding_share(planner.plan_epoch(0)) == pytest.approx(1 / 4)  # four rows for three sentences


def test_buckets_hold_their_sentences_and_splitting_saves_what_it_claims():
    source, target = some_lengths(500)
    for n_buckets in (1, 2, 7, 500):
        shapes, bucket_of = make_buckets(source, target, n_buckets, padding_goal=0.0)
        assert len(shapes) <= n_buckets and set(bucket_of) == set(range(len(shapes)))
        for i, shape in enumerate(shapes):
            assert source[bucket_of == i].max() == shape.source and target[bucket_of == i].max() == shape.target
    # With no goal to stop at, buckets are split until none has padding left.
    assert all(
        len({*zip(source[bucket_of == i], target[bucket_of == i], strict=True)}) == 1 for i in range(len(shapes))
    )


def test_a_budget_below_the_longest_sentence_is_refused():
    with pytest.raises(DataError, match=r"--max_tokens 20 .*21 tokens.*--max_len"):
        BatchPlanner(pairs_of([5, 20], [5, 7]), 20)
    assert len(BatchPlanner(pairs_of([5, 20], [5, 7]), 21).plan_epoch(0)) > 0
    with pytest.raises(DataError, match="no sentence pair"):
        BatchPlanner(pairs_of([], []), 100)


def test_a_micro_batch_moves_the_target_on_by_one_and_masks_uncounted_rows():
    source = TokenizedText.from_lists([[5, 6, 7], [8], [9, 9]])
    target = TokenizedText.from_lists([[15, 16], [17, 18, 19], []])
    pairs = GatheredPairs(TokenizedPairs(source, target), torch.device("cpu"))
    update = Update(pairs, torch.tensor([0, 1, 2]), Shape(5, 4), target_tokens=8)
    parts = [update.micro_batch(part, 2, torch.device("cpu")) for part in range(2)]
    batch = PairBatch(*(torch.cat(sides) for sides in zip(*parts, strict=True)))
    p, b, e = PAD_ID, BOS_ID, EOS_ID
    assert batch.source.tolist() == [[5, 6, 7, e, p], [8, e, p, p, p], [9, 9, e, p, p], [5, 6, 7, e, p]]
    assert batch.target.tolist() == [[b, 15, 16, p], [b, 17, 18, 19], [b, p, p, p], [b, 15, 16, p]]
    assert batch.labels.tolist() == [[15, 16, e, p], [17, 18, 19, e], [e, p, p, p], [p, p, p, p]]


def test_a_batch_is_the_sentences_one_by_one_whichever_part_of_the_text_they_are():
    rng = np.random.default_rng(0)
    lists = [[rng.integers(4, 99, rng.integers(0, 9)).tolist() for _ in range(200)] for _ in range(2)]
    chosen = rng.permutation(200)[:50]
    pairs = TokenizedPairs(*(TokenizedText.from_lists(side).cut(6).select(chosen) for side in lists))
    planner = BatchPlanner(pairs, 64, seed=2)
    for update in planner.plan_epoch(0):
        source, target, labels = update.micro_batch(0, 1, torch.device("cpu"))
        for row, number in enumerate(update.sentences.tolist()):
            expected, predicted = (side[chosen[number]][:6] for side in lists)
            assert source[row].tolist() == [
                *expected,
                EOS_ID,
                *[PAD_ID] * (update.shape.source - len(expected) - 1),
            ]
            padding = [PAD_ID] * (update.shape.target - len(predicted) - 1)
            assert labels[row].tolist() == [*predicted, EOS_ID, *padding]
            assert target[row].tolist() == [BOS_ID, *predicted, *padding]


def test_where_tokens_do_not_fit_the_same_batches_are_loaded_ahead(monkeypatch):
    pairs = pairs_of(*some_lengths(300))
    whole = BatchPlanner(pairs, 128, n_parts=2)
    monkeypatch.setattr("data.text.batching.room_on", lambda device: 1000)
    planner = BatchPlanner(pairs, 128, n_parts=2, own_parts=range(1, 2))
    assert whole.note == "" and "batches are copied ahead of their use" in planner.note
    expected = whole.plan_epoch(1)
    assert whole.loaded(expected) is expected
    updates = planner.loaded(planner.plan_epoch(1))
    assert len(updates) == len(expected) and not planner.fits_on_device
    for update, other in zip(updates, expected, strict=True):
        assert (update.target_tokens, update.shape) == (other.target_tokens, other.shape)
        batch, of_all = (u.micro_batch(1, 2, torch.device("cpu")) for u in (update, other))
        assert all(map(torch.equal, batch, of_all))
        with pytest.raises(KeyError):  # another process's
            update.micro_batch(0, 2, torch.device("cpu"))


def test_an_epoch_is_a_sequence_of_updates_that_are_made_when_asked_for():
    epoch = BatchPlanner(pairs_of(*some_lengths(200)), 256).plan_epoch(0)
    assert [len(u.sentences) for u in epoch[:2]] == [len(epoch[0].sentences), len(epoch[1].sentences)]
    assert len(list(epoch)) == len(epoch) and epoch[-1].shape == epoch[len(epoch) - 1].shape
    with pytest.raises(IndexError):
        epoch[len(epoch)]


EUROPARL = [
    Path(__file__).parents[4] / "shared" / "data" / "text" / f"europarl7_short_lc.en-it.{side}.gz"
    for side in ("en", "it")
]


@pytest.mark.skipif(not EUROPARL[0].exists(), reason="the Europarl files are not at hand")
@pytest.mark.parametrize("max_tokens", [1536, 4096])
def test_bucketed_padding_stays_under_8_percent_on_europarl(max_tokens):
    splits = load_text_splits("files", "", ("en", "it"), train_files=[str(path) for path in EUROPARL])
    corpus = TranslationCorpus(
        splits, kind="bpe", vocab_size=8000, min_frequency=1, lowercase=False, joint=True, max_len=128
    )
    for n_parts in (1, 4):
        planner = BatchPlanner(corpus.train, max_tokens, n_parts)
        assert planner.padding_share(planner.plan_epoch(0)) < 0.08


def test_what_is_longer_than_the_budget_makes_an_update_by_itself_and_widens_no_other():
    lengths = np.array([5, 3, 500, 4, 6, 2, 300, 7])
    with pytest.raises(DataError, match="longest training sentence"):
        BatchPlanner(pairs_of(lengths, lengths), 32, batching="sorted")
    updates = BatchPlanner(pairs_of(lengths, lengths), 32, batching="sorted", allow_longer=True).plan_epoch(0)
    assert sorted(i for update in updates for i in update.sentences.tolist()) == list(range(8))
    for update in updates:
        assert len(update.sentences) == 1 or len(update.sentences) * update.shape.cost <= 32
