"""``kgtrace`` with small parts, as a rank of torchrun; the first attempt of rank 1 may be deadly."""

import os
import signal
import sys

from kgtrace_indexer.building import parts, torchrun_workers, workers
from kgtrace_server.cli import parser as cli

parts._PART = 512


class Deadly(workers.Encoder):
    """Kills its process when a part is written, and not yet reported."""

    def encode(self, part: range) -> str:
        """Write the part, and die."""
        super().encode(part)
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


if __name__ == "__main__":
    if os.environ["KGTRACE_TEST_DEADLY"] and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (
        "1",
        "0",
    ):
        torchrun_workers.Encoder = Deadly  # type: ignore[misc]
    sys.exit(cli.main(sys.argv[1:]))
