"""A virtual environment for each peer, made when it is first needed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = ".installed"
UNWANTED = {"bergson": ("torchvision", "torchaudio")}
"""What a peer pulls in for another version of torch than the one installed, and does not need."""


def python_of(name: str | None, folder: Path) -> Path:
    """Return the interpreter of a peer's environment below a folder, or our own for None.

    Raises `subprocess.CalledProcessError`, with what pip said, when it cannot be made.
    """
    if name is None:
        return Path(sys.executable)
    place, requirements = folder / name, REQUIREMENTS / f"{name}.txt"
    python, stamp = place / "bin" / "python", place / STAMP
    wanted = CONSTRAINTS.read_text() + requirements.read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        said([sys.executable, "-m", "venv", str(place)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        install = [*pip, "install", "--no-cache-dir", "-c", str(CONSTRAINTS)]
        said([*install, "torch"])
        said([*install, "-r", str(requirements)])
        if unwanted := UNWANTED.get(name):
            said([*pip, "uninstall", "--yes", *unwanted])
        stamp.write_text(wanted)
    return python


def said(command: list[str]) -> None:
    """Run a command and keep what it says for the error."""
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
