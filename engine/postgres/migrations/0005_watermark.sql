-- May take long: reads the events of the last hour, for ids that tell a later time.
--
-- The judge keeps the highest id time of what is committed: where Redis has forgotten a campaign, no id above it can be
-- that of a committed event (engine/redis/functions.lua, the watermark).
--
-- Micros since 1970. Never lowered. What was committed before this step is at or below now, unless its id time was ahead.
-- No setting lets that be more than an hour ahead of its receipt: such an event was received within the last hour, and its
-- identity day is today or later. (This holds whatever clock `now` is of.) An event's id time is its `occurred_at` where
-- its sender told one, else that in its UUIDv7; one beyond that hour came with an `occurred_at`. Ids are compared as they
-- are first: to read the times in all of them would take three times as long.
ALTER TABLE ledger ADD COLUMN latest bigint NOT NULL DEFAULT 0;
UPDATE ledger SET latest = (extract(epoch FROM now()) * 1000000)::bigint WHERE day <> '1970-01-01';
UPDATE ledger AS l SET latest = greatest(l.latest, ahead.latest)
  FROM (SELECT campaign_id, max(greatest(occurred, CASE WHEN of_id <= received + 3600000000 THEN of_id END)) AS latest
          FROM (SELECT campaign_id, (extract(epoch FROM occurred_at) * 1000000)::bigint AS occurred,
                       (extract(epoch FROM received_at) * 1000000)::bigint AS received,
                       CASE WHEN occurred_at = received_at AND substr(event_id::text, 15, 1) = '7' THEN
                           ('x' || substr(replace(event_id::text, '-', ''), 1, 12))::bit(48)::bigint * 1000
                       END AS of_id
                  FROM events,
                       (SELECT (lpad(to_hex(ms), 12, '0') || repeat('0', 20))::uuid AS present,
                               (lpad(to_hex(ms + 86400000), 12, '0') || repeat('0', 20))::uuid AS tomorrow
                          FROM (SELECT floor(extract(epoch FROM now()) * 1000)::bigint AS ms) AS clock) AS ids
                 WHERE received_at > now() - interval '1 hour' AND day >= (now() AT TIME ZONE 'UTC')::date
                   AND (occurred_at > now() OR (event_id >= ids.present AND event_id < ids.tomorrow))) AS recent
         GROUP BY campaign_id) AS ahead
 WHERE l.campaign_id = ahead.campaign_id;

-- The older guard goes: it would stay as an overload, and an engine of the version before would commit without `latest`.
DROP FUNCTION headrace_guard(
    bigint[], bigint[], int[], bigint[], bigint[], int[], bigint[], bigint[], bigint[], bigint[]
);

-- The judge's last word on one flush, called after the COPY and right before the COMMIT.
--
-- Batches come merged: element i of the first five arrays is one campaign, in rising order. Rollups come merged too:
-- one element a campaign and hour. Days and hours are counted from 1970-01-01 UTC, money and id times (`latests`, the
-- highest of a campaign's rows) are micros.
--
-- It raises `spent`, `today`, `day` and `latest` of each campaign whose generation is the batch's, whose day is not ahead
-- of the batch's, and whose budgets hold (a free batch fits every budget). If any campaign refuses, all of it is
-- undone by an exception: SQLSTATE HR001, its detail a JSON object {campaign: "generation" | "day" | "budget"}.
--
-- Arrays are read by subscript, from a series of positions: half the price of unnest, which stores each array first.
CREATE FUNCTION headrace_guard(
    campaigns bigint[], gens bigint[], days int[], amounts bigint[], latests bigint[],
    rollup_campaigns bigint[], rollup_hours int[],
    impressions bigint[], clicks bigint[], conversions bigint[], spends bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    passed  bigint[];
    refused jsonb;
BEGIN
    -- In order of campaign, so that two flushes never wait for each other. Held until the COMMIT that follows.
    PERFORM FROM ledger WHERE campaign_id = ANY (campaigns) ORDER BY campaign_id FOR NO KEY UPDATE;

    WITH raised AS (
        UPDATE ledger AS l
           SET spent = l.spent + amounts[i],
               today = CASE WHEN l.day = date '1970-01-01' + days[i] THEN l.today ELSE 0 END + amounts[i],
               day   = date '1970-01-01' + days[i],
               latest = greatest(l.latest, latests[i])
          FROM generate_series(1, cardinality(campaigns)) AS i
         WHERE l.campaign_id = campaigns[i]
           AND l.gen = gens[i]
           AND l.day <= date '1970-01-01' + days[i]
           AND (amounts[i] = 0
                OR l.spent + amounts[i] <= l.total_budget
               AND CASE WHEN l.day = date '1970-01-01' + days[i] THEN l.today ELSE 0 END + amounts[i] <= l.daily_budget)
        RETURNING l.campaign_id
    )
    SELECT coalesce(array_agg(campaign_id), '{}') INTO passed FROM raised;

    IF cardinality(passed) <> cardinality(campaigns) THEN
        -- These rows are locked and unchanged. A campaign without a row has no generation at all.
        SELECT jsonb_object_agg(campaigns[i], CASE
                   WHEN l.gen IS DISTINCT FROM gens[i] THEN 'generation'
                   WHEN l.day > date '1970-01-01' + days[i] THEN 'day'
                   ELSE 'budget' END)
          INTO refused
          FROM generate_series(1, cardinality(campaigns)) AS i
          LEFT JOIN ledger AS l ON l.campaign_id = campaigns[i]
         WHERE campaigns[i] <> ALL (passed);
        RAISE EXCEPTION 'the ledger refuses this flush' USING ERRCODE = 'HR001', DETAIL = refused::text;
    END IF;

    INSERT INTO rollup AS r (campaign_id, hour, impressions, clicks, conversions, spend)
    SELECT rollup_campaigns[i], to_timestamp(3600.0::float8 * rollup_hours[i]),
           impressions[i], clicks[i], conversions[i], spends[i]
      FROM generate_series(1, cardinality(rollup_campaigns)) AS i
        ON CONFLICT (campaign_id, hour) DO UPDATE
       SET impressions = r.impressions + excluded.impressions,
           clicks      = r.clicks + excluded.clicks,
           conversions = r.conversions + excluded.conversions,
           spend       = r.spend + excluded.spend;
END
$$;
