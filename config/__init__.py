"""Settings of the whole program, and the configuration files that ship with it."""
