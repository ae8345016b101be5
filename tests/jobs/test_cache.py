"""Workers of a node that start at the same moment share what one of them compiled."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from fakes import PATHS

_LABEL = """
import hashlib, sys
import numpy as np
from pathlib import Path
from jobs.worker import load_predictor
from labeler.generator import generate_masks
from labeler.options import MaskOptions
options = MaskOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
predictor = load_predictor(Path(sys.argv[1]), options=options, threads=1, engine="labeler.engine:Engine")
pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
masks, _ = generate_masks(pixels, predictor=predictor, options=options)
print(len(masks), hashlib.sha256(masks.run_lengths.tobytes() + masks.predicted_iou.tobytes()).hexdigest())
"""


def test_two_workers_may_start_at_once(prototype_folder: Path, tmp_path: Path) -> None:
    """With an empty cache, a full one, or none that can be written: the same masks, and files in the cache."""
    (tmp_path / "file").write_text("")
    answers = []
    for cache in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _LABEL, str(prototype_folder)],
                env={**os.environ, **PATHS, "SAM_LABELER_CACHE": str(cache)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        answers += [process.communicate(timeout=200)[0] for process in processes]
    assert len(set(answers)) == 1, answers
    assert int(answers[0].split()[0]) > 0
    blobs = [path for path in (tmp_path / "cache" / "compiled").rglob("*") if path.is_file() and path.name != "lock"]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs}) == len(blobs) > 0
