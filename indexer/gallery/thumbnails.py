"""Small pictures of chosen moments of videos, decoded as a run decodes them.

A video is opened once for all of its moments, as the version that was indexed, and decoded in the
sandbox, within the budgets of a run. What cannot be had is said, and stops nothing.

Axes: H height, W width, C colour (RGB).
"""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from indexer import storage
from indexer.config import Decode, Sampling
from indexer.errors import ConfigError, VideoError, VideoMissing
from indexer.gallery.tiles import Answer, Tile
from indexer.records import DecodedClips, Preprocessing, VideoFailure, VideoRef
from indexer.video.fetch import Opened, prefetched
from indexer.video.plan import DecodePlan
from indexer.video.sandbox import Sandbox

Picture = npt.NDArray[np.uint8]

SHORT_SIDE: Final = 216
"""Pixels of a picture's shorter side."""

RECIPE: Final = Preprocessing(
    SHORT_SIDE, None, "bicubic", rescale_factor=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
_QUALITY: Final = 80
NOT_ALLOWED: Final = "not_allowed"
NO_SUCH_FRAME: Final = "no_such_frame"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A compressed picture.

    Attributes:
        webp: its bytes.
        width: in pixels.
        height: in pixels.
    """

    webp: bytes
    width: int
    height: int

    @classmethod
    def compress(cls, picture_HWC: Picture) -> Self:
        """Compresses a picture; WebP takes a third less than JPEG that looks as good."""
        file = io.BytesIO()
        Image.fromarray(picture_HWC).save(file, "WEBP", quality=_QUALITY)
        height, width, _ = picture_HWC.shape
        return cls(file.getvalue(), width, height)

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"

    def decompress(self) -> Image.Image:
        """The picture again, in RGB."""
        return Image.open(io.BytesIO(self.webp)).convert("RGB")


def thumbnails_of(
    answer: Answer, decode: Decode, schemes: Sequence[str], progress: Callable[[int], None]
) -> dict[Tile, Thumbnail | str]:
    """The pictures of an answer's clips, or why there is none: see `take_pictures`.

    Args:
        answer: the clips.
        decode: as for `take_pictures`.
        schemes: as for `take_pictures`.
        progress: is told, after each video, how many clips it settles.
    """
    moments: dict[VideoRef, list[Tile]] = defaultdict(list)
    for tile in answer.tiles:
        if tile.uri in answer.videos:
            moments[answer.videos[tile.uri]].append(tile)
    thumbnails: dict[Tile, Thumbnail | str] = dict.fromkeys(answer.tiles, VideoMissing.code)
    wanted = {ref: [tile.frame_seconds for tile in tiles] for ref, tiles in moments.items()}
    for ref, taken in take_pictures(wanted, decode, schemes):
        made = {
            seconds: found if isinstance(found, str) else Thumbnail.compress(found)
            for seconds, found in taken.items()
        }
        thumbnails |= {tile: made[tile.frame_seconds] for tile in moments[ref]}
        progress(len(moments[ref]))
    return thumbnails


def take_pictures(
    moments: Mapping[VideoRef, Sequence[float]], decode: Decode, schemes: Sequence[str]
) -> Iterator[tuple[VideoRef, dict[float, Picture | str]]]:
    """Takes pictures of videos, one video after the other, while the next one is fetched.

    Args:
        moments: of each video the seconds at which the wanted frames begin.
        decode: budgets, and what is accepted as a video.
        schemes: of URIs that may be read.

    Yields:
        Each video with uint8 RGB HWC by moment, upright and with square pixels; or, in a
        picture's place, why there is none: a code of `indexer.errors`, `not_allowed` where the
        address may not be read, `no_such_frame` where no frame begins at that moment.

    Raises:
        ClusterError: the decode process cannot be started on this machine.
    """
    allowed = [ref for ref in moments if _is_allowed(ref.uri, schemes)]
    for ref in moments.keys() - set(allowed):
        yield ref, dict.fromkeys(moments[ref], NOT_ALLOWED)
    plan = DecodePlan(
        Sampling(segment_clips=1),  # so that each moment has an outcome of its own
        num_frames=1,
        frame_rate_divisor=1,
        preprocessing=RECIPE,
        decode=decode.model_copy(update={"resize": "exact", "square_pixels": True}),
    )
    with Sandbox(plan) as sandbox, closing(prefetched(allowed, decode)) as fetched:
        for opened in fetched:
            wanted = sorted(set(moments[opened.ref]))
            yield opened.ref, _pictures(sandbox, opened, wanted)


def _pictures(
    sandbox: Sandbox, opened: Opened, wanted: Sequence[float]
) -> dict[float, Picture | str]:
    if isinstance(opened.video, VideoError):
        return dict.fromkeys(wanted, opened.video.code)
    taken: dict[int, Picture | str] = {}
    rest: str = VideoError.code
    with opened.video as video:
        items = sandbox.decode(video, video_id=opened.ref.video_id, moments_seconds=wanted)
        for item, _ in items:
            if isinstance(item, VideoFailure) and item.units == 1:
                rest = item.code  # of the whole video, unless it has but one moment
            taken[item.unit_index] = _picture(item, wanted)
    return {seconds: taken.get(number, rest) for number, seconds in enumerate(wanted)}


def _picture(item: DecodedClips | VideoFailure, wanted: Sequence[float]) -> Picture | str:
    """The one frame of a unit, if it is the one that was asked for."""
    if isinstance(item, VideoFailure):
        return item.code
    came_seconds = item.spans[0].frame_pts_seconds[0]
    if item.units != len(wanted) or came_seconds != wanted[item.unit_index]:
        return NO_SUCH_FRAME
    picture_HWC: Picture = item.frames_NTHWC[0, 0]
    return picture_HWC


def _is_allowed(uri: str, schemes: Sequence[str]) -> bool:
    if "\0" in uri:
        return False  # no file is called that, and asking for it raises what nobody expects
    try:
        storage.check_scheme(uri, schemes)
        storage.filesystem(uri)
    except ConfigError:
        return False
    return True
