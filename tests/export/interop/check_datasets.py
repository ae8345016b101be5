"""The Parquet as it is, by Hugging Face datasets: ``check_datasets.py FOLDER RUN``."""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp()

import datasets
from pycocotools import mask as coco_mask
from truth import say

files = {"masks": f"{sys.argv[2]}/masks/*.parquet", "images": f"{sys.argv[2]}/images/*.parquet"}
masks = datasets.load_dataset("parquet", data_files={"train": files["masks"]}, split="train")
images = datasets.load_dataset("parquet", data_files={"train": files["images"]}, split="train")
assert len(masks) == sum(images["num_masks"])
for row in masks.select(range(0, len(masks), max(1, len(masks) // 50))):
    assert coco_mask.decode(row["segmentation"]).sum() == row["area"]
say("parquet", f"datasets {datasets.__version__}", f"{len(masks)} masks of {len(images)} images")
