"""Which output holds the classes, and the logits recovered from it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_server.errors import InvalidRequest, ModelRejected
from interpret_server.models.assembly import Body, assemble, from_graph, from_module
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.manifest import OutputSpec
from interpret_server.testing.classifiers import lowered

INPUT = ResolvedInput("x", (6,))


class Net(nn.Module):
    """Logits of a linear layer, put through `end`."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 4) -> None:
        super().__init__()
        self.linear, self.end = nn.Linear(6, classes), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.linear(x))


def _load(net: nn.Module, **output: object) -> tuple[Classifier, Body]:
    body = from_graph(lowered(net), INPUT, OutputSpec.model_validate(output))
    return assemble("net", body, INPUT), body


def _check_logits(net: Net, source: str, **output: object) -> Body:
    model, body = _load(net, **output)
    x = torch.randn(3, 6)
    assert torch.equal(model(x), net.linear(x))
    assert body.source == source
    return body


LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "logits": (lambda z: z, "logits"),
    "softmax": (lambda z: z.softmax(1), "softmax"),
    "softmax over the last axis": (lambda z: torch.softmax(z, -1), "softmax"),
    "softmax module": (nn.Softmax(1), "softmax"),
    "log-softmax": (lambda z: z.log_softmax(1), "log_softmax"),
    "log of softmax": (lambda z: z.softmax(1).log(), "log_softmax"),
    "exponential of log-softmax": (lambda z: z.log_softmax(1).exp(), "softmax"),
    "softmax in an image's shape": (
        lambda z: z.reshape(-1, 4, 1, 1).softmax(1).flatten(1),
        "softmax",
    ),
    "softmax, axes added": (lambda z: z.softmax(1).unsqueeze(2).unsqueeze(3), "softmax"),
    "dropout after softmax": (lambda z: nn.functional.dropout(z.softmax(1), 0.0), "softmax"),
    "softmax in float64": (lambda z: z.softmax(1).to(torch.float64).to(torch.float32), "softmax"),
    "argmax": (lambda z: z.argmax(1), "argmax"),
    "argmax of softmax": (lambda z: z.softmax(1).argmax(1), "argmax"),
    "tuple": (lambda z: (z.argmax(1), z.softmax(1)), "softmax"),
    "list": (lambda z: [z, z.argmax(1)], "logits"),
    "dictionary": (lambda z: {"label": z.argmax(1), "scores": z.softmax(1)}, "softmax"),
}


@pytest.mark.parametrize("case", LOGITS)
def test_the_logits_behind_an_output_are_served(case: str) -> None:
    end, source = LOGITS[case]
    if isinstance(end, nn.Module):
        _check_logits(Net(end), source)
        return
    body = _check_logits(Net(end), source)
    assert body.classes == 4
    assert body.reason == ""


def test_layers_behind_the_cut_are_gone() -> None:
    assert list(_load(Net(nn.Softmax(1)))[1].layers) == ["linear"]


def test_a_softmax_that_is_not_over_classes_stays() -> None:
    net = Net(lambda z: z.reshape(-1, 2, 2).softmax(2).reshape(-1, 4))
    model, body = _load(net)
    x = torch.randn(3, 6)
    assert body.source == "logits"
    assert torch.equal(model(x), net(x))


def test_nothing_is_cut_where_the_manifest_says_logits() -> None:
    net = Net(lambda z: z.softmax(1))
    model, body = _load(net, kind="logits")
    x = torch.randn(3, 6)
    assert body.source == "logits"
    assert torch.equal(model(x), net(x))


@pytest.mark.parametrize(("said", "noted"), [({}, True), ({"kind": "probabilities"}, False)])
def test_probabilities_without_a_softmax_become_logarithms(
    said: dict[str, object], noted: bool
) -> None:
    net = Net(lambda z: z.exp() / z.exp().sum(1, keepdim=True))
    model, body = _load(net, **said)
    x = torch.randn(3, 6)
    assert body.source == "probabilities"
    torch.testing.assert_close(model(x), net.linear(x).log_softmax(1))
    assert bool(body.notes) is noted


def test_a_probability_of_zero_has_a_finite_logarithm() -> None:
    net = Net(lambda z: (z > z.mean(1, keepdim=True)).float())
    model, _ = _load(net, kind="probabilities")
    logits = model(torch.randn(8, 6))
    assert logits.isfinite().all()
    assert float(logits.min()) == pytest.approx(-87.3365, abs=1e-3)


