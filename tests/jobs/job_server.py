"""A Ray cluster with a job server, as a person starts one, and this checkout as a person has it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class JobServer:
    """A running head.

    Attributes:
        environment: how clients find it and prove that they may; ``HOME`` holds the token's file.
        session: where it keeps its files.
    """

    environment: Mapping[str, str]
    session: Path
    ray: Path

    def submit(self, checkout: Path, *command: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` from a checkout, to its end."""
        arguments = [self.ray, "job", "submit", *options, "--working-dir", ".", "--", *command]
        return subprocess.run(
            list(map(str, arguments)),
            cwd=checkout,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def measure_uploads(self) -> int:
        """Bytes of all working directories that were sent to it, unpacked."""
        return sum(path.stat().st_size for path in self.session.glob("**/working_dir_files/**/*") if path.is_file())


@contextmanager
def serve_jobs(*, bin_folder: Path | None = None, num_cpus: int = 2) -> Iterator[JobServer]:
    """``ray get-auth-token --generate``, then ``ray start --head``, with the programs of this or another environment."""
    home = Path(tempfile.mkdtemp(prefix="head-"))  # Short: Ray's sockets lie below it.
    ray = (bin_folder or Path(sys.executable).parent) / "ray"
    ports = [str(port) for port in find_ports(4)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
    environment |= {
        "HOME": str(home),
        "PATH": f"{ray.parent}{os.pathsep}{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Else tests wait for workers on a busy machine.
    }
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True, timeout=60)
    options = ["--num-cpus", str(num_cpus), "--num-gpus", "0", "--object-store-memory", "100000000", "--temp-dir", str(home)]
    for name, port in zip(("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port"), ports, strict=True):
        options += [f"--{name}", port]
    with (home / "log").open("w") as log:
        head = subprocess.Popen([ray, "start", "--head", "--block", *options], env=environment, stdout=log, stderr=log)
    try:
        wait_for_answer(f"{environment['RAY_API_SERVER_ADDRESS']}/api/version", head)
        # It hands jobs on to the node's agent, and refuses them ten seconds after it began to look for one.
        wait_for_answer(f"http://127.0.0.1:{ports[2]}/api/local_raylet_healthz", head)
        yield JobServer(environment, home, ray)
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def copy_checkout(target: Path) -> Path:
    """What git has, what it would take, and beside it a virtual environment too large for any upload."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    if not names:
        return target
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    library = target / ".venv-demo" / "lib" / "large.so"  # Not .venv: Ray leaves that out by itself.
    library.parent.mkdir(parents=True)
    with library.open("wb") as file:
        file.truncate(2**30)
    return target


def find_ports(count: int) -> list[int]:
    """Ports where nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_for_answer(url: str, head: subprocess.Popen[bytes]) -> None:
    """Until somebody answers there, be it that nobody may ask without a token."""
    end = time.monotonic() + 120
    while head.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"nobody answers at {url}")
