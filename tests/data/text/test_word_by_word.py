import pytest

from data.text import word_by_word
from data.text.phrasebook import phrasebook_splits
from data.text.text_column import TextColumn
from data.text.tokenization import MAX_WORD, TextTokenizer
from data.text.word_by_word import EncodedWords, encode_column

HARD = [
    "",
    "word",
    "a  b",
    " led and trailed ",
    "perche\u0301 È l'ora, 1.000,50 e 10:30!",
    "İstanbul ΣΑΣ ▁a▁b ﷐ \u00a0x\u2028y",
    "中文 🙂🙂 unknown⁇ <eos> <num>",
    "\u0301 begins with an accent",
    "x" * (3 * MAX_WORD) + " .. " + "7" * 30,
]


@pytest.fixture(scope="module")
def training() -> list[str]:
    train, *_ = phrasebook_splits()
    return [sentence for pair in train[:2000] for sentence in pair]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize(("lowercase", "mask_numbers"), [(False, False), (True, True)])
def test_the_ids_are_those_of_whole_sentences(training, monkeypatch, kind, lowercase, mask_numbers):
    tokenizer = TextTokenizer.train(training, kind, 500, lowercase=lowercase, mask_numbers=mask_numbers)
    sentences = [*training[:700], *HARD, *training[:3]]
    monkeypatch.setattr(word_by_word, "BATCH", 256)
    text = encode_column(tokenizer, TextColumn(sentences))
    assert [text[i].tolist() for i in range(len(text))] == tokenizer.encode(sentences)
    assert len(encode_column(tokenizer, TextColumn([]))) == 0


def test_what_is_remembered_is_bounded(training):
    tokenizer = TextTokenizer.train(training, "bpe", 500)
    words = EncodedWords(tokenizer, most=50)
    for start in range(0, 200, 20):
        sentences = training[start : start + 20]
        tokens, lengths = words.encode(TextColumn(sentences))
        assert tokens.tolist() == [i for ids in tokenizer.encode(sentences) for i in ids]
        assert lengths.tolist() == [len(ids) for ids in tokenizer.encode(sentences)]
    assert len(words._number) < 200
