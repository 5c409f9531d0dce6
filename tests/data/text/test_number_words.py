import re

import pytest
from tokenizers import Regex, normalizers

from data.text import corpus_statistics
from data.text.number_words import NUMBER, NUMBER_MARK, fill_numbers


@pytest.mark.parametrize(
    ("translation", "source", "filled"),
    [
        ("At # it costs #.", "Um 10:30 kostet es 1.000,50.", "At 10:30 it costs 1.000,50."),
        ("#-# of #", "3-4 aus 5.", "3-4 of 5"),
        ("# and # and #", "1 und 2", "1 and 2 and "),  # more marks than numbers
        ("#", "1, 2 und 3", "1"),  # fewer
        ("none", "12", "none"),
        ("a # b", "keine", "a  b"),
    ],
)
def test_marks_take_the_numbers_of_the_source_in_their_order(translation, source, filled):
    assert fill_numbers(translation.replace("#", NUMBER_MARK), source) == filled


def test_a_number_is_the_same_in_python_in_tokenizers_and_in_the_corpus_report():
    assert corpus_statistics._NUMBER.pattern == NUMBER
    mask = normalizers.Replace(Regex(NUMBER), "#")
    for text in ("1.000,50€", "am 31.12.1999, um 10:30.", "3,, 4", "a1b22", "٣ und ४", "x²", "...5..6"):
        assert mask.normalize_str(text) == re.sub(NUMBER, "#", text)
