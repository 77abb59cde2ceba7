"""How much memory is left, by the kernel and the container's limit; and how much the C library may keep."""

import ctypes
from pathlib import Path

from kgtrace_store.cpus import CGROUPS, OWN_CGROUP, control_groups

_MEMINFO = Path("/proc/meminfo")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h numbers them."""

MAPPED_BYTES = 4 << 20
"""Blocks from this size on are mapped, and go back to the system with ``free``: a page fault every 4 KiB."""

KEPT_BYTES = 16 << 20
"""Free memory that the end of a thread's heap may hold; a test triple's computation needs less beside mapped blocks."""


def bound_heap() -> None:
    """Limit how much freed memory the C library keeps, where that is glibc's.

    By itself it adapts both limits to the largest block that it has seen freed, up to 32 and 64 MiB (mallopt(3)): a
    service then grows a step with every question that is harder than all before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = CGROUPS, own: Path = OWN_CGROUP) -> int | None:
    """Return how many bytes can be had without swapping, cached files counted as free; None if neither is known.

    The smallest of the machine's ``MemAvailable`` and what is left below the limits of the process's control group and
    of those around it (cgroup version 2): a container's, or a systemd unit's ``MemoryMax=``.
    """
    limits = [_of_machine(meminfo), *map(_below_limit, control_groups(own, cgroup))]
    return min((n for n in limits if n is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    kilobytes = _table(meminfo).get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _below_limit(cgroup: Path) -> int | None:
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    files = _table(cgroup / "memory.stat")
    return max(0, limit - used + files.get("active_file", 0) + files.get("inactive_file", 0))


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and an integer; nothing where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
