import gzip
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from data import parallel_text
from data.errors import DataError
from data.parallel_text import ParallelText, clean, hashed_splits, load_hub_pairs, read_parallel_files

PAIRS = [("Hello.", "Ciao."), ("", ""), ("two\u2028halves\x85and more", "due metà")]


def write(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def encoded(kind: str, newline: str = "\n") -> list[bytes]:
    """PAIRS as the bytes of one or two files."""
    if kind == "lines":
        return ["".join(pair[side] + newline for pair in PAIRS).encode() for side in (0, 1)]
    if kind == "tsv":
        return ["".join(f"{source}\t{target}{newline}" for source, target in PAIRS).encode()]
    if kind == "translation":
        rows = [{"translation": {"en": source, "it": target}} for source, target in PAIRS]
    else:
        rows = [{"source": source, "target": target} for source, target in PAIRS]
    return ["".join(json.dumps(row) + newline for row in rows).encode()]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [("lines", ["a.en", "a.it"]), ("tsv", ["a.tsv"]), ("jsonl", ["a.jsonl"]), ("translation", ["a.jsonl"])],
)
def test_every_format_gives_the_same_pairs(tmp_path, kind, names, newline, gz):
    contents = encoded(kind, newline)
    paths = [write(tmp_path / (name + gz), data) for name, data in zip(names, contents, strict=True)]
    assert list(read_parallel_files(paths, languages=("en", "it")).pairs()) == PAIRS


def test_byte_order_mark_and_missing_last_newline(tmp_path):
    source = write(tmp_path / "a.en", b"\xef\xbb\xbfone\n\ntwo")
    target = write(tmp_path / "a.it", b"uno\n\ndue\n")
    assert list(read_parallel_files([source, target]).pairs()) == [("one", "uno"), ("", ""), ("two", "due")]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"a.en": b"1\n2\n", "a.it": b"1\n2\n3\n"}, ["a.en", "2 lines", "a.it", "3"]),
        ({"a.en": b"", "a.it": b"1\n"}, ["a.en", "empty"]),
        ({"a.en": b"\xef\xbb\xbf", "a.it": b"1\n"}, ["a.en", "empty"]),
        ({"a.en": b"ok\nok\nperch\xe9\n", "a.it": b"1\n2\n3\n"}, ["a.en:3", "0xe9", "UTF-8"]),
        ({"a.en": b"1\n", "missing": None}, ["missing", "No such file"]),
        ({"a.en.gz": b"no gzip", "a.it": b"1\n"}, ["a.en.gz", "gzip"]),
        ({"a.en.gz": gzip.compress(b"cut off\n" * 50)[:-12], "a.it": b"1\n"}, ["a.en.gz", "gzip"]),
        ({"a.tsv": b"a\tb\na\tb\tc\n"}, ["a.tsv:2", "3 columns"]),
        ({"a.tsv": b"a\tb\n\n"}, ["a.tsv:2", "1 columns"]),
        ({"a.jsonl": b'{"source": "a", "target": "b"}\n{"source": \n'}, ["a.jsonl:2", "JSON"]),
        ({"a.jsonl": b'{"source": "a"}\n'}, ["a.jsonl:1", '"target"']),
        ({"a.jsonl": b'["a", "b"]\n'}, ["a.jsonl:1", '"source"']),
        ({"a.jsonl": b'{"translation": {"en": "a", "fr": "b"}}\n'}, ["a.jsonl:1", '"it"']),
        ({"a.jsonl": b'{"source": "\\ud800", "target": "b"}\n'}, ["a.jsonl:1", "surrogate"]),
        ({"a.txt": b"a\tb\n"}, ["a.txt", ".tsv"]),
        ({"a": b"1\n", "b": b"1\n", "c": b"1\n"}, ["3 files"]),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, files, parts):
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        read_parallel_files([tmp_path / name for name in files], languages=("en", "it"))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_translation_objects_need_languages(tmp_path):
    path = write(tmp_path / "a.jsonl", encoded("translation")[0])
    with pytest.raises(DataError, match="languages"):
        read_parallel_files([path])


def test_clean_normalises_drops_and_counts():
    text = ParallelText(
        ["Go.", " Go. ", "perche\u0301  no", "", "some text", "A complete sentence of some length.", "Go."],
        ["Va-t'en !", "Va-t'en\u00a0!", "why\tnot", "vide", " \u3000", "x" * 126, "Va !"],
    )
    kept, counts = clean(text)
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


def write_parquet(path, pairs, languages=("en", "it")):
    rows = [{"id": str(i), "translation": dict(zip(languages, pair, strict=True))} for i, pair in enumerate(pairs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_data_dir_with_parquet_files(tmp_path):
    write_parquet(tmp_path / "en-it" / "train-00001-of-00002.parquet", [("three", None)])
    write_parquet(tmp_path / "en-it" / "train-00000-of-00002.parquet", [("one", "uno"), ("two", "due")])
    write_parquet(tmp_path / "en-fr" / "train-00000-of-00001.parquet", [("one", "un")], ("en", "fr"))
    expected = [("one", "uno"), ("two", "due"), ("three", "")]
    for config in ("en-it", "not a folder"):
        text = load_hub_pairs("x/y", config, ("en", "it"), data_dir=tmp_path)
        assert list(text.pairs()) == expected
    text = load_hub_pairs("x/y", "en-it", ("it", "en"), data_dir=tmp_path / "en-it")
    assert list(text.pairs()) == [(target, source) for source, target in expected]


def test_data_dir_with_aligned_files(tmp_path):
    write(tmp_path / "x.en-it.en.gz", b"one\ntwo\n")
    write(tmp_path / "x.en-it.it.gz", b"uno\ndue\n")
    write(tmp_path / "z.en", b"three\n")
    write(tmp_path / "z.it", b"tre\n")
    write(tmp_path / "alone.en", b"nothing\n")
    text = load_hub_pairs("x/y", "en-it", ("en", "it"), data_dir=tmp_path)
    assert list(text.pairs()) == [("one", "uno"), ("two", "due"), ("three", "tre")]


def test_data_dir_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load_hub_pairs("x/y", "en-it", ("en", "it"), data_dir=tmp_path / "none")
    with pytest.raises(DataError, match="holds no en-it text"):
        load_hub_pairs("x/y", "en-it", ("en", "it"), data_dir=tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        load_hub_pairs("x/y", "en-it", ("en", "it"), data_dir=tmp_path)


def test_without_network_the_error_names_the_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError) as error:
        load_hub_pairs("nobody/no-such-data-set", "en-it", ("en", "it"))
    for part in ("nobody/no-such-data-set (en-it)", "network", "--data_dir", "--train_files"):
        assert part in str(error.value)


def test_hub_data_set_is_read_in_the_order_of_its_splits(monkeypatch):
    calls = []

    def load(dataset, config, *, revision, ways_out):
        calls.append((dataset, config, revision))
        return datasets.DatasetDict(
            {
                "validation": datasets.Dataset.from_dict({"translation": [{"en": "two", "it": "due"}]}),
                "train": datasets.Dataset.from_dict({"translation": [{"en": "one", "it": "uno"}]}),
            }
        )

    monkeypatch.setattr(parallel_text, "load_from_hub", load)
    text = load_hub_pairs("x/y", "en-it", ("it", "en"), revision="refs/convert/parquet")
    assert list(text.pairs()) == [("uno", "one"), ("due", "two")]
    assert calls == [("x/y", "en-it", "refs/convert/parquet")]
    with pytest.raises(DataError, match="en and fr"):
        load_hub_pairs("x/y", "en-it", ("en", "fr"))
