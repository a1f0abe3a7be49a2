"""What the loaders promise by themselves, without a sandbox.

Loading an ONNX file or a torch.export archive runs no code of the file. A TorchScript archive is
code, from which only a sandbox protects.
"""

import os
from pathlib import Path

import pytest

from .bait import Bait
from .bare import Job, runners
from .corpus import files
from .kinds import HostileFile
from .outcome import HUNG, Outcome, faults

ALL = os.environ.get("INTERPRET_HOSTILE") == "all"
SECONDS = 20  # of computing, for one file

FILES = {
    name: item for name, item in files().items() if not item.runs_code and (ALL or not item.slow)
}
Results = dict[str, tuple[Outcome, list[str]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The outcome of every file, and what it did to its bait."""
    folder = tmp_path_factory.mktemp("hostile")
    baits = {name: Bait(folder / "bait" / name) for name in FILES}
    jobs = []
    for name, item in FILES.items():
        baits[name].lay()
        path = item.write(folder / "repository", baits[name])
        jobs.append(Job(str(path), item.manifest, SECONDS))
    with runners() as running:
        outcomes = running.run(jobs)
    return {
        name: (outcome, baits[name].damage()) for name, outcome in zip(FILES, outcomes, strict=True)
    }


@pytest.mark.parametrize("item", FILES.values(), ids=FILES)
def test_a_file_is_refused_in_words_or_answers_right(item: HostileFile, results: Results) -> None:
    outcome, damage = results[item.name]
    assert not damage
    steps = outcome.steps.values()
    if item.slow and any(step.code == HUNG for step in steps):
        pytest.skip("it computes for longer than a test may take")
    assert not faults(item, outcome), outcome.summary()
    assert "load" in outcome.steps


def test_the_corpus_can_be_written_to_a_folder(tmp_path: Path) -> None:
    names = ("onnx-hard-link", "torchscript-load-endless", "exported-code-as-size")
    bait = Bait(tmp_path / "bait")
    bait.lay()
    for name in names:
        path = files()[name].write(tmp_path / "repository", bait)
        assert path.stat().st_size > 100
        assert path.parent.parent.joinpath("model.toml").read_text().startswith("shape = [4]")
    assert not bait.damage()
