"""Other designs that do the same work, and ceilings: what the engine is compared with.

Each peer validates, dedups, holds caps and budgets, and answers 200 only for what is committed, on the same stores and
tables; `python -m bench.peers.NAME` starts one. Rollups and generations are not part of the common work.
"""
