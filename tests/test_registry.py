"""Where plugins come from, and what stops a start-up."""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
from torch import Tensor

from interpret_server.plugin import Kind, Params, Plugin, Rows, output
from interpret_server.registry import PluginLoadError, Registry, summary

FILE = '''
from dataclasses import dataclass
from torch import Tensor
from interpret_server.plugin import Kind, Params, Plugin, output

class {title}Params(Params):
    scale: float = 1.0

@dataclass(frozen=True)
class {title}Result:
    images: Tensor = output("scaled inputs")

class {title}(Plugin[{title}Params, {title}Result]):
    """Scales its inputs."""

    name = "{name}"
    kind = Kind.SYNTHESIS

    def run(self, model, batch, params, job):
        return {title}Result(batch.inputs * params.scale)
'''


class EchoParams(Params):
    pass


@dataclass(frozen=True)
class EchoResult:
    images: Tensor = output("the inputs")


class Echo(Plugin[EchoParams, EchoResult]):
    """Gives back its inputs.

    In more words.
    """

    name = "echo"
    kind = Kind.SYNTHESIS

    def run(self, model, batch, params, job):
        return EchoResult(batch.inputs)


def write(folder: Path, file: str, name: str = "scale") -> None:
    (folder / file).write_text(FILE.format(title=name.title(), name=name))


def test_a_plugin_is_added_as_a_class_or_as_an_instance():
    registry = Registry()
    registry.add(Echo, "here", "1.2")
    assert registry.names() == ("echo",)
    assert len(registry) == 1
    entry = registry.get("echo")
    assert entry is not None
    assert (entry.origin, entry.version) == ("here", "1.2")
    assert registry.get("other") is None
    instance = Echo()
    another = Registry()
    another.add(instance, "here")
    assert next(iter(another)).plugin is instance
    assert summary(Echo) == "Gives back its inputs."


def test_a_plugins_own_version_comes_first():
    class Versioned(Echo):
        """Knows its version."""

        version = "9"

    registry = Registry()
    registry.add(Versioned, "here", "1.2")
    assert next(iter(registry)).version == "9"


def test_a_taken_name_is_refused_naming_both():
    registry = Registry()
    registry.add(Echo, "first")
    with pytest.raises(PluginLoadError, match="second: Echo has the name 'echo', taken by first"):
        registry.add(Echo, "second")


class FutureApi(Echo):
    """Written for another contract."""

    api = 99


class Nameless(Plugin[EchoParams, EchoResult]):
    """Has no name."""

    kind = Kind.METRIC

    def run(self, model, batch, params, job):
        return EchoResult(batch.inputs)


class BadName(Echo):
    """Has a name with a space."""

    name = "e cho"


class Kindless(Plugin[EchoParams, EchoResult]):
    """Has no kind."""

    name = "kindless"

    def run(self, model, batch, params, job):
        return EchoResult(batch.inputs)


class Undocumented(Echo):
    name = "undocumented"


class Untyped(Plugin):
    """Does not say what its parameters are."""

    name = "untyped"
    kind = Kind.METRIC

    def run(self, model, batch, params, job):
        return None


class BadResult(Plugin[EchoParams, dict]):
    """Returns a dictionary."""

    name = "bad_result"
    kind = Kind.METRIC

    def run(self, model, batch, params, job):
        return {}


class BadRows(Echo):
    """Has rows of its own."""

    rows = "some"


class BadTensors(Echo):
    """Declares tensors in words."""

    tensors: ClassVar = {"mask": "a mask"}


class Unmakable(Echo):
    """Needs an argument."""

    def __init__(self, path):
        self.path = path


class Abstract(Plugin[EchoParams, EchoResult]):
    """Has no run."""

    name = "abstract"
    kind = Kind.METRIC


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (FutureApi, "is written for version 99 of the plugin contract; this server has 1"),
        (Nameless, "has no `name`"),
        (BadName, "has the name 'e cho'"),
        (Kindless, "has no `kind`; choose one of Kind.ATTRIBUTION"),
        (Undocumented, "has no docstring"),
        (Untyped, "derive it from Plugin[YourParams, YourResult]"),
        (BadResult, "has a result type that is not a dataclass"),
        (BadRows, "none of Rows.INDEPENDENT, Rows.GROUP, Rows.COLLECTION"),
        (BadTensors, "declares `tensors` that are not AuxTensor"),
        (Unmakable, "Unmakable cannot be made: TypeError"),
        (Abstract, "Abstract cannot be made: TypeError"),
        (Rows, "Rows is not a subclass of interpret_server.plugin.Plugin"),
        ("echo", "'echo' is not a subclass"),
    ],
)
def test_a_plugin_that_lacks_a_part_is_refused_with_what_it_lacks(plugin, told):
    with pytest.raises(PluginLoadError, match=re.escape(told)) as caught:
        Registry().add(plugin, "somewhere 1.0")
    assert str(caught.value).startswith("somewhere 1.0: ")


def test_a_folder_gives_the_plugins_of_its_files(tmp_path):
    write(tmp_path, "one.py", "one")
    write(tmp_path, "two.py", "two")
    write(tmp_path, "_helper.py", "three")
    (tmp_path / "notes.txt").write_text("no plugin")
    registry = Registry()
    registry.add_folder(tmp_path)
    assert [(entry.plugin.name, entry.origin) for entry in registry] == [
        ("one", "one.py"),
        ("two", "two.py"),
    ]


def test_files_of_one_name_in_two_folders_do_not_mix(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    registry = Registry()
    for folder in folders:
        folder.mkdir()
        write(folder, "mine.py", f"from_{folder.name}")
        registry.add_folder(folder)
    assert registry.names() == ("from_a", "from_b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module_at_all", "bad.py: the file does not load: ModuleNotFoundError"),
        ("def", "bad.py: the file does not load: SyntaxError"),
        ("x = 1", "bad.py: the file defines no subclass of Plugin"),
        ("from interpret_server.plugin import Plugin", "bad.py: the file defines no subclass"),
    ],
)
def test_a_file_that_gives_no_plugin_stops_the_start_up(tmp_path, text, told):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PluginLoadError, match=re.escape(told)):
        Registry().add_folder(tmp_path)


def test_a_missing_folder_stops_the_start_up(tmp_path):
    with pytest.raises(PluginLoadError, match="does not exist"):
        Registry().add_folder(tmp_path / "nowhere")


def point(name: str, value: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(name, value, "interpret_server.plugins")


def installed(monkeypatch, *points):
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    return Registry.installed()


def test_an_entry_point_that_does_not_load_stops_the_start_up(monkeypatch):
    with pytest.raises(PluginLoadError, match=r"'gone' \(no_such_module:Gone\) does not load"):
        installed(monkeypatch, point("gone", "no_such_module:Gone"))


def test_an_entry_point_must_agree_with_the_plugins_name(monkeypatch):
    with pytest.raises(PluginLoadError, match="'other' loads a plugin that calls itself 'echo'"):
        installed(monkeypatch, point("other", f"{__name__}:Echo"))


def test_an_entry_point_of_no_distribution_is_named_so(monkeypatch):
    registry = installed(monkeypatch, point("echo", f"{__name__}:Echo"))
    assert next(iter(registry)).origin == "an unknown distribution"


def test_every_installed_plugin_loads_under_its_own_name():
    registry = Registry.installed()
    points = metadata.entry_points(group="interpret_server.plugins")
    assert set(registry.names()) == {item.name for item in points}
    assert "saliency" in registry.names()
    assert {entry.origin for entry in registry} >= {"interpret-server"}
    assert all(entry.version for entry in registry)
