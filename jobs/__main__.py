"""``python -m jobs``. Must not know any option: ``jobs.cli`` does."""

from jobs.cli import main
from labeler.flags import leave

if __name__ == "__main__":
    leave(main())
