"""How much memory a process held at most: its resident set as the kernel counts it, and the peak since a moment.

Linux keeps the greatest resident set of a process (`VmHWM`) and forgets it on request, so a peak that lasted a
millisecond is in it: nothing is sampled. Pages that a process keeps after use count as held; so what a load adds is
told of a process that was warmed up and has not carried that load before.
"""

from __future__ import annotations

from pathlib import Path

_FORGET_PEAK = "5"  # see proc_pid_clear_refs(5)


def field_bytes(status: str, name: str) -> int:
    """A field of `/proc/PID/status`, given there in kB, in bytes. Raises `ValueError` where there is none."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            amount, unit = value.split()
            if unit == "kB":
                return int(amount) * 1024
    raise ValueError(f"no {name} in kB")


class Resident:
    """The resident memory of one process, by its id; the process must be ours to ask."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)

    def now_bytes(self) -> int:
        """What it holds now."""
        return field_bytes((self._folder / "status").read_text(), "VmRSS")

    def peak_bytes(self) -> int:
        """The most it held since `forget_peak`, or since it began."""
        return field_bytes((self._folder / "status").read_text(), "VmHWM")

    def forget_peak(self) -> int:
        """Let the peak begin anew; what it holds now."""
        (self._folder / "clear_refs").write_text(_FORGET_PEAK)
        return self.now_bytes()
