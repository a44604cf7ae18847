#!lua name=headrace5
--
-- The ledger's functions: reserve, advance, resolve, begin, load, ready, look, drop (docs/architecture.md; the protocol
-- behind them is checked by tests/contract/test_ledger.py, against this file and against a fake in Python).
--
-- The number in the library's name, and in that of every function, is raised with every change of what a function takes
-- or answers. So engines of two versions work side by side, each with its own library, while workers are started anew.
-- What the keys hold may then change only in a way that the older library understands.
--
-- KEYS of every function, seven of one campaign c:
--   1 {c}:s   hash  gen, run, open ("1"/"0"), ver, day, total, today, unc (the latest day on which events were accepted
--                   whose users are not in `u`), window (5 doubles: bkt, the number of the dedup window's current
--                   bucket; began, when that bucket did; w, the watermark; m0 and m1, the highest id time in i0 and
--                   in i1), ahead (3 doubles: abkt, am0, am1, the same of a0 and a1; absent while they are empty),
--                   used (when reserve last accepted an event, to a second, or closed a bucket; absent until then).
--                   After `begin` said EMPTY: gen, run, open only
--   2 {c}:p   hash  tag -> pending record: msgpack of [day, bkt, abkt, amount, ids in one string, [user, impressions,
--                   ...]]; abkt is -1 if none of the ids is ahead
--   3 {c}:u   hash  user -> impressions on `day`
--   4 {c}:i0, 5 {c}:i1   hash  event id (16 bytes) -> tag, for even and odd buckets of the dedup window
--   6 {c}:a0, 7 {c}:a1   the same, for ids whose time was ahead of the engine's clock
-- The watermark: no id that was ever committed, and that is in no bucket, has an id time above w. So an event whose id
-- time is above w, and whose id is in no bucket, is new.
-- Units: money is integer micros, exact below 2^53 (Redis writes such numbers whole); days count from 1970-01-01; id
-- times, `began`, `used` and ages are micros (since 1970), by Redis's clock as far as engines know it, but for id
-- times; an event without an id time has -1. Tags are 8 bytes, ids 16 bytes.
-- `run` is "<run_id> <master_replid>" of the server that wrote the state, and the format of the state.
-- Replies are arrays whose first element is the result's name:
--   LOST        no state, or that of another memory image     STALE g     the state has generation g
--   CLOSED      `open` is not what the function needs
-- or the error SHAPE: the arguments do not fit each other, and nothing was done.
-- Atomicity: a function checks everything before its first write, and nothing after it can fail. Redis itself refuses
-- (out of memory, read-only, ...) before a function starts. Functions that only give memory back also run when there
-- is none left.

-- The identity of this memory image. INFO costs 13 us, so it is read once; a restart and a full resync load the
-- library anew, and with it this local.
local image = nil

local function this_image()
    if not image then
        local info = redis.call('INFO', 'server', 'replication')
        -- (A state of another format is another image: no library takes it for its own.)
        image = string.match(info, 'run_id:(%x+)') .. ' ' .. string.match(info, 'master_replid:(%x+)') .. ' 4'
    end
    return image
end

local function shape(what) return redis.error_reply('SHAPE arguments of ' .. what .. ' do not fit each other') end

-- The state, or the reply that refuses the call. `open` is "1" or "0": what the function needs.
local function enter(keys, gen, open)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'ver', 'day', 'total', 'today', 'unc', 'window',
        'ahead', 'used')
    if not s[1] or s[2] ~= this_image() then return nil, {'LOST'} end
    if s[1] ~= gen then return nil, {'STALE', s[1]} end
    if s[3] ~= open then return nil, {'CLOSED'} end
    local bkt, began, w, m0, m1
    if s[9] then bkt, began, w, m0, m1 = struct.unpack('>ddddd', s[9]) end
    return {
        ver = tonumber(s[4]), day = tonumber(s[5]), total = tonumber(s[6]), today = tonumber(s[7]),
        unc = tonumber(s[8]), bkt = bkt, began = began, w = w, m0 = m0, m1 = m1, ahead = s[10],
        used = tonumber(s[11] or 0),
    }
