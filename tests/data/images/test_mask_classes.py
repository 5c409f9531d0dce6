import json

import pytest

from data.errors import DataError
from data.images.mask_classes import ListedClass, is_table, read_class_table


def table(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return [(c.name, c.value) for c in read_class_table(path)]


NAMES = [("background", None), ("traffic light", None), ("class 2", None)]
NUMBERS = [("background", 0), ("traffic light", 5), ("cat", 255)]
COLOURS = [("background", (0, 0, 0)), ("traffic light", (128, 0, 0)), ("cat", (1, 2, 255))]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "background\ntraffic light\nclass 2\n", NAMES),
        ("codes.txt", "\ufeffbackground\r\ntraffic light\r\n\r\nclass 2", NAMES),
        ("labels.txt", "0\n1\n", [("0", None), ("1", None)]),
        ("classes.txt", "background,0\ntraffic light,5\ncat,255\n", NUMBERS),
        ("classes.txt", "0 background\n5 traffic light\n255: cat\n", NUMBERS),
        ("classes.csv", "background,0\ntraffic light,5\ncat,255\n", NUMBERS),
        ("classes.csv", "name,value\nbackground,0\ntraffic light,5\ncat,255\n", NUMBERS),
        ("_classes.csv", "Pixel Value, Class\n0, background\n5, traffic light\n255, cat\n", NUMBERS),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ntraffic light,128,0,0\ncat,1,2,255\n", COLOURS),
        ("classes.csv", "name;color\nbackground;#000000\ntraffic light;#800000\ncat;#0102ff\n", COLOURS),
        ("label_colors.txt", "0 0 0\t\tbackground\n128 0 0\t\ttraffic light\n1 2 255\t\tcat\n", COLOURS),
        ("labelmap.txt", "# label:color\nbackground:0,0,0::\ntraffic light:128,0,0::\ncat:1,2,255::", COLOURS),
        ("classes.txt", "background,#000000\ntraffic light,#800000\ncat,#0102ff", COLOURS),
        ("classes.json", json.dumps([n for n, _ in NAMES]), NAMES),
        ("classes.json", json.dumps(dict(NUMBERS)), NUMBERS),
        ("classes.json", json.dumps({str(v): n for n, v in NUMBERS}), NUMBERS),
        ("classes.json", json.dumps({n: list(v) for n, v in COLOURS}), COLOURS),
        (
            "classes.json",
            json.dumps({"classes": [{"title": n, "color": "#" + bytes(v).hex()} for n, v in COLOURS]}),
            COLOURS,
        ),
        ("classes.json", json.dumps([{"id": v, "name": n} for n, v in NUMBERS]), NUMBERS),
    ],
)
def test_forms_of_tables(tmp_path, name, text, expected):
    assert is_table(tmp_path / name)
    assert table(tmp_path, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "\n", "lists no class"),
        ("classes.txt", "a,0\nb,256\n", "256 is no mask value"),
        ("classes.txt", "a\nb\na\n", "the name a twice"),
        ("classes.csv", "a,1\nb,1\n", "the value 1 twice"),
        ("classes.csv", "a,1\nb\n", "for some classes only"),
        ("classes.csv", "a,1\nb,1,2,3\n", "mixes numbers and colours"),
        ("classes.json", "{", "no list of classes"),
        ("classes.json", "[1, 2]", "no list of classes"),
        ("class_dict.csv", "name,r,g,b\na,0,0\n", "no list of classes"),
    ],
)
def test_what_is_no_table(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_class_table(tmp_path / name)
    assert message in str(error.value) and str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert ListedClass("x").value is None
