"""Headrace's engine: the door. Listeners import from here, and from nowhere below."""
