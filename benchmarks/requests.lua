-- The requests that wrk sends. Arguments: `lookup`, `post`, `commit` or `trigger`, the number of rows, a stamp, and
-- where there is one, a bearer token.
-- lookup: random entities. post: a heartbeat for one living entity after the other; the stamp, in microseconds since
-- 1970, is position and time, so that no event is ever behind its entity's row. The ids are those of rows.py.

local ALIVE, STEP = 91, 611953
local KEYS = 10000 -- workflows; commit goes through all of them, one version up each time
local NODES = 2000 -- trigger goes through all of them, each time with the next of TRIGGERS
local TRIGGERS = {
  [0] = '"type":"node.introspected","data":{"node_type":"compute","capabilities":{"cpu":16,"tags":["rack-7"]}}',
  [1] = '"type":"node.registration_acked"',
  [2] = '"type":"node.deregistered"',
}
local HEAD = " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
local format, floor, random = string.format, math.floor, math.random
local what, rows, alive, stamp
local second, second_text
local count = -1 -- wrk asks for one request that it does not send, to see how they are made

local function entity(number)
  return format("%08x-0000-4000-8000-%012x", number * 618033989 % 4294967296, number)
end

local function time(us)
  local s = floor(us / 1000000)
  if s ~= second then
    second, second_text = s, os.date("!%Y-%m-%dT%H:%M:%S", s)
  end
  return format("%s.%06dZ", second_text, us % 1000000)
end

function init(args)
  what, rows, stamp = args[1], tonumber(args[2]), tonumber(args[3])
  alive = rows / 100 * ALIVE
  if args[4] and #args[4] > 0 then HEAD = HEAD .. "Authorization: Bearer " .. args[4] .. "\r\n" end
  math.randomseed(stamp % 2147483647)
end

local function lookup()
  return "GET /v1/entities/" .. entity(random(0, rows - 1)) .. HEAD .. "\r\n"
end

local function post()
  stamp = stamp + 1
  local number = stamp % alive * STEP % alive
  local body = format(
    '{"event_id":"%08x-%04x-4%03x-9%03x-%012x","type":"node.heartbeat","entity_id":"%s",'
      .. '"position":{"sequence":%d},"occurred_at":"%s"}',
    random(0, 4294967295), random(0, 65535), random(0, 4095), random(0, 4095), random(0, 281474976710655),
    entity(floor(number / ALIVE) * 100 + number % ALIVE), stamp, time(stamp))
  return "POST /v1/events" .. HEAD .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local function commit()
  local number = count < 0 and 0 or count
  local key, version = number % KEYS, floor(number / KEYS) + 1
  local body = format(
    '{"state":{"step":%d},"provenance":{"effect_id":"bench","timestamp":"2026-01-01T00:00:00Z"}}', number)
  count = count + 1
  return "PUT /v1/workflows/bench-" .. key .. HEAD .. 'If-Match: "' .. version .. '"\r\n'
    .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local function trigger()
  local number = count < 0 and 0 or count
  local at, id = stamp + number, stamp + number % NODES
  local body = format(
    '{"event_id":"%08x-0000-4000-a000-%012x","entity_id":"%08x-0000-4000-b000-%012x",'
      .. '"position":{"sequence":%d},"occurred_at":"%s",%s}',
    at * 618033989 % 4294967296, at % 281474976710656, id % 4294967296, id % 281474976710656,
    at, time(at), TRIGGERS[floor(number / NODES) % 3])
  count = count + 1
  return "POST /v1/events" .. HEAD .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

function request()
  if what == "post" then return post() end
  if what == "commit" then return commit() end
  if what == "trigger" then return trigger() end
  return lookup()
end

function done(summary, latency, _)
  local errors = summary.errors
  print(format(
    '{"answers":%d,"microseconds":%d,"p50":%f,"p99":%f,"failed":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
