"""What the store decides: Lua, run by Redis in one piece. The arithmetic is rates.Bucket's, on the store's own clock.

A counter has two keys with one hash tag, so that a cluster keeps them in one slot: `sidecar:{caller:web}:rates`, a hash
with, for each rate, when all that was taken will have leaked (GCRA's theoretical arrival time) and since when something
has been in use; and `sidecar:{caller:web}:leases`, a sorted set of slots that are taken, by when each ends. Times are
microseconds since 2025 by the clock of the store, so that no clock of a sidecar matters. Where that clock has gone back
(another server has taken over, with another clock), what is due is moved with it.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from sidecar.store.resp import command

EPOCH: Final = 1_735_689_600  # 2025-01-01: what is counted from then has room for fractions of a microsecond
CLOCK: Final = f"""
local time = redis.call('TIME')
local now = (time[1] - {EPOCH}) * 1000000 + time[2]
"""
_BACK: Final = """
local back = now - (tonumber(redis.call('HGET', KEYS[1], 'at')) or now)
if back < 0 then
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    redis.call('HSET', KEYS[1], all[i], string.format('%.17g', all[i + 1] + back))
  end
end
"""
# KEYS: rates, leases. ARGV: a lease's id, how many there may be (0: as many as like), how long one lasts (us); then of
# each rate its name and how much is to be taken of it: microseconds of its leak, of which there are 60 s.
# Answers (1, now): all of it is taken; (0, which rate, us until there is enough): nothing is; (2, leases): nothing is.
# Behind that, of each rate, the microseconds until all that is taken will have leaked.
_DECIDE: Final = """
local names, set, before, after, last = {}, {}, {}, {}, now
for i = 4, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
  names[#names + 1] = ARGV[i] .. ':since'
end
local got = #names > 0 and redis.call('HMGET', KEYS[1], unpack(names)) or {}
local worst, short = 1, -1
for i = 1, #names, 2 do
  local due, since, amount = tonumber(got[i]) or now, tonumber(got[i + 1]) or now, tonumber(ARGV[i + 4])
  if due <= now then
    due, since = now, now
  end
  before[#before + 1] = due - now
  due = due + amount
  after[#after + 1] = due - now
  if due - now - 60000000 > worst then
    worst, short = due - now - 60000000, (i - 1) / 2
  end
  last = math.max(last, due)
  set[#set + 1] = names[i]
  set[#set + 1] = string.format('%.17g', due)
  set[#set + 1] = names[i + 1]
  set[#set + 1] = string.format('%.17g', since)
end
if short >= 0 then
  return {0, short, math.ceil(worst), unpack(before)}
end
local most, lasts = tonumber(ARGV[2]), tonumber(ARGV[3])
if most > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.17g', now))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], string.format('%.17g', now + 2 * lasts), '+inf')
  local taken = redis.call('ZCARD', KEYS[2])
  if taken >= most then
    return {2, taken, unpack(before)}
  end
  redis.call('ZADD', KEYS[2], string.format('%.17g', now + lasts), ARGV[1])
  redis.call('PEXPIRE', KEYS[2], math.ceil(lasts / 500))
end
if #set > 0 then
  redis.call('HSET', KEYS[1], 'at', string.format('%.17g', now), unpack(set))
  redis.call('PEXPIRE', KEYS[1], math.ceil((last - now) / 1000) + 60000)
end
return {1, now, unpack(after)}
"""
# KEYS: rates. ARGV: when it was reserved, as `decide` answered; then of each rate its name, what was reserved, and what
# was used.
_SETTLE: Final = """
local began, set, last = tonumber(ARGV[1]), {}, 0
for i = 2, #ARGV, 3 do
  local name, reserved, used = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local got = redis.call('HMGET', KEYS[1], name, name .. ':since')
  local due, since = tonumber(got[1]) or now, tonumber(got[2])
  if due <= now then
    due, since = now, now
  end
  if used >= reserved then
    due = due + used - reserved
  elseif since and since <= began then
    due = math.max(due + used - reserved, now)
  end
  last = math.max(last, due)
  set[#set + 1] = name
  set[#set + 1] = string.format('%.17g', due)
  set[#set + 1] = name .. ':since'
  set[#set + 1] = string.format('%.17g', since or now)
end
redis.call('HSET', KEYS[1], 'at', string.format('%.17g', now), unpack(set))
redis.call('PEXPIRE', KEYS[1], math.ceil((last - now) / 1000) + 60000)
return 1
"""
# KEYS: leases. ARGV: how long one lasts (us); the ids of those that are held. One that is not there any more (the store
# was emptied, or came too late) is there again.
_RENEW: Final = """
local ends, set = string.format('%.17g', now + ARGV[1]), {}
for i = 2, #ARGV do
  set[#set + 1] = ends
  set[#set + 1] = ARGV[i]
end
redis.call('ZADD', KEYS[1], unpack(set))
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] / 500))
return 1
"""
# KEYS: sidecars. ARGV: whose heart beats, for how long that holds (us). Answers how many there are.
_BEAT: Final = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.17g', now + 2 * ARGV[2]), '+inf')
redis.call('ZADD', KEYS[1], string.format('%.17g', now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 500))
return redis.call('ZCARD', KEYS[1])
"""


class Script(NamedTuple):
    """A script, and the name that Redis knows it by once it has run there."""

    text: str
    sha: str

    def known(self, *parts: str | bytes | int) -> bytes:
        """The command that runs it where it is known already: answered with NOSCRIPT elsewhere."""
        return command("EVALSHA", self.sha, *parts)

    def whole(self, *parts: str | bytes | int) -> bytes:
        """The command that makes it known, and runs it."""
        return command("EVAL", self.text, *parts)


def script(text: str, clock: str = CLOCK) -> Script:
    """`clock`: how `now` is had."""
    whole = clock + text
    return Script(whole, hashlib.sha1(whole.encode()).hexdigest())  # noqa: S324  # what Redis itself goes by


SOURCES: Final = {"decide": _BACK + _DECIDE, "settle": _BACK + _SETTLE, "renew": _RENEW, "beat": _BEAT}
DECIDE: Final = script(SOURCES["decide"])
SETTLE: Final = script(SOURCES["settle"])
RENEW: Final = script(SOURCES["renew"])
BEAT: Final = script(SOURCES["beat"])
SIDECARS: Final = b"sidecar:sidecars"


class Keys(NamedTuple):
    """Of one counter."""

    rates: bytes
    leases: bytes


def keys(counter: str) -> Keys:
    """`counter`: "caller:web". What stands between the first braces is what a cluster goes by."""
    tag = b"sidecar:{%b}" % counter.encode()
    return Keys(tag + b":rates", tag + b":leases")
