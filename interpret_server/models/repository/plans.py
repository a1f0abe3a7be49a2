"""What a repository asks to be served, as its folders stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import InterpretError, NotFound
from .entries import Entry, version_entry
from .paths import NAME, NAME_RULE, inside, plain, version_folders
from .serving import ON_DEMAND, Serving, read_serving


class Problem(NamedTuple):
    """Why a model, a version or a label cannot be served; `subject` is its name."""

    subject: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What is to be served of one model.

    Args:
        name: of its folder.
        wanted: the versions to serve, oldest first.
        entries: those of them that can be read.
        names: the other names that are to mean a version: `net` and `net@stable` -> version.
        problems: what is wrong.
        on_demand: the versions are loaded when one of its names is first called.
        unreadable: nothing but the problems is known; what is served is to stay.
    """

    name: str
    wanted: tuple[str, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    unreadable: bool = False
    on_demand: bool = False


def address(name: str, version: str) -> str:
    """What a version or a label of a model is called: `net@3`."""
    return f"{name}@{version}"


def scan(root: Path) -> dict[str, Plan]:
    """The plan of every model of a repository, in the order of their names.

    Raises:
        NotFound: the repository is no folder.
    """
    try:
        names = sorted(item.name for item in root.iterdir() if plain(item.name) and item.is_dir())
    except OSError:
        raise NotFound("the model repository is not a folder") from None
    return {name: _plan(root, name) for name in names}


def _plan(root: Path, name: str) -> Plan:
    if not NAME.fullmatch(name):
        message = f"{name[:40]!r} is no model name; use {NAME_RULE}"
        return Plan(name, problems=(Problem(name, message),))
    try:
        versions = [item.name for item in version_folders(inside(root, name))]
        serving = read_serving(root, name)
    except InterpretError as error:
        return Plan(name, problems=(Problem(name, error.message),), unreadable=True)
    except OSError as error:
        message = f"its folder cannot be read: {error.strerror}"
        return Plan(name, problems=(Problem(name, message),), unreadable=True)
    if not versions:
        message = "the model repository has no model file in a version's folder for it"
        return Plan(name, problems=(Problem(name, message),))
    return _of_versions(root, name, versions, serving)


def _of_versions(root: Path, name: str, versions: list[str], serving: Serving) -> Plan:
    wanted, problems = serving.wanted(versions), []
    entries: dict[str, Entry] = {}
    for version in wanted:
        try:
            if not NAME.fullmatch(version):
                raise NotFound(f"{version[:40]!r} is no version; rename the folder to {NAME_RULE}")
            entries[version] = version_entry(root, name, version)
        except InterpretError as error:
            problems.append(Problem(address(name, version), error.message))
        except OSError as error:
            message = f"its files cannot be read: {error.strerror}"
            problems.append(Problem(address(name, version), message))
    for version in serving.missing(versions):
        message = f"versions.serve: there is no such version; there are {', '.join(versions)}"
        problems.append(Problem(address(name, version), message))
    names = {name: serving.default or wanted[-1]} if serving.default or wanted else {}
    for label, version in serving.labels.items():
        if label in versions:
            message = f"versions.labels: {label!r} is a version; choose another label"
            problems.append(Problem(address(name, label), message))
        else:
            names[address(name, label)] = version
    for alias, version in names.items():
        if version not in wanted:
            origin = "versions.default" if alias == name else "versions.labels"
            served = ", ".join(wanted) or "none"
            message = f"{origin}: version {version!r} is not served; served are {served}"
            problems.append(Problem(alias, message))
    on_demand = serving.load == ON_DEMAND
    return Plan(name, wanted, entries, names, tuple(problems), on_demand=on_demand)
