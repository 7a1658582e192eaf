"""A model's name becomes a plan: the targets to try, in order, each in the dialect it will be asked in. Pure."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import quote

import msgspec

from sidecar import config
from sidecar.dialects import CONVERSATIONS
from sidecar.errors import UnknownModel, Unsupported
from sidecar.providers import ROWS, resolve
from sidecar.types import Caller, Target, Upstream
from sidecar.wire import body
from sidecar.wire.http1 import head_lines

_MOST_PLANS: Final = 4096  # remembered; names come from clients, so there are bounds, on their length too
_MOST_CHARACTERS: Final = 512  # of a name
_NEAR: Final = 5
_COMPARED: Final = 200  # names that an unknown one is compared with
_PLACE: Final = "{model}"  # in a base URL: where the model's name stands in the path, as with Azure's deployments


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The names one configuration knows."""

    upstreams: dict[str, Upstream]
    aliases: dict[str, tuple[str, ...]]  # of [models]
    plans: dict[tuple[str, str], tuple[Target, ...]] = {}  # remembered, by name and dialect


def build(settings: config.Config) -> Routes:
    """Resolve everything that does not depend on a request."""
    return Routes(
        upstreams={name: resolve(name, table) for name, table in settings.providers.items()},
        aliases={name: table.targets for name, table in settings.models.items()},
        plans={},
    )


def plan(routes: Routes, asked: str, dialect: str) -> tuple[Target, ...]:
    """The targets for a model name, in order. Raises UnknownModel; Unsupported when none can serve the dialect."""
    found = routes.plans.get((asked, dialect))
    if found is not None:
        return found
    _check(asked)
    targets, skipped = _targets(routes, asked, dialect)
    if not targets:
        raise Unsupported("; ".join(skipped), param="model")
    if len(routes.plans) >= _MOST_PLANS:
        routes.plans.clear()
    routes.plans[(asked, dialect)] = targets
    return targets


def allowed(caller: Caller, asked: str) -> bool:
    """May this caller ask for this name? Patterns as `fnmatch` has them. Raises UnknownModel for what is no name."""
    _check(asked)
    return any(asked == name or fnmatchcase(asked, name) for name in caller.models)


def models(routes: Routes) -> list[str]:
    """The names for GET /v1/models: aliases, and the models they name."""
    names = dict.fromkeys(routes.aliases)
    names.update(dict.fromkeys(target for targets in routes.aliases.values() for target in targets))
    return list(names)


def explain(routes: Routes, asked: str, dialect: str) -> list[str]:
    """The plan in words, a line each: for `sidecar explain`. Raises UnknownModel."""
    targets, skipped = _targets(routes, asked, dialect)
    lines = [f"{asked} ({dialect}): {'failover over ' if len(targets) > 1 else ''}{len(targets)} target(s)"]
    for number, target in enumerate(targets, 1):
        up = target.upstream
        way = "as it is" if target.dialect == dialect else f"translated to {target.dialect}"
        where = f"unix:{up.origin.unix}" if up.origin.unix else f"{up.origin.scheme}://{up.host.decode()}"
        lines.append(f"{number}. {up.name}/{target.model}  {way}, {where}{up.paths[target.dialect].partition('?')[0]}")
        lines.append(f"   why: {target.why}")
        limits = [
            f"{up.requests_per_minute} requests/min" if up.requests_per_minute else "",
            f"{up.concurrency} at once" if up.concurrency else "",
        ]
        lines.append(f"   limits: {', '.join(filter(None, limits)) or 'none of ours'}")
        times = up.timeouts
        lines.append(
            f"   times: connect {times.connect:g} s, first byte {times.first_byte:g} s"
            f" (unary {times.first_byte_unary:g} s), idle {times.idle:g} s, total {times.total:g} s"
        )
        if up.missing_key:
            lines.append(f"   key: MISSING, {up.missing_key}")
        else:
            lines.append(
                f"   key: {'the callers own' if up.forward_caller_key else 'set' if up.auth else 'none needed'}"
            )
    lines += [f"-  skipped: {why}" for why in skipped]
    return lines


