"""
The Lua of shared limits. Each limit is a hash: what is owed of requests and of tokens, and how many requests each
worker may run, until when. Whole numbers only; the time is the caller's, who knows what Redis's clock says, in
milliseconds, and never goes back.

A part is a 60,000th of a request or token, so that each millisecond pays a whole number of them; the largest number
there can be, a limit of 10^9 for an hour, is below 2^53 and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.redis import Away, Redis, Script

SLOTS_MS = 10_000
"""A worker that is not heard of for so long runs nothing any more."""
WORKER_MS = 5_000

_COMMON = """
local now, ttl, worker = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local function read(key)
    local found = redis.call('HMGET', key, 'at', 'r', 't')
    local at = tonumber(found[1]) or now
    if at > now + 60000 then at = now end  -- a clock was wrong: nobody waits for it
    local time = math.max(now, at)
    return time, math.min(time - at, 3600000), tonumber(found[2]) or 0, tonumber(found[3]) or 0
end

local function paid(owed, passed, per_minute)
    if per_minute < 0 then return 0 end
    return math.max(0, owed - passed * per_minute)
end

local function others(key)
    local total, found = 0, redis.call('HGETALL', key)
    for n = 1, #found, 2 do
        if string.sub(found[n], 1, 2) == 'w:' then
            local slots, until_ms = string.match(found[n + 1], '^(%d+) (%d+)$')
            if tonumber(until_ms) <= now then
                redis.call('HDEL', key, found[n])
            elseif found[n] ~= 'w:' .. worker then
                total = total + tonumber(slots)
            end
        end
    end
    return total
end

local function write(key, time, r, t, rpm, tpm, slots)
    redis.call('HSET', key, 'at', string.format('%.0f', time), 'r', string.format('%.0f', r),
        't', string.format('%.0f', t))
    local keep = ttl
    if rpm > 0 then keep = math.max(keep, r / rpm) end
    if tpm > 0 then keep = math.max(keep, t / tpm) end
    if slots >= 0 then
        if slots > 0 then
            redis.call('HSET', key, 'w:' .. worker, string.format('%d %.0f', slots, now + ttl))
        else
            redis.call('HDEL', key, 'w:' .. worker)
        end
    end
    redis.call('PEXPIRE', key, string.format('%.0f', math.min(keep, 86400000) + 1000))
end
"""

LEASE = Script(
    _COMMON
    + """
local function lease(owed, passed, per_minute, size, charge, want, need)
    if per_minute < 0 then return 0, 0, 0, 0 end
    owed = math.max(0, paid(owed, passed, per_minute) + charge * 60000)
    local free = math.max(0, math.floor((size * 60000 - owed) / 60000))
    if free < need then
        local wait = 60000
        if per_minute > 0 then wait = math.ceil((owed + (need - size) * 60000) / per_minute) end
        return owed, 0, free, wait
    end
    local granted = math.min(want, free)
    return owed + granted * 60000, granted, free - granted, 0
end

