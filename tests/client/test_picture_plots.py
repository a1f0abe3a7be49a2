"""Signals, bars, contact sheets, grids and scatter plots."""

import numpy as np
import pytest
from PIL import Image

from interpret_client import pictures
from interpret_client.pictures import Rendering, Scene

RED, BLUE = (225, 30, 45), (30, 90, 235)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have a colour."""
    return int((pixels(picture) == colour).all(-1).sum())


def bar(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Where the pixels of a colour start and end, horizontally."""
    columns = np.flatnonzero((pixels(picture) == colour).all(-1).any(0))
    return int(columns[0]), int(columns[-1]) + 1


def draw(values: np.ndarray, style: str, scene: Scene, **options: float) -> np.ndarray:
    import io

    rendering = Rendering(styles=style, **options)
    (files,) = pictures.draw({"attributions": values[None]}, rendering, scene).pictures.values()
    with Image.open(io.BytesIO(files[0])) as image:
        return np.asarray(image).astype(int)


def test_a_rising_signal_rises() -> None:
    drawn = pixels(pictures.image(np.linspace(0, 1, 50)[None], (0, 1), "CL"))
    dark = (drawn.max(-1) < 150)[12:198, 80:-30]
    heights = np.array([np.flatnonzero(column).mean() for column in dark.T])
    assert (np.diff(heights) <= 0).all()
    assert heights[0] > 150
    assert heights[-1] < 40


def test_a_signal_carries_a_strip_of_its_attribution() -> None:
    signal = np.sin(np.linspace(0, 9, 40))[None]
    values = np.zeros((1, 40))
    values[0, 5], values[0, 30] = -1, 1
    scene = Scene(signal[None], "CL")
    drawn = draw(values, "auto", scene, percentile=100)
    line = drawn[10 + 192 + 6 + 14]
    blue = np.flatnonzero((line == (5, 48, 97)).all(-1))
    red = np.flatnonzero((line == (103, 0, 31)).all(-1))
    assert len(blue) in (14, 15)
    assert len(red) in (14, 15)
    assert (red[0] - blue[0]) / 25 == pytest.approx(len(red), abs=0.8)
    tinted = draw(values, "overlay", scene, percentile=100, alpha=1.0)
    assert (tinted[12] == BLUE).all(-1).sum() in (14, 15)
    assert tinted.shape[0] < drawn.shape[0]


def test_no_position_of_a_long_signal_is_lost() -> None:
    values = np.zeros((1, 9000))
    values[0, 4321] = 1
    drawn = draw(values, "heatmap", Scene(np.zeros((1, 1, 9000)), "CL"), percentile=100)
    assert (drawn[10 + 192 + 6 + 14] == (252, 255, 164)).all(-1).sum() == 1


def test_a_very_long_signal_keeps_its_extremes() -> None:
    signal = np.zeros((1, 300_000))
    signal[0, 150_000] = 1
    drawn = pixels(pictures.image(signal, (0, 1), "CL"))
    dark = (drawn.max(-1) < 200)[12:198, 60:-30]
    assert dark[:80].any(0).sum() <= 3
    assert dark[170:].any(0).all()


def test_top_k_of_a_signal_pales_the_rest() -> None:
    values = np.zeros((1, 20))
    values[0, :10] = 1
    drawn = draw(values, "top_k", Scene(np.full((1, 1, 20), 0.5), "CL", (0, 1)), top=0.5)
    dark = (drawn[20:190].max(-1) < 60).any(0)[60:]
    assert dark[20:250].all()
    assert not dark[320:560].any()


def test_bars_have_the_length_of_their_values() -> None:
    drawn = pictures.bars(np.array([2.0, -1.0, 1.0]), ["first", "second", "third"])
    start, end = bar(drawn, RED)
    other, zero = bar(drawn, BLUE)
    assert zero == pytest.approx(start, abs=1)
    assert end - start == pytest.approx(2 * (zero - other), abs=2)
    third = pixels(drawn)[12 + 40 : 12 + 60]
    length = (third == RED).all(-1).any(0).sum()
    assert length == pytest.approx((end - start) / 2, abs=1)


def test_bars_of_one_sign_use_the_whole_width() -> None:
    for values, colour in ((np.array([1.0, 2.0]), RED), (np.array([-1.0, -2.0]), BLUE)):
        start, end = bar(pictures.bars(values), colour)
        assert end - start in (359, 360)  # the axis takes one
    assert count(pictures.bars(np.zeros(3)), RED) == 0


def test_of_many_values_the_largest_are_drawn() -> None:
    values = np.zeros(100)
    values[90:] = 5
    few, many = pictures.bars(values[52:]), pictures.bars(values)
    assert many.height == few.height + 20
    assert count(many, RED) == count(few, RED)


def test_names_must_fit_the_values() -> None:
    with pytest.raises(ValueError, match="2 names for 3 values"):
        pictures.bars(np.ones(3), ["a", "b"])


