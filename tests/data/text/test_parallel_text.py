import random
import time

import pytest

from data.errors import DataError
from data.text.parallel_text import (
    ParallelText,
    clean,
    hashed_splits,
    normalised,
    usual_length_ratio,
    without_empty,
)


def test_clean_drops_and_counts():
    text = ParallelText(
        ["Go.", " Go. ", "perche\u0301  no", "", "some text", "A complete sentence of some length.", "Go."],
        ["Va-t'en !", "Va-t'en\u00a0!", "why\tnot", "vide", " \u3000", "x" * 126, "Va !"],
    )
    kept, counts = clean(normalised(text))
    assert list(kept.pairs()) == [("Go.", "Va-t'en !"), ("perché no", "why not"), ("Go.", "Va !")]
    assert counts == {"read": 7, "empty": 2, "length_ratio": 1, "duplicate": 1, "kept": 3}


def test_length_ratio_is_symmetric_and_exact():
    short, longest = "s" * 30, "l" * (3 * 30 + 20)
    text = ParallelText([short, longest, short, longest + "l"], [longest, short, longest + "l", short])
    kept, counts = clean(text)
    assert list(kept.pairs()) == [(short, longest), (longest, short)]
    assert counts["length_ratio"] == 2
    assert len(clean(text, max_length_ratio=4)[0]) == 4


def bare(sentence: str) -> str:
    """Letters and digits alone, in lower case: for ASCII the sentence key, computed another way."""
    return "".join(c for c in sentence.lower() if c.isalnum())


@pytest.fixture
def many_pairs() -> ParallelText:
    rng = random.Random(0)
    sources = [
        f"{rng.choice(['The', 'the', 'THE'])} item {rng.randrange(1500)}{rng.choice('.!?')}" for _ in range(5000)
    ]
    targets = [f"voce {rng.randrange(3000)}{rng.choice(['.', '!', ' .'])}" for _ in range(5000)]
    return ParallelText(sources, targets)


def test_no_sentence_stands_in_two_splits(many_pairs):
    *splits, counts = hashed_splits(many_pairs, 0.1, 0.2)
    for side in ("sources", "targets"):
        train, valid, test = ({bare(s) for s in getattr(split, side)} for split in splits)
        assert not train & valid and not train & test and not valid & test
    assert [counts["train"], counts["valid"], counts["test"]] == [len(split) for split in splits]
    assert counts["target_in_heldout"] == 5000 - sum(map(len, splits)) > 0
    for split in splits:  # an ordered part of the whole
        remaining = iter(many_pairs.pairs())
        assert all(pair in remaining for pair in split.pairs())


def test_splits_are_fixed_by_the_data_and_not_by_their_order(many_pairs):
    *splits, _ = hashed_splits(many_pairs, 0.1, 0.2)
    shuffled = list(many_pairs.pairs())
    random.Random(1).shuffle(shuffled)
    sources, targets = map(list, zip(*shuffled, strict=True))
    *again, _ = hashed_splits(ParallelText(sources, targets), 0.1, 0.2)
    for split, other in zip(splits, again, strict=True):
        assert sorted(split.pairs()) == sorted(other.pairs())


def test_split_fractions_and_frozen_assignment():
    text = ParallelText([f"sentence {i}" for i in range(20000)], [f"frase {i}" for i in range(20000)])
    train, valid, test, counts = hashed_splits(text, 0.05, 0.1)
    assert len(valid) == pytest.approx(1000, abs=130)  # 4 standard deviations
    assert len(test) == pytest.approx(2000, abs=170)
    assert counts["target_in_heldout"] == 0 and len(train) + len(valid) + len(test) == 20000
    # Written down once: a change would move sentences between the splits of published results.
    assert test.sources[:3] == ["sentence 6", "sentence 29", "sentence 45"]
    assert hashed_splits(text, 0.2, 0.1)[2] == test


def test_target_of_a_test_pair_is_dropped_from_train_and_valid():
    text = ParallelText([f"sentence {i}" for i in range(1000)], [f"frase {i}" for i in range(1000)])
    train, valid, test, _ = hashed_splits(text, 0.1, 0.1)
    moved = {train.sources[0]: test.targets[0].upper() + "!", valid.sources[0]: test.targets[1] + " ..."}
    text = ParallelText(text.sources, [moved.get(s, t) for s, t in text.pairs()])
    new_train, new_valid, new_test, counts = hashed_splits(text, 0.1, 0.1)
    assert counts["target_in_heldout"] == 2 and new_test == test
    assert new_train.sources == train.sources[1:] and new_valid.sources == valid.sources[1:]


def test_splits_without_test_or_valid_are_allowed():
    text = ParallelText([f"sentence {i}" for i in range(50)], [f"frase {i}" for i in range(50)])
    train, valid, test, _ = hashed_splits(text, 0.0, 0.0)
    assert train == text and len(valid) == len(test) == 0


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_impossible_fractions(many_pairs, valid, test):
    with pytest.raises(DataError, match="fractions"):
        hashed_splits(many_pairs, valid, test)


def test_an_empty_split_is_an_error():
    with pytest.raises(DataError, match="the test split of 1 pairs is empty"):
        hashed_splits(ParallelText(["one"], ["uno"]), 0.0, 1e-9)


def test_normalised_text_has_neither_line_ends_nor_another_unicode_form():
    text = ParallelText(["perche\u0301\u2028no\x85 \x1c", "\u3000"], ["a\rb\vc\u2029d", "x"])
    assert normalised(text) == ParallelText(["perché no", ""], ["a b c d", "x"])
    assert without_empty(normalised(text)) == ParallelText(["perché no"], ["a b c d"])


def uneven_text(n: int = 41) -> ParallelText:
    """Sources of 120 characters and targets of 30, as in English to Chinese; then two hopeless pairs."""
    sources = [f"{i:03}{'e' * 117}" for i in range(n)] + ["s" * 450, "s" * 40]
    return ParallelText(sources, [f"{i:03}{'中' * 27}" for i in range(n)] + ["中" * 30, "中" * 120])


def test_the_usual_length_ratio_is_the_median_of_an_uneven_corpus():
    text = uneven_text()
    assert usual_length_ratio(text) == 0.25
    assert usual_length_ratio(ParallelText(text.targets, text.sources)) == 4
    assert usual_length_ratio(ParallelText(["abc", ""], ["abcd", "x"])) == 1  # as long, but for a third
    assert usual_length_ratio(ParallelText([], [])) == usual_length_ratio(ParallelText([""], ["x"])) == 1


def test_pairs_are_measured_by_the_usual_ratio():
    text = uneven_text()
    kept, counts = clean(text, usual_ratio=usual_length_ratio(text))
    assert len(kept) == 41 and counts["length_ratio"] == 2  # 450 > 3 x 120 + 20, and 480 > 3 x 40 + 20
    other_way = ParallelText(text.targets, text.sources)
    assert clean(other_way, usual_ratio=4)[1] == counts
    assert list(clean(text)[0].pairs()) == [("s" * 40, "中" * 120)]  # as between two European languages


def test_a_line_of_accents_takes_no_square_of_its_length():
    """Python's own normalisation takes 20 seconds for 100,000 accents of two kinds in turn."""
    start = time.process_time()
    line = "e" + "\u0301\u0327" * 50_000
    text = normalised(ParallelText([line], ["e\u0301"]))
    (source,), (target,) = text.sources, text.targets
    assert (source[:2], len(source), target) == ("\u0229\u0327", 100_000, "\u00e9")
    assert time.process_time() - start < 5
