"""Pure code, no stores."""
