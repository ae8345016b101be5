"""``python -m export``. Must not know any option: ``export.cli`` does."""

import sys

from export.cli import main

if __name__ == "__main__":
    sys.exit(main())
