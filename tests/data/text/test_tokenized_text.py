import numpy as np

from data.text.tokenized_text import TokenizedText, cached_tokens


def test_sentences_come_back_from_the_flat_array():
    sentences = [[1, 2, 3], [], [4], [5, 6]]
    text = TokenizedText.from_lists(sentences)
    assert [text[i].tolist() for i in range(len(text))] == sentences
    assert text.lengths.tolist() == [3, 0, 1, 2]
    assert [text.select(np.array([3, 1]))[i].tolist() for i in range(2)] == [[5, 6], []]


def test_the_tokens_of_a_part_are_its_own():
    text = TokenizedText.from_lists([[1, 2, 3], [], [4], [5, 6]])
    assert text.own_tokens().tolist() == [1, 2, 3, 4, 5, 6]
    assert text.select([3, 1, 0]).own_tokens().tolist() == [1, 2, 3, 5, 6]
    assert text.cut(2).own_tokens().tolist() == [1, 2, 4, 5, 6]
    assert text.select([1]).own_tokens().tolist() == []


def test_a_second_call_reads_and_a_damaged_file_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    calls = []

    def build():
        calls.append(1)
        return TokenizedText.from_lists([[1, 2], [3]])

    for _ in range(2):
        text = cached_tokens("key", build)
        assert [text[i].tolist() for i in range(2)] == [[1, 2], [3]]
    assert len(calls) == 1
    (path,) = tmp_path.iterdir()  # and no temporary file is left
    for damaged in (path.read_bytes()[:40], b"", b"PK not a zip"):
        path.write_bytes(damaged)
        assert cached_tokens("key", build)[0].tolist() == [1, 2]
    assert len(calls) == 4
