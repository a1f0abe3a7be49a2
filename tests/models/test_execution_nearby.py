"""Logits of points that differ from known ones in a window are those of the whole network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution, Window, nearby
from interpret_server.testing import classifier

SHAPE = (3, 32, 29)


class Residual(nn.Module):
    """Two ways of different steps and reach, which meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.first = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.short(x) + self.second(torch.relu(self.first(x))))
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


class Fire(nn.Module):
    """A squeeze and two expansions side by side, behind a pool whose last window is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.squeeze = nn.Conv2d(4, 3, 1)
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Linear(8 * 7 * 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(self.pool(torch.relu(self.stem(x)))))
        x = torch.cat([torch.relu(self.narrow(x)), torch.relu(self.wide(x))], 1)
        logits: Tensor = self.last(x.flatten(1))
        return logits


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=(2, 0), dilation=(1, 2)), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 4, 2, padding=1), nn.AvgPool2d(2, padding=1),
        nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"chain": chain, "residual": Residual, "fire": Fire}


def network(name: str, dtype: torch.dtype = torch.float64, **settings: object) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = NETWORKS[name]()
        module(torch.zeros(1, *SHAPE))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean = torch.randn(norm.num_features)
    model = classifier(module.eval().to(dtype), SHAPE, **settings)
    model.execution = Execution.FAST
    return model


def changed(x: Tensor, sides: tuple[int, int], seed: int) -> tuple[Tensor, Window]:
    """Points with a random window each; the first two lie in opposite corners."""
    draws = torch.Generator().manual_seed(seed)
    room = [size - side + 1 for size, side in zip(x.shape[2:], sides, strict=True)]
    corner = torch.stack([torch.randint(0, most, (len(x),), generator=draws) for most in room], 1)
    corner[0], corner[1] = torch.zeros(2), torch.tensor(room) - 1
    trial = x.clone()
    for row, (top, left) in enumerate(corner.tolist()):
        part = trial[row, :, top : top + sides[0], left : left + sides[1]]
        part.copy_(torch.rand(part.shape, generator=draws, dtype=x.dtype))
    return trial, Window(corner, sides)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are taken however little they save."""
    monkeypatch.setattr(nearby, "_WORTH", torch.inf)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sides", [(1, 1), (2, 5), (7, 3), (12, 12), (32, 29)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_search_is_told_what_the_network_answers(
    name: str, dtype: torch.dtype, tolerance: float, sides: tuple[int, int]
) -> None:
    model = network(name, dtype)
    search, x = model.nearby(), torch.rand(9, *SHAPE, dtype=dtype)
    for step in range(6):
        trial, window = changed(x, sides, step)
        found = search.logits(trial, window, x)
        with torch.no_grad():
            expected = model(trial)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.max()))
        kept = torch.arange(step % 2, len(x), 2)
        search.keep(kept)
        x[kept] = trial[kept]
        if step == 2:
            rows = torch.tensor([0, 1, 3, 4, 8])
            search.take(rows)
            x = x[rows]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", NETWORKS)
def test_little_of_the_picture_goes_through_the_first_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(name)
    search, x = model.nearby(), torch.rand(4, *SHAPE, dtype=torch.float64)
    trial, window = changed(x, (2, 2), 0)
    search.logits(trial, window, x)
    sizes: list[int] = []
    convolve = torch.conv2d

    def watched(x: Tensor, *others: object, **settings: object) -> Tensor:
        sizes.append(x.shape[2] * x.shape[3])
        return convolve(x, *others, **settings)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    monkeypatch.setattr(torch, "conv2d", watched)
    trial, window = changed(x, (2, 2), 1)
    search.logits(trial, window, x)
    assert sizes[0] < SHAPE[1] * SHAPE[2] / 2, sizes


@pytest.mark.usefixtures("always")
def test_windows_of_other_sides_and_points_of_none_can_follow() -> None:
    model = network("chain")
    search, x = model.nearby(), torch.rand(3, *SHAPE, dtype=torch.float64)
    for step, sides in enumerate([(1, 1), (9, 9), (3, 2), (1, 1)]):
        trial, window = changed(x, sides, step)
        with torch.no_grad():
            torch.testing.assert_close(search.logits(trial, window, x), model(trial))
        search.keep(torch.tensor([1]))
        x[1] = trial[1]
        anywhere = torch.rand_like(x)
        with torch.no_grad():
            assert torch.equal(search.logits(anywhere, None, x), model(anywhere))
        search.keep(torch.tensor([2]))
        x[2] = anywhere[2]


@pytest.mark.usefixtures("always")
def test_weights_that_are_written_to_count() -> None:
    model = network("residual")
    search, x = model.nearby(), torch.rand(3, *SHAPE, dtype=torch.float64)
    before = search.logits(*changed(x, (2, 2), 0), x)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1.5)
    trial, window = changed(x, (2, 2), 0)
    found = search.logits(trial, window, x)
    with torch.no_grad():
        torch.testing.assert_close(found, model(trial))
    assert not torch.allclose(found, before)


@pytest.mark.usefixtures("always")
def test_rows_do_not_depend_on_their_mates() -> None:
    model = network("fire")
    x = torch.rand(6, *SHAPE, dtype=torch.float64)
    trial, window = changed(x, (3, 3), 0)
    together = model.nearby().logits(trial, window, x)
    for row in range(len(x)):
        part = slice(row, row + 1)
        alone = model.nearby().logits(
            trial[part], Window(window.corner[part], window.sides), x[part]
        )
        torch.testing.assert_close(alone, together[part], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("why", ["exact", "hooked", "vectors"])
def test_other_classifiers_are_simply_called(why: str) -> None:
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    model = network("chain")
    trial, window = changed(x, (2, 2), 0)
    if why == "exact":
        model.execution = Execution.EXACT
    elif why == "hooked":
        model.module.register_forward_hook(lambda module, given, result: 2 * result)
    else:
        model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 29, 4)).double(), SHAPE)
    with torch.no_grad():
        assert torch.equal(model.nearby().logits(trial, window, x), model(trial))
