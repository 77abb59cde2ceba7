"""How many CPUs this process may use, as its affinity and its control groups say; and how its threads wait.

OpenMP and torch see the affinity, but not the quota of a container: with ``docker run --cpus 1`` on a machine of 64
cores they start 64 threads, which the kernel then lets run for a 64th of each period.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(membership: Path = _MEMBERSHIP, cgroups: Path = _CGROUPS) -> int:
    """Return how many threads may compute at a time, at least 1.

    The smallest of the affinity and the quotas (``cpu.max``, control groups version 2) of the process's own group and
    the groups around it; a quota of 2.5 CPUs allows two threads.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _groups(membership, cgroups) if (quota := _quota(group)) is not None]
    return max(1, min(cpus, *map(int, quotas))) if quotas else cpus


def calm_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait, and be no more than `usable_cpus`, unless the environment says.

    OpenMP reads its environment once, when torch or FAISS loads it: call this before.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpus = usable_cpus()
    if cpus < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(cpus))


def _groups(membership: Path, cgroups: Path) -> list[Path]:
    """Return the folders of the process's own group and of those around it; in a container these are one."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    paths = [Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")]
    return [cgroups / group for path in paths for group in (path, *path.parents)]


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
