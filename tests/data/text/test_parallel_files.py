import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from data.errors import DataError
from data.text import parallel_files
from data.text.parallel_files import load_hub_pairs, read_parallel_files

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


def test_only_the_end_of_a_line_loses_a_carriage_return(tmp_path):
    source = write(tmp_path / "a.en", b"\r\r\na\rb\r\n\n\xc3\xa8\r")
    target = write(tmp_path / "a.it", b"1\n2\n\r\n\n")
    assert list(read_parallel_files([source, target]).pairs()) == [("\r", "1"), ("a\rb", "2"), ("", ""), ("è", "")]


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
        ({"a.txt": b"a b\n"}, ["a.txt", ".tsv"]),
        ({"a.docx": b"a\tb\n"}, ["a.docx", ".tsv"]),
        ({"a.tsv": b"a\n"}, ["a.tsv:1", "1 columns"]),
        ({"a.tsv": b"a\tb\tc\td\n"}, ["a.tsv:1", "4 columns of text"]),
        (
            {"a.csv": b"one,uno\ntwo,due\n"},
            ["a.csv:1", '"en" with "it"', "one, uno", "source,target"],
        ),
        ({"a.csv": b"en,it\none,uno\ntwo, three,due\n"}, ["a.csv:3", "3 fields", "quotes"]),
        ({"a.csv": b'en,it\none,uno\n"two\n,due\n'}, ["a.csv:3", "quote left open"]),
        ({"a.csv": b"en,it\n"}, ["a.csv", "no rows"]),
        ({"a.csv": b"translation\n{'en': 1}\n"}, ["a.csv:2", '"it"']),
        ({"a.csv": b"translation\nHello\n"}, ["a.csv:2", "no object"]),
        ({"a.csv": b"en,it\none,perch\xe9\n"}, ["a.csv:2", "0xe9"]),
        ({"a.json": b'[{"en": "a", "it": "b"},\n{"en": ]'}, ["a.json:2", "JSON"]),
        ({"a.json": b'[{"en": "a", "it": "b"}, {"en": "a"}]'}, ["a.json: object 2", '"it"']),
        ({"a.json": b"7"}, ["a.json:1", "no list"]),
        ({"a.jsonl": b'{"en": "a", "fr": "b"}\n'}, ["a.jsonl:1", "found: en, fr", "--languages"]),
        ({"a.jsonl": b'{"en": "a", "it": 7}\n'}, ["a.jsonl:1", "no text"]),
        ({"a.jsonl": b"\n\n"}, ["a.jsonl", "no objects"]),
        ({"a.parquet": b"PAR1 and no more"}, ["a.parquet", "fetch it again"]),
        ({"a.jsonl": b"{}\n", "b.en": b"1\n"}, ["2 files", "a.jsonl, b.en"]),
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


def test_tatoeba_with_an_attribution_and_with_ids(tmp_path):
    attribution = "CC-BY 2.0 (France) Attribution: tatoeba.org #2877272 (CM) & #1158250 (Wittydev)"
    expected = [("Go.", "Va !"), ("Hi.", "Salut !")]
    for name in ("fra.txt", "fra.tsv"):
        path = write(tmp_path / name, "".join(f"{s}\t{t}\t{attribution}\r\n" for s, t in expected).encode())
        assert list(read_parallel_files([path]).pairs()) == expected
    rows = "".join(f"{n}\t{s}\t{n + 5}\t{t}\n" for n, (s, t) in enumerate(expected))
    path = write(tmp_path / "pairs.tsv", b"\xef\xbb\xbf" + rows.encode())
    assert list(read_parallel_files([path]).pairs()) == expected


def test_digits_alone_are_text_where_there_are_but_two_columns(tmp_path):
    path = write(tmp_path / "digits.tsv", b"12\t21\n34\t43\n")
    assert list(read_parallel_files([path]).pairs()) == [("12", "21"), ("34", "43")]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


