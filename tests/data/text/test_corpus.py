import gzip
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.text import parallel_files
from data.text.corpus import CorpusSplits, TranslationCorpus, load_text_splits
from data.text.parallel_text import ParallelText
from data.text.tokenization import MAX_WORD

SETTINGS = {"kind": "bpe", "vocab_size": 300, "min_frequency": 1, "lowercase": False, "joint": False, "max_len": 40}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))


def write(path, lines):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return str(path)


def some_text(n: int = 400) -> ParallelText:
    words = ["red", "green", "blue", "one", "two", "three", "four", "house", "tree", "dog"]
    sources = [" ".join(words[(i // 10**k) % 10] for k in range(3)) + f" {i}" for i in range(n)]
    return ParallelText(sources, [s.upper() for s in sources])


def test_the_phrasebook_needs_no_files():
    splits = load_text_splits("phrasebook", "", ("en", "it"))
    assert len(splits.train) > 20_000 and len(splits.valid) == len(splits.test) == 500
    for side in ("sources", "targets"):
        held_out = set(getattr(splits.valid, side)) | set(getattr(splits.test, side))
        assert not held_out & set(getattr(splits.train, side))


def test_own_files_are_split_by_hash_unless_held_out_files_are_given(tmp_path):
    text = some_text()
    files = (write(tmp_path / "a.en.gz", text.sources), write(tmp_path / "a.it", text.targets))
    splits = load_text_splits("none", "", ("en", "it"), train_files=files, valid_fraction=0.1, test_fraction=0.1)
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 400
    held_out = (
        write(tmp_path / "v.en", ["Hello!", "", "Bye."]),
        write(tmp_path / "v.it", ["Ciao!", "x", "Addio."]),
    )
    splits = load_text_splits(
        "none", "", ("en", "it"), train_files=files, valid_files=held_out, test_files=held_out
    )
    assert splits.test.sources == ["Hello!", "Bye."] and len(splits.train) == 400
    taken = (
        write(tmp_path / "t.en", [text.sources[7].title() + "!", "Bye."]),
        write(tmp_path / "t.it", ["Ciao!", text.targets[9]]),
    )
    splits = load_text_splits("none", "", ("en", "it"), train_files=files, valid_files=held_out, test_files=taken)
    assert len(splits.train) == 398 and splits.counts["in_heldout_files"] == 2
    assert text.sources[7] not in splits.train.sources and text.targets[9] not in splits.train.targets


def test_a_second_start_reads_and_cleans_nothing_unless_a_file_or_a_setting_changed(tmp_path, monkeypatch):
    text = some_text()
    text = ParallelText([*text.sources, ""], [*text.targets, "x"])
    held_out = as_files(tmp_path, ParallelText(["Hello!"], ["Ciao!"]), "h")
    options = {"train_files": as_files(tmp_path, text), "valid_fraction": 0.1, "test_fraction": 0.1}
    options["extra_test_files"] = held_out
    first = load_text_splits("none", "", ("en", "it"), **options)
    read = []

    def read_parallel_files(files, languages):
        read.append(files)
        return parallel_files.read_parallel_files(files, languages)

    monkeypatch.setattr("data.text.corpus.read_parallel_files", read_parallel_files)
    second = load_text_splits("none", "", ("en", "it"), **options)
    assert second == first and not read and second.counts["empty"] == 1
    assert load_text_splits("none", "", ("en", "it"), **options | {"lowercase": True}) == first.lowercased()
    assert len(read) == 2
    (tmp_path / "h.src").write_text("Bye!\n", encoding="utf-8")
    changed = load_text_splits("none", "", ("en", "it"), **options)
    assert changed.test_extra.sources == ["Bye!"] and len(read) == 4
    (tmp_path / "c.src").unlink()
    with pytest.raises(DataError, match=r"c\.src"):
        load_text_splits("none", "", ("en", "it"), **options)


def test_text_that_can_be_read_but_once_is_read_once(tmp_path):
    text = some_text()
    pipes = [str(tmp_path / name) for name in ("source", "target")]
    writers = []
    for pipe, sentences in zip(pipes, (text.sources, text.targets), strict=True):
        os.mkfifo(pipe)
        content = "".join(f"{sentence}\n" for sentence in sentences)
        writers.append(threading.Thread(target=Path(pipe).write_text, args=(content,), daemon=True))
        writers[-1].start()
    splits = load_text_splits("none", "", ("en", "it"), train_files=pipes, valid_fraction=0.1, test_fraction=0.1)
    assert splits.counts["read"] == 400


def test_text_and_tokens_are_mapped_from_the_cache(tmp_path):
    files = as_files(tmp_path, some_text())
    for _ in range(2):
        splits = load_text_splits("none", "", ("en", "it"), train_files=files, test_fraction=0.1)
        corpus = TranslationCorpus(splits, **SETTINGS)
        for array in (corpus.train.source.tokens, corpus.test.target.tokens):
            assert isinstance(array.base, np.memmap)
        mapped = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else str(tmp_path)
        assert str(tmp_path) in mapped


def test_a_copy_of_a_data_set_is_read_once_and_again_where_a_file_is_added(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    text = some_text()
    write(folder / "a.en", text.sources)
    write(folder / "a.it", text.targets)
    options = {"data_dir": folder, "valid_fraction": 0.1, "test_fraction": 0.1}
    first = load_text_splits("x/y", "en-it", ("en", "it"), **options)
    assert load_text_splits("x/y", "en-it", ("en", "it"), **options) == first
    write(folder / "b.en", ["one more"])
    write(folder / "b.it", ["uno di più"])
    assert load_text_splits("x/y", "en-it", ("en", "it"), **options).counts["read"] == 401
    with pytest.raises(DataError, match="not a folder"):
        load_text_splits("x/y", "en-it", ("en", "it"), data_dir=tmp_path / "none")


def test_tokenizers_of_a_large_corpus_are_trained_on_a_sample_and_the_log_says_so():
    text = some_text()
    splits = CorpusSplits(text, text, text)
    whole = TranslationCorpus(splits, **SETTINGS)
    assert "--tokenizer_sample" not in str(whole)
    for sample in (0, 400, 1000):
        corpus = TranslationCorpus(splits, **SETTINGS, tokenizer_sample=sample)
        assert corpus.source_tokenizer.to_json() == whole.source_tokenizer.to_json()
    corpus = TranslationCorpus(splits, **SETTINGS, tokenizer_sample=40)
    assert "trained on 40 of the pairs (--tokenizer_sample)" in str(corpus)
    few = text.select(range(0, 400, 10))
    expected = TranslationCorpus(CorpusSplits(few, few, few), **SETTINGS)
    assert corpus.source_tokenizer.to_json() == expected.source_tokenizer.to_json()
    assert len(corpus.train) == 400


def test_a_further_test_set_stands_beside_the_other_and_leaves_training(tmp_path):
    text = some_text()
    files = (write(tmp_path / "a.en", text.sources), write(tmp_path / "a.it", text.targets))
    extra = (
        write(tmp_path / "x.en", [text.sources[7], "", "Bye."]),
        write(tmp_path / "x.it", ["Ciao!", "x", "Addio."]),
    )
    options = {"train_files": files, "valid_fraction": 0.1, "test_fraction": 0.1}
    without = load_text_splits("none", "", ("en", "it"), **options)
    splits = load_text_splits("none", "", ("en", "it"), **options, extra_test_files=extra)
    assert without.test_extra is None and splits.test == without.test
    assert splits.test_extra == ParallelText([text.sources[7], "Bye."], ["Ciao!", "Addio."])
    assert text.sources[7] not in splits.train.sources and splits.counts["test_extra"] == 2
    corpus = TranslationCorpus(splits, **SETTINGS)
    assert len(corpus.test_extra) == 2 and TranslationCorpus(without, **SETTINGS).test_extra is None
    empty = (write(tmp_path / "e.en", [""]), write(tmp_path / "e.it", ["x"]))
    with pytest.raises(DataError, match=r"e\.en and .*e\.it: no pair"):
        load_text_splits("none", "", ("en", "it"), **options, extra_test_files=empty)


@pytest.mark.parametrize("given", ["valid", "test", "extra_test"])
def test_no_sentence_of_held_out_files_is_in_a_split_that_was_made_by_hash(tmp_path, given):
    text = some_text()
    options = {"train_files": as_files(tmp_path, text), "valid_fraction": 0.1, "test_fraction": 0.1}
    before = load_text_splits("none", "", ("en", "it"), **options)
    shared = [splits.select(range(3)) for splits in (before.train, before.valid, before.test)]
    heldout = ParallelText(
        [sentence for split in shared for sentence in split.sources], [f"other {i}" for i in range(9)]
    )
    options[f"{given}_files"] = as_files(tmp_path, heldout, "h")
    splits = load_text_splits("none", "", ("en", "it"), **options)
    made_by_hash = {"valid": ("train", "test"), "test": ("train", "valid"), "extra_test": ("train", "valid")}
    for name in made_by_hash[given]:
        assert len(getattr(splits, name)) > 0
        assert not set(getattr(splits, name).sources) & set(heldout.sources)
    assert splits.counts["in_heldout_files"] == (6 if given == "extra_test" else 9)
    if given == "extra_test":  # two test sets may share sentences
        assert splits.test == before.test


def test_the_phrasebook_takes_no_held_out_files(tmp_path):
    with pytest.raises(DataError, match="splits of its own"):
        load_text_splits("phrasebook", "", ("en", "it"), extra_test_files=("a", "b"))


def test_the_revision_reaches_the_hub(monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return some_text()

    monkeypatch.setattr("data.text.corpus.load_hub_pairs", load)
    load_text_splits("x/y", "de-en", ("de", "en"), dataset_revision="refs/convert/parquet", test_fraction=0.1)
    assert asked == [("x/y", "de-en", ("de", "en"), None, "refs/convert/parquet")]


def test_masked_numbers_are_in_both_tokenizers():
    text = some_text()
    corpus = TranslationCorpus(CorpusSplits(text, text, text), **SETTINGS, mask_numbers=True)
    assert corpus.source_tokenizer.masks_numbers and corpus.target_tokenizer.masks_numbers
    outputs = [corpus.train.target[i].tolist() for i in range(len(text))]
    assert corpus.target_tokenizer.decode(outputs, text.sources) == text.targets
    assert corpus.target_tokenizer.decode(outputs[12:13]) == [text.targets[12].replace("12", "<num>")]


def test_an_empty_split_is_refused(tmp_path):
    files = (write(tmp_path / "a", [""] * 3), write(tmp_path / "b", ["x"] * 3))
    with pytest.raises(DataError):
        load_text_splits("none", "", ("en", "it"), train_files=files)


def english_chinese(n: int = 300) -> ParallelText:
    """Pairs whose sources have four times the characters of their targets."""
    return ParallelText(
        [f"The committee takes note with appreciation of the report {i} by the secretariat" for i in range(n)],
        [f"委员会赞赏地注意到秘书处的报告{i}" for i in range(n)],
    )


def as_files(tmp_path, text, name="c"):
    return write(tmp_path / f"{name}.src", text.sources), write(tmp_path / f"{name}.tgt", text.targets)


def test_a_pair_of_scripts_of_other_lengths_is_kept_and_its_ratio_said(tmp_path):
    text = english_chinese()
    options = {"train_files": as_files(tmp_path, text), "valid_fraction": 0.1, "test_fraction": 0.1}
    splits = load_text_splits("none", "", ("en", "zh"), **options)
    assert splits.counts["kept"] == 300 and splits.counts["length_ratio"] == 0
    (note,) = splits.notes
    assert "a target usually has 0.2" in note and "--max_length_ratio" in note
    assert load_text_splits("none", "", ("en", "zh"), **options, max_length_ratio=6).notes == ()


def test_a_filter_that_empties_the_corpus_is_named(tmp_path):
    text = english_chinese()
    text = ParallelText([*text.sources, ""], [*text.targets, "x"])
    files = as_files(tmp_path, text)
    with pytest.raises(DataError) as error:
        load_text_splits("none", "", ("en", "zh"), train_files=files, max_length_ratio=2)
    assert "all 301 pairs were dropped: length ratio 300, empty 1; raise --max_length_ratio above 2" in str(
        error.value
    )
    empty = ParallelText(["", "x"], ["x", " "])
    with pytest.raises(DataError, match="all 2 pairs were dropped: empty 2; give text with both sides"):
        load_text_splits("none", "", ("en", "zh"), train_files=as_files(tmp_path, empty, "e"))
    options = {"train_files": files, "valid_files": files, "test_files": files}
    with pytest.raises(DataError, match=r"no training pair is left of 301 .*in heldout files 300"):
        load_text_splits("none", "", ("en", "zh"), **options)


def test_a_filter_that_drops_many_is_worth_a_warning(tmp_path):
    text = some_text()
    long = ParallelText([*text.sources, *(f"short {i}" for i in range(20))], [*text.targets, *["long " * 20] * 20])
    options = {"valid_fraction": 0.1, "test_fraction": 0.1}
    notes = load_text_splits("none", "", ("en", "it"), train_files=as_files(tmp_path, long), **options).notes
    assert len(notes) == 1 and "20 of 420 pairs (4.8%)" in notes[0] and "above 3 " in notes[0]
    assert load_text_splits("none", "", ("en", "it"), train_files=as_files(tmp_path, text), **options).notes == ()


@pytest.mark.parametrize("ratio", [-1, 0.5, float("nan"), float("inf")])
def test_an_impossible_length_ratio(tmp_path, ratio):
    with pytest.raises(DataError, match="--max_length_ratio"):
        load_text_splits(
            "none", "", ("en", "it"), train_files=as_files(tmp_path, some_text()), max_length_ratio=ratio
        )


def test_held_out_files_are_brought_to_the_form_of_training_text(tmp_path):
    heldout = ParallelText(
        ["Wo  ist\u00a0er? ", "zwei\u2028Teile", " "], ["Perche\u0301 no?", "due\x85parti\x1c", "x"]
    )
    given = as_files(tmp_path, heldout, "h")
    files = as_files(tmp_path, some_text())
    splits = load_text_splits(
        "none", "", ("de", "it"), train_files=files, valid_files=given, test_files=given, extra_test_files=given
    )
    expected = ParallelText(["Wo ist er?", "zwei Teile"], ["Perché no?", "due parti"])
    assert splits.valid == splits.test == splits.test_extra == expected


def test_lower_case_holds_for_all_text_and_leaves_the_splits_as_they_are(tmp_path):
    text = some_text()
    text = ParallelText([s.title() for s in text.sources], ["İI " + t for t in text.targets])
    options = {"train_files": as_files(tmp_path, text), "valid_fraction": 0.1, "test_fraction": 0.1}
    cased, lower = (load_text_splits("none", "", ("en", "it"), **options, lowercase=flag) for flag in (False, True))
    for name in ("train", "valid", "test"):
        before, after = getattr(cased, name), getattr(lower, name)
        assert after.sources == [s.lower() for s in before.sources] and after.targets[0].startswith("i\u0307i ")
        assert len(after) == len(before)
    assert lower.counts == cased.counts
    phrasebook = load_text_splits("phrasebook", "", ("en", "it"), lowercase=True)
    assert phrasebook.test.targets[0].islower()


def test_tokenizers_know_the_training_split_alone():
    text = some_text()
    held_out = ParallelText(["zzz qqq"], ["ZZZ QQQ"])
    corpus = TranslationCorpus(CorpusSplits(text, held_out, held_out), **SETTINGS)
    assert not any(
        "z" in corpus.source_tokenizer.tokens([i])[0] for i in range(4, corpus.source_tokenizer.vocab_size)
    )
    assert corpus.source_tokenizer.to_json() != corpus.target_tokenizer.to_json()
    joint = TranslationCorpus(CorpusSplits(text, held_out, held_out), **SETTINGS | {"joint": True})
    assert joint.source_tokenizer is joint.target_tokenizer
    decoded = joint.target_tokenizer.decode([joint.train.target[7].tolist()])
    assert decoded == [text.targets[7]]


def test_tokens_that_only_the_source_side_has_are_found():
    text = ParallelText(["der hund 7"] * 50, ["the dog 7"] * 50)
    corpus = TranslationCorpus(CorpusSplits(text, text, text), **SETTINGS | {"joint": True})
    only = {corpus.source_tokenizer.tokens([int(i)])[0] for i in corpus.only_in_source().nonzero()[0]}
    assert only == {t for t in corpus.source_tokenizer.tokens(corpus.train.source[0].tolist()) if t != "7"} - {
        *corpus.source_tokenizer.tokens(corpus.train.target[0].tolist())
    }
    assert only and "7" not in only


def test_pairs_that_are_not_trained_on_do_not_say_which_tokens_the_target_has():
    text = ParallelText(["der hund"] * 50 + ["x"], ["the dog"] * 50 + ["der hund " * 20])
    settings = SETTINGS | {"joint": True, "max_len": 20}
    corpus = TranslationCorpus(CorpusSplits(text, text, text), **settings)
    assert len(corpus.train) == 50
    source, target = corpus.train.source[0].tolist(), corpus.train.target[0].tolist()
    assert set(corpus.only_in_source().nonzero()[0].tolist()) == set(source) - set(target)


def test_long_sentences_leave_training_but_never_the_test():
    long = " ".join(["house"] * 60)
    train = ParallelText([*some_text().sources, long], [*some_text().targets, "x"])
    held_out = ParallelText([long], ["x"])
    corpus = TranslationCorpus(CorpusSplits(train, held_out, held_out), **SETTINGS)
    assert corpus.n_too_long == 1 and len(corpus.train) == 400
    assert len(corpus.test) == len(corpus.valid) == 1
    assert corpus.test.source.lengths[0] >= 40


def test_a_maximum_length_that_leaves_nothing_is_named():
    text = some_text()
    with pytest.raises(DataError, match="all 400 training pairs have more than --max_len 2 tokens"):
        TranslationCorpus(CorpusSplits(text, text, text), **SETTINGS | {"max_len": 2})


def test_what_cannot_fit_is_fed_to_no_tokenizer_and_long_heldout_lines_are_cut(monkeypatch):
    """SETTINGS have max_len 40, so that training pairs of more than 40 x 256 characters cannot fit."""
    text, monster = some_text(), "".join("xyz"[i % 3] for i in range(40 * MAX_WORD + 1))
    train = ParallelText([text.sources[0], monster, *text.sources[1:]], [text.targets[0], "x", *text.targets[1:]])
    held_out = ParallelText(["a house", "house " * 3000], ["house " * 3000, "a"])
    plain = TranslationCorpus(CorpusSplits(text, text, text), **SETTINGS)
    for dropout in (0.0, 0.1):
        corpus = TranslationCorpus(
            CorpusSplits(train, held_out, held_out), **SETTINGS, eval_max_len=100, bpe_dropout=dropout
        )
        assert corpus.source_tokenizer.to_json() == plain.source_tokenizer.to_json()
        assert (corpus.n_unread, corpus.n_too_long, len(corpus.training_pairs(0))) == (1, 1, len(text))
    assert "1 of them by their characters" in str(corpus)
    assert corpus.test.source.lengths.max() == corpus.test.target.lengths.max() == 99
    assert corpus.was_cut["test"].tolist() == [False, True]
    assert "cut there (--eval_max_len): valid 1, test 1" in str(corpus) and "cut" not in str(plain)
    with pytest.raises(DataError, match="no training pair is left"):
        TranslationCorpus(CorpusSplits(ParallelText([monster], ["x"]), held_out, held_out), **SETTINGS)


def test_bpe_dropout_draws_by_seed_and_epoch():
    text = some_text()
    splits = CorpusSplits(text, text, text)

    def tokens(seed, epoch, dropout=0.3):
        corpus = TranslationCorpus(splits, **SETTINGS, bpe_dropout=dropout, seed=seed)
        return corpus.training_pairs(epoch).source.tokens.tolist()

    assert tokens(0, 1) == tokens(0, 1)
    assert tokens(0, 1) != tokens(0, 2) and tokens(0, 1) != tokens(1, 1)
    plain = TranslationCorpus(splits, **SETTINGS)
    assert plain.training_pairs(3) is plain.train
    dropped = TranslationCorpus(splits, **SETTINGS, bpe_dropout=0.3).training_pairs(0)
    assert dropped.source.lengths.sum() > plain.train.source.lengths.sum()
    assert np.all(np.maximum(dropped.source.lengths, dropped.target.lengths) + 1 <= 40)
