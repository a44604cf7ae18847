#!lua name=headrace
--
-- The ledger's functions: reserve, resolve, begin, load, ready (docs/architecture.md; the protocol behind them is
-- checked by tests/contract/test_ledger.py, against this file and against a fake in Python).
--
-- KEYS of every function, five of one campaign c:
--   1 {c}:s   hash  gen, run, open ("1"/"0"), ver, day, total, today, bkt. After `begin` said EMPTY: gen, run, open only
--   2 {c}:p   hash  tag -> pending record: msgpack of [day, bkt, amount, ids in one string, {user, impressions, ...}]
--   3 {c}:u   hash  user -> impressions on `day`
--   4 {c}:i0, 5 {c}:i1   hash  event id (16 bytes) -> tag, for the even and the odd turns of the dedup window.
--                        An id that a rebuild loaded has the empty tag: it is committed.
-- Units: money is integer micros as decimal text, exact below 2^53; days count from 1970-01-01; a turn is a number.
-- Tags are 8 bytes, ids 16 bytes. `run` is "<run_id> <master_replid>" of the server that wrote the state.
-- Replies are arrays whose first element is the result's name:
--   LOST        no state, or that of another memory image     STALE g     the state has generation g
--   CLOSED      `open` is not what the function needs
-- Atomicity: a function checks everything before its first write, and nothing after it can fail.

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

-- The state, or the reply that refuses the call. `open` is "1" or "0": what the function needs.
local function enter(keys, gen, open)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'ver', 'day', 'total', 'today', 'bkt')
    if not s[1] or s[2] ~= this_image() then return nil, {'LOST'} end
    if s[1] ~= gen then return nil, {'STALE', s[1]} end
    if s[3] ~= open then return nil, {'CLOSED'} end
    return {ver = tonumber(s[4]), day = tonumber(s[5]), total = tonumber(s[6]), today = tonumber(s[7]), bkt = tonumber(s[8])}
end

local function split(blob, width)
    local parts = {}
    for i = 1, #blob / width do parts[i] = string.sub(blob, (i - 1) * width + 1, i * width) end
    return parts
end

local function bucket(keys, turn) return keys[4 + turn % 2] end

-- Tags of ids that the live part of the window knows. `turns` is how far the window moves with this call: then
-- the bucket that is to be reused counts as empty already.
local function known_tags(keys, ids, bkt, turns)
    local tags = {}
    for back = 0, 1 do
        if turns + back == 0 or (turns <= 1 and back == 1) then
            local found = redis.call('HMGET', bucket(keys, bkt - back), unpack(ids))
            for i = 1, #ids do tags[i] = tags[i] or found[i] end
        end
    end
    return tags
end

-- Which of these tags wait for their commit still; `committed` are those that this call declares durable.
local function pending_of(keys, tags, n, committed)
    local pending = {}
    for _, tag in ipairs(committed) do pending[tag] = false end
    for i = 1, n do
        local tag = tags[i]
        if tag and pending[tag] == nil then pending[tag] = redis.call('HEXISTS', keys[2], tag) == 1 end
    end
    return pending
end

