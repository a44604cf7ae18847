"""The engine under faults in random order, from a seed."""
