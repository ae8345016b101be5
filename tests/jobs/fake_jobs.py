"""``python -m jobs`` with the fake engine: a script of its own, so that jobs run in real processes."""

import sys

import jobs.cli

if __name__ == "__main__":
    jobs.cli.ENGINE = "fake_engine:DiscEngine"
    sys.exit(jobs.cli.main())
