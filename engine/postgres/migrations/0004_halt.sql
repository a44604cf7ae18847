-- A campaign whose books differ is out of service until an operator has rebuilt them (`headrace recover`).
--
-- NULL: in service; else since when, who found it, and what. Nothing in the flush looks at it: whoever sets it raises
-- the generation as well, and nobody makes Redis follow, so nothing that is reserved can commit.
-- (One nullable column, and no second one for the time: eight columns' null bitmap fits the row's header as it was.)
ALTER TABLE ledger ADD COLUMN halted text;
