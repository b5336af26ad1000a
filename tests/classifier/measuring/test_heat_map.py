"""Heat maps lie where the cells lie, with the colour of their sign, for images that need a second look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.errors import ClassifierError
from classifier.heat_map import HeatMap
from classifier.measuring.heat_map import write_heat_map, write_heat_maps
from classifier.outcome import Decision, Prediction

GREY = np.full((1, 300, 200), 0.5, np.float32)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 4), (4, 0), (4, 4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_cell_is_coloured_in_its_own_corner(row: int, column: int, sign: int, tmp_path: Path) -> None:
    cells = [[0.0] * 5 for _ in range(5)]
    cells[row][column] = sign * 8.0
    path = tmp_path / "map.png"
    write_heat_map(GREY, HeatMap.of(np.array(cells, np.float32), 0.0), "A title", path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colour = sign * (picture[..., 0] - picture[..., 2])
    is_grey = (np.ptp(picture, axis=2) < 3) & (picture[..., 0] > 110) & (picture[..., 0] < 145)
    rows = np.flatnonzero(is_grey.sum(1) > 50)
    top, bottom = rows[0], rows[-1]
    # The picture, a gap, the covered picture; then the colour bar
    begins = np.flatnonzero(np.diff((is_grey[(top + bottom) // 2]).astype(int)) == 1) + 1
    ends = np.flatnonzero(np.diff((is_grey[(top + bottom) // 2]).astype(int)) == -1) + 1
    wide = [(begin, end) for begin, end in zip(begins, ends, strict=True) if end - begin > 50]
    (_, _), (left, right) = wide
    quarter = (bottom - top) // 4, (right - left) // 4
    ys = slice(top, top + quarter[0]) if row == 0 else slice(bottom - quarter[0], bottom)
    xs = slice(left, left + quarter[1]) if column == 0 else slice(right - quarter[1], right)
    other_ys = slice(bottom - quarter[0], bottom) if row == 0 else slice(top, top + quarter[0])
    assert colour[ys, xs].mean() > 15
    assert abs(colour[other_ys, xs].mean()) < 2


def test_there_is_a_picture_for_each_image_that_needs_a_second_look(tmp_path: Path) -> None:
    file = tmp_path / "chest.png"
    Image.fromarray(np.arange(4000, dtype=np.uint8).reshape(50, 80)).save(file)
    cells = HeatMap.of(np.array([[1.0, 2.0], [3.0, -4.0]], np.float32), 0.5)
    results = [
        (file, Prediction(0.9, Decision.POSITIVE, None, "", None, heat_map=cells)),
        (file, Prediction(0.1, Decision.NEGATIVE, None, "", None, heat_map=cells)),
        (file, Prediction(0.5, Decision.UNDETERMINED, None, "", None, heat_map=cells)),
        (file, Prediction(None, Decision.NOT_SCORED, None, "", None)),
    ]
    assert write_heat_maps(results, tmp_path / "maps") == 2
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0001-chest.png", "0003-chest.png"]
    with pytest.raises(ClassifierError, match="name another"):
        write_heat_maps(results, file)


def test_a_map_is_the_same_after_it_was_stored() -> None:
    cells = np.array([[1.25, -3.1, 1e9], [np.nan, 0.0, -np.inf]], np.float32)
    made = HeatMap.of(cells, -0.75)
    read = HeatMap.from_bytes(made.to_bytes())
    np.testing.assert_array_equal(read.cells, made.cells)
    assert np.isfinite(read.cells).all()
    assert (read.bias, read.cells.shape) == (-0.75, (2, 3))
    assert HeatMap.of(np.full((5, 5), 2.0, np.float32), 0.5).logit == 2.5
    for broken in (b"", made.to_bytes()[:-1], made.to_bytes() + b"0", bytes(6)):
        with pytest.raises(ValueError, match="a stored heat map"):
            HeatMap.from_bytes(broken)
