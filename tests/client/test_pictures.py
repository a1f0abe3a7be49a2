"""Pictures drawn without a server: exact colours of hand-made cases, sizes, counts."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from interpret_client import pictures
from interpret_client.pictures import Rendering, Scene

BLACK, WHITE = [0, 0, 4], [255, 255, 255]
PALE_YELLOW, DARK_RED, DARK_BLUE = [252, 255, 164], [103, 0, 31], [5, 48, 97]
RED, BLUE = [225, 30, 45], [30, 90, 235]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def cell(picture: Image.Image, row: int, column: int, side: int) -> list[int]:
    """The colour of one position of a picture of `side` positions each way."""
    found = pixels(picture)
    size = found.shape[0] // side
    block = found[row * size : (row + 1) * size, column * size : (column + 1) * size]
    assert (block == block[0, 0]).all()
    return block[0, 0].tolist()


def test_drawing_needs_neither_torch_nor_the_server_nor_opencv() -> None:
    code = (
        "import sys, numpy as np\n"
        "from interpret_client import pictures\n"
        "pictures.overlay(np.ones((1, 4, 4)), np.ones((1, 4, 4)))\n"
        "for name in ('torch', 'cv2', 'interpret_server'):\n"
        "    assert name not in sys.modules, name\n"
    )
    paths = [path for path in sys.path if path]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], check=True
    )


def test_a_heatmap_runs_from_black_to_pale_yellow_by_magnitude() -> None:
    values = np.array([[[0.0, 1.0], [-2.0, 4.0]]])
    drawn = pictures.heatmap(values, Rendering(percentile=100))
    assert drawn.size == (256, 256)
    assert cell(drawn, 0, 0, 2) == BLACK
    assert cell(drawn, 1, 1, 2) == PALE_YELLOW
    lightness = [sum(cell(drawn, *at, 2)) for at in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert lightness == sorted(lightness)


def test_signed_values_are_blue_white_and_red() -> None:
    drawn = pictures.signed(np.array([[[-3.0, 0.0], [3.0, 0.0]]]), Rendering(percentile=100))
    assert cell(drawn, 0, 0, 2) == DARK_BLUE
    assert cell(drawn, 0, 1, 2) == WHITE
    assert cell(drawn, 1, 0, 2) == DARK_RED


def test_values_beyond_the_percentile_look_like_it() -> None:
    values = np.arange(16.0).reshape(1, 4, 4)
    limit = np.percentile(values, 60)
    at_limit = np.where(values == 9, limit, values)
    assert np.percentile(at_limit, 60) == limit == 9
    drawn = pictures.heatmap(values, Rendering(percentile=60))
    colours = [cell(drawn, *divmod(index, 4), 4) for index in range(16)]
    assert colours[9:] == [PALE_YELLOW] * 7
    assert colours[8] != PALE_YELLOW
    half = pictures.heatmap(np.array([[[4.5, limit], [limit, limit]]]), Rendering(percentile=50))
    expected = [184, 60, 80]  # in the middle between the third and the fourth colour
    assert cell(half, 0, 0, 2) == pytest.approx(expected, abs=1)


def test_one_outlier_among_zeros_is_seen() -> None:
    values = np.zeros((1, 100, 100))
    values[0, 50, 50] = 1e-30
    drawn = pixels(pictures.heatmap(values))
    assert drawn[151, 151].tolist() == PALE_YELLOW


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_is_black_or_white(value: float) -> None:
    values = np.full((3, 4, 4), value)
    assert cell(pictures.heatmap(values), 0, 0, 4) == BLACK
    assert cell(pictures.signed(values), 0, 0, 4) == WHITE


def test_infinite_values_count_as_the_largest_finite_one() -> None:
    values = np.array([[[np.inf, -np.inf], [2.0, 0.0]]])
    drawn = pictures.signed(values)
    assert [cell(drawn, 0, 0, 2), cell(drawn, 0, 1, 2)] == [DARK_RED, DARK_BLUE]
    assert cell(drawn, 1, 0, 2) == DARK_RED


@pytest.mark.parametrize(
    ("channels", "expected"), [("max_abs", DARK_BLUE), ("sum", WHITE), ("mean", WHITE)]
)
def test_channels_become_one_value(channels: str, expected: list[int]) -> None:
    values = np.zeros((3, 2, 2))
    values[:, 0, 0] = 1, -2, 1
    values[:, 1, 1] = 2
    drawn = pictures.signed(values, Rendering(channels=channels, percentile=100))
    assert cell(drawn, 0, 0, 2) == expected
    assert cell(drawn, 1, 1, 2) == DARK_RED


def test_layouts_of_one_image_look_alike() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 6))
    last = np.moveaxis(values, 0, 2)
    assert pictures.signed(values) == pictures.signed(last, layout="HWC")
    assert pictures.image(values) == pictures.image(last, layout="HWC")


@pytest.mark.parametrize(
    ("colors", "low", "high"),
    [
        ("gray", [0, 0, 0], WHITE),
        ("viridis", [68, 1, 84], [253, 231, 37]),
        ("blue_red", WHITE, DARK_RED),
    ],
)
def test_magnitudes_take_any_colour_map(colors: str, low: list[int], high: list[int]) -> None:
    drawn = pictures.heatmap(np.array([[[0.0, 1.0]] * 2]), Rendering(colors=colors))
    assert [cell(drawn, 0, 0, 2), cell(drawn, 0, 1, 2)] == [low, high]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_an_overlay_blends_by_size(alpha: float) -> None:
    values = np.array([[[0.0, 0.5], [-1.0, 1.0]]])
    image = np.array([[[0.2, 0.2], [0.2, 0.2]]])
    under = np.full(3, round(0.2 * 255))
    options = Rendering(alpha=alpha, percentile=100)
    drawn = pictures.overlay(values, image, options, bounds=(0, 1))
    for at, share, colour in (
        ((0, 0), 0.0, RED),
        ((0, 1), 0.5, RED),
        ((1, 0), 1.0, BLUE),
        ((1, 1), 1.0, RED),
    ):
        expected = (1 - alpha * share) * under + alpha * share * np.array(colour)
        assert cell(drawn, *at, 2) == expected.round().tolist()


def test_an_overlay_of_magnitudes_has_the_colours_of_a_heatmap() -> None:
    values = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    drawn = pictures.overlay(values, np.full((3, 2, 2), 0.5), Rendering(alpha=1), bounds=(0, 1))
    assert cell(drawn, 0, 1, 2) == PALE_YELLOW
    assert cell(drawn, 0, 0, 2) == [128] * 3


@pytest.mark.parametrize(("backdrop", "expected"), [("color", [255, 0, 0]), ("gray", [76] * 3)])
def test_the_backdrop_is_grey_unless_colour_is_asked_for(
    backdrop: str, expected: list[int]
) -> None:
    image = np.zeros((3, 2, 2))
    image[0] = 1
    drawn = pictures.overlay(np.zeros((2, 2)), image, Rendering(backdrop=backdrop), bounds=(0, 1))
    assert cell(drawn, 0, 0, 2) == expected


def test_coarse_maps_are_interpolated_over_the_input() -> None:
    coarse = np.array([[0.0, 1.0]])
    drawn = pictures.overlay(
        coarse, np.zeros((1, 256, 256)), Rendering(percentile=100, alpha=1), bounds=(0, 1)
    )
    lightness = pixels(drawn).sum(-1)[100]
    assert (np.diff(lightness) >= 0).all()
    assert len(np.unique(lightness)) > 50


@pytest.mark.parametrize(("share", "kept"), [(0.001, 1), (0.1, 10), (0.25, 25), (1.0, 100)])
def test_top_positions_are_counted_exactly(share: float, kept: int) -> None:
    values = np.random.default_rng(1).normal(size=(10, 10))
    found = pictures.top_positions(values, share)
    assert found.sum() == kept
    assert np.abs(values)[found].min() >= np.abs(values)[~found].max(initial=0)


def test_of_equal_values_the_first_are_kept_and_zeros_never() -> None:
    assert pictures.top_positions(np.ones(8), 0.5).tolist() == [True] * 4 + [False] * 4
    assert pictures.top_positions(np.array([0.0, 0, 3, 0]), 1.0).tolist() == [0, 0, 1, 0]


def test_top_k_shows_the_input_where_it_counts() -> None:
    values = np.zeros((2, 2))
    values[0, 1] = -1
    image = np.full((3, 2, 2), 1.0)
    drawn = pictures.top_k(values, image, Rendering(top=0.25), bounds=(0, 1))
    assert cell(drawn, 0, 1, 2) == WHITE
    assert cell(drawn, 0, 0, 2) == [89] * 3
    mask = pictures.top_k(values, options=Rendering(top=0.25))
    assert cell(mask, 0, 1, 2) == WHITE
    assert cell(mask, 0, 0, 2) == [0, 0, 0]


@pytest.mark.parametrize(
    ("side", "drawn"), [(8, 256), (28, 280), (255, 510), (256, 256), (300, 300)]
)
def test_small_images_are_enlarged_by_a_whole_factor(side: int, drawn: int) -> None:
    image = np.zeros((1, side, side))
    image[0, 0, 0] = 1.0
    picture = pixels(pictures.image(image, (0.0, 1.0)))
    factor = drawn // side
    assert picture.shape == (drawn, drawn, 3)
    assert (picture[:factor, :factor] == 255).all()
    assert picture.sum() == 3 * 255 * factor**2


def test_narrow_images_do_not_become_huge() -> None:
    assert max(pictures.image(np.zeros((1, 2, 1000))).size) == 4000


def test_images_run_from_the_lower_bound_to_the_upper() -> None:
    image = np.full((3, 4, 4), -1.0)
    image[0], image[1] = 3.0, 1.0
    assert cell(pictures.image(image, (-1.0, 3.0)), 0, 0, 4) == [255, 128, 0]
    clipped = np.array([[[-5.0, 5.0], [0.0, 1.0]]])
    assert cell(pictures.image(clipped, (0.0, 1.0)), 0, 1, 2) == WHITE
    assert cell(pictures.image(np.array([[[-5.0, 15.0]] * 2])), 0, 1, 2) == WHITE


def test_images_of_other_channel_counts_are_drawn_as_their_mean() -> None:
    image = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    assert set(pixels(pictures.image(image, (0.0, 1.0))).ravel()) == {128}


@pytest.mark.parametrize("shape", [(4, 4), (16,), (2, 3, 4), (1,), (1, 1), (300,)])
@pytest.mark.parametrize("layout", ["CHW", "HWC", "CL", "tokens", "other"])
@pytest.mark.parametrize("given", [True, False])
def test_rows_of_any_shape_are_drawn_in_any_style(
    shape: tuple[int, ...], layout: str, given: bool
) -> None:
    rng = np.random.default_rng(0)
    values, inputs = rng.normal(size=(2, *shape)), rng.random((2, *shape))
    for style in pictures.Style:
        scene = Scene(inputs if given else None, layout, (0.0, 1.0))
        drawn = pictures.draw({"attributions": values}, Rendering(styles=style), scene)
        assert drawn.pictures or drawn.warnings
        assert all(len(files) == 2 for files in drawn.pictures.values())


def test_auto_is_signed_where_any_value_is_negative() -> None:
    values = np.ones((2, 1, 4, 4))
    options = Rendering(percentile=100)
    plain = pictures.draw({"attributions": values}, options, Scene(layout="CHW"))
    assert plain.pictures["attributions"][0] == pictures.png(pictures.heatmap(values[0], options))
    values[1] *= -1
    drawn = pictures.draw({"attributions": values}, options, Scene(layout="CHW"))
    assert drawn.pictures["attributions"] == tuple(
        pictures.png(pictures.signed(row, options)) for row in values
    )


def test_styles_name_their_pictures() -> None:
    values, inputs = np.random.default_rng(2).random((2, 2, 3, 24, 24))
    drawn = pictures.draw(
        {"attributions": values, "logits": np.ones((2, 3))},
        Rendering(styles=("auto", "overlay", "object_mask", "overlay")),
        Scene(inputs, "CHW", (0, 1)),
    )
    assert list(drawn.pictures) == [
        "attributions",
        "attributions.overlay",
        "attributions.object_mask",
        "attributions.object_cutout",
    ]


def test_what_needs_an_input_says_that_there_is_none() -> None:
    values = np.ones((2, 1, 4, 4))
    drawn = pictures.draw(
        {"attributions": values}, Rendering(styles=("overlay", "object_mask")), Scene(layout="CHW")
    )
    assert list(drawn.pictures) == ["attributions.overlay"]
    assert drawn.warnings == {
        "there is no input to draw an overlay on": (0, 1),
        "there is no image to cut an object out of": (0, 1),
    }


def test_a_perturbation_is_grey_where_nothing_changed() -> None:
    inputs = np.full((1, 1, 2, 2), 0.5)
    moved = inputs.copy()
    moved[0, 0, 0, 0] += 0.01
    moved[0, 0, 1, 1] -= 0.01
    scene = Scene(inputs, "CHW", (0.0, 1.0))
    drawn = pictures.draw({"adversarial": moved}, Rendering(), scene).pictures
    assert list(drawn) == ["adversarial", "perturbation"]
    change = pictures.image(moved[0] - inputs[0], (-0.01, 0.01))
    assert drawn["perturbation"] == (pictures.png(change),)
    assert [cell(change, *at, 2)[0] for at in ((0, 0), (0, 1), (1, 1))] == [255, 128, 0]


def test_several_attributions_are_compared_side_by_side() -> None:
    rng = np.random.default_rng(3)
    inputs = rng.random((2, 3, 8, 8))
    arrays = {f"attributions.{name}": rng.random((2, 3, 8, 8)) for name in ("saliency", "rise")}
    drawn = pictures.draw(arrays, Rendering(styles=("overlay",)), Scene(inputs, "CHW", (0, 1)))
    assert set(drawn.pictures) == {
        "attributions.saliency.overlay",
        "attributions.rise.overlay",
        "comparison",
    }
    cells: dict[str, Image.Image] = {"input": pictures.image(inputs[1], (0, 1))}
    for name in ("saliency", "rise"):
        row = arrays[f"attributions.{name}"][1]
        cells[name] = pictures.overlay(row, inputs[1], bounds=(0, 1))
    assert drawn.pictures["comparison"][1] == pictures.png(pictures.sheet(cells))


def test_layers_and_filters_are_tiled() -> None:
    rng = np.random.default_rng(4)
    maps, filters = rng.random((2, 6, 5, 5)), rng.normal(size=(1, 7, 3, 5, 5))
    arrays = {
        "activations.features.0": maps,
        "activations.fc": rng.normal(size=(2, 10)),
        "filters": filters,
        "activations.video": rng.random((2, 2, 2, 2, 2, 2)),
    }
    drawn = pictures.draw(arrays, Rendering(), Scene(layout="CHW")).pictures
    assert set(drawn) == {"activations.features.0", "activations.fc", "filters"}
    assert drawn["activations.features.0"][1] == pictures.png(pictures.grid(maps[1]))
    in_colour = np.moveaxis(filters[0], 1, 3)
    assert drawn["filters"] == (pictures.png(pictures.grid(in_colour)),)
    deep = rng.normal(size=(1, 4, 32, 3, 3))
    wide = pictures.draw({"filters": deep}, Rendering(), Scene()).pictures["filters"]
    below = deep[0].reshape(-1, 3, 3)
    assert wide == (pictures.png(pictures.grid(below, columns=16)),)


def test_positions_are_points_and_their_inputs() -> None:
    rng = np.random.default_rng(5)
    positions, inputs = rng.normal(size=(6, 2)), rng.random((6, 3, 8, 8))
    classes, labels = [0, 1, 0, 1, 2, 2], ("ant", "bee", "cow")
    scene = Scene(inputs, "CHW", (0, 1), classes=classes, labels=labels)
    drawn = pictures.draw({"positions": positions}, Rendering(), scene).pictures
    points = pictures.scatter(positions, classes, labels=labels)
    assert drawn["positions"] == (pictures.png(points),)
    assert set(drawn) == {"positions", "positions.inputs"}
    blind = pictures.draw({"positions": positions}, Rendering(), Scene()).pictures
    assert blind == {"positions": (pictures.png(pictures.scatter(positions)),)}


def test_axes_of_one_place_do_not_count() -> None:
    values = np.random.default_rng(6).normal(size=(1, 12, 1, 1))
    drawn = pictures.draw({"activations": values}, Rendering(), Scene()).pictures
    assert drawn["activations"] == (pictures.png(pictures.bars(values.ravel())),)


def test_layers_without_positions_are_bars_of_their_channels() -> None:
    values, inputs = np.arange(1.0, 6).reshape(1, 5, 1, 1), np.ones((1, 3, 8, 8))
    for shape in ((1, 5, 1, 1), (1, 5)):
        drawn = pictures.draw(
            {"attributions": values.reshape(shape)},
            Rendering(styles=("overlay",)),
            Scene(inputs, "CHW", (0, 1), names=[["a", "b", "c", "d", "e"]]),
        )
        expected = pictures.bars(np.arange(1.0, 6), ["a", "b", "c", "d", "e"])
        assert drawn.pictures == {"attributions.overlay": (pictures.png(expected),)}
        assert not drawn.warnings


def test_what_is_about_other_rows_is_drawn_without_inputs() -> None:
    values, inputs = np.ones((2, 8, 8)), np.ones((5, 3, 8, 8))
    drawn = pictures.draw({"attributions": values}, Rendering(), Scene(inputs, "CHW", (0, 1)))
    assert len(drawn.pictures["attributions"]) == 2


def test_curves_of_metrics_and_randomised_attributions_are_drawn() -> None:
    rng = np.random.default_rng(7)
    maps = rng.random((3, 1, 4, 4))
    arrays = {
        "attributions": maps[:1],
        "randomised.fc": maps[1:2],
        "morf_curve": rng.random((1, 9)),
    }
    drawn = pictures.draw(arrays, Rendering(), Scene(layout="CHW")).pictures
    assert set(drawn) == {"attributions", "randomised.fc", "comparison", "morf_curve"}
    assert drawn["morf_curve"] == (pictures.png(pictures.plot(arrays["morf_curve"])),)
    cells = {name: pictures.heatmap(arrays[name][0]) for name in ("attributions", "randomised.fc")}
    shown = pictures.sheet({"attributions": cells["attributions"], "fc": cells["randomised.fc"]})
    assert drawn["comparison"] == (pictures.png(shown),)
