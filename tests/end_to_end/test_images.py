"""The images, built and run for real: not as root, and on a file system that is read-only but for /index and /tmp."""

import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import wait_until

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
USER = 10001
TOOLS = ("buildah", "crun", "unshare")
# crun refuses to start where both versions of control groups are mounted; it needs neither here.
CRUN = ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun "$@"', "crun"]
CRUN += ["--cgroup-manager=disabled"]


@dataclass(frozen=True)
class Image:
    """A built image."""

    configuration: Mapping[str, Any]
    root: Path
    """Its file system, mounted."""


def built(target: str) -> Iterator[Image]:
    """Build an image, and mount it."""
    base = os.environ.get("KGTRACE_BASE_IMAGE")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if base is None or missing:
        pytest.skip(f"set KGTRACE_BASE_IMAGE to an image with Python 3.11 and install {', '.join(TOOLS)}")
    name = f"kgtrace-test-{target}"
    command = ["buildah", "build", "--isolation", "chroot", "--format", "docker", "--layers", "--tag", name]
    command += ["--file", "docker/Dockerfile", "--target", target, "--build-arg", f"BASE_IMAGE={base}"]
    subprocess.run([*command, *shlex.split(os.environ.get("KGTRACE_BUILD_FLAGS", "")), "."], cwd=REPOSITORY, check=True)
    configuration = json.loads(said("buildah", "inspect", "--type", "image", name))["Docker"]["config"]
    container = said("buildah", "from", name)
    try:
        yield Image(configuration, Path(said("buildah", "mount", container)))
    finally:
        said("buildah", "rm", container)


def said(*command: str) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def indexer() -> Iterator[Image]:
    """What builds generations."""
    yield from built("indexer")


@pytest.fixture(scope="module")
def server() -> Iterator[Image]:
    """What answers from them."""
    yield from built("server")


class Container:
    """Runs commands in an image as the deployment files ask for it: read-only, without any privilege."""

    def __init__(self, folder: Path, image: Image, name: str, mounts: list[str], **environment: str) -> None:
        self._bundle = folder / name
        self._bundle.mkdir()
        self._name = name
        self._state = folder / "state"
        self._root = image.root
        self._environment = [*image.configuration["Env"], *(f"{name}={value}" for name, value in environment.items())]
        self._mounts = mounts

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Run a command."""
        nothing: dict[str, list[str]] = {of: [] for of in ("bounding", "effective", "inheritable", "permitted")}
        mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
        mounts += [{"destination": folder, "type": "tmpfs", "source": "tmpfs"} for folder in ("/dev", "/tmp")]
        for mount in self._mounts:
            source, target, mode = mount.split(":")
            mounts.append({"destination": target, "type": "bind", "source": source, "options": ["bind", mode]})
        configuration = {
            "ociVersion": "1.0.2",
            "root": {"path": str(self._root), "readonly": True},
            "process": {
                "user": {"uid": USER, "gid": USER},
                "args": command,
                "env": self._environment,
                "cwd": "/tmp",
                "noNewPrivileges": True,
                "capabilities": nothing,
            },
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }
        (self._bundle / "config.json").write_text(json.dumps(configuration))
        arguments = ["--root", self._state, "run", "--bundle", self._bundle, self._name]
        return subprocess.Popen([*CRUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it printed."""
        with self.start(*command) as process:
            printed, _ = process.communicate()
        return process.returncode, printed

    def execute(self, *command: str) -> int:
        """Run another command in the container that runs; return its exit code."""
        return subprocess.run([*CRUN, "--root", self._state, "exec", self._name, *command], check=False).returncode

    def terminate(self) -> None:
        """Ask the command to end."""
        subprocess.run([*CRUN, "--root", self._state, "kill", self._name, "TERM"], check=True)


def test_the_images_say_what_they_need(indexer: Image, server: Image) -> None:
    """Another user than root, the command as the entry point, and a check of health that orchestrators can run."""
    for image in (indexer, server):
        assert image.configuration["User"] == str(USER)
        assert image.configuration["Entrypoint"] == ["kgtrace"]
    assert indexer.configuration["Cmd"] == ["build", "--help"]
    assert server.configuration["Cmd"] == ["serve"]
    assert server.configuration["Healthcheck"]["Test"][0] == "CMD"


def test_a_night_in_containers(indexer: Image, server: Image, umls_folder: Path, tmp_path: Path) -> None:
    """The hook builds and publishes, the service answers, and neither can write elsewhere or become anybody else."""
    index = tmp_path / "index"
    index.mkdir()
    os.chown(index, USER, USER)
    hook = f"{REPOSITORY}/docker/nightly.sh:/nightly.sh:ro"
    mounts = [f"{index}:/index:rw", f"{umls_folder}:/model:ro"]

    code, printed = Container(tmp_path, server, "probe", mounts).run(
        "sh", "-c", "id -u; touch /x /opt/kgtrace/x /model/x"
    )
    assert code == 1
    assert printed.splitlines()[0] == str(USER)
    assert printed.count("Read-only file system") == 3

    build = Container(tmp_path, indexer, "indexer", [*mounts, hook])
    code, printed = build.run("sh", "/nightly.sh", "/model", "--dim", "8", "--landmarks", "64", "--device", "cpu")
    assert code == 0, printed
    assert "is live" in printed

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = Container(
        tmp_path, server, "server", mounts, KGTRACE_HOST="127.0.0.1", KGTRACE_PORT=str(port), KGTRACE_READ_KEY="reader"
    )
    with service.start("kgtrace", "serve") as process:
        try:
            wait_until(lambda: ask(port, "GET", "/readyz")[0] == 200 or process.poll() is not None)
            assert ask(port, "GET", "/v1/index")[0] == 401
            status, answer = ask(port, "POST", "/v1/influences", {"triples": [[3, 23, 68]]})
            assert status == 200
            assert answer["results"][0]["certified"]
            assert service.execute(*server.configuration["Healthcheck"]["Test"][1:]) == 0
        finally:
            service.terminate()
    assert process.returncode == 0


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send one request, with the key where there is a body; status 0 when nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {} if body is None else {"Content-Type": "application/json", "X-API-Key": "reader"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()