-- Impressions so far of every user whose event counts for the cap.
local function impressions_of(keys, users, kinds, same_day)
    local count, asked = {}, {}
    for i = 1, #users do
        if string.byte(kinds, i) >= 2 and not count[users[i]] then
            count[users[i]] = 0
            asked[#asked + 1] = users[i]
        end
    end
    if same_day and #asked > 0 then
        local found = redis.call('HMGET', keys[3], unpack(asked))
        for i = 1, #asked do count[asked[i]] = tonumber(found[i] or 0) end
    end
    return count
end

-- reserve: money, cap and ids for the events of one call.
-- ARGV  1 gen  2 tag  3 ver  4 day  5 bkt  6 total budget  7 daily budget  8 allowance  9 cap (-1: none)
--       10 cost of a billable event  11 kinds (a byte an event: 1 billable, 2 counts for the cap)
--       12 ids  13 users (msgpack array; read only with a cap)  14 committed tags
-- Reply OK letters total today | PLAN ver (a newer plan is known) | DAY day (a later day is reached)
-- Letters: P in flight, D duplicate of a committed event, C capped, T total budget, Y daily budget, W allowance,
-- A accepted. With any A, all of it is written under the tag; otherwise only plan, day and turn move on.
local function reserve(keys, argv)
    local s, refusal = enter(keys, argv[1], '1')
    if refusal then return refusal end
    local tag, ver, day, bkt = argv[2], tonumber(argv[3]), tonumber(argv[4]), tonumber(argv[5])
    local total_budget, daily_budget, allowance = tonumber(argv[6]), tonumber(argv[7]), tonumber(argv[8])
    local cap, cost, kinds, n = tonumber(argv[9]), tonumber(argv[10]), argv[11], #argv[11]
    if ver < s.ver then return {'PLAN', tostring(s.ver)} end
    if day < s.day then return {'DAY', tostring(s.day)} end
    if bkt < s.bkt then bkt = s.bkt end
    local users = cap >= 0 and cmsgpack.unpack(argv[13]) or {}
    if n < 1 or n > 1000 or #tag ~= 8 or #argv[12] ~= 16 * n or #argv[14] % 8 ~= 0 or #argv[14] > 8000
        or (cap >= 0 and #users ~= n) then
        return redis.error_reply('SHAPE arguments of reserve do not fit each other')
    end

    local ids, committed, turns = split(argv[12], 16), split(argv[14], 8), bkt - s.bkt
    local tags = known_tags(keys, ids, bkt, turns)
    local pending = pending_of(keys, tags, n, committed)
    local count = impressions_of(keys, users, kinds, day == s.day)
    local total, today = s.total, day == s.day and s.today or 0
    local letters, seen, amount = {}, {}, 0
    local accepted, new_ids, increments = {}, {}, {}
    for i = 1, n do
        local id, known, kind = ids[i], tags[i], string.byte(kinds, i)
        local billable, user = kind % 2 == 1, kind >= 2 and users[i]
        if seen[id] or (known and pending[known]) then letters[i] = 'P'
        elseif known then letters[i] = 'D'
        elseif user and count[user] >= cap then letters[i] = 'C'
        elseif billable and total + cost > total_budget then letters[i] = 'T'
        elseif billable and today + cost > daily_budget then letters[i] = 'Y'
        elseif billable and today + cost > allowance then letters[i] = 'W'
        else
            letters[i] = 'A'
            accepted[#accepted + 1] = id
            new_ids[#new_ids + 1] = id
            new_ids[#new_ids + 1] = tag
            if billable then
                total, today, amount = total + cost, today + cost, amount + cost
            end
            if user then
                count[user] = count[user] + 1
                increments[user] = (increments[user] or 0) + 1
            end
        end
        seen[id] = true
    end

    if #committed > 0 then redis.call('HDEL', keys[2], unpack(committed)) end
    if day > s.day then redis.call('UNLINK', keys[3]) end
    if turns >= 2 then redis.call('UNLINK', keys[4], keys[5])
    elseif turns == 1 then redis.call('UNLINK', bucket(keys, bkt)) end
    if #accepted > 0 then
        local undo, counts = {}, {}
        for user, added in pairs(increments) do
            undo[#undo + 1] = user
            undo[#undo + 1] = added
            counts[#counts + 1] = user
            counts[#counts + 1] = count[user]
        end
        redis.call('HSET', bucket(keys, bkt), unpack(new_ids))
        if #counts > 0 then redis.call('HSET', keys[3], unpack(counts)) end
        redis.call('HSET', keys[2], tag, cmsgpack.pack({day, bkt, amount, table.concat(accepted), undo}))
    end
    local total_text, today_text = string.format('%.0f', total), string.format('%.0f', today)
    if #accepted > 0 or ver > s.ver or day > s.day or turns > 0 then
        redis.call('HSET', keys[1], 'ver', ver, 'day', day, 'total', total_text, 'today', today_text, 'bkt', bkt)
    end
    return {'OK', table.concat(letters), total_text, today_text}
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
-- ARGV  1 gen  2 "users"  3 msgpack array {user, impressions, ...}
--       1 gen  2 "ids"    3 ids   4 turn in which they were received
-- Reply OK
local function load(keys, argv)
    local _, refusal = enter(keys, argv[1], '0')
    if refusal then return refusal end
    local pairs_of = {}
    if argv[2] == 'users' then
        pairs_of = cmsgpack.unpack(argv[3])
    else
        for _, id in ipairs(split(argv[3], 16)) do
            pairs_of[#pairs_of + 1] = id
            pairs_of[#pairs_of + 1] = ''
        end
    end
    if #pairs_of > 0 then
        redis.call('HSET', argv[2] == 'users' and keys[3] or bucket(keys, tonumber(argv[4])), unpack(pairs_of))
    end
    return {'OK'}
end

-- ready: open the campaign, if its sums are those of the ledger row.
-- ARGV  1 gen  2 total  3 day  4 today  5 bkt  6 ver
-- Reply OK | MISMATCH (something is pending still, or a kept sum differs: begin again, which rebuilds)
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
        redis.call('HSET', keys[1], 'open', '1')
    else
        redis.call('HSET', keys[1], 'open', '1', 'ver', ver, 'day', day, 'total', total, 'today', today, 'bkt', bkt)
    end
    return {'OK'}
end

redis.register_function('headrace_reserve', reserve)
redis.register_function('headrace_resolve', resolve)
redis.register_function('headrace_begin', begin)
redis.register_function('headrace_load', load)
redis.register_function('headrace_ready', ready)
