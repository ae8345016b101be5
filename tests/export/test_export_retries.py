"""An export reads from a store that stumbles for longer than the store's own library waits."""

import json
from pathlib import Path
from typing import Any

import pytest
import stores

from export.cli import main


@pytest.mark.parametrize("match", ["run.json", "list-type=2", "/images/part-", "/masks/part-"])
def test_a_store_that_is_overloaded_for_a_while(
    make_run: Any, random_masks: Any, s3: Any, endpoint: str, tmp_path: Path, capsys: Any, match: str
) -> None:
    """One more 503 than s3fs takes, to the run's record, the listing of its parts or a part: the file is as undisturbed."""
    output = make_run([(f"{number}.jpg", (30, 40), random_masks((30, 40), 3, seed=number)) for number in range(2)])
    stores.copy_folder(str(output), target="s3://labels/run")
    assert main(["coco", str(output), str(tmp_path / "undisturbed.json")]) == 0
    proxy = stores.Proxy(tmp_path, endpoint)
    proxy.start()
    options = {**stores.S3_KEYS, "endpoint_url": proxy.endpoint, "config_kwargs": json.dumps(stores.ONE_TRY["config_kwargs"])}
    more = [word for name, value in options.items() for word in ("--storage-options", f"{name}={value}")]
    num_faults = stores.count_tries() + 1
    try:
        proxy.set_faults(match=f"GET .*{match}", times=num_faults)
        assert main(["coco", "s3://labels/run", str(tmp_path / "coco.json"), *more]) == 0, capsys.readouterr().err
        assert proxy.count_faults() == num_faults
    finally:
        proxy.stop()
    assert (tmp_path / "coco.json").read_bytes() == (tmp_path / "undisturbed.json").read_bytes()
