"""The step "cache": an answer that was given before, or one that is to be given again.

A hit costs a look into a dictionary and one write. What is not there is asked for by a flight (misses.py), so that many
who ask the same at once ask a provider one time.
"""

from __future__ import annotations

from typing import Final

from sidecar import request
from sidecar.cache import Cache, Entry, fit
from sidecar.clock import now, wall
from sidecar.exchange import batches, misses
from sidecar.exchange.hits import PIECE, Direct, Hit, give
from sidecar.exchange.misses import Finish, Serve, Way
from sidecar.exchange.state import Exchange, Spine
from sidecar.request import Asking
from sidecar.routing import Plan
from sidecar.types import Client, Endpoint, Envelope, View
from sidecar.wire import headers as rules
from sidecar.wire.body import LONG_BYTES

_MOST_SCOPES: Final = 64  # models that one head is remembered to have asked for


async def answered(exchange: Exchange, cache: Cache, plan: Plan, serve: Serve, finish: Finish) -> bool:
    """Answer a request out of the cache, or have its answer made and kept. False: it is not to be cached."""
    settings, control = exchange.spine.config.cache, exchange.client.index.get(b"x-sidecar-cache")
    why = "asked" if control == b"off" else ""
    why = why or fit.unfit(exchange.endpoint.dialect, exchange.members, settings.temperature_max, plan.targets)
    if why:
        return _not_cached(exchange, cache, why)
    within = scope(exchange, plan)
    if exchange.endpoint.dialect == "embeddings":
        way = Way(cache, plan, serve, finish, 0.0, paced=False)
        if await batches.answered(exchange, way, within, afresh=control == b"refresh"):
            return True
        return _not_cached(exchange, cache, "odd")
    key = fit.key(within, exchange.members, long=exchange.record.bytes_in > LONG_BYTES)
    entry: Entry | None = None
    if control != b"refresh":
        entry = cache.find(key, now()) if cache.find is not None else (await misses.look(exchange, cache, [key]))[0]
    age = 0.0 if entry is None else entry.age(wall())
    seconds, stale, recorded = plan.cache_seconds, settings.stale_seconds, settings.replay == "recorded"
    if entry is None or age >= seconds + stale:
        way = Way(cache, plan, serve, finish, stale, recorded)
        await misses.ask(exchange, cache, lambda alike: misses.fill(alike, way, key))
        return True
    how = exchange.record.cache = "hit" if age < seconds else "stale"
    if how == "stale":
        misses.renew(exchange, Way(cache, plan, serve, finish, stale, recorded), key)
    cache.results[how] += 1
    if (wait := give(exchange, entry, age, paced=recorded)) is not None:
        await wait
    return True


def _not_cached(exchange: Exchange, cache: Cache, why: str) -> bool:
    cache.uncached(why)
    if exchange.asking.explain:
        exchange.trail.append(f"not cached: {fit.REASONS[why]}")
    return False


def scope(exchange: Exchange, plan: Plan) -> bytes:
    """The digest of all but the body: the same for each request with the same head, so it is made once for each."""
    client, known = exchange.client, _scopes(exchange.spine, exchange.client)
    found = known.get(exchange.view.model)
    if found is not None and found[0] is plan:
        return found[1]
    caller, endpoint = exchange.asking.asker.caller, exchange.endpoint
    own = caller is request.ANONYMOUS or any(target.upstream.forward_caller_key for target in plan.targets)
    presented = request.presented(client.headers) if own else None
    parts = (
        caller.name,
        b"" if presented is None else presented[1].digest(),
        endpoint.dialect,
        endpoint.path,
        client.query,
        plan.model.continuation,
    )
    made = fit.scope(parts, rules.upward(client.headers), plan.targets)
    if len(known) >= _MOST_SCOPES:
        known.clear()
    known[exchange.view.model] = (plan, made)
    return made


def _scopes(spine: Spine, client: Client) -> dict[str, tuple[Plan, bytes]]:
    """By the model asked for, of those that a head has asked for under one configuration."""
    noted: tuple[Spine, dict[str, tuple[Plan, bytes]]] | None = client.notes.get("scopes")
    if noted is None or noted[0] is not spine:
        noted = client.notes["scopes"] = (spine, {})
    return noted[1]


def at_once(
    asking: Asking, spine: Spine, endpoint: Endpoint, client: Direct, members: Envelope, view: View, size: int
) -> Hit | None:
    """What is in the cache and fresh, for a request whose like has been answered by `answered`. None: ask that."""
    cache, settings = spine.cache, spine.config.cache
    if cache is None or cache.find is None or not asking.share or asking.explain or not client.plain:
        return None
    known = _scopes(spine, client).get(view.model)
    if known is None or endpoint.dialect == "embeddings" or "models" in members:
        return None
    plan, within = known
    if plan.limited or fit.unfit(endpoint.dialect, members, settings.temperature_max, plan.targets):
        return None
    entry: Entry | None = cache.find(fit.key(within, members, long=False), now())
    age = 0.0 if entry is None else entry.age(wall())
    if entry is None or age >= plan.cache_seconds:
        return None
    if entry.stream and (len(entry.body) > PIECE or (entry.pace and settings.replay == "recorded")):
        return None
    cache.results["hit"] += 1
    return Hit(entry, age, size)
