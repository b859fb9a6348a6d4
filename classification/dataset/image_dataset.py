"""The data set of the loaders: bytes -> PIL image -> transform, counting unreadable images."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from logger import EVERY_RANK

from .decode import DECODE_ERRORS, decode_image
from .errors import CorruptDataError, DataError
from .rng import keyed_rng
from .samples import Samples
from .storage import READ_ERRORS, ByteCache, Reader

logger = logging.getLogger(__name__)

_ERRORS = (*READ_ERRORS, *DECODE_ERRORS)


class ImageDataset(Dataset):
    """Images of one split.

    An image that cannot be read is reported once with its path and counted, in memory that all
    worker processes share. In training the next image takes its place; in validation nothing does
    (the item is None, and the loader leaves it out).

    The transform's random numbers depend on (seed, epoch, index) alone: not on the number of
    workers or ranks, nor on the epochs that were run before.

    Args:
        samples: what to load.
        transform: PIL image -> tensor (3, H, W).
        train: training or validation.
        seed: seed of the transform's random numbers.
        max_corrupt: more unreadable images than this raise.
        cache: bytes held in memory, or None.
        with_metadata: items are ((image, temporal (4,), spatial (3,)), label).
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], Tensor],
        *,
        train: bool,
        seed: int = 0,
        max_corrupt: int = 50,
        cache: ByteCache | None = None,
        with_metadata: bool = False,
    ):
        self.samples = samples
        self.transform = transform
        self.train = train
        self.seed = seed
        self.max_corrupt = max_corrupt
        self.cache = cache
        self.with_metadata = with_metadata
        self.reader = Reader(samples.shards)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._corrupt = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def corrupt_count(self) -> int:
        """Unreadable images found so far by all workers of this process."""
        return int(self._corrupt.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of the transform; reaches workers that already run."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int):
        loaded = self._load(index)
        if loaded is None:
            return None
        index, image = loaded
        with keyed_rng(self.seed, int(self._epoch), index):
            image = self.transform(image)
        label = int(self.samples.labels[index])
        if not self.with_metadata:
            return image, label
        metadata = torch.from_numpy(self.samples.metadata[index].copy())
        return (image, metadata[:4], metadata[4:]), label

    def _load(self, index: int) -> tuple[int, Image.Image] | None:
        for step in range(len(self) if self.train else 1):
            position = (index + step) % len(self)
            try:
                return position, self._decode(position)
            except DataError:
                raise  # an archive or shard is gone: more than one image
            except _ERRORS as error:
                self._report(position, error)
        if not self.train:
            return None
        raise CorruptDataError(f"none of the {len(self)} images can be read")

    def _decode(self, index: int) -> Image.Image:
        data = self.cache.get(index) if self.cache is not None else None
        if data is None:
            data = self.reader.read(self.samples.paths[index])
        return decode_image(io.BytesIO(data))

    def _report(self, index: int, error: Exception) -> None:
        if self._corrupt[index]:
            return
        self._corrupt[index] = 1
        path, count = self.samples.paths[index], self.corrupt_count
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        instead = "the next image takes its place" if self.train else "it is left out"
        logger.warning(
            "cannot read image %s (%s); %s; %d so far", path, reason, instead, count,
            extra=EVERY_RANK,
        )  # fmt: skip
        if count > self.max_corrupt:
            raise CorruptDataError(
                f"{count} images cannot be read, more than DATA.MAX_CORRUPT {self.max_corrupt}; "
                f"the last is {path} ({reason})"
            )
