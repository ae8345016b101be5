"""``python -m labeler``. Must not know any option: ``labeler.cli`` does."""

import sys

from labeler.cli import main

if __name__ == "__main__":
    sys.exit(main())
