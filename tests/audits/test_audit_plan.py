"""The plan of an audit: which stages a suite becomes, and what is refused before any runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from interpret_server.audits.plan import Plan, Stage, StageKind, Unit, make_plan
from interpret_server.audits.spec import AuditAttack, AuditSpec, Budget, Threat
from interpret_server.engine.api import InputInfo, ModelInfo, PluginInfo
from interpret_server.engine.describe import describe_classifier, describe_plugin
from interpret_server.errors import FailedPrecondition, InterpretError, InvalidRequest, NotFound
from interpret_server.registry import Registry
from interpret_server.testing import classifier

LINF = (Threat(norm="linf", epsilons=(0.1, 0.3)),)
ALL = tuple(Threat(norm=norm, epsilons=(0.5,)) for norm in ("linf", "l2", "l1"))


@pytest.fixture(scope="module")
def plugins() -> tuple[PluginInfo, ...]:
    return tuple(describe_plugin(item) for item in Registry.installed())


@pytest.fixture(scope="module")
def model() -> ModelInfo:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return describe_classifier("net", classifier(net, (3, 4, 4), input_layout="CHW"), 64)


def planned(
    plugins: Sequence[PluginInfo], model: ModelInfo, samples: int = 10, **fields: Any
) -> Plan:
    return make_plan(AuditSpec(model="net", **fields), model, plugins, samples)


def names(plan: Plan, **wanted: Any) -> list[str]:
    return [
        stage.attack
        for stage in plan.stages
        if all(getattr(stage, name) == value for name, value in wanted.items())
    ]


def without(model: ModelInfo, *capabilities: str) -> ModelInfo:
    lacking = {name: f"the file has no {name}" for name in capabilities}
    return replace(model, capabilities=model.capabilities - set(capabilities), lacking=lacking)


def test_standard_is_autoattack_in_its_published_order_and_the_smallest_change(plugins, model):
    plan = planned(plugins, model, threats=LINF)
    published = ["apgd_cross_entropy", "apgd_targeted", "fab_targeted", "square"]
    for epsilon in (0.1, 0.3):
        assert names(plan, kind=StageKind.ATTACK, epsilon=epsilon) == published
    assert plan.stages[0] == Stage(key="clean", kind=StageKind.CLEAN)
    assert names(plan, kind=StageKind.MINIMAL) == ["fab"]
    square = plan.stage("linf:0.1:square")
    assert square.params == {"norm": "linf", "queries": 5000, "epsilon": 0.1}
    assert not square.gradients
    assert plan.stage("linf:0.1:fab_targeted").gradients
    assert plan.stage("minimal:linf:fab").params == {"norm": "linf"}


@pytest.mark.parametrize("suite", ["quick", "standard", "black_box"])
def test_every_stage_of_a_suite_holds_what_its_plugin_takes(plugins, model, suite):
    plan = planned(plugins, model, suite=suite, threats=ALL, budget=Budget(queries=777))
    registry = {item.plugin.name: item.plugin for item in Registry.installed()}
    for stage in plan.stages[1:]:
        params = registry[stage.plugin].params_type(**stage.params)
        assert params.norm == stage.norm
        assert getattr(params, "epsilon", None) == stage.epsilon
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)


def test_every_corruption_at_five_severities(plugins, model):
    plan = planned(plugins, model, suite="corruption")
    registry = {item.plugin.name: item.plugin for item in Registry.installed()}
    severities: dict[str, list[int]] = {}
    for stage in plan.stages[1:]:
        params = registry[stage.plugin].params_type(**stage.params)
        assert params.corruptions == (stage.attack,)
        severities.setdefault(stage.attack, []).append(params.severity)
    assert len(severities) >= 15
    assert set(map(tuple, severities.values())) == {(1, 2, 3, 4, 5)}


def test_corruptions_are_refused_where_inputs_are_no_images(plugins, model):
    with pytest.raises(InvalidRequest, match="suite: net takes no images"):
        planned(plugins, replace(model, input_shape=(48,)), suite="corruption")


def test_the_check_without_a_radius_is_made_once_where_gradients_are_used(plugins, model):
    plan = planned(plugins, model, samples=200, suite="quick", threats=ALL)
    (unbounded,) = (stage for stage in plan.stages if stage.kind is StageKind.UNBOUNDED)
    assert (unbounded.norm, unbounded.epsilon, unbounded.first_batch) == ("linf", 1.0, True)
    number = plan.stages.index(unbounded)
    assert [unit.batch for unit in plan.units() if unit.stage == number] == [0]
    answers = planned(plugins, model, suite="black_box", threats=ALL)
    assert not names(answers, kind=StageKind.UNBOUNDED)
    assert not any(stage.gradients for stage in answers.stages)


def test_the_check_without_a_radius_is_left_out_where_there_is_no_pgd(plugins, model):
    without_pgd = [item for item in plugins if item.name != "pgd"]
    plan = planned(without_pgd, model, attacks=(AuditAttack(plugin="fgsm"),), threats=LINF)
    assert {stage.kind for stage in plan.stages} == {StageKind.CLEAN, StageKind.ATTACK}


def test_radii_that_look_alike_have_stages_of_their_own(plugins, model):
    close = Threat(norm="linf", epsilons=(0.3, 0.3000001))
    plan = planned(plugins, model, suite="quick", threats=(close,))
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)


def test_attacks_of_the_callers_own_choice_run_in_their_order(plugins, model):
    attacks = (
        AuditAttack(plugin="pgd", name="long", params={"steps": 200}),
        AuditAttack(plugin="hop_skip_jump"),
        AuditAttack(plugin="pgd"),
    )
    plan = planned(plugins, model, attacks=attacks, threats=LINF)
    keys = [stage.key for stage in plan.stages]
    assert keys == [
        "clean",
        "linf:0.1:long",
        "linf:0.1:pgd",
        "linf:0.3:long",
        "linf:0.3:pgd",
        "minimal:linf:hop_skip_jump",
        "unbounded:linf",
    ]
    assert plan.stage("linf:0.3:long").params == {"norm": "linf", "steps": 200, "epsilon": 0.3}


def test_an_attack_that_lacks_one_of_several_norms_is_left_out_there(plugins, model):
    plan = planned(plugins, model, attacks=(AuditAttack(plugin="fgm"),), threats=ALL)
    assert [stage.norm for stage in plan.stages if stage.attack == "fgm"] == ["l2", "l1"]
    assert plan.notes == ("fgm is left out in linf, which it does not know.",)


@pytest.mark.parametrize(
    ("attack", "field"),
    [
        ({"plugin": "universal_perturbation"}, "attacks[1].plugin"),
        ({"plugin": "saliency"}, "attacks[1].plugin"),
        ({"plugin": "spatial"}, "attacks[1].plugin"),
        ({"plugin": "boundary"}, "attacks[1].plugin"),
        ({"plugin": "apgd", "params": {"epsilon": 0.2}}, "attacks[1].params.epsilon"),
        ({"plugin": "apgd", "params": {"norm": "l2"}}, "attacks[1].params.norm"),
        ({"plugin": "apgd", "params": {"targeted": True}}, "attacks[1].params.targeted"),
        ({"plugin": "apgd", "params": {"stepz": 3}}, "attacks[1].params.stepz"),
        ({"plugin": "apgd", "params": {"steps": 0}}, "attacks[1].params.steps"),
        ({"plugin": "apgd", "params": {"steps": "many"}}, "attacks[1].params.steps"),
        (
            {"plugin": "auto_attack", "params": {"attacks": ["fab", "x"]}},
            "attacks[1].params.attacks.1",
        ),
    ],
)
def test_attacks_that_no_audit_can_run_are_refused_by_name(plugins, model, attack, field):
    attacks = (AuditAttack(plugin="pgd"), AuditAttack(**attack))
    with pytest.raises(InvalidRequest) as refused:
        planned(plugins, model, attacks=attacks, threats=LINF)
    assert [item.field for item in refused.value.violations] == [field]


def test_unknown_attacks_are_answered_with_close_names(plugins, model):
    with pytest.raises(NotFound, match=r"attacks\[0\]\.plugin: .*did you mean hop_skip_jump"):
        planned(plugins, model, attacks=(AuditAttack(plugin="hopskipjump"),), threats=LINF)


def test_black_box_on_a_model_that_names_classes_alone(plugins, model):
    bare = without(model, "scores", "gradient")
    plan = planned(plugins, bare, suite="black_box", threats=ALL)
    assert names(plan, norm="linf") == ["random_noise", "hop_skip_jump"]
    assert names(plan, norm="l2") == ["random_noise", "hop_skip_jump", "boundary"]
    assert names(plan, norm="l1") == ["random_noise"]
    assert plan.notes == (
        "square is left out: the file has no scores.",
        "No attack of the suite seeks the smallest change in l1.",
    )


def test_suites_with_gradients_are_refused_without_them_and_the_way_out_is_named(plugins, model):
    with pytest.raises(FailedPrecondition, match=r"the file has no gradient.*black_box"):
        planned(plugins, without(model, "gradient"), threats=LINF)


def test_gradients_are_averaged_where_the_model_answers_at_random(plugins, model):
    plan = planned(plugins, without(model, "deterministic"), threats=LINF)
    assert names(plan, epsilon=0.1) == ["apgd_cross_entropy", "apgd_dlr", "square"]
    assert plan.stage("linf:0.1:apgd_dlr").params["version"] == "random"
    assert "at random" in plan.notes[0]


def test_a_budget_of_queries_binds_attacks_that_need_answers_alone(plugins, model):
    budget = Budget(queries=900)
    plan = planned(plugins, model, suite="black_box", threats=LINF, budget=budget)
    assert plan.stage("linf:0.1:square").params["queries"] == 900
    assert plan.stage("minimal:linf:hop_skip_jump").params["queries"] == 900
    attacks = (
        AuditAttack(plugin="nes"),
        AuditAttack(plugin="spsa", params={"queries": 200}),
        AuditAttack(plugin="square", params={"queries": 2000}),
        AuditAttack(plugin="auto_attack", params={"queries": 2000}),
    )
    plan = planned(plugins, model, attacks=attacks, threats=LINF, budget=budget)
    spent = [stage.params["queries"] for stage in plan.stages if stage.epsilon == 0.1]
    assert spent == [900, 200, 900, 2000]


def test_batches_cover_all_samples_once(plugins, model):
    plan = planned(plugins, model, samples=150, suite="quick", threats=LINF)
    assert (plan.batch_size, plan.batches) == (64, 3)  # the model takes no more at once
    assert [row for batch in range(3) for row in plan.rows(batch)] == list(range(150))
    small = planned(plugins, model, samples=150, suite="quick", threats=LINF, batch_size=40)
    assert (small.batch_size, small.batches) == (40, 4)
    units = list(small.units())
    assert units == sorted(units)
    assert units[0] == Unit(0, 0)
    assert len(units) == 4 * (len(small.stages) - 1) + 1


@pytest.mark.parametrize(
    ("change", "fields", "error", "message"),
    [
        ({"bounds": None}, {}, FailedPrecondition, "states no bounds"),
        ({"logits_from": "values"}, {}, InvalidRequest, "names no class"),
        (
            {"inputs": (InputInfo("ids", "tokens", (7,), "int64"),)},
            {},
            InvalidRequest,
            "several inputs or tokens",
        ),
        ({"bounds": (0.0, 255.0)}, {}, InvalidRequest, r"threats\[0\]\.epsilons: 0\.1 is under"),
        (
            {},
            {"threats": (Threat(norm="linf", epsilons=(0.1, 8.0)),)},
            InvalidRequest,
            "8 is more than the width",
        ),
    ],
)
def test_what_makes_no_sense_for_a_model_is_refused(plugins, model, change, fields, error, message):
    with pytest.raises(error, match=message):
        planned(plugins, replace(model, **change), **{"threats": LINF, **fields})


def test_a_small_radius_may_be_confirmed(plugins, model):
    wide = replace(model, bounds=(0.0, 255.0))
    plan = planned(plugins, wide, suite="quick", threats=LINF, confirm_small_epsilon=True)
    assert plan.stage("linf:0.1:pgd").params["confirm_small_epsilon"] is True


def test_no_samples_are_refused(plugins, model):
    with pytest.raises(InterpretError, match="no samples"):
        planned(plugins, model, samples=0, threats=LINF)


def test_a_plan_survives_storage(plugins, model):
    plan = planned(plugins, model, threats=ALL)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
