-- Count the units of one caller in sliding windows, and reserve units for requests in progress.
-- One call is atomic, so processes need no locks. `redis_store.py` calls it, with one caller's key:
-- a hash with a field for each rate, "<amount>/<seconds>" = "<began> <previous> <current>", and one
-- for each process that has reserved units, "lease/<process>" = "<units> <expiry>".
-- All times are milliseconds of Redis's clock: the clocks of the processes do not matter.
--
-- ARGV[1] is a JSON object:
--   rates   pairs of amount and seconds
--   has_burst  true if the first rate is exceeded by the last request that it allows
--   used    units to count that were used already; no more are counted than are left
--   costs   of the requests that wait, in their order
--   lease   if present, units are reserved for the requests instead of consumed:
--           process, in_flight (units that it has reserved before), ahead (units that it would like
--           beyond those), seconds (until the lease expires if the process is killed)
-- It returns
--   for each cost: 0 if granted, n if the nth rate refuses, -1 if other processes hold what is left
--   for each rate: previous count, current count, milliseconds until the current window ends
--   the units that the process now has reserved

local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local life = math.max(0, redis.call('PTTL', KEYS[1]))

local fields = {}
local stored = redis.call('HGETALL', KEYS[1])
for at = 1, #stored, 2 do
    fields[stored[at]] = stored[at + 1]
end

local windows = {}
for number, rate in ipairs(ask.rates) do
    local length = rate[2] * 1000
    local name = rate[1] .. '/' .. rate[2]
    local began, previous, current = string.match(fields[name] or '', '(%d+) (%d+) (%d+)')
    began, previous, current = tonumber(began or now), tonumber(previous or 0), tonumber(current or 0)
    if now < began then
        began = now -- the clock was set back: without this the window would last for as long
    elseif now - began >= 2 * length then
        began, previous, current = now, 0, 0
    elseif now - began >= length then
        began, previous, current = began + length, current, 0
    end
    windows[number] = {
        name = name, amount = rate[1], length = length,
        began = began, previous = previous, current = current,
        is_burst = ask.has_burst and number == 1,
    }
    life = math.max(life, 2 * length)
end

-- As `remaining` in store.py.
local function left(window)
    local share = (window.began + window.length - now) / window.length
    return math.max(0, window.amount - window.current - math.floor(window.previous * share))
end

-- As `find_block` in store.py.
local function refusing(units)
    for number, window in ipairs(windows) do
        if not window.is_burst and window.amount < units then
            return number
        end
    end
    for number, window in ipairs(windows) do
        if left(window) < (window.is_burst and 1 or units) then
            return number
        end
    end
    return 0
end

local function count(units)
    for _, window in ipairs(windows) do
        window.current = window.current + (window.is_burst and units or math.min(units, left(window)))
    end
end

count(ask.used)
local outcomes = {}
local held = 0
if ask.lease then
    local others = 0
    for name, value in pairs(fields) do
        local process = string.match(name, '^lease/(.*)')
        if process and process ~= ask.lease.process then
            local units, expiry = string.match(value, '(%d+) (%d+)')
            if tonumber(expiry) < now then
                redis.call('HDEL', KEYS[1], name)
            else
                others = others + tonumber(units)
            end
        end
    end
    local free = math.huge
    for _, window in ipairs(windows) do
        free = math.min(free, left(window) - others)
    end
    held = ask.lease.in_flight
    local empty = refusing(1)
    for at, cost in ipairs(ask.costs) do
        -- A request is granted if anything is left, even if it costs more than that.
        outcomes[at] = empty > 0 and empty or held < free and 0 or -1
        if outcomes[at] == 0 then
            held = held + cost
        end
    end
    held = math.max(held, math.min(held + ask.lease.ahead, free))
    local name = 'lease/' .. ask.lease.process
    if held > 0 then
        local expiry = now + ask.lease.seconds * 1000
        redis.call('HSET', KEYS[1], name, string.format('%.0f %.0f', held, expiry))
        life = math.max(life, ask.lease.seconds * 1000)
    else
        redis.call('HDEL', KEYS[1], name)
    end
else
    for at, cost in ipairs(ask.costs) do
        outcomes[at] = refusing(cost)
        if outcomes[at] == 0 then
            count(cost)
        end
    end
end

local usages = {}
for number, window in ipairs(windows) do
    local began, previous, current = window.began, window.previous, window.current
    if previous + current > 0 then
        local value = string.format('%.0f %.0f %.0f', began, previous, current)
        redis.call('HSET', KEYS[1], window.name, value)
    end
    usages[number] = {previous, current, began + window.length - now}
end
redis.call('PEXPIRE', KEYS[1], life)
return {outcomes, usages, held}
