"""The bench harness: generated load, and the demo."""
