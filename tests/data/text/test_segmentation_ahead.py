import subprocess

import numpy as np
import pytest

from data.text import segmentation_ahead
from data.text.bpe_dropout import BPEDropout
from data.text.parallel_text import ParallelText
from data.text.phrasebook import phrasebook_splits
from data.text.segmentation_ahead import SegmentationAhead, segmented
from data.text.tokenization import TextTokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def text() -> ParallelText:
    return ParallelText.from_pairs(phrasebook_splits()[0][:300])


@pytest.fixture(scope="module")
def tokenizers(text) -> tuple[TextTokenizer, TextTokenizer]:
    return TextTokenizer.train(text.sources, "bpe", 300), TextTokenizer.train(text.targets, "bpe", 300)


def expected(text, tokenizers, epoch):
    return segmented(text, [BPEDropout(tokenizer, 0.3) for tokenizer in tokenizers], seed=5, epoch=epoch)


def assert_same(pairs, others):
    for side in ("source", "target"):
        one, other = getattr(pairs, side), getattr(others, side)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.lengths, other.lengths)


def test_another_process_makes_the_next_epoch_and_the_same_of_it(text, tokenizers, monkeypatch):
    ahead = SegmentationAhead(text, tokenizers, 0.3, seed=5)
    here = []

    def here_too(text, segmenters, seed, epoch):
        here.append(epoch)
        return segmented(text, segmenters, seed, epoch)

    monkeypatch.setattr(segmentation_ahead, "segmented", here_too)
    assert_same(ahead.pairs(0, more=True), expected(text, tokenizers, 0))
    assert ahead.pairs(0) is ahead.pairs(0, more=True)
    assert_same(ahead.pairs(1), expected(text, tokenizers, 1))
    assert here == [0] and ahead._ahead is None  # no more was asked for
    assert_same(ahead.pairs(7), expected(text, tokenizers, 7))  # none that was begun
    assert here == [0, 7]
    again = SegmentationAhead(text, tokenizers, 0.3, seed=5)  # as a resumed run has it
    assert_same(again.pairs(0), expected(text, tokenizers, 0))
    assert here == [0, 7]
    SegmentationAhead(text, tokenizers, 0.3, seed=6).pairs(0)
    assert here == [0, 7, 0]


def test_where_the_process_fails_or_cannot_begin_the_epoch_is_made_as_it_begins(
    text, tokenizers, monkeypatch, capsys
):
    ahead = SegmentationAhead(text, tokenizers, 0.3, seed=5)
    ahead.pairs(0, more=True)
    ahead._ahead[1].kill()
    assert_same(ahead.pairs(1), expected(text, tokenizers, 1))

    def no_process(*_, **__):
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    for epoch in (1, 2):
        assert_same(ahead.pairs(epoch, more=True), expected(text, tokenizers, epoch))
    assert capsys.readouterr().err.count("not ahead (Resource temporarily unavailable)") == 1