end

local function packed_window(s) return struct.pack('>ddddd', s.bkt, s.began, s.w, s.m0, s.m1) end

local function split(blob, width)
    local parts, sub = {}, string.sub
    for i = 1, #blob / width do parts[i] = sub(blob, (i - 1) * width + 1, i * width) end
    return parts
end

-- Number, and highest id times, of the buckets of ids that are ahead; all 0 while there are none.
local function read_ahead(s)
    if not s.ahead then return {bkt = 0, m0 = 0, m1 = 0} end
    local bkt, m0, m1 = struct.unpack('>ddd', s.ahead)
    return {bkt = bkt, m0 = m0, m1 = m1}
end

local function packed_ahead(ahead) return struct.pack('>ddd', ahead.bkt, ahead.m0, ahead.m1) end

-- Whether a reservation that nobody has settled yet was made before the current bucket: it may still commit, and without
-- its ids it could not be told from a new event. Ids that are ahead need no look of their own: their buckets close only
-- together with one of the others.
local function pending_in_older(keys, s)
    for _, record in ipairs(redis.call('HVALS', keys[2])) do
        local _, bkt = unpack(cmsgpack.unpack(record))
        if bkt < s.bkt then return true end
    end
    return false
end

-- Forget the older bucket: the watermark rises to the highest id time that was in it, and a new bucket begins at `at`.
-- Put off by a second if the bucket holds ids that may still commit, because finding that out reads what is pending.
-- Ids that are ahead are forgotten when they are no longer: when the watermark has passed them, or they are older than
-- the current bucket, as what the older bucket holds. So they raise the watermark above no fresh id, and go when nothing
-- else raises it, too. But where they are more than the others, and more than a few (80 KB), they are forgotten at once.
local function advance(keys, s, at, age)
    if pending_in_older(keys, s) then
        s.began = at - age + 1000000
        redis.call('HSET', keys[1], 'window', packed_window(s))
        return
    end
    local odd = s.bkt % 2 == 1
    s.w = math.max(s.w, odd and s.m0 or s.m1)
    redis.call('UNLINK', odd and keys[4] or keys[5])
    if s.ahead then
        local ahead = read_ahead(s)
        local odd_ahead = ahead.bkt % 2 == 1
        local most = odd_ahead and ahead.m0 or ahead.m1
        local many = redis.call('HLEN', keys[6]) + redis.call('HLEN', keys[7])
        local others = redis.call('HLEN', keys[4]) + redis.call('HLEN', keys[5])
        if most <= math.max(s.w, s.began) or (many > 1000 and many > others) then
            s.w = math.max(s.w, most)
            redis.call('UNLINK', odd_ahead and keys[6] or keys[7])
            if odd_ahead then ahead.m0 = 0 else ahead.m1 = 0 end
            ahead.bkt = ahead.bkt + 1
        end
        if ahead.m0 + ahead.m1 == 0 then redis.call('HDEL', keys[1], 'ahead')
        else redis.call('HSET', keys[1], 'ahead', packed_ahead(ahead)) end
    end
    if odd then s.m0 = 0 else s.m1 = 0 end
    s.bkt, s.began = s.bkt + 1, at
    redis.call('HSET', keys[1], 'window', packed_window(s))
end

-- Have it rebuilt from Postgres: no caller trusts a state that names no memory image.
local function disown(keys)
    redis.call('HSET', keys[1], 'run', '')
    return {'LOST'}
end

