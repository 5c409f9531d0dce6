import pytest

from data import memory
from data.errors import DataError
from data.images.drawn_digits import drawn_digits
from data.images.textured_shapes import textured_shapes


def test_what_fits_passes_and_what_does_not_is_refused_with_the_mend(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 2**30)
    memory.require_memory(2**30, "these images", "take fewer")
    with pytest.raises(DataError, match=r"^these images take 3.0 GiB of the 1.0 that there are: take fewer$"):
        memory.require_memory(3 * 2**30, "these images", "take fewer")


def test_a_container_has_the_memory_of_its_limit(monkeypatch, tmp_path):
    machine = memory.total_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "absent"), str(limit)))
    for text, expected in (("1048576\n", 2**20), ("max\n", None)):
        limit.write_text(text)
        assert memory.total_memory() == (expected or machine)


def test_pictures_too_large_for_the_memory_are_not_begun(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 2**20)
    for draw in (drawn_digits, textured_shapes):
        with pytest.raises(DataError, match="lower --image_size"):
            draw(image_size=64)
