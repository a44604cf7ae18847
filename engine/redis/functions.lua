#!lua name=headrace3
--
-- The ledger's functions: reserve, turn, resolve, begin, load, ready, look, drop (docs/architecture.md; the protocol
-- behind them is checked by tests/contract/test_ledger.py, against this file and against a fake in Python).
--
-- The number in the library's name, and in that of every function, is raised with every change of what a function takes
-- or answers. So engines of two versions work side by side, each with its own library, while workers are started anew.
-- What the keys hold may then change only in a way that the older library understands.
--
-- KEYS of every function, five of one campaign c:
--   1 {c}:s   hash  gen, run, open ("1"/"0"), ver, day, total, today, bkt, unc (the latest day on which events were
--                   accepted without a cap: their users are not in `u`). After `begin` said EMPTY: gen, run, open only
--   2 {c}:p   hash  tag -> pending record: msgpack of [day, bkt, amount, ids in one string, [user, impressions, ...]]
--   3 {c}:u   hash  user -> impressions on `day`
--   4 {c}:i0, 5 {c}:i1   hash  event id (16 bytes) -> tag, for the even and the odd turns of the dedup window.
--                        An id that a rebuild loaded has the empty tag: it is committed.
-- Units: money is integer micros as decimal text, exact below 2^53; days count from 1970-01-01; a turn is a number.
-- Tags are 8 bytes, ids 16 bytes. `run` is "<run_id> <master_replid>" of the server that wrote the state.
-- Replies are arrays whose first element is the result's name:
--   LOST        no state, or that of another memory image     STALE g     the state has generation g
--   CLOSED      `open` is not what the function needs
-- or the error SHAPE: the arguments do not fit each other, and nothing was done.
-- Atomicity: a function checks everything before its first write, and nothing after it can fail. Redis itself refuses
-- (out of memory, read-only, ...) before a function starts. Those that only give back may run out of memory, too.

-- The identity of this memory image. INFO costs 13 us, so it is read once; a restart and a full resync load the
-- library anew, and with it this local.
local image = nil

local function this_image()
    if not image then
        local info = redis.call('INFO', 'server', 'replication')
        image = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)')
    end
    return image
end

local function shape(what) return redis.error_reply('SHAPE arguments of ' .. what .. ' do not fit each other') end

-- The state, or the reply that refuses the call. `open` is "1" or "0": what the function needs.
local function enter(keys, gen, open)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'ver', 'day', 'total', 'today', 'bkt', 'unc')
    if not s[1] or s[2] ~= this_image() then return nil, {'LOST'} end
    if s[1] ~= gen then return nil, {'STALE', s[1]} end
    if s[3] ~= open then return nil, {'CLOSED'} end
    return {
        ver = tonumber(s[4]), day = tonumber(s[5]), total = tonumber(s[6]), today = tonumber(s[7]),
        bkt = tonumber(s[8]), unc = tonumber(s[9]),
    }
end

local function split(blob, width)
    local parts, sub = {}, string.sub
    for i = 1, #blob / width do parts[i] = sub(blob, (i - 1) * width + 1, i * width) end
    return parts
end

local function bucket(keys, turn) return keys[4 + turn % 2] end

-- Drop what the state's day and window leave behind when they move on to `day` and `bkt`.
local function leave_behind(keys, s, day, bkt)
    if day > s.day then redis.call('UNLINK', keys[3]) end
    if bkt >= s.bkt + 2 then redis.call('UNLINK', keys[4], keys[5])
    elseif bkt == s.bkt + 1 then redis.call('UNLINK', bucket(keys, bkt)) end
end

-- Whether the window, moved on to `bkt`, would drop ids of a reservation that nobody has settled yet (those that are
-- `committed` are). It may still commit, and without its ids it could not be told from a new event.
local function outruns_pending(keys, s, bkt, committed)
    if bkt <= s.bkt or redis.call('HLEN', keys[2]) == 0 then return false end
    local settled, pending = {}, redis.call('HGETALL', keys[2])
    for i = 1, #committed do settled[committed[i]] = true end
    for i = 1, #pending, 2 do
        if not settled[pending[i]] and cmsgpack.unpack(pending[i + 1])[2] < bkt - 1 then return true end
    end
    return false
