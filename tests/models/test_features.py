"""Names of an input's values: checked against its shape, and told of the loaded model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_server.engine.api import ModelInfo
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest, manifest_from_toml

NAMES = ("height", "weight", "age")


class Table(nn.Module):
    """Linear in a row's values, of any shape."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.last = nn.Linear(count, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


class Categories(nn.Module):
    """Columns of a table that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, columns: Tensor) -> Tensor:
        return self.last(self.table(columns).sum(1))


class Scene(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(12, 2), nn.Linear(3, 2)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.facts(facts)


def load(net: nn.Module, folder: Path, manifest: Any) -> ModelInfo:
    path = folder / "net.pt"
    torch.jit.script(net.eval()).save(str(path))
    made = Manifest.model_validate(manifest)
    return load_classifier("net", path, made, device=torch.device("cpu")).info


def test_names_are_told_of_the_input(tmp_path: Path) -> None:
    info = load(Table(), tmp_path, {"shape": [3], "features": NAMES})
    assert [item.features for item in info.inputs] == [NAMES]
    assert load(Table(), tmp_path, {"shape": [3]}).inputs[0].features == ()


def test_names_of_several_axes_are_counted_over_all_of_them(tmp_path: Path) -> None:
    names = tuple(f"{day} {value}" for day in ("monday", "tuesday") for value in NAMES)
    info = load(Table(6), tmp_path, {"shape": [2, 3], "features": names})
    assert info.inputs[0].features == names


def test_columns_that_are_looked_up_have_names_too(tmp_path: Path) -> None:
    info = load(Categories(), tmp_path, {"shape": [3], "features": NAMES, "kind": "tokens"})
    assert (info.inputs[0].kind, info.inputs[0].features) == ("tokens", NAMES)


def test_each_of_several_inputs_has_names_of_its_own(tmp_path: Path) -> None:
    inputs = [{"shape": [3, 2, 2]}, {"shape": [3], "features": NAMES}]
    info = load(Scene(), tmp_path, {"inputs": inputs})
    assert [item.features for item in info.inputs] == [(), NAMES]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"shape": [3], "features": NAMES[:2]}, "2 names for the 3 values of a row"),
        ({"shape": [3], "features": (*NAMES, "hat")}, "4 names for the 3 values of a row"),
        ({"shape": [None], "example": [3], "features": NAMES}, "no fixed number of values"),
    ],
)
def test_names_that_do_not_fit_the_shape_are_refused(
    manifest: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        load(Table(), tmp_path, manifest)
    assert caught.value.violations[0].field == "manifest.inputs[0].features"


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ('["age", "hat", "age"]', "'age' is there twice"),
        ("[]", "give a name for every value"),
        ('["age", " "]', "give a name for every value"),
        ("[1, 2]", "string"),
    ],
)
def test_names_are_words_and_differ(features: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        manifest_from_toml(f"shape = [3]\nfeatures = {features}")
    assert caught.value.violations[0].field == "manifest.inputs[0].features"
