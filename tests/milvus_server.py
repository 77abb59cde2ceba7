"""A Milvus server of a test session: Milvus Lite, on loopback."""

import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Yield the URI of a server that keeps its data in a folder; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [Path(sysconfig.get_path("scripts")) / "milvus-lite", "server", "--data-dir", folder]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", port], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert "listening" in first, first + process.stdout.read()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
