"""A Ray cluster that lives until its stdin is closed; prints its address. Started by tests, once a module."""

import sys

import ray

if __name__ == "__main__":
    cluster = ray.init(
        address="local", num_cpus=2, num_gpus=0, object_store_memory=100 * 2**20, include_dashboard=False, logging_level="ERROR"
    )
    print(cluster.address_info["gcs_address"], flush=True)
    sys.stdin.read()
