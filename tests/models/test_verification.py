"""How a served form is compared with its file."""

import pytest
import torch
from torch import Tensor, nn

from interpret_server.errors import ModelRejected
from interpret_server.models.verification import (
    agree,
    compare,
    difference,
    float32_noise,
    tolerance,
    verify,
)

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("ours", "reference", "absolute", "scale"),
    [
        ([1.0, 2.0], [1.0, 4.0], 2.0, 4.0),
        ([NAN, 1.0], [NAN, 1.0], 0.0, 1.0),
        ([INF, 1.0], [INF, 1.0], 0.0, 1.0),
        ([NAN, 1.0], [2.0, 1.0], INF, 2.0),
        ([2.0, 1.0], [NAN, 1.0], INF, 1.0),
        ([INF, 1.0], [-INF, 1.0], INF, 1.0),
        ([], [], 0.0, 0.0),
    ],
)
def test_differences_are_largest_and_never_hide_what_is_not_finite(
    ours: list[float], reference: list[float], absolute: float, scale: float
) -> None:
    assert difference(torch.tensor(ours), torch.tensor(reference)) == (absolute, scale)


def test_another_shape_is_infinitely_different() -> None:
    assert difference(torch.zeros(2), torch.zeros(3)).absolute == INF


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("logits", lambda z: z),
        ("softmax", lambda z: z.softmax(1)),
        ("log_softmax", lambda z: z.log_softmax(1)),
        ("sigmoid", lambda z: z.sigmoid()),
        ("argmax", lambda z: z.argmax(1, keepdim=True)),
    ],
)
def test_right_logits_agree_with_every_kind_of_output(
    classes: int, source: str, output: object
) -> None:
    assert callable(output)
    z = torch.randn(8, classes, dtype=torch.float64) * 20
    if classes == 1 and source in ("softmax", "log_softmax", "argmax"):
        z = torch.cat([torch.zeros_like(z), z], 1)
    ours = torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z
    assert compare(ours, output(z), source).relative < 1e-12
    wrong = compare(ours.roll(1, 0), output(z), source)
    assert not agree(wrong, torch.float32)


def test_a_saturated_softmax_hides_nothing() -> None:
    z = torch.tensor([[40.0, 0.0, -20.0]], dtype=torch.float64)
    wrong = torch.tensor([[40.0, 0.0, -10.0]], dtype=torch.float64)
    assert (wrong.softmax(1) - z.softmax(1)).abs().max() < 1e-15
    assert not agree(compare(wrong, z.softmax(1), "softmax"), torch.float32)


def test_each_precision_has_its_tolerance() -> None:
    assert tolerance(torch.float64) < tolerance(torch.float32) < tolerance(torch.float16)


def test_four_times_the_networks_own_noise_is_allowed() -> None:
    measured = difference(torch.tensor([1.003]), torch.tensor([1.0]))
    assert not agree(measured, torch.float32)
    assert not agree(measured, torch.float32, lambda: 5e-4)
    assert agree(measured, torch.float32, lambda: 1e-3)
    broken = difference(torch.tensor([NAN]), torch.tensor([1.0]))
    assert not agree(broken, torch.float32, lambda: INF)


def test_noise_is_what_float32_loses() -> None:
    class Cancels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 4096) - 4096

    x = torch.rand(100)
    noise = float32_noise(Cancels(), x)
    assert noise == pytest.approx(difference(Cancels()(x), x).relative, rel=1e-3)
    assert noise > 1e-5
    assert float32_noise(nn.Linear(3, 3).requires_grad_(False), torch.rand(2, 3)) < 1e-6


def test_noise_is_zero_where_float64_does_not_run() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(3, 3)

    assert float32_noise(Single(), torch.rand(2, 3)) == 0.0


def test_verification_reports_what_it_measured() -> None:
    batches = torch.randn(5, 3), torch.randn(2, 3)
    largest = max(float(batch.abs().max()) for batch in batches)
    found = verify(
        lambda x: x + 1e-5,
        lambda x: x,
        batches,
        source="logits",
        executor="torch.jit",
        dtype=torch.float32,
        noise=lambda _: 0.0,
    )
    assert found.max_difference == pytest.approx(1e-5, rel=0.1)
    assert found.relative_difference == pytest.approx(1e-5 / largest, rel=0.1)
    assert (found.reference, found.batch_sizes, found.inputs) == ("torch.jit", (5, 2), 7)


def test_a_mismatch_is_an_error_with_the_difference() -> None:
    with pytest.raises(ModelRejected, match=r"own execution \(onnxruntime\) by 0\.5"):
        verify(
            lambda x: x + 0.5,
            lambda x: x,
            [torch.zeros(2, 3)],
            source="logits",
            executor="onnxruntime",
            dtype=torch.float32,
            noise=lambda _: 0.0,
        )
