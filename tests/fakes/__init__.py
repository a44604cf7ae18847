"""In-memory stores that pass the same contract tests as the real ones."""