end

-- Have it rebuilt from Postgres: no caller trusts a state that names no memory image.
local function disown(keys)
    redis.call('HSET', keys[1], 'run', '')
    return {'LOST'}
end

-- The tag (or false) of each id, as the window knows it once it has moved on to `bkt`: a bucket that is to be reused
-- counts as empty already.
local function known_tags(keys, s, ids, bkt)
    local tags = {}
    if bkt <= s.bkt + 1 then tags = redis.call('HMGET', bucket(keys, s.bkt), unpack(ids)) end
    if bkt == s.bkt then
        local before = redis.call('HMGET', bucket(keys, bkt - 1), unpack(ids))
        for i = 1, #ids do tags[i] = tags[i] or before[i] end
    end
    return tags
end

-- Which of these tags wait for their commit still; `committed` are those that this call declares durable.
local function pending_of(keys, tags, n, committed)
    local pending = {}
    for i = 1, #committed do pending[committed[i]] = false end
    for i = 1, n do
        local tag = tags[i]
        -- (A record holds all that its undo needs: asking whether it is there is cheaper than reading it.)
        if tag and pending[tag] == nil then pending[tag] = redis.call('HEXISTS', keys[2], tag) == 1 end
    end
    return pending
end

-- Those users whose events count for the cap, and the impressions of each so far: two lists.
local function impressions_of(keys, users, kinds, same_day)
    local asked, before, met = {}, {}, {}
    for i = 1, #users do
        local user = users[i]
        if kinds[i] >= 2 and not met[user] then
            met[user] = true
            asked[#asked + 1] = user
        end
    end
    if same_day and #asked > 0 then before = redis.call('HMGET', keys[3], unpack(asked)) end
    for i = 1, #asked do before[i] = tonumber(before[i] or 0) end
    return asked, before
end

-- The letters, event by event, in order, each seeing those before it. `count` (user -> impressions) goes up with them.
-- Result: letters, accepted ids, total, today, amount.
local function decide(call, tags, pending, count, total, today)
    local ids, kinds, users, cap, cost = call.ids, call.kinds, call.users, call.cap, call.cost
    local letters, seen, accepted, amount = {}, {}, {}, 0
    for i = 1, #ids do
        local id, known, kind = ids[i], tags[i], kinds[i]
        local billable, user = kind % 2 == 1, kind >= 2 and users[i]
        if seen[id] or (known and pending[known]) then letters[i] = 'P'
        elseif known then letters[i] = 'D'
        elseif user and count[user] >= cap then letters[i] = 'C'
        elseif billable and total + cost > call.total_budget then letters[i] = 'T'
        elseif billable and today + cost > call.daily_budget then letters[i] = 'Y'
        elseif billable and today + cost > call.allowance then letters[i] = 'W'
        else
            letters[i] = 'A'
            accepted[#accepted + 1] = id
            if billable then total, today, amount = total + cost, today + cost, amount + cost end
            if user then count[user] = count[user] + 1 end
        end
        seen[id] = true
    end
    return table.concat(letters), accepted, total, today, amount
end

-- Write a reservation: ids, users, and the record by which it can be undone.
local function hold(keys, tag, day, bkt, amount, accepted, asked, before, count)
    local new_ids, counts, undo = {}, {}, {}
    for i = 1, #accepted do
        new_ids[2 * i - 1] = accepted[i]
        new_ids[2 * i] = tag
    end
    local at = 0
    for i = 1, #asked do
        local user = asked[i]
        local added = count[user] - before[i]
        if added > 0 then
            counts[at + 1], counts[at + 2] = user, count[user]
            undo[at + 1], undo[at + 2] = user, added
            at = at + 2
        end
    end
    redis.call('HSET', bucket(keys, bkt), unpack(new_ids))
    if at > 0 then redis.call('HSET', keys[3], unpack(counts)) end
    redis.call('HSET', keys[2], tag, cmsgpack.pack({day, bkt, amount, table.concat(accepted), undo}))
end

-- The arguments of reserve as a table, or nil if they do not fit each other.
local function read_call(argv)
    if #argv ~= 7 then return nil end
    local numbers, n = cmsgpack.unpack(argv[3]), #argv[4]
    if type(numbers) ~= 'table' or #numbers ~= 9 then return nil end
    local ver, day, bkt, latest, total_budget, daily_budget, allowance, cap, cost = unpack(numbers)
    if n < 1 or n > 1000 or #argv[2] ~= 8 or #argv[5] ~= 16 * n or #argv[7] % 8 ~= 0 or #argv[7] > 8000 then
        return nil
    end
    local users = cap >= 0 and cmsgpack.unpack(argv[6]) or {}
    if cap >= 0 and #users ~= n then return nil end
    return {
        tag = argv[2], ver = ver, day = day, bkt = bkt, latest = latest, total_budget = total_budget,
        daily_budget = daily_budget, allowance = allowance, cap = cap, cost = cost,
        kinds = {string.byte(argv[4], 1, n)}, ids = split(argv[5], 16), users = users, committed = split(argv[7], 8),
    }
end

-- reserve: money, cap and ids for the events of one call.
-- ARGV  1 gen  2 tag
--       3 numbers (msgpack array): ver, day, bkt, the latest turn for which it holds that an id which was not looked up
--         is known here if it came before, total budget, daily budget, allowance, cap (-1: none), cost of a billable event
--       4 kinds (a byte an event: 1 billable, 2 counts for the cap)
--       5 ids  6 users (msgpack array; read only with a cap)  7 committed tags
-- Reply OK letters total today | PLAN ver (a newer plan is known) | DAY day (a later day or turn is reached)
-- Letters: P in flight, D duplicate of a committed event, C capped, T total budget, Y daily budget, W allowance,
-- A accepted. With any A, all of it is written under the tag; otherwise only plan, day and turn move on.
local function reserve(keys, argv)
    local s, refusal = enter(keys, argv[1], '1')
    if refusal then return refusal end
    local call = read_call(argv)
    if not call then return shape('reserve') end
    local ver, day, bkt = call.ver, call.day, math.max(call.bkt, s.bkt)
    if ver < s.ver then return {'PLAN', tostring(s.ver)} end
    -- (The turn is passed when an engine slept between deciding and sending: ids that it did not look up may be gone.)
    if day < s.day or s.bkt > call.latest then return {'DAY', tostring(s.day)} end
    local same_day = day == s.day
    if call.cap >= 0 and same_day and s.unc == day then
        -- The cap is new today, and earlier impressions were not counted. Postgres knows them: disown the state, so
        -- that it is rebuilt.
        return disown(keys)
    end
    if outruns_pending(keys, s, bkt, call.committed) then return disown(keys) end

    local tags = known_tags(keys, s, call.ids, bkt)
    local pending = pending_of(keys, tags, #call.ids, call.committed)
    local asked, before = impressions_of(keys, call.users, call.kinds, same_day)
    local count = {}
    for i = 1, #asked do count[asked[i]] = before[i] end
    local letters, accepted, total, today, amount =
        decide(call, tags, pending, count, s.total, same_day and s.today or 0)

    if #call.committed > 0 then redis.call('HDEL', keys[2], unpack(call.committed)) end
    leave_behind(keys, s, day, bkt)
    local total_text, today_text = string.format('%.0f', total), string.format('%.0f', today)
    if #accepted > 0 then
        hold(keys, call.tag, day, bkt, amount, accepted, asked, before, count)
        if call.cap < 0 and s.unc ~= day then redis.call('HSET', keys[1], 'unc', day) end
    end
    if ver > s.ver or day > s.day or bkt > s.bkt then
        redis.call('HSET', keys[1], 'ver', ver, 'day', day, 'total', total_text, 'today', today_text, 'bkt', bkt)
    elseif amount > 0 then
        redis.call('HSET', keys[1], 'total', total_text, 'today', today_text)
    end
    return {'OK', letters, total_text, today_text}
end

-- turn: move day and window on and drop what they leave behind, reserving nothing. Redis refuses reserve while it is
-- out of memory; without this it would stay so for ever.
-- ARGV  1 gen  2 day  3 bkt
-- Reply OK
local function turn(keys, argv)
    local s, refusal = enter(keys, argv[1], '1')
    if refusal then return refusal end
    local day, bkt = math.max(tonumber(argv[2]), s.day), math.max(tonumber(argv[3]), s.bkt)
    if outruns_pending(keys, s, bkt, {}) then return disown(keys) end
    local today = day == s.day and s.today or 0
    leave_behind(keys, s, day, bkt)
    redis.call('HSET', keys[1], 'day', day, 'today', string.format('%.0f', today), 'bkt', bkt)
    return {'OK'}
end

-- Undo a pending record: its money, its users and its ids, as far as day and window still hold them.
local function undo(keys, s, record)
    local day, bkt, amount, ids, users = unpack(cmsgpack.unpack(record))
    redis.call('HSET', keys[1], 'total', string.format('%.0f', s.total - amount))
    if day == s.day then
        redis.call('HSET', keys[1], 'today', string.format('%.0f', s.today - amount))
        for i = 1, #users, 2 do
            if redis.call('HINCRBY', keys[3], users[i], -users[i + 1]) <= 0 then redis.call('HDEL', keys[3], users[i]) end
        end
    end
    -- An id left behind would turn a retry into a false duplicate.
    if bkt >= s.bkt - 1 then redis.call('HDEL', bucket(keys, bkt), unpack(split(ids, 16))) end
end

-- resolve: settle one reservation. Repeatable at will.
-- ARGV  1 gen  2 tag  3 "commit" or "void"  4 "1" for engines, "0" for a recoverer: what `open` must be
-- Reply OK | NOOP (there is no such reservation)
local function resolve(keys, argv)
    local s, refusal = enter(keys, argv[1], argv[4])
    if refusal then return refusal end
    if argv[3] ~= 'commit' and argv[3] ~= 'void' then return shape('resolve') end
    local record = redis.call('HGET', keys[2], argv[2])
    if not record then return {'NOOP'} end
    if argv[3] == 'void' then undo(keys, s, record) end
    redis.call('HDEL', keys[2], argv[2])
    return {'OK'}
end

-- begin: close the campaign under a new generation, and keep its state only if it can be trusted.
-- ARGV  1 gen
-- Reply KEPT tag first-id tag first-id ... | EMPTY (rebuild it) | STALE g (unless gen is above the stored one)
local function begin(keys, argv)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open')
    local gen, stored = tonumber(argv[1]), tonumber(s[1] or -1)
    if gen <= stored then return {'STALE', s[1]} end
    if gen == stored + 1 and s[2] == this_image() and s[3] == '1' then
        local reply, pending = {'KEPT'}, redis.call('HGETALL', keys[2])
        for i = 1, #pending, 2 do
            reply[#reply + 1] = pending[i]
            reply[#reply + 1] = string.sub(cmsgpack.unpack(pending[i + 1])[4], 1, 16)
        end
        redis.call('HSET', keys[1], 'gen', argv[1], 'open', '0')
        return reply
    end
    local run = this_image()
    redis.call('UNLINK', unpack(keys))
    redis.call('HSET', keys[1], 'gen', argv[1], 'run', run, 'open', '0')
    return {'EMPTY'}
end

-- load: one chunk of a rebuild, at most 1,000.
-- ARGV  1 gen  2 "users"  3 msgpack array [user, impressions, ...]
--       1 gen  2 "ids"    3 ids   4 turn in which they were received
-- Reply OK
local function load(keys, argv)
    local _, refusal = enter(keys, argv[1], '0')
    if refusal then return refusal end
    local key, chunk = keys[3], {}
    if argv[2] == 'users' then
        chunk = cmsgpack.unpack(argv[3])
    else
        if #argv[3] % 16 ~= 0 then return shape('load') end
        key = bucket(keys, tonumber(argv[4]))
        for i, id in ipairs(split(argv[3], 16)) do
            chunk[2 * i - 1] = id
            chunk[2 * i] = ''
        end
    end
    if #chunk % 2 ~= 0 or #chunk > 2000 then return shape('load') end
    if #chunk > 0 then redis.call('HSET', key, unpack(chunk)) end
    return {'OK'}
end

-- ready: open the campaign, if its sums are those of the ledger row.
-- ARGV  1 gen  2 total  3 day  4 today  5 bkt  6 ver
-- Reply OK | MISMATCH (something is pending still, or a kept sum or turn is wrong: begin again, which rebuilds)
local function ready(keys, argv)
    local s, refusal = enter(keys, argv[1], '0')
    if refusal then return refusal end
    if redis.call('HLEN', keys[2]) > 0 then return {'MISMATCH'} end
    local total, day, today, bkt, ver = argv[2], tonumber(argv[3]), argv[4], tonumber(argv[5]), tonumber(argv[6])
    if s.day then
        -- Where Redis has moved to a later day, nothing of that day is committed yet.
        if s.day < day or s.total ~= tonumber(total) or s.today ~= (s.day > day and 0 or tonumber(today)) then
            return {'MISMATCH'}
        end
        -- (One more than ours is that of a clock that is a little ahead. A turn only moves forward, so that a wrong
        -- one would stay for ever.)
        if s.bkt > bkt + 1 then return {'MISMATCH'} end
        redis.call('HSET', keys[1], 'open', '1')
    else
        redis.call('HSET', keys[1], 'open', '1', 'ver', ver, 'day', day, 'total', total, 'today', today, 'bkt', bkt)
    end
    return {'OK'}
end

-- look: what a campaign's keys hold, changing nothing. For the sweep (engine/sweep.py), which finds the idle ones.
-- Reply OK gen, "1" if this memory image wrote it, open, day, bkt (0 while it is rebuilt), pending, users, ids | LOST
local function look(keys, _)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'day', 'bkt')
    if not s[1] then return {'LOST'} end
    local pending, users = redis.call('HLEN', keys[2]), redis.call('HLEN', keys[3])
    local ids = redis.call('HLEN', keys[4]) + redis.call('HLEN', keys[5])
    return {'OK', s[1], s[2] == this_image() and '1' or '0', s[3], s[4] or '0', s[5] or '0', pending, users, ids}
end

-- drop: forget a campaign whole, if it is still as `look` found it. At its next use it is LOST, and rebuilt.
-- ARGV  1 gen  2 open  3 bkt (0 while it is rebuilt)
-- Reply OK | LOST | STALE g | CLOSED (`open` is another by now) | USED (it has moved on, or holds what may commit still)
local function drop(keys, argv)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'bkt')
    if not s[1] then return {'LOST'} end
    if s[1] ~= argv[1] then return {'STALE', s[1]} end
    if s[3] ~= argv[2] then return {'CLOSED'} end
    if (s[4] or '0') ~= argv[3] then return {'USED'} end
    -- (Of a state that no caller trusts, and of one whose recovery has stopped, nothing pending can commit any more.)
    if s[2] == this_image() and s[3] == '1' and redis.call('HLEN', keys[2]) > 0 then return {'USED'} end
    redis.call('UNLINK', unpack(keys))
    return {'OK'}
end

-- What frees memory must work without any. (reserve and load wait until there is some.)
local frees = {'allow-oom'}

redis.register_function('headrace3_reserve', reserve)
redis.register_function{function_name = 'headrace3_turn', callback = turn, flags = frees}
redis.register_function{function_name = 'headrace3_resolve', callback = resolve, flags = frees}
redis.register_function{function_name = 'headrace3_begin', callback = begin, flags = frees}
redis.register_function('headrace3_load', load)
redis.register_function{function_name = 'headrace3_ready', callback = ready, flags = frees}
redis.register_function{function_name = 'headrace3_look', callback = look, flags = {'no-writes'}}
redis.register_function{function_name = 'headrace3_drop', callback = drop, flags = frees}