-- The tag (or false) of each id, as any bucket has it.
local function known_tags(keys, s, ids)
    local tags = redis.call('HMGET', keys[4], unpack(ids))
    for k = 5, s.ahead and 7 or 5 do
        local more = redis.call('HMGET', keys[k], unpack(ids))
        for i = 1, #ids do tags[i] = tags[i] or more[i] end
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
        if kinds[i] % 4 >= 2 and not met[user] then
            met[user] = true
            asked[#asked + 1] = user
        end
    end
    if same_day and #asked > 0 then before = redis.call('HMGET', keys[3], unpack(asked)) end
    for i = 1, #asked do before[i] = tonumber(before[i] or 0) end
    return asked, before
end

-- The letters, event by event, in order, each seeing those before it. `count` (user -> impressions) goes up with them.
-- Result: letters, accepted ids, those of them that are ahead, total, today, amount.
local function decide(call, tags, pending, count, total, today)
    local ids, kinds, users, cap, cost = call.ids, call.kinds, call.users, call.cap, call.cost
    local letters, seen, accepted, ahead, amount = {}, {}, {}, {}, 0
    for i = 1, #ids do
        local id, known, kind = ids[i], tags[i], kinds[i]
        local billable, user = kind % 2 == 1, kind % 4 >= 2 and users[i]
        if seen[id] or (known and pending[known]) then letters[i] = 'P'
        elseif known then letters[i] = 'D'
        elseif user and count[user] >= cap then letters[i] = 'C'
        elseif billable and total + cost > call.total_budget then letters[i] = 'T'
        elseif billable and today + cost > call.daily_budget then letters[i] = 'Y'
        elseif billable and today + cost > call.allowance then letters[i] = 'W'
        elseif user and not call.new_users and count[user] == 0 then letters[i] = 'U'
        else
            letters[i] = 'A'
            accepted[#accepted + 1] = id
            if kind >= 4 then ahead[#ahead + 1] = id end
            if billable then total, today, amount = total + cost, today + cost, amount + cost end
            if user then count[user] = count[user] + 1 end
        end
        seen[id] = true
    end
    return table.concat(letters), accepted, ahead, total, today, amount
end

-- Put ids into a bucket.
local function put(key, ids, tag)
    local fields = {}
    for i = 1, #ids do fields[2 * i - 1], fields[2 * i] = ids[i], tag end
    redis.call('HSET', key, unpack(fields))
end

-- Write a reservation: ids, users, and the record by which it can be undone. Result: what of the window changes in the
-- state, names and values.
local function hold(keys, s, call, amount, accepted, ahead_ids, asked, before, count)
    local counts, undo, at = {}, {}, 0
    for i = 1, #asked do
        local user = asked[i]
        local added = count[user] - before[i]
        if added > 0 then
            counts[at + 1], counts[at + 2] = user, count[user]
            undo[at + 1], undo[at + 2] = user, added
            at = at + 2
        end
    end
    local changes, ahead_bkt, ids = {}, -1, accepted
    if #ahead_ids > 0 then
        local ahead, is_ahead = read_ahead(s), {}
        ahead_bkt = ahead.bkt
        if ahead_bkt % 2 == 0 then ahead.m0 = math.max(ahead.m0, call.most_ahead)
        else ahead.m1 = math.max(ahead.m1, call.most_ahead) end
        put(keys[6 + ahead_bkt % 2], ahead_ids, call.tag)
        s.ahead = packed_ahead(ahead)
        changes = {'ahead', s.ahead}
        for i = 1, #ahead_ids do is_ahead[ahead_ids[i]] = true end
        ids = {}
        for i = 1, #accepted do if not is_ahead[accepted[i]] then ids[#ids + 1] = accepted[i] end end
    end
    if #ids > 0 then
        put(keys[4 + s.bkt % 2], ids, call.tag)
        local m = s.bkt % 2 == 0 and 'm0' or 'm1'
        if call.most > s[m] then
            s[m] = call.most
            changes[#changes + 1], changes[#changes + 2] = 'window', packed_window(s)
        end
    end
    -- (To a second: it is not written by each of a thousand calls.)
    if call.at - s.used >= 1000000 then changes[#changes + 1], changes[#changes + 2] = 'used', call.at end
    if at > 0 then redis.call('HSET', keys[3], unpack(counts)) end
    if call.cap < 0 and s.unc ~= call.day then changes[#changes + 1], changes[#changes + 2] = 'unc', call.day end
    local record = cmsgpack.pack({call.day, s.bkt, ahead_bkt, amount, table.concat(accepted), undo})
    redis.call('HSET', keys[2], call.tag, record)
    return changes
end

-- The arguments of reserve as a table, or nil if they do not fit each other.
local function read_call(argv)
    if #argv ~= 7 then return nil end
    local numbers, n = cmsgpack.unpack(argv[3]), #argv[4]
    if type(numbers) ~= 'table' or #numbers ~= 14 then return nil end
    if n < 1 or n > 1000 or #argv[2] ~= 8 or #argv[5] ~= 16 * n or #argv[7] % 8 ~= 0 or #argv[7] > 8000 then
        return nil
    end
    local ver, day, at, age, unlooked, looked, most, most_ahead, total_budget, daily_budget, allowance, cap, cost,
        new_users = unpack(numbers)
    local users = cap >= 0 and cmsgpack.unpack(argv[6]) or {}
    if cap >= 0 and #users ~= n then return nil end
    return {
        tag = argv[2], ver = ver, day = day, at = at, age = age, unlooked = unlooked, looked = looked, most = most,
        most_ahead = most_ahead, total_budget = total_budget, daily_budget = daily_budget, allowance = allowance,
        cap = cap, cost = cost, new_users = new_users, kinds = {string.byte(argv[4], 1, n)},
        ids = split(argv[5], 16), users = users, committed = split(argv[7], 8),
    }
end

-- reserve: money, cap and ids for the events of one call.
-- ARGV  1 gen  2 tag
--       3 numbers (msgpack array): ver; day; at (now) and age, at which a bucket closes; the least id time of those
--         events that were not looked up (2^53 - 1: all were); the bkt under which the others were (-1: none was); the
--         greatest id time of those that are not ahead, and of those that are; total budget; daily budget; allowance;
--         cap (-1: none); cost of a billable event; whether there is room for users that are not counted yet
--       4 kinds (a byte an event: 1 billable, 2 counts for the cap, 4 its id time is ahead)
--       5 ids  6 users (msgpack array; read only with a cap)  7 committed tags
-- Reply OK letters total today bkt w | PLAN ver (a newer plan is known) | DAY day (a later day is reached)
--       | BEHIND bkt w (an event that was not looked up may be known to Postgres alone, or a look-up is too old)
-- Letters: P in flight, D duplicate of a committed event, C capped, T total budget, Y daily budget, W allowance,
-- U no room for another user, A accepted. With any A, all of it is written under the tag; otherwise only plan and day
-- move on. In the end, a bucket that is as old as `age` closes.
local function reserve(keys, argv)
    local s, refusal = enter(keys, argv[1], '1')
    if refusal then return refusal end
    local call = read_call(argv)
    if not call then return shape('reserve') end
    local ver, day = call.ver, call.day
    if ver < s.ver then return {'PLAN', tostring(s.ver)} end
    if day < s.day then return {'DAY', tostring(s.day)} end
    -- What was not looked up must be younger than all that was forgotten, and nothing may have been forgotten since the
    -- others were: what committed meanwhile is still in a bucket then.
    if call.unlooked <= s.w or (call.looked ~= -1 and call.looked ~= s.bkt) then
        return {'BEHIND', s.bkt, s.w}
    end
    local same_day = day == s.day
    if call.cap >= 0 and same_day and s.unc == day then
        -- The cap is new today, and earlier impressions were not counted. Postgres knows them: disown the state, so
        -- that it is rebuilt.
        return disown(keys)
    end

    local tags = known_tags(keys, s, call.ids)
    local pending = pending_of(keys, tags, #call.ids, call.committed)
    local asked, before = impressions_of(keys, call.users, call.kinds, same_day)
    local count = {}
    for i = 1, #asked do count[asked[i]] = before[i] end
    local letters, accepted, ahead, total, today, amount =
        decide(call, tags, pending, count, s.total, same_day and s.today or 0)

    if #call.committed > 0 then redis.call('HDEL', keys[2], unpack(call.committed)) end
    if not same_day then redis.call('UNLINK', keys[3]) end
    local changes = #accepted > 0 and hold(keys, s, call, amount, accepted, ahead, asked, before, count) or {}
    if ver > s.ver or not same_day then
        redis.call('HSET', keys[1], 'total', total, 'today', today, 'ver', ver, 'day', day, unpack(changes))
    elseif amount > 0 or #changes > 0 then
        redis.call('HSET', keys[1], 'total', total, 'today', today, unpack(changes))
    end
    if s.began - call.at > 5000000 then
        -- It began by a clock that is ahead, and would not close for as long as that: it begins now. (A call takes at most
        -- 5 s; if less were enough, each that comes late would let a bucket close early.)
        s.began = call.at
        redis.call('HSET', keys[1], 'window', packed_window(s))
    end
    if call.at - s.began >= call.age then
        redis.call('HSET', keys[1], 'used', call.at)
        advance(keys, s, call.at, call.age)
    end
    return {'OK', letters, total, today, s.bkt, s.w}
end

-- advance: move the day on, and close a bucket, reserving nothing: for campaigns that nobody uses, and when memory is
-- short, because Redis refuses reserve while it has none.
-- ARGV  1 gen  2 day  3 at (now)  4 age: the current bucket closes if it is as old as that
-- Reply OK
local function advance_idle(keys, argv)
    local s, refusal = enter(keys, argv[1], '1')
    if refusal then return refusal end
    local day, at, age = tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4])
    if day > s.day then
        redis.call('UNLINK', keys[3])
        redis.call('HSET', keys[1], 'day', day, 'today', '0')
    end
    if at - s.began >= age then advance(keys, s, at, age) end
    return {'OK'}
end

-- Undo a pending record: its money, its users as far as the day still holds them, and its ids.
local function undo(keys, s, record)
    local day, bkt, ahead_bkt, amount, ids, users = unpack(cmsgpack.unpack(record))
    redis.call('HSET', keys[1], 'total', s.total - amount)
    if day == s.day then
        redis.call('HSET', keys[1], 'today', s.today - amount)
        for i = 1, #users, 2 do
            if redis.call('HINCRBY', keys[3], users[i], -users[i + 1]) <= 0 then redis.call('HDEL', keys[3], users[i]) end
        end
    end
    -- An id left behind would turn a retry into a false duplicate. (No bucket is forgotten while ids in it are pending.)
    ids = split(ids, 16)
    redis.call('HDEL', keys[4 + bkt % 2], unpack(ids))
    if ahead_bkt >= 0 then redis.call('HDEL', keys[6 + ahead_bkt % 2], unpack(ids)) end
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
-- Reply KEPT tag day first-id tag day first-id ... | EMPTY (rebuild it) | STALE g (unless gen is above the stored one)
local function begin(keys, argv)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open')
    local gen, stored = tonumber(argv[1]), tonumber(s[1] or -1)
    if gen <= stored then return {'STALE', s[1]} end
    if gen == stored + 1 and s[2] == this_image() and s[3] == '1' then
        local reply, pending = {'KEPT'}, redis.call('HGETALL', keys[2])
        for i = 1, #pending, 2 do
            local record = cmsgpack.unpack(pending[i + 1])
            reply[#reply + 1] = pending[i]
            reply[#reply + 1] = record[1]
            reply[#reply + 1] = string.sub(record[5], 1, 16)
        end
        redis.call('HSET', keys[1], 'gen', argv[1], 'open', '0')
        return reply
    end
    local run = this_image()
    redis.call('UNLINK', unpack(keys))
    redis.call('HSET', keys[1], 'gen', argv[1], 'run', run, 'open', '0')
    return {'EMPTY'}
end

-- load: one chunk of a rebuild's users, at most 1,000.
-- ARGV  1 gen  2 msgpack array [user, impressions, ...]
-- Reply OK
local function load(keys, argv)
    local _, refusal = enter(keys, argv[1], '0')
    if refusal then return refusal end
    local chunk = cmsgpack.unpack(argv[2])
    if #chunk % 2 ~= 0 or #chunk > 2000 then return shape('load') end
    if #chunk > 0 then redis.call('HSET', keys[3], unpack(chunk)) end
    return {'OK'}
end

-- ready: open the campaign, if its sums are those of the ledger row.
-- ARGV  1 gen  2 total  3 day  4 today  5 ver  6 the watermark: the highest id time of what is committed
--       7 at (now)  8 "1" if the users of that day were loaded, else "0"
-- Reply OK | MISMATCH (something is pending still, or a kept sum is wrong: begin again, which rebuilds)
local function ready(keys, argv)
    local s, refusal = enter(keys, argv[1], '0')
    if refusal then return refusal end
    if redis.call('HLEN', keys[2]) > 0 then return {'MISMATCH'} end
    local total, day, today = argv[2], tonumber(argv[3]), argv[4]
    if s.day then
        -- Where Redis has moved to a later day, nothing of that day is committed yet.
        if s.day < day or s.total ~= tonumber(total) or s.today ~= (s.day > day and 0 or tonumber(today)) then
            return {'MISMATCH'}
        end
        redis.call('HSET', keys[1], 'open', '1')
    else
        local window = {bkt = 0, began = tonumber(argv[7]), w = tonumber(argv[6]), m0 = 0, m1 = 0}
        redis.call('HSET', keys[1], 'open', '1', 'ver', argv[5], 'day', day, 'total', total, 'today', today,
            'window', packed_window(window))
        if argv[8] == '0' then redis.call('HSET', keys[1], 'unc', day) end
    end
    return {'OK'}
end

-- look: what a campaign's keys hold, changing nothing. For the sweep (engine/sweep.py), which finds the idle ones.
-- Reply OK gen, "1" if this memory image wrote it, open, day, bkt, began (all 0 while it is rebuilt), used (0: not yet),
--       pending, users, ids | LOST
local function look(keys, _)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'day', 'window', 'used')
    if not s[1] then return {'LOST'} end
    local bkt, began = 0, 0
    if s[5] then bkt, began = struct.unpack('>ddddd', s[5]) end
    local pending, users, ids = redis.call('HLEN', keys[2]), redis.call('HLEN', keys[3]), 0
    for i = 4, 7 do ids = ids + redis.call('HLEN', keys[i]) end
    local ours = s[2] == this_image() and '1' or '0'
    return {'OK', s[1], ours, s[3], s[4] or '0', bkt, began, s[6] or '0', pending, users, ids}
end

-- drop: forget a campaign whole, if it is still as `look` found it. At its next use it is LOST, and rebuilt.
-- ARGV  1 gen  2 open  3 bkt (0 while it is rebuilt)
-- Reply OK | LOST | STALE g | CLOSED (`open` is another by now) | USED (it has moved on, or holds what may commit still)
local function drop(keys, argv)
    local s = redis.call('HMGET', keys[1], 'gen', 'run', 'open', 'window')
    if not s[1] then return {'LOST'} end
    if s[1] ~= argv[1] then return {'STALE', s[1]} end
    if s[3] ~= argv[2] then return {'CLOSED'} end
    if (s[4] and struct.unpack('>d', s[4]) or 0) ~= tonumber(argv[3]) then return {'USED'} end
    -- (Of a state that no caller trusts, and of one whose recovery has stopped, nothing pending can commit any more.)
    if s[2] == this_image() and s[3] == '1' and redis.call('HLEN', keys[2]) > 0 then return {'USED'} end
    redis.call('UNLINK', unpack(keys))
    return {'OK'}
end

-- What frees memory must work without any. (reserve and load wait until there is some.)
local frees = {'allow-oom'}

redis.register_function('headrace5_reserve', reserve)
redis.register_function{function_name = 'headrace5_advance', callback = advance_idle, flags = frees}
redis.register_function{function_name = 'headrace5_resolve', callback = resolve, flags = frees}
redis.register_function{function_name = 'headrace5_begin', callback = begin, flags = frees}
redis.register_function('headrace5_load', load)
redis.register_function{function_name = 'headrace5_ready', callback = ready, flags = frees}
redis.register_function{function_name = 'headrace5_look', callback = look, flags = {'no-writes'}}
redis.register_function{function_name = 'headrace5_drop', callback = drop, flags = frees}
