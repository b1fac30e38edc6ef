"""Long runs for developers: `python -m tests.simulation.run --seeds 100000` (`--help` tells the rest)."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from tests.simulation.world import Broken, World, a_script


def main() -> int:
    parser = argparse.ArgumentParser(description="Let many histories happen; print those that break an invariant.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to try (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--log", action="store_true", help="print the event log of each broken history")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    began = time.perf_counter()
    for seed in range(options.first, options.first + options.seeds):
        world = World(seed, a_script(seed))
        try:
            world.run()
        except Broken as broken:
            print(broken, flush=True)
            found[str(broken).partition("invariant ")[2].partition(",")[0] or "0"] += 1
            if options.log:
                print(*world.log, sep="\n")
    seconds = time.perf_counter() - began
    summary = ", ".join(f"invariant {number}: {times}" for number, times in sorted(found.items())) or "all good"
    print(f"{options.seeds} histories from seed {options.first} on in {seconds:.0f} s: {summary}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
