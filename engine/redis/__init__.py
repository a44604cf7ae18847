"""`Ledger` over Redis functions."""
