"""Brings the chart library into the dashboard when the package is built: D3, out of a wheel that carries it.

The repository holds no foreign code, and whoever installs the package needs no second one for it, no network beyond
that of the installation, and no tools but pip's.
"""

import hashlib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIER = "gravis"
FOLDER = "gravis/_internal/plotting/third_party/d3"
TARGET = "server/kgtrace_server/dashboard/vendor"
SHA256 = {
    "d3.v7.min.def.js": "3659989c4e97794f43ea723057f5f96702bdbeffd6b244dbbd436b286431d149",  # D3 7.1.1
    "ORIGINAL_LICENSE": "e008c5e25a6be382593089c29bfabbc553c6378eee02895aec46ce396cc404ee",
}


class ChartLibrary(BuildHookInterface[Any]):
    """Copies D3 and its licence into the source tree, from where every kind of build takes them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Copy the files. Raises `RuntimeError` where one is not what was looked at."""
        target = Path(self.root) / TARGET
        target.mkdir(exist_ok=True)
        for name, expected in SHA256.items():
            content = Path(str(distribution(CARRIER).locate_file(f"{FOLDER}/{name}"))).read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise RuntimeError(f"{name} in {CARRIER} has sha256 {found}, expected {expected}")
            (target / name).write_bytes(content)
