"""A model's name becomes a plan: the targets to try, in order, each in the dialect it will be asked in. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import groupby
from math import log1p
from typing import Final
from urllib.parse import quote

import msgspec

from sidecar import config
from sidecar.dialects import CONVERSATIONS
from sidecar.errors import ModelForbidden, UnknownModel, Unsupported
from sidecar.providers import ROWS, resolve
from sidecar.types import Caller, Target, Upstream
from sidecar.wire import body
from sidecar.wire.heads import head_lines

_MOST_PLANS: Final = 4096  # remembered; names come from clients, so there are bounds, on their length too
_MOST_CHARACTERS: Final = 512  # of a name
_NEAR: Final = 5
_COMPARED: Final = 200  # names that an unknown one is compared with
_PLACE: Final = "{model}"  # in a base URL: where the model's name stands in the path, as with Azure's deployments


_PLAIN: Final = config.Model(targets=())  # the settings of a name that is not of [models]
_ANY: Final[frozenset[str]] = frozenset()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's name stands for in one dialect."""

    name: str
    targets: tuple[Target, ...]  # by `order`, then as they stand in the file; of these `order` makes the order to try
    policy: str
    model: config.Model  # the settings of [models.X], or the defaults
    fallback_on: frozenset[str]
    affinity: bytes | None = None  # the header that a session is known by, in lower case
    skipped: tuple[str, ...] = ()  # why what is missing here is missing
    cache_seconds: float = 0.0  # that its answers are given again; 0: they are not cached
    table: str = ""  # the name in [models] that it goes by, where there is one
    limited: bool = False  # its caller has limits of tokens, or its table has limits of any kind
    plain: bool = True  # its answers are neither shared, nor cached, nor kept alive with comments


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """A name of [models] with a `*` in it, which stands for one character or more."""

    name: str
    prefix: str
    suffix: str

    def part(self, asked: str) -> str:
        """What the `*` stands for in a name; nothing where the name does not match."""
        if asked.startswith(self.prefix) and asked.endswith(self.suffix):
            return asked[len(self.prefix) : len(asked) - len(self.suffix)]
        return ""


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The names one configuration knows."""

    upstreams: dict[str, Upstream]
    models: dict[str, config.Model]
    patterns: tuple[Pattern, ...]  # those with the longest text before their `*` first
    tags: dict[str, tuple[str, ...]]  # of each upstream
    plans: dict[tuple[str, str, frozenset[str]], Plan]  # remembered, by name, dialect and the caller's tags
    cache_seconds: float = 0.0  # of models that say nothing themselves


class Candidate(msgspec.Struct, frozen=True):
    """A provider and a model that a name stands for, before it is known in which dialect they are asked."""

    upstream: Upstream
    model: str
    why: str
    said: config.Target | None = None  # what else [models] says of it


def build(settings: config.Config) -> Routes:
    """Resolve everything that does not depend on a request."""
    patterns = [
        Pattern(name=name, prefix=prefix, suffix=suffix)
        for name in settings.models
        for prefix, star, suffix in [name.partition("*")]
        if star
    ]
    patterns.sort(key=lambda each: (-len(each.prefix), -len(each.suffix)))
    return Routes(
        upstreams={name: resolve(name, table) for name, table in settings.providers.items()},
        models=settings.models,
        patterns=tuple(patterns),
        tags={name: table.tags for name, table in settings.providers.items()},
        plans={},
        cache_seconds=settings.cache.ttl_seconds or 0.0,
    )


def plan(routes: Routes, asked: str, dialect: str) -> tuple[Target, ...]:
    """The targets for a model name, in order. Raises UnknownModel; Unsupported when none can serve the dialect."""
    return find(routes, asked, dialect).targets


def find(routes: Routes, asked: str, dialect: str, tags: frozenset[str] = _ANY) -> Plan:
    """The plan for a model name, of targets that have all the `tags` (a caller's).

    Raises UnknownModel; Unsupported when none can serve the dialect; ModelForbidden when none that can has the tags.
    """
    found = routes.plans.get((asked, dialect, tags))
    if found is not None:
        return found
    _check(asked)
    found = _plan(routes, asked, dialect, tags)
    if len(routes.plans) >= _MOST_PLANS:
        routes.plans.clear()
    routes.plans[(asked, dialect, tags)] = found
    return found


def order(
    plan: Plan,
    ready: Callable[[Target], bool],
    least: Callable[[Sequence[Target]], int],
    random: Callable[[], float],
    affinity: bytes | None = None,
) -> list[Target]:
    """The targets of a plan in the order to try them: each once.

    Lower `order` goes first; among equals the policy decides, or the session, where the plan has an `affinity` header
    and the client sent it. `least` picks one of several by its index, `random` is uniform in [0, 1). Targets that are
    not `ready` stand behind all that are, ordered alike: who comes to them knows that there is nobody else.
    """
    up: list[Target] = []
    down: list[Target] = []
    for target in plan.targets:
        (up if ready(target) else down).append(target)
    ordered: list[Target] = []
    for side in (up, down):
        for _, equals in groupby(side, key=_order):
            ordered += _among(plan, list(equals), least, random, affinity)
    return ordered


def _order(target: Target) -> int:
    return target.order


def _among(
    plan: Plan,
    equals: list[Target],
    least: Callable[[Sequence[Target]], int],
    random: Callable[[], float],
    affinity: bytes | None,
) -> list[Target]:
    if len(equals) == 1:
        return equals
    if affinity is not None and plan.affinity is not None:
        return sorted(equals, key=lambda target: _late(target, _share(affinity, target)))
    if plan.policy == "weighted":
        return sorted(equals, key=lambda target: _late(target, random()))
    if plan.policy == "least-latency":
        return [equals.pop(least(equals)) for _ in range(len(equals))]
    return equals  # failover; hedge too, which asks the next one earlier


def _late(target: Target, drawn: float) -> float:
    """When a target's turn comes, if turns come at random at the rate of its weight: an exponential distribution.

    Sorted by it, targets are drawn by weight without replacement; and with a draw that depends on the target alone,
    one more target takes its own share from the others and moves nothing else (weighted rendezvous hashing).
    """
    return -log1p(-drawn) / target.weight


def _share(session: bytes, target: Target) -> float:
    digest = sha256(b"%b\0%b" % (session, target.key.encode())).digest()  # no header's value has a zero byte
    return (int.from_bytes(digest[:8]) >> 11) / 2**53  # as many bits as a float keeps, so that it is below 1


def allowed(caller: Caller, asked: str) -> bool:
    """May this caller ask for this name? Patterns as `fnmatch` has them. Raises UnknownModel for what is no name."""
    _check(asked)
    return any(asked == name or fnmatchcase(asked, name) for name in caller.models)


def models(routes: Routes) -> list[str]:
    """The names for GET /v1/models: of [models], and of what they stand for, but for those that stand for many."""
    targets = (target for model in routes.models.values() for target in model.targets)
    names = [*routes.models, *(target if isinstance(target, str) else target.to for target in targets)]
    return [name for name in dict.fromkeys(names) if "*" not in name]


def _check(asked: str) -> None:
    """A name goes into headers, logs and messages: nothing else may hide in it."""
    if len(asked) > _MOST_CHARACTERS:
        raise UnknownModel(
            f"the model's name has {len(asked)} characters; at most {_MOST_CHARACTERS} are taken", param="model"
        )
    if not asked.isprintable():
        raise UnknownModel("the model's name has characters that are not printable", param="model")


def _plan(routes: Routes, asked: str, dialect: str, tags: frozenset[str]) -> Plan:
    table, candidates = _candidates(routes, asked)
    model = routes.models.get(table, _PLAIN)
    targets: list[Target] = []
    skipped: list[str] = []
    served = False
    for each in candidates:
        target = _target(routes, each, dialect)
        if target is None:
            skipped.append(f"provider {each.upstream.name} does not serve {dialect}")
        elif missing := [tag for tag in model.tags if tag not in target.tags]:
            skipped.append(f"{target.key} has not the tag {missing[0]} of its model's")
        elif not tags <= target.tags:
            served = True
            skipped.append(f"{target.key} has not all tags of its caller's")
        else:
            targets.append(target)
    if not targets and served:
        raise ModelForbidden(f"this key may use the model {asked!r} at no provider that serves it", param="model")
    if not targets:
        raise Unsupported("; ".join(skipped), param="model")
    header, cached = model.affinity_header, model.cache_ttl_seconds
    cache_seconds = routes.cache_seconds if cached is None else cached
    return Plan(
        name=asked,
        table=table,
        targets=tuple(sorted(targets, key=_order)),
        policy=model.policy,
        model=model,
        fallback_on=frozenset(model.fallback_on),
        affinity=header.lower().encode() if header is not None else None,
        skipped=tuple(skipped),
        cache_seconds=cache_seconds,
        plain=not model.coalesce and not cache_seconds and model.keepalive_comment_seconds is None,
    )


def _target(routes: Routes, candidate: Candidate, dialect: str) -> Target | None:
    """The target in the dialect it is asked in; None when its provider can serve neither it nor a translation."""
    name, model, said = candidate.upstream.name, candidate.model, candidate.said
    spoken = _spoken(candidate.upstream, dialect)
    if spoken is None:
        return None
    upstream = _placed(candidate.upstream, model)
    stamp = [
        (b"cache-control", b"private, no-store"),  # what was made for one key is nobody else's
        (b"x-sidecar-cache", b"off"),
        (b"x-sidecar-provider", name.encode("latin-1", "replace")),
        (b"x-sidecar-model", model.encode("latin-1", "replace")),
    ]
    said = said if said is not None else config.Target(to="")
    return Target(
        upstream=upstream,
        model=model,
        dialect=spoken,
        path=upstream.paths[spoken].encode(),
        raw_model=body.raw(model),
        stamp=head_lines(stamp),
        why=candidate.why,
        key=f"{name}/{model}",
        weight=said.weight,
        order=said.order,
        params=tuple((member, body.raw(value)) for member, value in said.params.items()),
        tags=frozenset((*said.tags, *routes.tags[name])),
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


def _candidates(routes: Routes, asked: str) -> tuple[str, list[Candidate]]:
    """The table of [models] that a name goes by ("": none), and everything it stands for, in order.

    A name of [models] stands before all else. Then the pattern that says most of the name from its beginning, of which
    `provider/*` is one that every provider has; then the names that providers are known for.
    """
    if asked in routes.models and "*" not in asked:
        return _configured(routes, asked, "")
    head, slash, model = asked.partition("/")
    plain = bool(slash and model and head in routes.upstreams)
    for pattern in routes.patterns:
        if plain and len(pattern.prefix) <= len(head):
            break
        if part := pattern.part(asked):
            return _configured(routes, pattern.name, part)
    if plain:
        return "", [Candidate(routes.upstreams[head], model, "named as provider/model")]
    owners = [up for up in routes.upstreams.values() if any(fnmatchcase(asked, pattern) for pattern in _known(up))]
    if len(owners) == 1:
        why = f"a known name of {owners[0].kind}, and only one such provider is configured"
        return "", [Candidate(owners[0], asked, why)]
    if owners:
        ways = " or ".join(f"{up.name}/{asked}" for up in owners)
        raise UnknownModel(
            f"the model {asked!r} is known to more than one configured provider: ask for {ways}", param="model"
        )
    raise UnknownModel(_unknown(routes, asked), param="model")


def _configured(routes: Routes, name: str, part: str) -> tuple[str, list[Candidate]]:
    """What a name of [models] stands for, `part` in the place of the `*`; config.load has checked that it is there."""
    why = f'target of [models."{name}"]' if part else f"target of [models.{name}]"
    candidates = []
    for target in routes.models[name].targets:
        said = config.Target(to=target) if isinstance(target, str) else target
        head, _, model = said.to.partition("/")
        candidates.append(Candidate(routes.upstreams[head], model.replace("*", part), why, said))
    return name, candidates


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
