-- Tables of Headrace. Money is integer micros; days are UTC dates (day) or the campaign's own (spend_day).

CREATE TABLE campaigns (
    id                            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                          text NOT NULL,
    pricing_model                 text NOT NULL CHECK (pricing_model IN ('cpm', 'cpc', 'cpa')),
    unit_price_micros             bigint NOT NULL CHECK (unit_price_micros >= 0),
    total_budget_micros           bigint NOT NULL CHECK (total_budget_micros >= 0),
    daily_budget_micros           bigint NOT NULL CHECK (daily_budget_micros >= 0),
    freq_cap_impressions_per_day  int CHECK (freq_cap_impressions_per_day >= 1),
    active                        boolean NOT NULL,
    pacing                        text NOT NULL CHECK (pacing IN ('asap', 'even')),
    timezone                      text NOT NULL,
    version                       int NOT NULL DEFAULT 1,
    created_at                    timestamptz NOT NULL DEFAULT now(),
    updated_at                    timestamptz NOT NULL DEFAULT now()
);

-- One guarded row a campaign, changed by every flush: narrow, and with three quarters of each page left free,
-- so that a new version finds room beside the old one and no index is touched (HOT).
-- Budgets stand here too: the transaction that changes a campaign writes both.
CREATE TABLE ledger (
    campaign_id   bigint PRIMARY KEY REFERENCES campaigns,
    gen           bigint NOT NULL DEFAULT 0,
    spent         bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
    total_budget  bigint NOT NULL,
    day           date   NOT NULL DEFAULT '1970-01-01',
    today         bigint NOT NULL DEFAULT 0 CHECK (today >= 0),
    daily_budget  bigint NOT NULL
) WITH (fillfactor = 25);

-- One row an accepted event, for ever. `day` is the identity day, so that a retry meets the same unique key;
-- `batch` is the tag of the reservation that paid for the row.
-- BRIN: rows arrive in order of time, so a few bytes a megabyte are enough to find an hour.
CREATE TABLE events (
    campaign_id  bigint      NOT NULL,
    cost_micros  bigint      NOT NULL,
    occurred_at  timestamptz NOT NULL,
    received_at  timestamptz NOT NULL,
    batch        bigint      NOT NULL,
    event_id     uuid        NOT NULL,
    day          date        NOT NULL,
    spend_day    date        NOT NULL,
    event_type   smallint    NOT NULL,  -- 0 impression, 1 click, 2 conversion
    user_id      text        NOT NULL,
    ad_id        text,
    UNIQUE (campaign_id, event_id, day)
) PARTITION BY RANGE (day);

CREATE INDEX events_time ON events USING brin (occurred_at, received_at) WITH (autosummarize = on);

-- A day without a partition of its own must not lose an event.
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- What each hour delivered, by `occurred_at`. Written by the flush that writes the events, under the same ledger lock.
CREATE TABLE rollup (
    campaign_id  bigint      NOT NULL,
    hour         timestamptz NOT NULL,
    impressions  bigint      NOT NULL,
    clicks       bigint      NOT NULL,
    conversions  bigint      NOT NULL,
    spend        bigint      NOT NULL,
    PRIMARY KEY (campaign_id, hour)
) WITH (fillfactor = 50);

-- Who is alive, for recovery only: safety never asks it. The number is new at each start of a process.
CREATE SEQUENCE engine_number AS int;

CREATE TABLE engines (
    id            bigint PRIMARY KEY,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
