"""Frames on their way from numpy to the device that scores them."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Staging:
    """Buffers, filled again and again, from which batches of one size reach the model.

    For a GPU there are two of page-locked memory, and a stream that copies out of them: while one
    batch is copied or computed, the next is prepared.

    Args:
        clip_shape_THWC: the shape of one clip.
        device: `cpu` or `cuda`.
    """

    def __init__(self, clip_shape_THWC: tuple[int, ...], device: str) -> None:
        self._clip_shape_THWC, self._device = clip_shape_THWC, device
        self._stream: torch.cuda.Stream | None = None
        if device == "cuda":
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._slots = cycle([_Slot() for _ in range(2 if self._stream else 1)])

    def load(self, frames_NTHWC: Sequence[npt.NDArray[np.uint8]], size: int) -> Tensor:
        """Brings clips to the device.

        Args:
            frames_NTHWC: the clips, in arrays that need be neither contiguous nor writable.
            size: of the batch, which is filled up with what is left of earlier ones.

        Returns:
            A tensor on the device, valid on a CPU until the next call.
        """
        slot = next(self._slots)
        staged_BTHWC = slot.buffer((size, *self._clip_shape_THWC), pinned=self._stream is not None)
        filled = 0
        for part_NTHWC in frames_NTHWC:
            np.copyto(staged_BTHWC[filled : filled + len(part_NTHWC)].numpy(), part_NTHWC)
            filled += len(part_NTHWC)
        if self._stream is None:
            return staged_BTHWC
        with torch.cuda.stream(self._stream):
            moved_BTHWC = staged_BTHWC.to(self._device, non_blocking=True)
            # waiting for it shall leave the core to a decoder
            slot.copied = self._stream.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        compute = torch.cuda.current_stream()
        compute.wait_stream(self._stream)
        moved_BTHWC.record_stream(compute)  # or it might be given away while it is computed with
        return moved_BTHWC


class _Slot:
    """One buffer, and when its last content had been copied out of it."""

    def __init__(self) -> None:
        self.copied: torch.cuda.Event | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def buffer(self, shape: tuple[int, ...], *, pinned: bool) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        if len(self._buffer) < shape[0]:
            self._buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        return self._buffer[: shape[0]]
