from data.cache import cached_text, content_key


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


def test_a_text_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    assert cached_text("words", lambda: "città") == cached_text("words", lambda: "other") == "città"
