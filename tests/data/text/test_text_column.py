import numpy as np
import pyarrow
import pytest

from data.text import text_column
from data.text.text_column import TextColumn

SENTENCES = ["one", "", "zwölf Boxkämpfer", "三", "🙂 five", "six", "seven"]


@pytest.fixture(autouse=True, params=[3, 1 << 16])
def batch(request, monkeypatch):
    monkeypatch.setattr(text_column, "BATCH", request.param)


def test_a_column_is_a_sequence_of_strings():
    column = TextColumn(iter(SENTENCES))
    assert column == SENTENCES and list(column) == SENTENCES and len(column) == 7
    assert column != SENTENCES[:6] and column != [*SENTENCES[:6], "other"]
    assert column[2] == SENTENCES[2] and column[-1] == "seven" and "六" not in column and "三" in column
    assert column[1:4] == SENTENCES[1:4] and column[::-2] == SENTENCES[::-2] and column[5:2] == []
    with pytest.raises(IndexError):
        column[7]
    assert TextColumn(column) == column and TextColumn([]) == []


def test_a_column_is_mapped_counted_selected_and_joined():
    column = TextColumn(SENTENCES)
    assert column.map(str.upper) == [s.upper() for s in SENTENCES]
    assert column.map(str).array.equals(column.array)
    assert column.n_characters().tolist() == list(map(len, SENTENCES))
    assert column.select([6, 0, 0]) == ["seven", "one", "one"] and column.select(np.empty(0)) == []
    assert TextColumn.joined([column, TextColumn([]), column[2:]]) == SENTENCES + SENTENCES[2:]
    assert [s for some in column[1:].batches(2) for s in some] == SENTENCES[1:]


@pytest.mark.parametrize("part", [slice(0, 7), slice(2, 5), slice(3, 3)])
def test_the_buffers_of_a_column_make_it_again(part):
    column = TextColumn(SENTENCES)[part]
    text, offsets = column.buffers()
    assert (
        text.tobytes().decode() == "".join(SENTENCES[part]) and offsets[0] == 0 and len(offsets) == len(column) + 1
    )
    assert TextColumn.from_buffers(text, offsets) == SENTENCES[part]


def test_a_missing_sentence_of_a_table_is_an_empty_one():
    chunks = pyarrow.chunked_array([pyarrow.array(["a", None]), pyarrow.array(["b"])])
    assert TextColumn.of_arrow(chunks) == ["a", "", "b"]