local told = {}
for place, key in ipairs(KEYS) do
    local asked = {}
    for n = 1, 12 do asked[n] = tonumber(ARGV[3 + (place - 1) * 12 + n]) end
    local time, passed, r, t = read(key)
    local r, r_granted, r_left, r_wait = lease(r, passed, asked[1], asked[2], asked[3], asked[4], asked[5])
    local t, t_granted, t_left, t_wait = lease(t, passed, asked[6], asked[7], asked[8], asked[9], asked[10])
    local slots = -1
    if asked[11] >= 0 then slots = math.max(0, math.min(asked[12], asked[11] - others(key))) end
    write(key, time, r, t, asked[1], asked[6], slots)
    for _, number in ipairs({r_granted, r_left, r_wait, t_granted, t_left, t_wait, slots}) do
        told[#told + 1] = number
    end
end
return told
"""
)

TAKE = Script(
    _COMMON
    + """
local tokens, states, told = tonumber(ARGV[4]), {}, {1}
for place, key in ipairs(KEYS) do
    local asked = {}
    for n = 1, 6 do asked[n] = tonumber(ARGV[4 + (place - 1) * 6 + n]) end
    local time, passed, r, t = read(key)
    r, t = paid(r, passed, asked[1]), paid(t, passed, asked[3])
    local function refuse(kind, wait)
        local r_left, t_left = math.floor(asked[2] - r / 60000), math.floor(asked[4] - t / 60000)
        return {0, place - 1, kind, wait, math.max(0, r_left), math.max(0, t_left)}
    end
    if asked[5] >= 0 and asked[6] > asked[5] - others(key) then return refuse(3, 0) end
    if asked[1] >= 0 then
        local missing = r + 60000 - asked[2] * 60000
        if missing > 0 then return refuse(1, asked[1] > 0 and math.ceil(missing / asked[1]) or 60000) end
        r = r + 60000
    end
    if asked[3] >= 0 then
        local taken = math.min(tokens, math.max(1, asked[4])) * 60000
        local missing = t + taken - asked[4] * 60000
        if missing > 0 then return refuse(2, asked[3] > 0 and math.ceil(missing / asked[3]) or 60000) end
        t = t + taken
    end
    states[place] = {time, r, t, asked}
    told[#told + 1] = math.max(0, math.floor(asked[2] - r / 60000))
    told[#told + 1] = math.max(0, math.floor(asked[4] - t / 60000))
end
for place, key in ipairs(KEYS) do
    local time, r, t, asked = unpack(states[place])
    write(key, time, r, t, asked[1], asked[3], asked[5] >= 0 and asked[6] or -1)
end
return told
"""
)

ALIVE = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[1]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {redis.call('ZCARD', KEYS[1]), now}
"""
)


class Asked(NamedTuple):
    """What a worker asks of one limit. -1 for a rate or a number of slots that is not limited."""

    key: str
    rpm: int
    requests_size: int
    requests_charge: int
    """Used already without a lease; below zero: given back."""
    requests_want: int
    requests_need: int
    """Less than this is no use: then nothing is granted."""
    tpm: int
    tokens_size: int
    tokens_charge: int
    tokens_want: int
    tokens_need: int
    max_parallel: int
    slots: int
    """How many requests this worker wants to be able to run."""


class Granted(NamedTuple):
    requests: int
    requests_left: int
    requests_wait_ms: int
    tokens: int
    tokens_left: int
    tokens_wait_ms: int
    slots: int


async def lease(redis: Redis, now_ms: int, worker: str, asked: Sequence[Asked]) -> list[Granted]:
    """For each limit what is granted. Raises Away."""
    arguments: list[int | str] = [now_ms, SLOTS_MS, worker]
    for one in asked:
        arguments += one[1:]
    told = await redis.run(LEASE, [one.key for one in asked], arguments)
    width = len(Granted._fields)
    if len(told) != width * len(asked):
        raise Away
    return [Granted(*told[at : at + width]) for at in range(0, len(told), width)]


async def take(
    redis: Redis, now_ms: int, worker: str, tokens: int, keys: Sequence[str], numbers: Sequence[int]
) -> list[int]:
    """
    All of it, or nothing. `numbers`, for each key: rpm, its burst, tpm, its burst, the most in parallel, how many run
    here with this one. Told: 1 and what is left (requests, tokens) for each key; or 0, which key, of what (1 requests,
    2 tokens, 3 parallel), how many milliseconds to wait, what is left. Raises Away.
    """
    told = await redis.run(TAKE, keys, [now_ms, SLOTS_MS, worker, tokens, *numbers])
    if len(told) != (1 + 2 * len(keys) if told and told[0] else 6):
        raise Away
    return told


async def say_alive(redis: Redis, worker: str, key: str) -> tuple[int, int]:
    """How many workers were heard of lately, this one included; and what time it is for Redis. Raises Away."""
    told = await redis.run(ALIVE, [key], [WORKER_MS, worker])
    if len(told) != 2:
        raise Away
    return max(1, told[0]), told[1]
