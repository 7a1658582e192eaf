"""As much of kustomize as envoy/kubernetes uses: no package offers it, and `kubectl` is not on every machine.

Whatever else a kustomization.yaml says is refused. Where there is a `kubectl`, a test holds the two against each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

_MEMBERS: Final = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions", "patches"}
Objects = dict[tuple[str, str], Any]  # by kind and name


def render(folder: Path) -> Objects:
    """The objects that `kubectl kustomize` makes of a folder."""
    found = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert found.keys() <= _MEMBERS, found.keys() - _MEMBERS
    assert found.get("generatorOptions") in (None, {"disableNameSuffixHash": True})
    objects: Objects = {}
    for name in found["resources"]:
        objects |= render(folder / name) if (folder / name).is_dir() else _read(folder / name)
    for generator in found.get("configMapGenerator", ()):
        made = _config_map(folder, **generator)
        assert (generator.get("behavior") == "replace") is (_id(made) in objects)
        objects[_id(made)] = made
    for patch in found.get("patches", ()):
        assert patch.keys() == {"target", "path"}
        assert patch["target"].keys() == {"kind"}
        (target,) = (each for (kind, _), each in objects.items() if kind == patch["target"]["kind"])
        for operation in yaml.safe_load((folder / patch["path"]).read_text()):
            _apply(target, **{name.replace("from", "source"): value for name, value in operation.items()})
    return objects


def _read(file: Path) -> Objects:
    return {_id(each): each for each in yaml.safe_load_all(file.read_text())}


def _id(found: Any) -> tuple[str, str]:
    return found["kind"], found["metadata"]["name"]


def _config_map(folder: Path, *, name: str, files: list[str], behavior: str = "create") -> Any:
    assert behavior in ("create", "replace")
    data = {each: (folder / each).read_text() for each in files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _apply(target: Any, *, op: str, path: str, value: Any = None, source: str = "") -> None:
    """An operation of RFC 6902."""
    if op == "move":
        place, key = _place(target, source)
        value = place.pop(key)
    place, key = _place(target, path)
    if op == "test":
        assert place[key] == value
    elif op == "replace":
        assert place[key] is not None
        place[key] = value
    else:
        assert op in ("add", "move")
        if isinstance(place, list):
            place.insert(key, value)
        else:
            place[key] = value


def _place(target: Any, pointer: str) -> tuple[Any, Any]:
    """What an RFC 6901 pointer leads into, and the key or index there."""
    *steps, last = (step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])
    for step in steps:
        target = target[int(step) if isinstance(target, list) else step]
    if isinstance(target, list):
        return target, len(target) if last == "-" else int(last)
    return target, last
