"""Random faults in good files: always a refusal in words, or an answer."""

from pathlib import Path

import pytest

from .bare import Job, runners
from .kinds import CALM
from .mutations import good, mutated
from .outcome import DIED, OK, Outcome, untyped

SEEDS = range(100)  # of each format
SECONDS = 20  # of computing, for one file


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Outcome]:
    """By format and seed; seed -1 is the good file."""
    folder, jobs = tmp_path_factory.mktemp("mutations"), {}
    for suffix in ("pt", "onnx", "pt2"):
        for seed in (-1, *SEEDS):
            path: Path = folder / f"{seed}.{suffix}"
            path.write_bytes(good(suffix) if seed < 0 else mutated(suffix, seed))
            jobs[suffix, seed] = Job(str(path), seconds=SECONDS)
    with runners() as running:
        return dict(zip(jobs, running.run(list(jobs.values())), strict=True))


@pytest.mark.parametrize("suffix", ["pt", "onnx", "pt2"])
def test_faults_are_refused_in_words_or_leave_a_model_that_answers(
    suffix: str, outcomes: dict[tuple[str, int], Outcome]
) -> None:
    wrong, answered = [], 0
    for seed in SEEDS:
        steps = outcomes[suffix, seed].steps
        assert steps, seed
        for name, step in steps.items():
            if step.code == DIED and suffix == "pt":
                continue  # of code of the file, from which only a sandbox protects
            wrong += [] if step.code == OK else [f"{seed} {name}: {u}" for u in untyped(step)]
        answered += steps.get("predict", steps["load"]).code == OK
    assert not wrong
    assert 0 < answered < len(SEEDS)


@pytest.mark.parametrize("suffix", ["pt", "onnx", "pt2"])
def test_the_files_are_good_before(suffix: str, outcomes: dict[tuple[str, int], Outcome]) -> None:
    steps = outcomes[suffix, -1].steps
    assert {step.code for step in steps.values()} == {OK}
    assert len(steps["predict"].values) == len(CALM)
    assert mutated(suffix, 3) == mutated(suffix, 3) != mutated(suffix, 4)
