-- May take long: indexes all events anew, at the speed of one read of them.
--
-- BRIN knows the spend days of each part of a partition, too: a rebuild reads the rows of one spend day, and those lie in
-- the partitions of some identity days, most of whose rows are of other spend days.
DROP INDEX events_time;
CREATE INDEX events_time ON events USING brin (occurred_at, received_at, spend_day) WITH (autosummarize = on);
