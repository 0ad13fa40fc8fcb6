"""Says how far preparing is: rows, rows per second, and how long it will still take."""

import time
from collections.abc import Callable
from typing import Any

Told = Callable[[dict[str, Any]], Any]

EVERY_S = 0.5


class Progress:
    """Told of every unit as it passes; says so twice a second at most."""

    def __init__(self, report: Told, sizes: dict[int, int]):
        """`sizes`: bytes of each unit, by its number."""
        self._report, self._sizes, self._total = report, sizes, sum(sizes.values())
        self._rows: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._earlier_rows = self._earlier_bytes = self._earlier_units = 0
        self._began = self._told = time.monotonic()
        report({"kind": "phase", "phase": "preparing", "detail": "loading the tokenizer"})

    def found(self, unit: int, rows: int) -> None:
        """A unit that an earlier preparation finished: no part of this one's speed."""
        self._earlier_rows += rows
        self._earlier_bytes += self._sizes[unit]
        self._earlier_units += 1

    def passed(self, unit: int, rows: int, read: int | None) -> None:
        """A unit has so many rows and bytes behind it; None for all."""
        self._rows[unit] = rows
        self._bytes[unit] = self._sizes[unit] if read is None else read
        if time.monotonic() - self._told > EVERY_S:
            self.tell()

    def note(self, message: str) -> None:
        self._report({"kind": "note", "message": message})

    def tell(self) -> None:
        self._told = now = time.monotonic()
        passed, rows, read = now - self._began, sum(self._rows.values()), sum(self._bytes.values())
        parts = [f"{rows + self._earlier_rows:,} rows", f"{rows / max(passed, 1e-9):,.0f} rows/s"]
        left = self._total - self._earlier_bytes - read
        eta_s = passed * left / read if read else None
        if left > 0 and eta_s is not None:
            parts.append(f"{duration(eta_s)} left")
        if self._earlier_units:
            parts.append(f"{self._earlier_units} of {len(self._sizes)} parts were done before")
        self._report(
            {
                "kind": "phase",
                "phase": "preparing",
                "detail": ", ".join(parts),
                "rows": rows + self._earlier_rows,
                "rows_per_s": rows / max(passed, 1e-9),
                "eta_s": eta_s,
            }
        )


def duration(seconds: float) -> str:
    """About how long, as a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
