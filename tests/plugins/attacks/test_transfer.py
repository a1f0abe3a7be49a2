"""Attacks made on one model and judged by another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.attacks.mi_fgsm import MIFGSM
from interpret_plugins.attacks.transfer import Transfer, TransferParams, TransferResult
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier, serve
from tests.plugins.attacks.test_contract import Recorder, images, network, predicted
from tests.plugins.attacks.test_linear import Linear
from tests.plugins.attribution import perturbing
from tests.plugins.attribution.perturbing import loaded

SIZE = 12


def linear(weight: Tensor, bias: float) -> Classifier:
    return classifier(Linear(weight, bias), (SIZE,), bounds=(-100.0, 100.0))


def transfer(
    victim: Classifier,
    surrogate: Classifier,
    x: Tensor,
    labels: Tensor,
    attack: Any,
    job: Job | None = None,
    **tensors: Tensor,
) -> TransferResult:
    job = job or Job()
    job.models = {"surrogate": surrogate}
    params = TransferParams.model_validate({"attack": attack})
    batch = Batch(x, Targets.classes(labels), tuple(range(len(x))), tensors)
    return Transfer().run(victim, batch, params, job)


def shaken(model: Classifier) -> Classifier:
    """The same with a little noise on its weights."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.module.body.parameters():
            noise = torch.randn(parameter.shape, generator=source)
            parameter += 0.1 * parameter.std() * noise
    return model


@pytest.mark.parametrize("targeted", [False, True])
def test_a_linear_surrogate_moves_a_linear_victim_by_what_their_weights_share(
    targeted: bool,
) -> None:
    source = torch.Generator().manual_seed(0)
    ours, other = torch.randn(2, SIZE, generator=source, dtype=torch.float64)
    theirs = ours + other
    x = torch.randn(40, SIZE, generator=source, dtype=torch.float64)
    victim, surrogate = linear(ours, 0.0), linear(theirs, 0.0)
    x = x[((x @ ours) > 0) & ((x @ theirs) > 0)]  # class 1 for both
    labels = torch.full((len(x),), int(not targeted))
    attack = {"plugin": "fgsm", "params": {"epsilon": 0.4, "targeted": targeted}}
    result = transfer(victim, surrogate, x, labels, attack)
    change = 0.4 * (ours @ theirs.sign())
    torch.testing.assert_close(result.adversarial, x - 0.4 * theirs.sign())
    assert torch.equal(result.success, x @ ours < change)
    assert torch.equal(result.surrogate_success > 0, x @ theirs < 0.4 * theirs.abs().sum())
    assert {bool(won) for won in result.success} == {True, False}
    assert (result.queries == 2).all()


def test_success_is_what_the_victim_says_about_the_returned_tensor() -> None:
    victim, surrogate, x = network(), shaken(network()), images(40)
    labels = predicted(victim, x)
    job = Recorder()
    attack = {"plugin": "pgd", "params": {"epsilon": 0.2, "confidence": 100.0}}
    result = transfer(victim, surrogate, x, labels, attack, job)
    assert torch.equal(result.success, predicted(victim, result.adversarial) != labels)
    told = predicted(surrogate, result.adversarial) != labels
    assert torch.equal(result.surrogate_success > 0, told)
    torch.testing.assert_close(result.adversarial_logits, victim(result.adversarial))
    assert (result.distance_linf <= 0.2).all()
    wrong = torch.nonzero(predicted(surrogate, x) != labels).flatten().tolist()
    assert 0 < len(wrong) < 40
    assert [rows for rows, message in job.warnings if "as it is" in message] == [wrong]
    assert torch.equal(result.adversarial[wrong], x[wrong])


def test_rows_that_the_victim_has_wrong_are_returned_unchanged() -> None:
    victim, surrogate, x = network(seed=0), network(seed=0), images(4)
    labels = predicted(victim, x)
    labels[1] = (labels[1] + 1) % 5
    result = transfer(victim, surrogate, x, labels, "pgd")
    assert result.initially_correct.tolist() == [1, 0, 1, 1]
    assert torch.equal(result.adversarial[1], x[1])
    assert (result.distance_linf > 0).tolist() == [True, False, True, True]


def test_warnings_of_the_attack_keep_their_rows() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total * 0 + 1, total], 1)

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total * 0 + 1, total.sign()], 1)

    x = torch.full((3, 4), 0.1)
    x[0] = 0.9  # the victim names another class
    job = Recorder()
    zeros = torch.zeros(3, dtype=torch.int64)
    transfer(classifier(Sum(), (4,)), classifier(Deaf(), (4,)), x, zeros, "bim", job)
    assert [rows for rows, message in job.warnings if message.startswith("bim: ")] == [[1, 2]]