def test_log_probabilities_without_a_log_softmax_are_logits() -> None:
    net = Net(lambda z: z - z.exp().sum(1, keepdim=True).log())
    model, body = _load(net)
    x = torch.randn(3, 6)
    assert body.source == "log_probabilities"
    assert torch.equal(model(x), net(x))


@pytest.mark.parametrize(
    "end",
    [
        torch.sigmoid,
        lambda z: z.sigmoid().squeeze(1),
        lambda z: z.sigmoid().reshape(-1),
        nn.Sigmoid(),
    ],
)
def test_a_single_sigmoid_is_two_logits(end: Callable[[Tensor], Tensor]) -> None:
    net = Net(end, 1)
    model, body = _load(net)
    x = torch.randn(3, 6)
    z = net.linear(x)
    assert (body.source, body.classes) == ("sigmoid", 2)
    assert torch.equal(model(x), torch.cat([torch.zeros_like(z), z], 1))
    torch.testing.assert_close(model(x).softmax(1)[:, 1:], z.sigmoid())


def test_a_single_logit_is_two_logits() -> None:
    net = Net(lambda z: z * 5, 1)
    model, body = _load(net)
    x = torch.randn(3, 6)
    assert (body.source, body.classes, body.notes) == ("logits", 2, [])
    torch.testing.assert_close(model(x)[:, 1:], net(x))
    assert torch.equal(model(x)[:, 0], torch.zeros(3))


def test_a_single_probability_is_two_logarithms() -> None:
    net = Net(lambda z: z.exp() / (1 + z.exp()), 1)
    model, _ = _load(net, kind="probabilities")
    x = torch.randn(3, 6)
    expected = torch.cat([1 - net(x), net(x)], 1)
    torch.testing.assert_close(model(x).softmax(1), expected)
    assert "read as a logit" in _load(net)[1].notes[0]


def test_one_sigmoid_per_class_is_cut_with_a_note() -> None:
    body = _check_logits(Net(torch.sigmoid), "sigmoid")
    assert "one sigmoid per class" in body.notes[0]


@pytest.mark.parametrize("said", [{"name": "b"}, {"index": 1}, {"name": "b", "index": 1}])
def test_the_manifest_chooses_among_outputs(said: dict[str, object]) -> None:
    net = Net(lambda z: {"a": z * 2, "b": z})
    body = _check_logits(net, "logits", **said)
    assert body.output_name == "b"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "manifest.output.name"),
        ({"name": "c"}, "manifest.output.name"),
        ({"index": 2}, "manifest.output.index"),
        ({"name": "b", "index": 0}, "manifest.output.index"),
    ],
)
def test_an_output_that_is_not_there_or_not_said_is_asked_for(
    said: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _load(Net(lambda z: {"a": z * 2, "b": z}), **said)
    assert caught.value.violations[0].field == field
    assert "'b'" in caught.value.message


def test_an_output_that_is_no_classifiers_is_refused() -> None:
    with pytest.raises(ModelRejected, match=r"shape \[1, 2, 2\] for 1 input rows"):
        _load(Net(lambda z: z.reshape(-1, 2, 2)))


def test_class_indices_alone_are_served_as_decisions_where_the_program_runs_as_it_is() -> None:
    net = Net(lambda z: z.argmax(1))
    with pytest.raises(InvalidRequest, match="give labels, or output") as caught:
        from_module(net, INPUT, OutputSpec(), form="runtime", reason="No graph.")
    assert caught.value.violations[0].field == "manifest.labels"
    body = from_module(net, INPUT, OutputSpec(classes=4), form="runtime", reason="No graph.")
    model, x = assemble("net", body, INPUT), torch.randn(9, 6)
    logits = model(x)
    assert logits.shape == (9, 4)
    assert torch.equal(logits.argmax(1), net(x))
    assert logits.softmax(1).max(1).values.min() > 0.999
    assert {Capability.SCORES, Capability.GRADIENT} <= model.lacking.keys()


def test_a_program_that_runs_as_it_is_tells_its_kind_by_its_values() -> None:
    net = Net(lambda z: (z.argmax(1), z.softmax(1)))
    body = from_module(net, INPUT, OutputSpec(), form="archive", reason="It branches on data.")
    model, x = assemble("net", body, INPUT), torch.randn(3, 6)
    assert (body.form, body.source, body.index) == ("archive", "probabilities", 1)
    torch.testing.assert_close(model(x), net.linear(x).log_softmax(1))
    assert "It branches on data." in model.lacking[next(iter(model.lacking))]
