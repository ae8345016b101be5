"""``python -m jobs``. Must not know any option: ``jobs.cli`` does."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