def _check(asked: str) -> None:
    """A name goes into headers, logs and messages: nothing else may hide in it."""
    if len(asked) > _MOST_CHARACTERS:
        raise UnknownModel(
            f"the model's name has {len(asked)} characters; at most {_MOST_CHARACTERS} are taken", param="model"
        )
    if not asked.isprintable():
        raise UnknownModel("the model's name has characters that are not printable", param="model")


def _targets(routes: Routes, asked: str, dialect: str) -> tuple[tuple[Target, ...], list[str]]:
    targets: list[Target] = []
    skipped: list[str] = []
    for upstream, model, why in _candidates(routes, asked):
        spoken = _spoken(upstream, dialect)
        if spoken is None:
            skipped.append(f"provider {upstream.name} does not serve {dialect}")
        else:
            targets.append(_target(_placed(upstream, model), model, spoken, why))
    return tuple(targets), skipped


def _target(upstream: Upstream, model: str, dialect: str, why: str) -> Target:
    stamp = [
        (b"cache-control", b"private, no-store"),  # what was made for one key is nobody else's
        (b"x-sidecar-cache", b"off"),
        (b"x-sidecar-provider", upstream.name.encode("latin-1", "replace")),
        (b"x-sidecar-model", model.encode("latin-1", "replace")),
    ]
    return Target(
        upstream=upstream,
        model=model,
        dialect=dialect,
        path=upstream.paths[dialect].encode(),
        raw_model=body.raw(model),
        stamp=head_lines(stamp),
        why=why,
    )


def _placed(upstream: Upstream, model: str) -> Upstream:
    """The upstream with the model's name in its paths, where they have a place for it: one segment, whatever it is."""
    if not any(_PLACE in path for path in upstream.paths.values()):
        return upstream
    if not model.strip("."):
        raise UnknownModel(f"the model {model!r} cannot stand in a path", param="model")
    segment = quote(model, safe="")
    paths = {dialect: path.replace(_PLACE, segment) for dialect, path in upstream.paths.items()}
    return msgspec.structs.replace(upstream, paths=paths)


def _candidates(routes: Routes, asked: str) -> list[tuple[Upstream, str, str]]:
    """Every (provider, model, why) a name stands for, in order."""
    if (names := routes.aliases.get(asked)) is not None:
        place = f"target of [models.{asked}]"
        return [(*_split(routes, name), place) for name in names]
    head, slash, model = asked.partition("/")
    if slash and model and head in routes.upstreams:
        return [(routes.upstreams[head], model, "named as provider/model")]
    owners = [up for up in routes.upstreams.values() if any(fnmatchcase(asked, pattern) for pattern in _known(up))]
    if len(owners) == 1:
        return [(owners[0], asked, f"a known name of {owners[0].kind}, and only one such provider is configured")]
    if owners:
        ways = " or ".join(f"{up.name}/{asked}" for up in owners)
        raise UnknownModel(
            f"the model {asked!r} is known to more than one configured provider: ask for {ways}", param="model"
        )
    raise UnknownModel(_unknown(routes, asked), param="model")


def _split(routes: Routes, name: str) -> tuple[Upstream, str]:
    """`provider/model` of a configured alias; config.load has checked that the provider is there."""
    head, _, model = name.partition("/")
    return routes.upstreams[head], model


def _known(upstream: Upstream) -> tuple[str, ...]:
    return ROWS[upstream.kind].known


def _spoken(upstream: Upstream, dialect: str) -> str | None:
    """The dialect to ask a provider in: the client's own where it speaks it, else one that can be translated to."""
    if dialect in upstream.paths:
        return dialect
    if dialect in CONVERSATIONS:
        return next((other for other in upstream.paths if other in CONVERSATIONS), None)
    return None


def _unknown(routes: Routes, asked: str) -> str:
    providers = ", ".join(routes.upstreams) or "none"
    names = models(routes)[:_COMPARED]
    head, slash, model = asked.partition("/")
    if slash and model:
        names += [f"{name}/{model}" for name in difflib.get_close_matches(head.lower(), routes.upstreams, n=_NEAR)]
    near = difflib.get_close_matches(asked, names, n=_NEAR)
    hint = f"near it are {', '.join(near)}" if near else f"ask for provider/model (providers: {providers})"
    return f"the model {asked!r} is not configured; {hint}"
