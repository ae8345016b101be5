"""``python -m export``. Must not know any option: ``export.cli`` does."""

from export.cli import main
from labeler.flags import leave

if __name__ == "__main__":
    leave(main())
