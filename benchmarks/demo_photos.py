"""Copy the photographs that scikit-image and scikit-learn ship, free to use, into a folder: what `make demo` labels.

None of them was used to train the embedded model.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

PHOTOS = {
    "skimage": (
        "data/cell.png",
        "data/clock_motion.png",
        "data/coffee.png",
        "data/hubble_deep_field.jpg",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/page.png",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}


def main(target: Path) -> None:
    """Copy them all; says which package lacks one."""
    target.mkdir(parents=True, exist_ok=True)
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"{package} is not installed: pip install '.[demo]'")
        for name in names:
            shutil.copy2(Path(spec.origin).parent / name, target)  # With its time: made again, it is the same picture.


if __name__ == "__main__":
    main(Path(sys.argv[1]))
