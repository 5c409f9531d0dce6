import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

import data.cache
from data.cache import cache_dir, cached_arrays, cached_text, content_key, writable_cache_dir
from data.errors import DataError
from data.text.tokenization import TextTokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and nothing said of it yet."""
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data.cache, "_said", False)
    return tmp_path / "cache"


def test_the_key_changes_with_every_text_and_setting():
    keys = {
        content_key({"a": 1}, ["x", "y"]),
        content_key({"a": 2}, ["x", "y"]),
        content_key({"a": 1}, ["x", "z"]),
        content_key({"a": 1}, ["xy", ""]),
        content_key({"a": 1}, ["x"]),
    }
    assert len(keys) == 5
    assert content_key({"a": 1}, [b"x"]) == content_key({"a": 1}, ["x"])
    assert content_key({"a": 1, "b": 2}, ["x"]) == content_key({"b": 2, "a": 1}, ["x"])


def test_a_text_is_built_once(cache):
    assert cached_text("words", lambda: "città", str) == cached_text("words", lambda: "other", str) == "città"
    assert cached_text("number", lambda: "12", int) == cached_text("number", lambda: "13", int) == 12


def make_arrays() -> dict[str, np.ndarray]:
    return {"a": np.arange(1000), "b": np.ones(3)}


def entry_of(kind: str, cache: Path) -> tuple[Path, object]:
    """A stored entry's file, and a function that asks for it."""

    def ask():
        if kind == "text":
            tokenizer = cached_text(
                "entry", lambda: TextTokenizer.train(["a b c"], "word", 10).to_json(), TextTokenizer.from_json
            )
            return tokenizer.encode(["c b a"])
        return {name: array.tolist() for name, array in cached_arrays("entry", ("a", "b"), make_arrays).items()}

    ask()
    (path,) = cache.iterdir()
    return path, ask


def other_text() -> bytes:
    return json.dumps({"sha256": "0" * 64, "text": "{}"}).encode()


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "one letter": lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"b")),
    "JSON of nothing": lambda path: path.write_text("null"),
    "JSON of no text": lambda path: path.write_text("{}"),
    "another text": lambda path: path.write_bytes(other_text()),
    "one array": lambda path: np.save(path.open("wb"), np.ones(3)),
    "other arrays": lambda path: np.savez(path.open("wb"), c=np.ones(3)),
    "objects": lambda path: np.savez(path.open("wb"), a=np.array([{}]), b=np.ones(3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["text", "arrays"])
def test_a_damaged_entry_is_made_anew_and_named(cache, capsys, kind, damage):
    path, ask = entry_of(kind, cache)
    sound = ask()
    assert capsys.readouterr().err == ""
    DAMAGE[damage](path)
    assert ask() == sound
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "ONECYCLE_CACHE" in line
    data.cache._said = False
    assert ask() == sound  # whole again
    assert capsys.readouterr().err == ""


def test_a_bit_that_flips_in_arrays_is_noticed(cache):
    path, ask = entry_of("arrays", cache)
    sound, content = ask(), bytearray(path.read_bytes())
    content[2000] ^= 4  # inside of "a"
    path.write_bytes(content)
    assert ask() == sound


def test_arrays_are_mapped_where_they_lie_and_numpy_reads_the_file_too(cache):
    arrays = {
        "numbers": np.arange(12).reshape(3, 4),
        "bytes": np.arange(7, dtype=np.uint8),
        "none": np.empty(0, np.int32),
        "one": np.array(5.0),
    }
    first, second = (cached_arrays("entry", list(arrays), lambda: arrays) for _ in range(2))
    stored = np.load(cache / "entry.npz")
    for name, array in arrays.items():
        for found in (first[name], second[name], stored[name]):
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype and found.shape == array.shape
    for name in ("numbers", "bytes"):
        assert isinstance(second[name].base, np.memmap) and second[name].ctypes.data % 64 == 0
    second["numbers"][0, 0] = 99  # a copy of this process's alone
    assert np.load(cache / "entry.npz")["numbers"][0, 0] == 0


def test_arrays_of_a_file_that_numpy_wrote_are_read(cache):
    cache.mkdir()
    np.savez(cache / "entry.npz", **make_arrays())
    found = cached_arrays("entry", ("a", "b"), dict)
    assert found["a"].tolist() == list(range(1000)) and found["b"].flags.aligned


def a_folder_at_the_entry(cache, monkeypatch):
    for suffix in ("json", "npz"):
        (cache / f"entry.{suffix}").mkdir(parents=True)


def a_file_at_the_folder(cache, monkeypatch):
    cache.write_text("")


def a_file_above_the_folder(cache, monkeypatch):
    cache.write_text("")
    monkeypatch.setenv("ONECYCLE_CACHE", str(cache / "deeper"))


def no_home(cache, monkeypatch):
    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ONECYCLE_CACHE")
    monkeypatch.setattr(Path, "expanduser", fail)


def failing_writes(code: int):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def a_full_disk(cache, monkeypatch):
    monkeypatch.setattr(data.cache.os, "fsync", failing_writes(errno.ENOSPC))


def a_folder_that_is_read_only(cache, monkeypatch):
    monkeypatch.setattr(data.cache.tempfile, "mkstemp", failing_writes(errno.EROFS))


def a_folder_that_may_not_be_read(cache, monkeypatch):
    monkeypatch.setattr(Path, "read_text", failing_writes(errno.EACCES))
    monkeypatch.setattr(Path, "open", failing_writes(errno.EACCES))


UNUSABLE = [
    a_folder_at_the_entry,
    a_file_at_the_folder,
    a_file_above_the_folder,
    no_home,
    a_full_disk,
    a_folder_that_is_read_only,
    a_folder_that_may_not_be_read,
]


@pytest.mark.parametrize("make_unusable", UNUSABLE)
def test_without_a_usable_cache_everything_is_built_and_one_line_says_so(cache, capsys, monkeypatch, make_unusable):
    make_unusable(cache, monkeypatch)
    for _ in range(2):
        assert cached_text("entry", lambda: "12", int) == 12
        assert cached_arrays("entry", ("a", "b"), make_arrays)["a"][7] == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning:") and "ONECYCLE_CACHE" in line
    if make_unusable is not no_home:
        assert str(cache) in line
    monkeypatch.undo()
    assert not cache.is_dir() or not list(cache.glob("*.tmp*"))


def test_what_building_raises_is_no_matter_of_the_cache(cache, capsys):
    def fail():
        raise DataError("no text")

    with pytest.raises(DataError, match="no text"):
        cached_text("entry", fail, str)
    assert capsys.readouterr().err == ""


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ONECYCLE_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("ONECYCLE_CACHE")
    assert cache_dir() == tmp_path / ".cache" / "onecycle"


def test_what_must_lie_on_disk_goes_where_there_is_room(cache, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(data.cache.tempfile, "gettempdir", lambda: str(tmp_path))
    assert writable_cache_dir(1) == cache
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    elsewhere = writable_cache_dir(1)
    assert elsewhere == writable_cache_dir(1) and elsewhere.parent == tmp_path
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(DataError, match=r"MiB free.*ONECYCLE_CACHE"):
        writable_cache_dir(1 << 60)
