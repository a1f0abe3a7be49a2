"""Input times gradient: closed forms, its sum on networks without biases, Captum."""

import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from torch import Tensor, nn

from interpret_plugins.attribution.input_x_gradient import (
    InputXGradient,
    InputXGradientParams,
    InputXGradientResult,
)
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier


def run(
    model: Classifier, x: Tensor, targets: Targets, job: Job | None = None
) -> InputXGradientResult:
    batch = Batch(x, targets, (0,) * len(x))
    return InputXGradient().run(model, batch, InputXGradientParams(), job or Job())


def test_of_a_linear_classifier_it_is_weights_times_input() -> None:
    layer = nn.Linear(6, 3).double()
    x, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    result = run(classifier(layer, (6,), bounds=(-5, 5)), x, Targets.classes(labels))
    torch.testing.assert_close(result.attributions, layer.weight[labels] * x)
    torch.testing.assert_close(result.logits, layer(x))


def test_without_biases_the_values_sum_to_the_target() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4, bias=False),
    ).double()
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    model = classifier(module, (3, 8, 8))
    result = run(model, x, Targets.classes(torch.tensor([3, 0, 1])))
    expected = module(x)[[0, 1, 2], [3, 0, 1]]
    torch.testing.assert_close(result.attributions.sum((1, 2, 3)), expected)
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[1], [3], [0]]), "0")
    hidden = run(model, x, channel)
    expected = module[0](x)[[0, 1, 2], [1, 3, 0]].mean((1, 2))
    torch.testing.assert_close(hidden.attributions.sum((1, 2, 3)), expected)
    assert hidden.logits is None


def test_equals_captum_on_the_eager_module() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    x, labels = torch.randn(4, 2, 6, 6, dtype=torch.float64), torch.tensor([2, 1, 0, 2])
    expected = CaptumInputXGradient(module).attribute(x.clone().requires_grad_(), target=labels)
    found = run(classifier(module, (2, 6, 6)), x, Targets.classes(labels)).attributions
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


def test_rows_of_zeros_are_warned_about() -> None:
    class Recorder(Job):
        def warn(self, rows: Tensor, message: str) -> None:
            warned.append((rows.tolist(), message))

    warned: list[tuple[list[bool], str]] = []
    model = classifier(nn.Linear(4, 2), (4,))
    x = torch.tensor([[0.5] * 4, [0.0] * 4])
    run(model, x, Targets.classes(torch.tensor([0, 1])), Recorder())
    assert [rows for rows, _ in warned] == [[False, True]]
    assert "input" in warned[0][1]
