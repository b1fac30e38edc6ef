"""Figures as people read them: three digits, a unit, and a dash where there is nothing to tell."""

from __future__ import annotations

from math import floor, isfinite, log10

NOTHING = "–"


def duration(seconds: float | None) -> str:
    """`845 µs`, `84.2 ms`, `1.31 s`, `12.5 min`, `6.00 h`."""
    if seconds is None or not isfinite(seconds):
        return NOTHING
    if seconds == 0:
        return "0 s"
    for limit, size, unit in ((0.9995e-3, 1e-6, "µs"), (0.9995, 1e-3, "ms"), (599.5, 1.0, "s"), (7197.0, 60.0, "min")):
        if abs(seconds) < limit:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 3600)} h"


def number(value: float | None) -> str:
    """`0.0123`, `4.50`, `31.2`, `2,410`: three digits, and no more decimals than a whole number has."""
    return NOTHING if value is None or not isfinite(value) else _three_digits(value)


def count(value: float | None) -> str:
    """`1,204`; what is not whole keeps two decimals, as the counters of some servers do."""
    if value is None or not isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def share(part: float | None) -> str:
    """`97.3 %` of a share from 0 to 1; what is neither none nor all is never shown as such."""
    if part is None or not isfinite(part):
        return NOTHING
    if part in (0.0, 1.0):
        return f"{part:.0%}".replace("%", " %")
    return f"{min(part * 100, 99.9) if part < 1 else part * 100:.1f} %" if part >= 0.0005 else "< 0.1 %"


def ratio(value: float | None) -> str:
    """`×1.31`."""
    return NOTHING if value is None or not isfinite(value) else f"×{_three_digits(value)}"


def part_of(part: float, whole: float) -> float | None:
    """A share, or `None` of nothing."""
    return part / whole if whole else None


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    exponent = floor(log10(float(f"{abs(value):.2e}")))  # of what is left after rounding: 9.999 is 10.0
    return f"{value:,.{min(max(2 - exponent, 0), 6)}f}"
