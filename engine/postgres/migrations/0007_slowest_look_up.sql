-- How slow the look-ups of each engine were in the last minute: a look-up counts for one bucket of the dedup window, and
-- buckets are closed by all engines.
ALTER TABLE engines ADD COLUMN slowest_look_up_us bigint NOT NULL DEFAULT 0;