def test_tokens_are_summed_over_their_embedding() -> None:
    values = np.array([[1.0, 1.0, 1.0], [3.0, -2.0, -2.0]])
    names = ["0 · 17", "1 · 4"]
    drawn = draw(values, "auto", Scene(layout="tokens", names=[names]))
    assert (drawn == pixels(pictures.bars(np.array([3.0, -1.0]), names))).all()
    only = draw(values, "auto", Scene(layout="tokens", names=[names]), channels="mean")
    assert (only == pixels(pictures.bars(np.array([1.0, -1 / 3]), names))).all()


def test_top_k_of_features_pales_the_rest() -> None:
    drawn = draw(np.array([4.0, 1.0, -1.0, 2.0]), "top_k", Scene(layout="other"), top=0.25)
    assert (drawn == RED).all(-1).any()
    assert not (drawn == BLUE).all(-1).any()


def test_a_sheet_shows_every_picture_under_its_name() -> None:
    red = Image.new("RGB", (50, 50), RED)
    blue = pictures.png(Image.new("RGB", (300, 150), BLUE))
    made = pictures.sheet({"red": red, "blue": blue}, side=100)
    assert made.size == (2 * 110 + 10, 100 + 22 + 2 * 10)
    assert count(made, RED) == 100 * 100
    assert count(made, BLUE) == 100 * 50
    assert (pixels(made)[12:28, 20:100] < 100).any(), "the name is written"
    wrapped = pictures.sheet({"red": red, "blue": blue}, side=100, columns=1, titles=["both"])
    assert wrapped.width == 120
    assert count(wrapped, RED) == 100 * 100
    two = pictures.sheet([{"a": red}, {"b": red, "c": red}], side=64, titles=["", "second"])
    assert count(two, RED) == 3 * 64 * 64
    assert pictures.sheet([]).width == 10


def test_long_names_are_cut_short() -> None:
    cell = Image.new("RGB", (64, 64), RED)
    made = pixels(pictures.sheet({"a name much longer than its picture is wide": cell}, side=64))
    dark = np.flatnonzero((made < 100).all(-1).any(0))
    assert dark[0] >= 10
    assert dark[-1] < 10 + 64
    assert pictures.sheet({"line\nbreak": cell}, side=64).size == (84, 106)


def test_a_grid_has_one_tile_per_channel_on_one_scale() -> None:
    maps = np.zeros((4, 2, 2))
    maps[1], maps[2] = 1, -1
    drawn = pictures.grid(maps, percentile=100)
    assert count(drawn, (103, 0, 31)) == 160 * 160
    assert count(drawn, (5, 48, 97)) == 160 * 160
    assert count(drawn, (255, 255, 255)) == 2 * 160 * 160
    weak = np.stack([np.eye(2), np.eye(2) / 2])
    yellow = (252, 255, 164)
    assert count(pictures.grid(weak, percentile=100), yellow) == 160 * 80
    assert count(pictures.grid(weak, percentile=100, together=False), yellow) == 160 * 160


def test_filters_of_three_channels_keep_their_colours() -> None:
    filters = np.zeros((1, 2, 2, 3))
    filters[0, 0, 0], filters[0, 1, 1] = (1, 0, 0), (-1, 0, 0)
    drawn = pictures.grid(filters, percentile=100)
    assert count(drawn, (255, 128, 128)) == count(drawn, (0, 128, 128)) == 80 * 80
    with pytest.raises(ValueError, match="not \\(K, H, W\\)"):
        pictures.grid(np.zeros((2, 2)))


def test_a_scatter_plot_puts_points_where_they_belong() -> None:
    positions = np.array([[0.0, 0.0], [2.0, 4.0], [1.0, 1.0]])
    drawn = pixels(pictures.scatter(positions, [5, 9, 5], side=400))[:, :400]
    first, second = (31, 119, 180), (214, 39, 40)
    rows, columns = np.nonzero((drawn == second).all(-1))
    assert (rows.mean(), columns.mean()) == (pytest.approx(16, abs=1), pytest.approx(384, abs=1))
    rows, columns = np.nonzero((drawn == first).all(-1))
    assert rows.max() > 380
    assert columns.min() < 20
    assert np.abs(columns - 200).min() < 5


@pytest.mark.parametrize("points", [0, 1, 3])
def test_points_on_one_spot_are_in_the_middle(points: int) -> None:
    drawn = pixels(pictures.scatter(np.ones((points, 2)), side=200))
    coloured = np.nonzero((drawn == (31, 119, 180)).all(-1))
    assert (len(coloured[0]) > 0) is (points > 0)
    if points:
        assert [axis.mean() for axis in coloured] == pytest.approx([100, 100], abs=1)


def test_points_may_be_pictures() -> None:
    tile = Image.new("RGB", (8, 8), RED)
    drawn = pictures.scatter(
        np.eye(2), [0, 1], labels=["zero", "one"], thumbnails=[tile, tile], side=300
    )
    assert count(drawn, RED) == 2 * 64 * 64
    assert drawn.width > 300
    with pytest.raises(ValueError, match="not \\(N, 2\\)"):
        pictures.scatter(np.zeros((3, 3)))
