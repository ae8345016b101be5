"""``python -m labeler``. Must not know any option: ``labeler.cli`` does."""

from labeler.cli import main
from labeler.flags import leave

if __name__ == "__main__":
    leave(main())
