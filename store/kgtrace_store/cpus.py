"""How many CPUs this process may use, as its affinity and its control groups say; how its threads wait.

OpenMP and torch see the affinity, but not the quota of a container: with ``docker run --cpus 1`` on a machine of 64
cores they start 64 threads, which the kernel then lets run for a 64th of each period.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path, PurePosixPath

OWN_CGROUP = Path("/proc/self/cgroup")
"""Says which control group this process is in."""
CGROUPS = Path("/sys/fs/cgroup")
"""Where control groups of version 2 are mounted."""


def usable_cpus(own: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> int:
    """Return how many threads may compute at a time, at least 1.

    The smallest of the affinity and the quotas (``cpu.max``, control groups version 2) of the process's own group and
    the groups around it; a quota of 2.5 CPUs allows two threads.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in control_groups(own, cgroups) if (quota := _quota(group)) is not None]
    return max(1, min(cpus, *map(int, quotas))) if quotas else cpus


def calm_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait, and be no more than `usable_cpus`, unless the environment says.

    OpenMP reads its environment once, when torch or FAISS loads it: call this before.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpus = usable_cpus()
    if cpus < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(cpus))


def control_groups(own: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> list[Path]:
    """Return the folders of the process's control group (version 2) and of the groups around it, innermost first."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    group = PurePosixPath("" if ".." in path.split("/") else path)  # outside of this container's view
    return [cgroups / folder for folder in (group, *group.parents)]


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
