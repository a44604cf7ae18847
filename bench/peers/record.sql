-- Peer c: one function that takes a batch, in order, and decides and writes all of it (bench/peers/plpgsql.py).

-- Impressions of a user on a day, of campaigns with a cap: counting rows of `events` would read the day, each time.
CREATE TABLE IF NOT EXISTS peer_impressions (
    campaign_id  bigint NOT NULL,
    day          date   NOT NULL,
    user_id      text   NOT NULL,
    impressions  int    NOT NULL,
    PRIMARY KEY (campaign_id, day, user_id)
) WITH (fillfactor = 70);

-- Element i of each array is one event; money is micros, instants are microseconds and days are days since 1970-01-01.
--
-- Result: a letter an event, and the cost of those accepted. A accepted, D an event with this id is stored (or was
-- accepted earlier in this batch), I inactive, C capped, T total budget, Y daily budget, U no such campaign.
--
-- The ledger rows are locked first, in order of campaign, and held until the commit: nobody else decides for these
-- campaigns meanwhile, and each statement below sees what others have committed before. Sets decide as a loop over the
-- events would, because all billable events of a campaign cost the same: whoever finds no room, none after him does.
CREATE OR REPLACE FUNCTION peer_record(
    campaigns bigint[], ids uuid[], users text[], ads text[], types smallint[], occurred bigint[], received bigint[],
    days int[], on_day int, tag bigint, OUT letters text, OUT costs bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    this_day  date := date '1970-01-01' + on_day;
BEGIN
    PERFORM FROM ledger WHERE campaign_id = ANY (campaigns) ORDER BY campaign_id FOR NO KEY UPDATE;

    WITH event AS MATERIALIZED (
        SELECT *, date '1970-01-01' + day_number AS day
          FROM unnest(campaigns, ids, users, ads, types, occurred, received, days) WITH ORDINALITY
            AS e (campaign_id, event_id, user_id, ad_id, event_type, occurred_us, received_us, day_number, i)
    ), plan AS MATERIALIZED (
        SELECT c.id, c.active, c.freq_cap_impressions_per_day AS cap, l.total_budget - l.spent AS total_room,
               l.daily_budget - CASE WHEN l.day = this_day THEN l.today ELSE 0 END AS daily_room,
               CASE c.pricing_model WHEN 'cpm' THEN 0 WHEN 'cpc' THEN 1 ELSE 2 END AS billable,
               CASE c.pricing_model WHEN 'cpm' THEN (c.unit_price_micros + 500) / 1000 ELSE c.unit_price_micros END AS cost
          FROM campaigns AS c JOIN ledger AS l ON l.campaign_id = c.id
         WHERE c.id = ANY (campaigns) AND l.campaign_id = ANY (campaigns)
    ), told AS MATERIALIZED (
        -- The first of an id decides; those after it follow. Who is stored already, or inactive, takes part in nothing.
        SELECT e.*, p.active, p.cap, p.cost, p.total_room, p.daily_room, e.event_type = p.billable AS billable,
               row_number() OVER (PARTITION BY e.campaign_id, e.event_id ORDER BY e.i) AS nth, p.id IS NULL AS unknown,
               coalesce((SELECT true FROM events AS s WHERE s.campaign_id = e.campaign_id AND s.event_id = e.event_id
                                                        AND s.day = e.day LIMIT 1), false) AS stored
          FROM event AS e LEFT JOIN plan AS p ON p.id = e.campaign_id
    ), new AS (
        SELECT *, CASE WHEN counts THEN coalesce((SELECT s.impressions FROM peer_impressions AS s
                       WHERE s.campaign_id = t.campaign_id AND s.day = this_day AND s.user_id = t.user_id LIMIT 1), 0)
                  END AS shown
          FROM (SELECT *, cap IS NOT NULL AND event_type = 0 AS counts FROM told) AS t
         WHERE nth = 1 AND active AND NOT stored
    ), capped AS (
        SELECT *, counts AND shown + row_number() OVER (PARTITION BY campaign_id, user_id, counts ORDER BY i) > cap
                  AS over_cap
          FROM new
    ), summed AS (
        SELECT *, cost * count(*) FILTER (WHERE billable) OVER (PARTITION BY campaign_id, over_cap ORDER BY i) AS upto
          FROM capped
    ), judged AS (
        SELECT *, NOT over_cap AND (NOT billable OR upto <= least(total_room, daily_room)) AS accepted FROM summed
    ), decided AS MATERIALIZED (
        -- Who is over his cap only because of those before him that found no room is refused for the budget, too.
        SELECT *, CASE WHEN accepted THEN 'A'
                       WHEN over_cap AND shown + count(*) FILTER (WHERE accepted)
                                         OVER (PARTITION BY campaign_id, user_id, counts) >= cap THEN 'C'
                       WHEN cost * (1 + count(*) FILTER (WHERE accepted AND billable) OVER (PARTITION BY campaign_id))
                            > total_room THEN 'T'
                       ELSE 'Y' END AS letter
          FROM judged
    ), written AS (
        INSERT INTO events (campaign_id, cost_micros, occurred_at, received_at, batch, event_id, day, spend_day,
                            event_type, user_id, ad_id)
        SELECT campaign_id, CASE WHEN billable THEN cost ELSE 0 END,
               timestamptz 'epoch' + occurred_us * interval '1 microsecond',
               timestamptz 'epoch' + received_us * interval '1 microsecond',
               tag, event_id, day, this_day, event_type, user_id, ad_id
          FROM decided WHERE accepted
            ON CONFLICT (campaign_id, event_id, day) DO NOTHING
        RETURNING campaign_id, event_id, cost_micros, event_type, user_id
    ), counted AS (
        INSERT INTO peer_impressions AS s (campaign_id, day, user_id, impressions)
        SELECT w.campaign_id, this_day, w.user_id, count(*)
          FROM written AS w JOIN plan AS p ON p.id = w.campaign_id AND p.cap IS NOT NULL
         WHERE w.event_type = 0 GROUP BY w.campaign_id, w.user_id
            ON CONFLICT (campaign_id, day, user_id) DO UPDATE SET impressions = s.impressions + excluded.impressions
    ), paid AS (
        UPDATE ledger AS l
           SET spent = l.spent + w.amount, day = this_day,
               today = CASE WHEN l.day = this_day THEN l.today ELSE 0 END + w.amount
          FROM (SELECT campaign_id, sum(cost_micros)::bigint AS amount FROM written GROUP BY campaign_id) AS w
         WHERE l.campaign_id = w.campaign_id AND l.campaign_id = ANY (campaigns)
    )
    SELECT string_agg(CASE WHEN t.unknown THEN 'U' WHEN t.stored THEN 'D' WHEN NOT t.active THEN 'I'
                           WHEN d.letter = 'A' AND t.nth > 1 THEN 'D' ELSE d.letter END, '' ORDER BY t.i),
           array_agg(CASE WHEN d.letter = 'A' AND t.billable THEN t.cost ELSE 0 END ORDER BY t.i)
      INTO letters, costs
      FROM told AS t
      LEFT JOIN decided AS d ON d.campaign_id = t.campaign_id AND d.event_id = t.event_id;
END
$$;
