from typing import Final, NamedTuple

BUCKET_MIN_US: Final = 2_000_000


class MemoryPolicy(NamedTuple):
    """."""

    bucket_us: int
    new_users: bool
