"""Tests: unit (pure), contract (ports, fake and real), integration (real stores), e2e (the whole program)."""
