"""What [models] may say: names and their targets, wildcards, tags, and members of the body."""

from __future__ import annotations

import re
from datetime import date, datetime, time
from math import isfinite
from typing import Any, Final

from sidecar.config.faults import HEADER, Reading, dotted, nearest
from sidecar.config.locate import Path
from sidecar.config.structs import Config, Model, Target

_NAME: Final = re.compile(r"[!-~]{1,256}")  # goes into logs, metrics and JSON
_NOT_PARAMS: Final = ("model", "stream")  # what the plan and the client decide
_WHOLE: Final = range(-(2**63), 2**64)  # as far as every reader of JSON goes


def check_models(config: Config, reading: Reading) -> None:
    """Tell the reading every fault of [models]."""
    for name, model in config.models.items():
        _model(("models", name), model, config, reading)


def named(path: Path, reading: Reading, name: str | None = None) -> None:
    """A name (by default the last of the path) is plain, so that it can stand in logs, metrics and headers."""
    name = str(path[-1]) if name is None else name
    if not _NAME.fullmatch(name):
        reading.fault(path, f"the name {name!r} has spaces or characters beyond ASCII, or no or too many")


def check_tags(path: Path, wanted: tuple[str, ...], config: Config, reading: Reading) -> None:
    """Tags that a caller's targets must have: each is one of a provider or a target."""
    known = {tag for provider in config.providers.values() for tag in provider.tags}
    known |= {
        tag
        for model in config.models.values()
        for target in model.targets
        if isinstance(target, Target)
        for tag in target.tags
    }
    for index, tag in enumerate(wanted):
        if tag not in known:
            reading.fault((*path, index), f'"{tag}" is a tag of no provider and of no target{nearest(tag, known)}')


def _model(path: Path, model: Model, config: Config, reading: Reading) -> None:
    name = str(path[-1])
    named(path, reading)
    if name.count("*") > 1:
        reading.fault(path, f'the name "{name}" has more than one *')
    if not model.targets:
        reading.fault((*path, "targets"), f"[{dotted(path)}] needs a target, as provider/model")
    for index, target in enumerate(model.targets):
        where: Path = (*path, "targets", index)
        _to(where, target if isinstance(target, str) else target.to, name, reading)
        if isinstance(target, Target):
            for number, tag in enumerate(target.tags):
                named((*where, "tags", number), reading, tag)
            _params((*where, "params"), target.params, reading)
    if model.affinity_header is not None and not HEADER.fullmatch(model.affinity_header):
        message = f"{dotted(path)}.affinity_header: {model.affinity_header!r} is not a header's name"
        reading.fault((*path, "affinity_header"), message)
    _filter(path, model, config, reading)
    _idle(path, model, reading)


def _to(path: Path, target: str, name: str, reading: Reading) -> None:
    """A target names a configured provider and a model, or has a place for what a wildcard matched."""
    providers, models = (reading.raw.get(table) for table in ("providers", "models"))
    assert isinstance(models, dict)
    known = providers if isinstance(providers, dict) else {}
    provider, slash, model = target.partition("/")
    where = path if reading.stands(path) else path[:-1]
    if not _NAME.fullmatch(target):
        reading.fault(where, f"the target {target!r} has spaces or characters beyond ASCII, or no or too many")
    elif slash and model and provider in known:
        if "*" in model and "*" not in name:
            one = f'the target "{target}" stands for many models, and the name "{name}" for one'
            reading.fault(where, f'{one}: name a model, or put a * into the name, as [models."{target}"]')
        elif model.count("*") > 1:
            reading.fault(where, f'the target "{target}" has more than one *')
    elif target in models:
        reading.fault(where, f'the target "{target}" is itself a name of [models]; name a provider/model')
    elif not slash or not model:
        reading.fault(where, f'the target "{target}" is not of the form provider/model')
    else:
        reading.fault(where, f'the target "{target}" names no configured provider{nearest(provider, known)}')


def _params(path: Path, params: dict[str, Any], reading: Reading) -> None:
    for name, value in params.items():
        here = (*path, name)
        if name in _NOT_PARAMS:
            reading.fault(here, f'{dotted(here)}: "{name}" is not for params: the target and the client say it')
        elif problem := _unwritable(value):
            reading.fault(here, f"{dotted(here)}: {problem}")


def _unwritable(value: Any) -> str | None:
    """Why something that TOML has cannot be said in JSON."""
    match value:
        case dict():
            return next(filter(None, map(_unwritable, value.values())), None)
        case list():
            return next(filter(None, map(_unwritable, value)), None)
        case date() | datetime() | time():
            return "JSON has no dates and times: write it as a string"
        case float() if not isfinite(value):
            return "JSON has no nan and no inf"
        case int() if value not in _WHOLE:
            return "a whole number of so many digits: write it as a string"
    return None


def _filter(path: Path, model: Model, config: Config, reading: Reading) -> None:
    """The tags of a model leave one of its targets at least."""
    if not model.tags or not model.targets or any(each[:2] == path for each in reading.broken):
        return
    each = [_tags(target, config) for target in model.targets]
    known = set().union(*each)
    for index, tag in enumerate(model.tags):
        if tag not in known:
            message = f'no target of [{dotted(path)}] has the tag "{tag}", nor its provider{nearest(tag, known)}'
            reading.fault((*path, "tags", index), message)
    if known.issuperset(model.tags) and not any(tags.issuperset(model.tags) for tags in each):
        reading.fault((*path, "tags"), f"no target of [{dotted(path)}] has all of these tags, with its provider's")


def _tags(target: str | Target, config: Config) -> frozenset[str]:
    to, own = (target, ()) if isinstance(target, str) else (target.to, target.tags)
    provider = config.providers.get(to.partition("/")[0])
    return frozenset(own).union(provider.tags if provider is not None else ())


def _idle(path: Path, model: Model, reading: Reading) -> None:
    """Options that do nothing under the policy are warned of: they were meant to."""
    if model.policy != "hedge":
        for option in ("hedge_after_seconds", "hedge_budget_percent"):
            if reading.stands((*path, option)):
                reading.warn((*path, option), f'{dotted(path)}.{option} does nothing without policy = "hedge"')
    if model.policy == "weighted" or model.affinity_header is not None:
        return
    for index, _ in enumerate(model.targets):
        if reading.stands(here := (*path, "targets", index, "weight")):
            reading.warn(here, f'{dotted(here)} does nothing without policy = "weighted" or an affinity_header')
