"""What a store does wrong on the way: told each time, and tried again while that makes sense."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One request that failed, was cut short, or took long."""

    url: str
    operation: str
    """get, put, head, list, delete ..."""
    what: str
    """In words, with the store's own code where it gave one."""
    attempt: int
    """Counts from 1 within one operation."""
    wait_s: float
    """Seconds until the next attempt; 0 when there is none: it was given up, or was only slow."""
