"""Methods are compared as each metric judges them alone; through a real server too."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import SHAPE, Recorder, batch_of, eager, images, network, run
from pydantic import ValidationError
from torch import Tensor

import interpret_client
from interpret_plugins.metrics.compare import Compare, _ranks
from interpret_plugins.metrics.deletion import Deletion
from interpret_plugins.metrics.infidelity import Infidelity
from interpret_plugins.metrics.judged import JudgeParams
from interpret_plugins.metrics.localisation import Localisation
from interpret_plugins.metrics.max_sensitivity import MaxSensitivity
from interpret_server.engine.api import Call, Result, Target
from interpret_server.engine.arrays import to_array
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.engine.workers.nursery import Limits
from interpret_server.errors import InvalidRequest
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Batch, Job, Kind, Plugin, metric
from interpret_server.testing import serve
from interpret_server.testing.subjects import Bare

IG = {"plugin": "integrated_gradients", "params": {"steps": 8}}
METHODS = ["saliency", "input_x_gradient", IG]


def test_metrics_say_what_they_say_alone_and_rank() -> None:
    model, batch = eager(network().double()), batch_of(images().double())
    job = Recorder()
    metrics = ["deletion", "infidelity", {"plugin": "max_sensitivity", "params": {"samples": 3}}]
    found = run(Compare(), model, batch, job, methods=METHODS, metrics=metrics)
    assert job.totals == [3 * 4]
    names = ["saliency", "input_x_gradient", "integrated_gradients"]
    assert list(found.attributions) == list(found.mean_rank) == names
    alone = (
        (Deletion(), "deletion.area", {}),
        (Infidelity(), "infidelity.infidelity", {}),
        (MaxSensitivity(), "max_sensitivity.max_sensitivity", {"samples": 3}),
    )
    table = []
    for plugin, number, params in alone:
        column = []
        for name, method in zip(names, METHODS, strict=True):
            expected = run(plugin, model, batch, method=method, **params)
            score = getattr(expected, number.partition(".")[2])
            torch.testing.assert_close(found.scores[f"{name}.{number}"], score)
            torch.testing.assert_close(found.attributions[name], expected.attributions)
            column.append(score)
        ranks = torch.stack(column, 1).argsort(1).argsort(1) + 1.0
        for place, name in enumerate(names):
            torch.testing.assert_close(found.ranks[f"{name}.{number}"], ranks[:, place].double())
        table.append(ranks)
    means = torch.stack(table).mean(0)
    torch.testing.assert_close(torch.stack(list(found.mean_rank.values()), 1), means.double())
    assert torch.equal(found.best.long(), means.argmin(1))


def test_high_values_are_good_for_some_metrics_and_a_mask_is_handed_on() -> None:
    mask = torch.zeros(3, *SHAPE[1:])
    mask[:, :3] = 1
    model, batch = eager(network()), batch_of(images(), mask=mask)
    found = run(Compare(), model, batch, methods=METHODS[:2], metrics=["localisation"])
    energy = [run(Localisation(), model, batch, method=method).energy for method in METHODS[:2]]
    first = found.ranks["saliency.localisation.energy"]
    assert torch.equal(first == 1, energy[0] > energy[1])
    assert set(found.scores) == {
        f"{method}.localisation.{number}"
        for method in METHODS[:2]
        for number in ("energy", "rank_accuracy", "iou")
    }


def test_equal_methods_share_their_ranks_and_get_numbers() -> None:
    model, batch = eager(network()), batch_of(images())
    found = run(
        Compare(), model, batch, methods=["saliency", "saliency", "saliency"], metrics=["deletion"]
    )
    assert list(found.attributions) == ["saliency", "saliency_2", "saliency_3"]
    assert all(rank.tolist() == [2, 2, 2] for rank in found.mean_rank.values())
    values = torch.tensor([[3.0, 1.0, 2.0, 1.0 + 1e-7]])
    assert _ranks(values).tolist() == [[4, 1.5, 3, 1.5]]


@dataclass(frozen=True)
class MuteResult:
    number: Tensor = metric("A number.")


class Mute(Plugin[JudgeParams, MuteResult]):
    """Says nothing about which numbers are good."""

    name = "mute"
    kind = Kind.METRIC

    def run(self, model: Classifier, batch: Batch, params: JudgeParams, job: Job) -> MuteResult:
        return MuteResult(batch.inputs.flatten(1).sum(1))


class Knowing(Job):
    def find(self, name: str) -> Plugin[Any, Any] | None:
        return Mute() if name == "mute" else super().find(name)


def test_metrics_that_cannot_rank_and_too_few_methods_are_refused() -> None:
    model, batch = eager(network()), batch_of(images())
    with pytest.raises(InvalidRequest, match=r"params.*: mute does not say whether low or high"):
        run(Compare(), model, batch, Knowing(), metrics=["mute"])
    with pytest.raises(ValidationError, match="at least 2"):
        run(Compare(), model, batch, methods=["saliency"])


def predicting() -> Classifier:
    """A classifier that has scores and nothing else."""
    return Bare(eager(network()), frozenset({Capability.SCORES}))


def test_served_calls_check_record_and_repeat() -> None:
    params = {"methods": ["saliency", "occlusion"], "metrics": ["deletion", "insertion"]}
    x = images(2).numpy()
    with (
        serve(models={"net": eager(network()), "predicting": predicting()}) as address,
        interpret_client.connect(address) as client,
    ):
        found = client.run("compare", "net", x, target=[1, 3], params=params, seed=4)
        assert set(found.tensors) >= {"attributions.saliency", "attributions.occlusion"}
        assert set(found.metrics) >= {
            "best",
            "mean_rank.saliency",
            "scores.occlusion.insertion.area",
            "ranks.saliency.deletion.area",
        }
        recorded = found.provenance.params
        recorded = json.loads(recorded) if isinstance(recorded, str) else dict(recorded)
        again = client.run("compare", "net", x, target=[1, 3], params=recorded, seed=4)
        assert found.metrics.keys() == again.metrics.keys()
        for name, numbers in found.metrics.items():
            assert list(again.metrics[name]) == list(numbers)
        with pytest.raises(
            interpret_client.FailedPrecondition,
            match=r"params\.methods\.0\.plugin: saliency requires",
        ):
            client.run("compare", "predicting", x, target=[1, 3], params=params)
        black = {"methods": ["occlusion", "feature_ablation"], "metrics": ["deletion"]}
        client.run("compare", "predicting", x, target=[1, 3], params=black)
        with pytest.raises(
            interpret_client.InvalidRequest,
            match=r"params\.metrics\.0\.plugin: .*'mask'.*not given",
        ):
            client.run("compare", "net", x, params={"metrics": ["pointing_game"]})


async def answer(fleet: Fleet, call: Call) -> Result:
    last = [event async for event in fleet.run(call)][-1]
    assert isinstance(last, Result)
    return last


async def test_metrics_run_in_a_sandboxed_worker(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        torch.jit.script(network()).save(str(tmp_path / "net.pt"))
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1), "layout": "CHW"})
    mask = torch.ones(2, *SHAPE[1:])
    mask[:, 3:] = 0
    calls = {
        "deletion": {"method": IG},
        "insertion": {"fill": "blur"},
        "road": {"method": {"plugin": "rise", "params": {"masks": 50}}},
        "infidelity": {},
        "max_sensitivity": {},
        "randomisation": {},
        "pointing_game": {},
        "compare": {"methods": METHODS, "metrics": ["randomisation", "localisation", "road"]},
    }
    x, targets = to_array(images(2)), tuple(Target("class", (index,)) for index in (1, 3))
    fleet = Fleet(devices=("cpu",), limits=Limits(threads=1, memory_bytes=16 << 30))
    try:
        await fleet.start()
        await fleet.load("net", tmp_path / "net.pt", manifest)
        before = await answer(fleet, Call("net", "_predict", inputs=x))
        for name, params in calls.items():
            tensors = {"mask": to_array(mask)} if name in ("pointing_game", "compare") else {}
            text = json.dumps(params)
            call = Call("net", name, text, x, targets, (4,), tensors)
            found = await answer(fleet, call)
            assert found.metrics
            assert any(item.startswith("attributions") for item in found.tensors)
        after = await answer(fleet, Call("net", "_predict", inputs=x))
        assert bytes(before.tensors["logits"].data) == bytes(after.tensors["logits"].data)
    finally:
        await fleet.close(0.0)