def test_a_search_that_goes_on_beyond_the_boundary_transfers_better() -> None:
    victim, surrogate, x = network(), shaken(network()), images(48)
    labels = predicted(victim, x)
    keep = predicted(surrogate, x) == labels
    x, labels = x[keep], labels[keep]
    rates = []
    for confidence in (0.0, 1000.0):
        params = {"epsilon": 0.06, "confidence": confidence}
        result = transfer(victim, surrogate, x, labels, {"plugin": "mi_fgsm", "params": params})
        assert float(result.surrogate_success.mean()) > 0.5
        rates.append(float(result.success.double().mean()))
    assert rates[1] > rates[0] + 0.1


def test_confidence_is_the_margin_at_which_a_row_leaves() -> None:
    model, x = network(), images(16)
    labels = predicted(model, x)
    margins, queries = [], []
    for confidence in (0.0, 0.02, 1e6):
        params = MIFGSM.params_type(epsilon=0.3, confidence=confidence)
        batch = Batch(x, Targets.classes(labels), tuple(range(16)))
        result = MIFGSM().run(model, batch, params, Job())
        own = result.adversarial_logits.gather(1, labels[:, None])[:, 0]
        others = result.adversarial_logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        assert torch.equal(result.success, others > own)
        assert result.success.all()
        margins.append(others - own)
        queries.append(result.queries)
    assert (margins[1] > 0.02).all()
    assert (margins[0] < margins[2]).all()
    assert (queries[0] <= queries[1]).all()
    assert (queries[2] == 2 * 10 + 3).all()


def test_tensors_reach_the_attack_or_are_refused() -> None:
    victim, surrogate, x = network(seed=0), network(seed=0), images(3)
    labels = predicted(victim, x)
    box = {"lower": (x - 0.3).clamp(0, 1), "upper": (x + 0.01).clamp(0, 1)}
    result = transfer(victim, surrogate, x, labels, "pgd", None, **box)
    assert (result.adversarial <= box["upper"]).all()
    assert float((x - result.adversarial).max()) > 0.05
    with pytest.raises(InvalidRequest) as caught:
        transfer(victim, surrogate, x, labels, "deepfool", None, **box)
    assert caught.value.violations[0].field in ("tensors.lower", "tensors.upper")
    with pytest.raises(InvalidRequest, match=r"tensors\.upper: a box needs both"):
        transfer(victim, surrogate, x, labels, "pgd", None, lower=box["lower"])


def test_models_of_other_classes_are_refused() -> None:
    victim, x = classifier(nn.Linear(4, 3), (4,)), torch.rand(1, 4)
    surrogate = classifier(nn.Linear(4, 2), (4,))
    with pytest.raises(InvalidRequest, match="has 2 classes, and model 3") as caught:
        transfer(victim, surrogate, x, torch.tensor([0]), "pgd")
    assert caught.value.violations[0].field == "models.surrogate"


def test_a_served_victim_that_only_predicts_is_attacked_through_another_model(
    tmp_path: Path,
) -> None:
    victim = loaded(perturbing.network(), "runtime", tmp_path)
    surrogate = loaded(perturbing.network(), "scripted", tmp_path)
    x = perturbing.images(4)
    labels = perturbing.network()(x).argmax(1)
    models = {"victim": victim, "near": surrogate}
    with serve(None, models) as address, interpret_client.connect(address) as client:
        params = {"attack": {"plugin": "pgd", "params": {"epsilon": 0.2}}}
        call: dict[str, Any] = {"target": labels.tolist(), "params": params, "seed": 0}
        result = client.run("transfer", "victim", x.numpy(), models={"surrogate": "near"}, **call)
        found = torch.from_numpy(result.tensors["adversarial"])
        again = perturbing.network()(found).argmax(1)
        assert result.tensors["success"].tolist() == (again != labels).tolist()
        assert any(result.tensors["success"])
        with pytest.raises(interpret_client.FailedPrecondition) as caught:
            client.run("transfer", "near", x.numpy(), models={"surrogate": "victim"}, **call)
        assert "params.attack.plugin: pgd requires gradient" in str(caught.value)
        call["params"] = {"attack": {"plugin": "pgd", "params": {"epsilon": 1e-6}}}
        with pytest.raises(interpret_client.InvalidRequest, match=r"attack\.params\.epsilon"):
            client.run("transfer", "victim", x.numpy(), models={"surrogate": "near"}, **call)
