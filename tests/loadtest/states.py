"""A run at moments of it, for tests of what shows them."""

from __future__ import annotations

from dataclasses import replace

from loadtest.report.live_state import LiveState, LiveStrain, LiveTenant

VICTIM = LiveTenant("victim", 240, 238, 12, 0, 226, 0, 0, 1540.0, 0.0523, 0.18, 0.0201, 0.031)
CROWD = LiveTenant("crowd", 2048, 2044, 40, 4, 1992, 12, 12, 38_300.0, 0.41, 1.24, 0.0312, 0.081, "429 token_rate")
ALL = LiveTenant("all", 2288, 2282, 52, 4, 2218, 12, 12, 39_840.0, 0.38, 1.21, 0.03, 0.08, "429 token_rate")
CROWDED = LiveState(
    name="neighbours",
    phase="crowded",
    phase_number=2,
    phases=3,
    seconds=23.4,
    phase_seconds=60.0,
    tenants=(VICTIM, CROWD),
    all=ALL,
    progress=0.41,
    remaining_seconds=97.0,
    strain=LiveStrain(0.0008, 0.41, 0.03),
)
AFTER = replace(CROWDED, phase="after", phase_number=3, seconds=1.0, tenants=(VICTIM,), all=VICTIM)
