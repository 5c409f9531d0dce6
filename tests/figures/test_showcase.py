import numpy as np
import torch
from PIL import Image

from figures.showcase import AttendedTranslation, RelabelledImages, SegmentedPictures, write_showcase


def test_all_three_are_drawn_small_enough_for_a_readme(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 16, 16, dtype=torch.uint8)
    masks[:, 4:9, 4:9] = 1
    pictures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    digits = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=generator)
    outputs = torch.rand(2, 4, 1, 8, 8, generator=generator)
    write_showcase(
        tmp_path / "new" / "showcase.png",
        AttendedTranslation(np.eye(3), ["a $", "b", "end"], ["c", "d", "end"]),
        RelabelledImages(digits, outputs, ["0", "1", "2", "3"]),
        SegmentedPictures(pictures, masks, masks.roll(1, 1)),
    )
    path = tmp_path / "new" / "showcase.png"
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    halves = (left[: len(left) // 2], left[len(left) // 2 :], right)
    assert all((np.ptp(half, axis=2) > 60).any() or np.ptp(half) > 200 for half in halves)
