import pytest

from data.text.writing_systems import language_by_script, units


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("老师昨天早上买了一辆红色的自行车。", "zh"),
        ("先生は昨日の朝、赤い自転車を買いました。", "ja"),
        ("カタカナ", "ja"),
        ("선생님은 어제 아침에 빨간 자전거를 샀다.", "ko"),
        ("ครูซื้อจักรยานสีแดงเมื่อเช้าวานนี้", "th"),
        ("ຄູຊື້ລົດຖີບສີແດງ", "lo"),
        ("ဆရာက စက်ဘီးအနီ ဝယ်ခဲ့တယ်။", "my"),
        ("គ្រូបានទិញកង់ក្រហម", "km"),
        ("དགེ་རྒན་གྱིས་རྐང་འཁོར་དམར་པོ་ཉོས།", "bo"),
        ("L'insegnante ha comprato una bicicletta rossa.", ""),
        ("Учитель купил красный велосипед.", ""),
        ("शिक्षक ने लाल साइकिल खरीदी।", ""),
        ("The word 老师 means teacher.", ""),
        ("1234 !?", ""),
        ("", ""),
    ],
)
def test_the_script_names_the_language(text, language):
    assert language_by_script([text]) == language
    assert language_by_script([text] * 3000) == language


def test_units_are_words_or_characters():
    assert units("two words") == ["two", "words"]
    assert units("买 iPhone15 了") == ["买", "iPhone15", "了"]
    assert units("선생님은 어제") == ["선생님은", "어제"]
    assert units("ครู") == ["ค", "ร", "ู"]