ROWS = [("Hello, you.", "Ciao, tu."), ('"No"', "«No»\ne poi"), ("", "x")]
OBJECTS = [{"id": i, "en": source, "it": target} for i, (source, target) in enumerate(ROWS)]
HUB = [{"id": i, "translation": {"en": source, "it": target}} for i, (source, target) in enumerate(ROWS)]
CONTENTS = {
    "named.csv": "id,IT,en\n" + "".join(f"{i},{quoted(t)},{quoted(s)}\n" for i, (s, t) in enumerate(ROWS)),
    "text.csv": "text,translation\n" + "".join(f"{quoted(s)},{quoted(t)}\n" for s, t in ROWS),
    "sides.csv": "source;target\n" + "".join(f"{quoted(s)};{quoted(t)}\n" for s, t in ROWS),
    "hub.csv": "id,translation\n" + "".join(f"{o['id']},{quoted(str(o['translation']))}\n" for o in HUB),
    "hub_json.csv": "translation\n" + "".join(quoted(json.dumps(o["translation"])) + "\n" for o in HUB),
    "languages.jsonl": "".join(json.dumps(o) + "\n" for o in OBJECTS) + "\n",
    "hub.jsonl": "".join(json.dumps(o) + "\n" for o in HUB),
    "lines.json": "".join(json.dumps(o) + "\n" for o in HUB),
    "list.json": json.dumps(OBJECTS, indent=1),
    "data.json": json.dumps({"data": HUB}),
}


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", CONTENTS)
def test_tables_with_named_columns(tmp_path, name, mark, gz):
    path = write(tmp_path / (name + gz), (mark + CONTENTS[name]).encode())
    assert list(read_parallel_files([path], ("en", "it")).pairs()) == ROWS


def test_a_csv_file_with_the_line_ends_of_windows(tmp_path):
    path = write(tmp_path / "a.csv", b'en,it\r\none,uno\r\n\r\n"two, 2",due\r\n')
    assert list(read_parallel_files([path], ("en", "it")).pairs()) == [("one", "uno"), ("two, 2", "due")]


def test_a_header_of_a_tsv_file_is_no_pair(tmp_path):
    path = write(tmp_path / "a.tsv", b"it\ten\nuno\tone\n")
    assert list(read_parallel_files([path], ("en", "it")).pairs()) == [("one", "uno")]
    assert list(read_parallel_files([path], ("de", "fr")).pairs()) == [("it", "en"), ("uno", "one")]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_parquet_files_as_training_files(tmp_path, gz):
    tables = {
        "columns": pyarrow.table({"en": ["one", None], "it": ["uno", "due"]}),
        "hub": pyarrow.Table.from_pylist([{"translation": {"en": "one", "it": "uno"}}, {"translation": None}]),
    }
    expected = {"columns": [("one", "uno"), ("", "due")], "hub": [("one", "uno"), ("", "")]}
    for name, table in tables.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(table, path)
        path = write(tmp_path / f"{name}.parquet{gz}", path.read_bytes())
        assert list(read_parallel_files([path], ("en", "it")).pairs()) == expected[name]
        assert list(read_parallel_files([path, path], ("en", "it")).pairs()) == 2 * expected[name]
        with pytest.raises(DataError, match=r"columns\.parquet|hub\.parquet"):
            read_parallel_files([path], ("en", "fr"))


def test_translation_objects_need_languages(tmp_path):
    path = write(tmp_path / "a.jsonl", encoded("translation")[0])
    with pytest.raises(DataError, match="languages"):
        read_parallel_files([path])


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

    monkeypatch.setattr(parallel_files, "load_from_hub", load)
    text = load_hub_pairs("x/y", "en-it", ("it", "en"), revision="refs/convert/parquet")
    assert list(text.pairs()) == [("uno", "one"), ("due", "two")]
    assert calls == [("x/y", "en-it", "refs/convert/parquet")]
    with pytest.raises(DataError, match="en and fr"):
        load_hub_pairs("x/y", "en-it", ("en", "fr"))
