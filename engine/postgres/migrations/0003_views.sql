-- Views with plain names for analysts: names instead of numbers, money in currency units.

CREATE VIEW event_log AS
SELECT e.event_id,
       e.campaign_id,
       c.name AS campaign,
       e.ad_id,
       e.user_id,
       CASE e.event_type WHEN 0 THEN 'impression' WHEN 1 THEN 'click' ELSE 'conversion' END AS event_type,
       (e.cost_micros * 0.000001)::numeric(16, 6) AS cost,
       e.occurred_at,
       e.received_at,
       e.day,
       e.spend_day
  FROM events AS e
  LEFT JOIN campaigns AS c ON c.id = e.campaign_id;

CREATE VIEW campaign_spend AS
SELECT c.id AS campaign_id,
       c.name AS campaign,
       c.pricing_model,
       (c.unit_price_micros * 0.000001)::numeric(16, 6) AS unit_price,
       (l.total_budget * 0.000001)::numeric(16, 6) AS total_budget,
       (l.daily_budget * 0.000001)::numeric(16, 6) AS daily_budget,
       (l.spent * 0.000001)::numeric(16, 6) AS spent_total,
       l.day AS latest_spend_day,
       (l.today * 0.000001)::numeric(16, 6) AS spent_on_latest_day
  FROM campaigns AS c
  JOIN ledger AS l ON l.campaign_id = c.id;

CREATE VIEW hourly_delivery AS
SELECT r.campaign_id,
       c.name AS campaign,
       r.hour,
       r.impressions,
       r.clicks,
       r.conversions,
       (r.spend * 0.000001)::numeric(16, 6) AS spend
  FROM rollup AS r
  LEFT JOIN campaigns AS c ON c.id = r.campaign_id;
