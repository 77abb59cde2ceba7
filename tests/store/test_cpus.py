"""CPUs that a process may use, and how its threads wait."""

from pathlib import Path

import pytest

from kgtrace_store.cpus import calm_threads, usable_cpus


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)


def write_groups(tmp_path: Path, path: str, quotas: dict[str, str]) -> tuple[Path, Path]:
    """Lay out control groups: the process's ``path`` and ``cpu.max`` of each group that has one."""
    membership, cgroups = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text(f"1:name=systemd:/old\n0::{path}\n")
    for group, quota in quotas.items():
        (cgroups / group).mkdir(parents=True, exist_ok=True)
        (cgroups / group / "cpu.max").write_text(f"{quota}\n")
    return membership, cgroups


@pytest.mark.parametrize(
    ("path", "quotas", "cpus"),
    [
        ("/", {}, 16),  # no control groups of version 2
        ("/", {"": "max 100000"}, 16),
        ("/", {"": "200000 100000"}, 2),
        ("/", {"": "250000 100000"}, 2),  # a third thread would be stopped half of the time
        ("/", {"": "50000 100000"}, 1),
        ("/", {"": "3200000 100000"}, 16),
        ("/system.slice/kgtrace.service", {"system.slice/kgtrace.service": "400000 100000"}, 4),
        ("/a/b", {"a": "300000 100000", "a/b": "max 100000"}, 3),  # a group is bound by those around it
        ("/a/b", {"a": "800000 100000", "a/b": "500000 100000"}, 5),
        ("/", {"": "nonsense"}, 16),
    ],
)
def test_a_quota_is_a_limit(tmp_path: Path, path: str, quotas: dict[str, str], cpus: int) -> None:
    """The smallest quota on the way up counts, rounded down, and at least one CPU is left."""
    assert usable_cpus(*write_groups(tmp_path, path, quotas)) == cpus


def test_the_affinity_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on three cores uses three, whatever its quota allows."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert usable_cpus(*write_groups(tmp_path, "/", {"": "800000 100000"})) == 3


def test_waiting_threads_sleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is filled in for OpenMP; what it says already stays."""
    monkeypatch.setattr("kgtrace_store.cpus.usable_cpus", lambda: 2)
    environment: dict[str, str] = {}
    calm_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    calm_threads(chosen)
    assert chosen == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}


def test_without_a_quota_openmp_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP knows physical cores from virtual ones: its own number is better than ours."""
    monkeypatch.setattr("kgtrace_store.cpus.usable_cpus", lambda: 16)
    environment: dict[str, str] = {}
    calm_threads(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}
