"""A Ray cluster of its own, ordered about by stdin, ended when that is closed. Started by tests, once a module.

Prints its address, then an answer to each order: ``add 4``, a node of four CPUs; ``bad``, a node of one CPU whose workers
can't load their model; ``deadly``, one whose workers die of it; ``stale``, one that can be made to lose its store;
``kill``, the newest node, without warning; ``metrics``, the address of the head's Prometheus endpoint.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

TROUBLES = {"bad": "FAKE_ENGINE_FAILS", "deadly": "FAKE_ENGINE_EXITS", "stale": "FAKE_STORE_FAILS"}
NODE = {"num_gpus": 0, "object_store_memory": 100 * 2**20, "memory": 8 * 2**30}


def kill_node(cluster: Cluster, node: Any) -> None:
    """SIGKILL for its raylet and all that it started, at once."""
    raylet = node.all_processes["raylet"][0].process.pid
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in [raylet, *(pid for pid, parent in parents.items() if parent == raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def find_metrics(cluster: Cluster) -> str:
    """Where the first node answers Prometheus."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    node = ray.nodes()[0]
    ray.shutdown()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": int(sys.argv[1]), "include_dashboard": False})
    added: list[Any] = []
    print(cluster.address, flush=True)
    for order in sys.stdin:
        word, _, number = order.strip().partition(" ")
        if word == "add":
            added.append(cluster.add_node(num_cpus=int(number or 1), **NODE))
        elif word in TROUBLES:
            added.append(cluster.add_node(num_cpus=1, env_vars={TROUBLES[word]: "1"}, **NODE))
        elif word == "kill":
            kill_node(cluster, added.pop())
        print(find_metrics(cluster) if word == "metrics" else "done", flush=True)
    cluster.shutdown()
