-- The judge keeps the highest id time of what is committed: where Redis has forgotten a campaign, no id above it can be
-- that of a committed event (engine/redis/functions.lua, the watermark).
--
-- Micros since 1970. What was committed before this step is not known, so it begins an hour from now: no setting lets an
-- id time be further ahead of its receipt. Never lowered.
ALTER TABLE ledger ADD COLUMN latest bigint NOT NULL DEFAULT 0;
UPDATE ledger SET latest = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 3600000000
 WHERE day <> '1970-01-01';

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
