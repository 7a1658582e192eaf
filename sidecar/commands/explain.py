"""`sidecar explain`: the whole plan that a model name gets."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sidecar import routing
from sidecar.cache import fit
from sidecar.commands.telling import Options, fail, loaded
from sidecar.config import Config, Limits, Model
from sidecar.errors import SidecarError
from sidecar.rates import KINDS
from sidecar.types import Target


def run(options: Options) -> int:
    found = loaded(options.config)
    if found is None:
        return 2
    try:
        lines = explain(found.config, options.model, options.dialect)
    except SidecarError as error:
        return fail(error.message, 1)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def explain(config: Config, asked: str, dialect: str) -> list[str]:
    """The plan in words, a line each. Raises UnknownModel and Unsupported."""
    plan = routing.find(routing.build(config), asked, dialect)
    count = len(plan.targets)
    lines = [f"{asked} ({dialect}): {f'{plan.policy} over ' if count > 1 else ''}{count} target(s)"]
    for number, target in enumerate(plan.targets, 1):
        up = target.upstream
        way = "as it is" if target.dialect == dialect else f"translated to {target.dialect}"
        where = f"unix:{up.origin.unix}" if up.origin.unix else f"{up.origin.scheme}://{up.host.decode()}"
        lines.append(f"{number}. {target.key}  {way}, {where}{up.paths[target.dialect].partition('?')[0]}")
        lines += [f"   {line}" for line in _target(plan, target, config)]
    lines += [f"-  {line}" for line in _settings(plan, config)]
    lines.append(f"-  cache: {_cache(plan, config, dialect)}")
    lines += [f"-  skipped: {why}" for why in plan.skipped]
    return lines


def _target(plan: routing.Plan, target: Target, config: Config) -> Iterator[str]:
    up, table = target.upstream, config.providers[target.upstream.name]
    yield f"why: {target.why}"
    equals = [each.weight for each in plan.targets if each.order == target.order]
    if plan.policy == "weighted" or plan.affinity is not None:
        yield f"weight: {target.weight} of {sum(equals)}"
    if len(equals) < len(plan.targets):
        yield f"order: {target.order}"
    if target.tags:
        yield f"tags: {', '.join(sorted(target.tags))}"
    if target.params:
        yield f"sets: {', '.join(f'{name} = {bytes(value).decode()}' for name, value in target.params)}"
    limits = [
        *_rates(table.limits),
        f"{up.concurrency} at once" if up.concurrency else "",
        "as many at once as it takes (adaptive)" if table.limits.adaptive else "",
    ]
    yield f"limits: {', '.join(filter(None, limits)) or 'none of ours'}"
    times = up.timeouts
    yield (
        f"times: connect {times.connect:g} s, first byte {times.first_byte:g} s"
        f" (unary {times.first_byte_unary:g} s), idle {times.idle:g} s, total {times.total:g} s"
    )
    breaker = table.breaker
    yield (
        f"breaker: left alone after {breaker.consecutive_failures} failures in a row,"
        f" for {breaker.open_seconds:g} s and up to {breaker.max_open_seconds:g} s"
    )
    yield f"key: {_key(target)}"


def _rates(table: Limits | Model) -> list[str]:
    kinds = ("requests_per_minute", *(name for name, _, _ in KINDS))
    return [
        f"{most} {kind.removesuffix('_per_minute').replace('_', ' ')}/min"
        for kind in kinds
        if (most := getattr(table, kind))
    ]


def _key(target: Target) -> str:
    up = target.upstream
    if up.missing_key:
        return f"MISSING, {up.missing_key}"
    if len(up.auths) > 1:
        return f"{len(up.auths)} in turn"
    return "the callers own" if up.forward_caller_key else "set" if up.auth else "none needed"


def _cache(plan: routing.Plan, config: Config, dialect: str) -> str:
    """Whether answers are cached, for how long, and which are not; or why none is."""
    settings, seconds = config.cache, plan.cache_seconds
    if not seconds:
        never = plan.model.cache_ttl_seconds == 0
        return f"off: {'cache_ttl_seconds of the model is 0' if never else '[cache] has no ttl_seconds'}"
    if dialect not in fit.DIALECTS:
        return f"off: {fit.REASONS['dialect']}"
    hottest = settings.temperature_max
    told = [f"answers are given again for {seconds:g} s"]
    if settings.stale_seconds and dialect != "embeddings":
        told.append(f"then for {settings.stale_seconds:g} s while a new one is asked for")
    if hottest < fit.HOTTEST and dialect != "embeddings":
        unsaid = " (without one it is 1)" if hottest < 1 else ""
        told.append(f"those to a temperature above {hottest:g} are not{unsaid}")
    return "; ".join(told)


def _settings(plan: routing.Plan, config: Config) -> Iterator[str]:
    """What holds for the plan as a whole, each by its condition."""
    model, retry = plan.model, config.retry
    if rates := _rates(model):
        yield f"limits of [models.{plan.table}]: {', '.join(rates)}, of all callers together"
    if len(plan.targets) > 1:
        yield f"falls back on: {', '.join(model.fallback_on) or 'nothing'}"
    if plan.affinity is not None:
        yield f"affinity: sessions by the header {plan.affinity.decode()}"
    if model.tags:
        yield f"tags: only targets with {', '.join(model.tags)}"
    if retry.attempts:
        yield (
            f"retries: {retry.attempts} at the same target, after up to {retry.base_seconds:g} s, doubled each time up"
            f" to {retry.cap_seconds:g} s, or as the provider says up to {retry.max_wait_seconds:g} s;"
            f" at most {retry.budget_percent:g} % of the requests under way, and {retry.budget_minimum} always"
        )
    if plan.policy == "hedge":
        after = (
            f"{model.hedge_after_seconds:g} s" if model.hedge_after_seconds else "the rolling p95 of the first token"
        )
        yield f"hedge: the next target too after {after}, for at most {model.hedge_budget_percent:g} % of requests"
    if model.coalesce:
        yield "coalesce: equal requests of one caller at one time are one"
    if model.continuation:
        yield "continuation: an answer that breaks off goes on at another target"
    if model.keepalive_comment_seconds is not None:
        yield f"keep-alive: a comment every {model.keepalive_comment_seconds:g} s while the provider is silent"
    yield f"held: until the first content, {model.commit_bytes} bytes or {model.commit_seconds:g} s"
