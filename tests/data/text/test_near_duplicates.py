import random

import pytest

from data.text.near_duplicates import near_duplicates


def at_most_one_word_apart(one: list[str], other: list[str]) -> bool:
    if len(one) == len(other):
        return sum(a != b for a, b in zip(one, other, strict=True)) <= 1
    shorter, longer = sorted((one, other), key=len)
    return any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))


@pytest.mark.parametrize("words", ["abc", "abcdefgh"])
@pytest.mark.parametrize("chunk", [3, 100])
def test_as_by_comparing_each_with_each(monkeypatch, words, chunk):
    monkeypatch.setattr("data.text.near_duplicates._CHUNK", chunk)
    rng = random.Random(0)
    for _ in range(100):
        drawn = [[rng.choice(words) for _ in range(rng.randint(1, 6))] for _ in range(20)]
        test, training = drawn[:8], drawn[8:]
        expected = [any(at_most_one_word_apart(one, other) for other in training) for one in test]
        found = near_duplicates([" ".join(s) for s in test], [" ".join(s) for s in training])
        assert found.tolist() == expected


def test_case_and_punctuation_do_not_make_a_distance():
    test = ["Wo ist der Bahnhof?", "„Wo“ ist – der Hafen!", "Wo ist denn der große Bahnhof?"]
    assert near_duplicates(test, ["wo ist der bahnhof"]).tolist() == [True, True, False]


def test_without_spaces_a_word_is_a_character():
    test = ["他买了一本旧书。", "她昨天卖掉了一辆车。", "iPhone很好"]
    assert near_duplicates(test, ["他买了一本新书", "iPhone 不好"]).tolist() == [True, False, True]


def test_nothing_to_compare():
    assert near_duplicates([], ["a"]).tolist() == [] and near_duplicates(["a", "b c"], []).tolist() == [
        False,
        False,
    ]
