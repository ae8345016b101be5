"""One image of a run: read, decoded, its masks found; its row, whatever happens. Must not know shards or other images.

The store's and the model's faults leave as errors, for they are never an image's. Everything else becomes its row.
"""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.asking import find_masks
from jobs.outages import OutageWatch
from jobs.plan import PlannedImage
from jobs.reading import read_image
from jobs.refs import ImageRef
from jobs.shards import LabeledImage
from labeler import storage
from labeler.errors import ImageError, LabelerError, StorageError
from labeler.images import decode_image
from labeler.options import MaskOptions, PromptOptions
from labeler.predictor import Predictor
from labeler.prompts import Prompt
from labeler.tables import ImageRow


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """What was read of an image, and how long it took."""

    data: bytes
    seconds: float


class ImageLabeler:
    """Reads and labels single images.

    Args:
        root: the input they come from; a missing file is only missing while this still answers.
        options: the run's.
        predictor: the model.
        image_column: which column of Parquet files holds the images, where they have several.
        prompt_options: the run's, where it has prompts.
        outages: tells an image that can't be had from a store that can't be reached.
    """

    def __init__(
        self,
        root: str,
        *,
        options: MaskOptions,
        predictor: Predictor,
        image_column: str | None = None,
        prompt_options: PromptOptions | None = None,
        outages: OutageWatch | None = None,
    ) -> None:
        self._root = root
        self._options = options
        self._predictor = predictor
        self._image_column = image_column
        self._prompt_options = prompt_options
        self._outages = outages or OutageWatch()

    def read(self, ref: ImageRef) -> ImageBytes:
        """The bytes of an image.

        Raises:
            ImageError: it is missing, forbidden or changed.
            StorageError: the store does not answer, or gives nothing any more.
        """
        start = time.perf_counter()
        try:
            with self._outages.watching(ref.uri):
                data = read_image(ref, image_column=self._image_column)
        except FileNotFoundError as error:
            if not storage.has_content(self._root):
                raise StorageError(f"the input {self._root} is gone, or an empty folder: is it mounted?") from error
            raise ImageError("missing", "listed when the run was planned, but not there any more") from error
        return ImageBytes(data, time.perf_counter() - start)

    def label(
        self, image: PlannedImage, read: Callable[[], ImageBytes], *, prompts: Sequence[Prompt] | None = None
    ) -> LabeledImage:
        """Decode an image and find its masks: all, or those of the prompts. ``read`` gives its bytes or raises as above.

        Raises:
            StorageError, ModelError: never an image's fault. Everything else becomes the image's row.
        """
        known: dict[str, Any] = {
            "image_id": image.image_id,
            "uri": image.ref.uri,
            "file_name": image.ref.file_name,
            "source_id": image.ref.source_id,
            "size_bytes": image.ref.size_bytes,
            "etag": image.ref.etag,
            "kept": json.loads(image.ref.kept or "{}"),
        }
        try:
            data = read()
            known["seconds_read"] = data.seconds
            start = time.perf_counter()
            picture = decode_image(data.data, exif=self._options.exif, max_pixels=self._options.max_pixels)
            known["seconds_decode"] = time.perf_counter() - start
            found = find_masks(
                picture,
                image=image,
                prompts=prompts,
                predictor=self._predictor,
                options=self._options,
                prompt_options=self._prompt_options,
            )
        except ImageError as error:
            return LabeledImage(ImageRow(**known, status="error", error_kind=error.kind, error_message=error.reason))
        except LabelerError:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            row = ImageRow(**known, status="error", error_kind="internal", error_message=message)
            return LabeledImage(row, log=traceback.format_exc())
        row = ImageRow(
            **known,
            width=picture.hw[1],
            height=picture.hw[0],
            stored_width=picture.stored_hw[1],
            stored_height=picture.stored_hw[0],
            exif_orientation=picture.exif_orientation,
            num_frames=picture.num_frames,
            warnings=picture.warnings,
            num_masks=found.batch.num_rows,
            **{f"seconds_{name}": seconds for name, seconds in found.seconds._asdict().items()},
        )
        return LabeledImage(row, [found.batch], prompts=found.prompts)
