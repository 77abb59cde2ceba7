"""The gate that a generation must pass before anybody can see it.

The files are loaded from the staging folder as a service would load them, and checked as by `kgtrace verify`. The
verdict, ``gate.json``, becomes part of the generation, or stays in staging with the files that failed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kgtrace_indexer.building.agreement import Agreement, agreement
from kgtrace_indexer.building.checks import Check, verify
from kgtrace_indexer.query.attributor import Attributor
from kgtrace_indexer.query.opening import open_index, read_attributor
from kgtrace_store import durable, layout
from kgtrace_store.errors import GateFailed, KgtraceError
from kgtrace_store.generation import Generation


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every check, and the agreement with the generation that is live."""

    checks: list[Check]
    agreement: Agreement | None
    """None for the first generation, and for one that cannot be loaded. It never fails a generation: a model that was
    trained anew may well change its mind."""

    @property
    def ok(self) -> bool:
        """Whether the generation may be published."""
        return all(check.ok for check in self.checks)

    def reasons(self) -> str:
        """Say which checks failed and why."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.ok)

    def warnings(self) -> tuple[str, ...]:
        """Return the checks that an operator should look at, though they are no reason to withhold the generation."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if check.warning)

    def json(self) -> bytes:
        """Return the content of ``gate.json``."""
        document = {"ok": self.ok, "checks": [asdict(check) for check in self.checks], "agreement": self.agreement}
        return json.dumps(document, indent=1, default=asdict).encode() + b"\n"


def pass_gate(draft: Generation, root: Path, live: str | None, *, device: str, report: Path | None) -> Verdict:
    """Try a generation that is not yet committed, and write ``gate.json`` beside its files and to `report`.

    `live` is the id of the generation it is compared with. Raises `GateFailed` naming the checks that failed.
    """
    verdict = _tried(draft, root, live, device)
    durable.write_file(draft.path / layout.GATE, verdict.json())
    if report is not None:
        durable.replace_file(report, verdict.json())
    if not verdict.ok:
        raise GateFailed(f"the new generation was not published, see {draft.path / layout.GATE}: {verdict.reasons()}")
    return verdict


def _tried(draft: Generation, root: Path, live: str | None, device: str) -> Verdict:
    try:
        new = read_attributor(draft, device=device)
    except KgtraceError as e:
        return Verdict([Check("trial load", False, str(e))], None)
    checks = [Check("trial load", True, "loads as in a service"), *verify(new)]
    return Verdict(checks, None if live is None else _compared(new, root, live, device))


def _compared(new: Attributor, root: Path, live: str, device: str) -> Agreement:
    try:
        return agreement(new, open_index(root, live, device=device))
    except KgtraceError as e:  # a damaged live generation must not keep a sound one from replacing it
        return Agreement(live, 0, 0, None, str(e))
