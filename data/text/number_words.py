"""Numbers in text: masked by one token each, and copied back from the source sentence after translation."""

import re

NUMBER = r"\d+(?:[.,:]\d+)*"  # 7, 1.000,50, 31.12.1999, 10:30; the same in Python and in `tokenizers`
NUMBER_MARK = "\ufdd0"  # stands for a masked number inside text: a noncharacter, which no real text holds
NUMBER_TOKEN = "<num>"  # how a masked number is shown


def fill_numbers(translation: str, source: str) -> str:
    """The translation with the numbers of its source sentence in the places of its marks.

    The first mark takes the source's first number, the second the second, and so on, spelt as they are there.
    Where there are more marks than numbers, the last marks are left out; where there are fewer, so are the
    last numbers.
    """
    numbers = iter(re.findall(NUMBER, source))
    return re.sub(NUMBER_MARK, lambda mark: next(numbers, ""), translation)
