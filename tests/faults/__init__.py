"""Real engines, real stores, real faults, and a checker that knows nothing of the engine."""
