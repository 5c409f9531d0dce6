import multiprocessing
import os
from pathlib import Path

import pytest

from benchmarks import corpus_scale
from benchmarks.corpus_scale import Config, main, start, write_corpus


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    monkeypatch.setattr(corpus_scale, "N_WORDS", 1000)


def test_a_corpus_is_the_same_each_time_and_of_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_scale, "CHUNK", 400)
    sides = []
    for name in ("one", "other"):
        files = write_corpus(tmp_path / name, 1000)
        sides.append([Path(file).read_text(encoding="utf-8").splitlines() for file in files])
    assert sides[0] == sides[1]
    for lines in sides[0]:
        assert len(lines) == 1000 and len(set(lines)) < 1000
        assert 14 < sum(len(line.split()) for line in lines) / 1000 < 18


def test_each_size_is_started_on_twice_and_its_files_are_removed(tmp_path, capsys, monkeypatch):
    caches = []

    def start_here(config, n_pairs, files, cache):
        caches.append((cache, os.path.isdir(cache)))
        ours, theirs = multiprocessing.Pipe()
        start(theirs, config, n_pairs, files, cache)
        return ours.recv()

    monkeypatch.setenv("ONECYCLE_CACHE", "set by each start")
    monkeypatch.setattr(corpus_scale, "measured_start", start_here)
    main(Config(pairs=(600,), recipe="demo", folder=str(tmp_path)))
    heading, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[:2] == ["600", "first"] and second[:2] == ["600", "second"]
    assert len(first) == len(second) == 2 + len(corpus_scale.COLUMNS) and heading[:2] == ["pairs", "start"]
    assert all(float(value.replace(",", "")) >= 0 for value in first[2:] + second[2:])
    assert [was_there for _, was_there in caches] == [False, True] and caches[0][0] == caches[1][0]
    assert not list(tmp_path.iterdir())
