"""The judge: Postgres keeps every event, every campaign and the ledger. `store.open_store` is the door."""
