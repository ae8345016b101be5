"""``python -m jobs`` with the fake engine: a script of its own, so that jobs run in real processes."""

import os

import jobs.cli
from labeler.flags import leave

if __name__ == "__main__":
    jobs.cli.ENGINE = "fake_engine:DiscEngine"
    if "FAKE_TROUBLE" in os.environ:
        from fake_troubles import TROUBLES

        TROUBLES[os.environ["FAKE_TROUBLE"]]()
    leave(jobs.cli.main())
