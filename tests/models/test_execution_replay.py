"""Recorded passes give what eager ones give, for any rows, and only where they may be recorded."""

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Self

import pytest
import torch
from torch import Tensor, nn

from interpret_server.models import classifier as classifier_module
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.models.execution import Execution, replay
from interpret_server.models.execution.replay import Replays
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.models.tape import Tape

SHAPE = (3, 12, 10)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.first(x))
        y = torch.relu(self.second(y)) + y[:, :6]
        return self.head(y.mean((2, 3)))


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] + torch.rand_like(x.flatten(1)[:, :4])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * (2 if bool((x.sum() > 0).item()) else 1)


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        chosen = x.flatten(1)
        return torch.zeros_like(chosen[:, :4]) + chosen[chosen > 0.5].sum()


class Remembering:
    """Gives another answer each time, by what Python remembers."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (x.flatten(1) * self.calls,)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    made = Tape()
    monkeypatch.setattr(classifier_module, "recorder_of", lambda device: made)
    return made


def recorded(module: nn.Module | None = None) -> Classifier:
    model = classifier((module or Net()).eval(), SHAPE, bounds=(0, 1))
    model.execution = Execution.RECORDED
    return model


def eager(module: nn.Module | None = None) -> Classifier:
    return classifier((module or Net()).eval(), SHAPE, bounds=(0, 1))


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def labels(count: int) -> Targets:
    return Targets.classes(torch.arange(count) % 4)


def ready(model: Classifier, count: int) -> None:
    """Call a model until passes on so many rows are recorded and trusted."""
    for seed in range(2 + replay._CHECKS):
        model.gradient(rows(count, 100 + seed), labels(count))
        with torch.no_grad():
            model(rows(count, 100 + seed))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, replay.__name__):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64])
def test_gradients_and_logits_are_those_of_eager_passes(count: int, tape: Tape) -> None:
    model, truth = recorded(), eager()
    ready(model, count)
    assert tape.recorded == 3  # forward and back, and forward alone
    before = tape.played
    for seed in range(4):
        x = rows(count, seed)
        given = x.clone()
        found, expected = (m.gradient(x, labels(count)) for m in (model, truth))
        torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(model(x), truth(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(x, given)
    assert tape.played == before + 12
    assert tape.recorded == 3


def test_the_first_answers_are_eager_ones_bit_by_bit(tape: Tape) -> None:
    model, truth = recorded(), eager()
    for seed in range(2 + replay._CHECKS - 1):
        x = rows(3, seed)
        found, expected = (m.gradient(x, labels(3)) for m in (model, truth))
        assert torch.equal(found.inputs, expected.inputs)
    assert tape.recorded == 2


def test_other_numbers_of_rows_share_a_recording(tape: Tape) -> None:
    model, truth = recorded(), eager()
    ready(model, 16)
    assert tape.recorded == 3
    for count in (13, 14, 15, 16):
        found = model.gradient(rows(count), labels(count))
        expected = truth.gradient(rows(count), labels(count))
        torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-5, atol=1e-8)
    assert tape.recorded == 3
    sizes = replay.SIZES
    assert all(big <= 1.5 * small + 1 for small, big in pairwise(sizes))


def test_what_is_given_is_not_written_to_later(tape: Tape) -> None:
    model = recorded()
    ready(model, 2)
    first = model.gradient(rows(2, 1), labels(2))
    kept = first.inputs.clone(), first.logits.clone()  # type: ignore[union-attr]
    model.gradient(rows(2, 2), labels(2))
    assert torch.equal(first.inputs, kept[0])
    assert first.logits is not None
    assert torch.equal(first.logits, kept[1])


def test_passes_back_may_come_in_any_order(tape: Tape) -> None:
    model, truth = recorded(), eager()
    ready(model, 2)

    def gradients(net: Classifier) -> list[Tensor]:
        leaves = [rows(2, seed).requires_grad_() for seed in range(3)]
        values = [net(leaf)[:, seed].sum() for seed, leaf in enumerate(leaves)]
        order = (1, 0, 2)
        found = {i: torch.autograd.grad(values[i], leaves[i], retain_graph=True) for i in order}
        found[3] = torch.autograd.grad(values[1], leaves[1])
        return [gradient for i in sorted(found) for gradient in found[i]]

    before = tape.played
    found, expected = gradients(model), gradients(truth)
    assert tape.played > before
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", list(ReluRule))
def test_rules_of_rectifiers_hold(rule: ReluRule, tape: Tape) -> None:
    model, truth = recorded(), eager()
    ready(model, 3)
    found, expected = (m.gradient(rows(3), labels(3), rule).inputs for m in (model, truth))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_second_derivatives_are_right(tape: Tape) -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.head = nn.Linear(360, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.head(x.flatten(1))) ** 3

    model, truth = recorded(Smooth()), eager(Smooth())
    ready(model, 2)

    def twice(net: Classifier) -> Tensor:
        leaf = rows(2).requires_grad_()
        (first,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf, create_graph=True)
        return torch.autograd.grad((first**2).sum(), leaf)[0]

    before = tape.played
    torch.testing.assert_close(twice(model), twice(truth))
    assert tape.played > before


@pytest.mark.parametrize("layer", ["second", "pool"])
def test_layers_are_recorded_too(layer: str, tape: Tape) -> None:
    model, truth = recorded(), eager()
    index = torch.tensor([[1], [2]])
    targets = Targets(TargetKind.CHANNEL, index, layer)
    for seed in range(2 + replay._CHECKS):
        model.gradient(rows(2, seed), targets)
    before = tape.played
    found, expected = (m.gradient(rows(2), targets) for m in (model, truth))
    assert tape.played == before + 2
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("written", [True, False], ids=["written", "replaced"])
def test_changed_weights_take_effect(written: bool, tape: Tape) -> None:
    model = recorded()
    ready(model, 2)
    layer = model.module.body.get_submodule("head")
    with torch.no_grad():
        if written:
            layer.weight.mul_(3)
        else:
            layer.weight = nn.Parameter(layer.weight * 3, requires_grad=False)
        for _ in range(5):
            torch.testing.assert_close(model(rows(2)), model.module(rows(2)))


def test_hooked_networks_run_eagerly(tape: Tape) -> None:
    model = recorded()
    ready(model, 2)
    seen: list[Tensor] = []
    handle = model.module.body.get_submodule("second").register_forward_hook(
        lambda module, inputs, value: seen.append(value)
    )
    before = tape.played
    model.gradient(rows(2), labels(2))
    handle.remove()
    assert len(seen) == 1
    assert tape.played == before


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Drawing(), "draws random numbers"),
        (Branching(), "reads values"),
        (Choosing(), "depends on values"),
    ],
    ids=["random", "branch", "mask"],
)
def test_what_depends_on_more_than_its_memory_is_not_recorded(
    module: nn.Module, why: str, tape: Tape, warnings: Callable[[], list[str]]
) -> None:
    replays, x = Replays(tape), rows(2)
    for _ in range(4):
        replays.run("it", lambda rows: (module(rows),), x)
    assert tape.recorded == 0
    assert len(replays) == 0
    (sentence,) = warnings()  # once
    assert why in sentence


def test_attention_without_dropout_is_recorded_and_dropout_is_not(
    tape: Tape, warnings: Callable[[], list[str]]
) -> None:
    def attend(chance: float) -> Callable[[Tensor], tuple[Tensor, ...]]:
        return lambda x: (nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=chance),)

    replays = Replays(tape)
    for chance in (0.0, 0.5):
        for _ in range(4):
            replays.run(chance, attend(chance), rows(2))
    assert tape.recorded == 1
    assert len(warnings()) == 1


def test_a_recording_that_gives_other_values_is_dropped(
    tape: Tape, warnings: Callable[[], list[str]]
) -> None:
    replays, work = Replays(tape), Remembering()
    for _ in range(6):
        before = work.calls
        (found,) = replays.run("it", work, rows(2))
        assert work.calls > before
        assert any(
            torch.equal(found, rows(2).flatten(1) * n) for n in range(before, work.calls + 1)
        )
    assert len(replays) == 0
    assert [text for text in warnings() if "gives other values" in text]


def test_a_gradient_that_differs_is_noticed(tape: Tape, warnings: Callable[[], list[str]]) -> None:
    class Turning(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            Turning.calls += 1
            return gradients[0] * Turning.calls

    replays = Replays(tape)
    for _ in range(4):
        replays.run("it", lambda x: (Turning.apply(x),), rows(2).requires_grad_())
    assert len(replays) == 0
    assert [text for text in warnings() if "gives other values" in text]


@pytest.mark.parametrize("error", [RuntimeError("capture failed"), torch.OutOfMemoryError("no")])
def test_what_the_device_refuses_runs_eagerly(
    error: Exception, warnings: Callable[[], list[str]]
) -> None:
    class Refusing:
        tried = 0

        def apart(self) -> Self:
            return self

        def record(self, work: object) -> None:
            self.tried += 1
            raise error

        def has_room(self) -> bool:
            return True

    refusing = Refusing()
    replays = Replays(refusing)  # type: ignore[arg-type]
    for _ in range(5):
        (found,) = replays.run("it", lambda x: (x * 2,), rows(2))
        assert torch.equal(found, rows(2) * 2)
    assert refusing.tried == 1
    assert len(warnings()) == 1


def test_few_recordings_are_kept_and_all_can_be_given_up(tape: Tape) -> None:
    replays = Replays(tape)
    for what in range(replay._MOST + 3):
        for _ in range(2 + replay._CHECKS):
            replays.run(what, lambda x, what=what: (x * what,), rows(2))
    assert len(replays) == replay._MOST
    replays.forget()
    assert len(replays) == 0
    (found,) = replays.run(3, lambda x: (x * 3,), rows(2))
    assert torch.equal(found, rows(2) * 3)


def test_a_pass_is_recorded_once_there_is_room(tape: Tape) -> None:
    replays = Replays(tape)
    for room in (False, True):
        tape.room = room
        for _ in range(4):
            replays.run("it", lambda x: (x * 2,), rows(2))
        assert tape.recorded == room


def test_large_empty_and_repeatable_passes_are_eager(tape: Tape) -> None:
    replays = Replays(tape)
    for _ in range(4):
        for count in (0, replay.SIZES[-1] + 1):
            replays.run("it", lambda x: (x * 2,), rows(count))
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        for _ in range(4):
            replays.run("it", lambda x: (x * 2,), rows(2))
    finally:
        torch.set_deterministic_debug_mode(before)
    assert tape.recorded == 0


def test_threads_get_their_own_answers(tape: Tape) -> None:
    model, truth = recorded(), eager()
    ready(model, 2)
    expected = [truth.gradient(rows(2, seed), labels(2)).inputs for seed in range(40)]
    found: dict[int, Tensor] = {}

    def ask(part: range) -> None:
        for seed in part:
            found[seed] = model.gradient(rows(2, seed), labels(2)).inputs

    threads = [threading.Thread(target=ask, args=(range(n, 40, 4),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, gradient in enumerate(expected):
        torch.testing.assert_close(found[seed], gradient, rtol=1e-5, atol=1e-8)


def test_a_model_that_is_not_deterministic_is_never_recorded(tape: Tape) -> None:
    model = recorded()
    model.withhold(Capability.DETERMINISTIC, "it remembers")
    ready(model, 2)
    assert tape.recorded == 0


def test_memory_is_given_back_when_it_is_short(tape: Tape) -> None:
    model = recorded()
    ready(model.scout, 2)
    ready(model, 2)
    kept = [model.plans.replays, model.scout.plans.replays]
    assert kept[0] is not kept[1]
    assert [len(replays or ()) for replays in kept] == [2, 2]
    model.free()
    assert [len(replays or ()) for replays in kept] == [0, 0]


def test_the_cpu_records_nothing() -> None:
    model = recorded()
    assert model.plans.replays is None
    other = copy.copy(model)
    torch.testing.assert_close(other(rows(2)), eager()(rows(2)))
