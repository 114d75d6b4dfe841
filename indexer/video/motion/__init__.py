"""Synthetic videos of one labelled motion, with every fact about them known.

They serve three readers: `indexer demo` indexes them, the tests check answers against them, and
`jobs/train_demo_model.py` trains the bundled model on them. A `MotionScene` is a frozen
description, `sample_scene` draws one from a seeded generator, `render_scene` turns it into frames,
and `encode_video` writes frames with any of the common codecs. Equal input gives equal bytes.

Geometry: lengths are in units of the picture's *short side*, the origin is the middle of the
picture, x points right and y points down. The object keeps to the central square, which is all
that a centre-cropping preprocessor keeps. Times are in seconds from the scene's first frame.

Axes: T frames, H rows, W columns, C colour channels (RGB).
"""

from indexer.video.motion.encode import (
    CODECS,
    Quality,
    available_codecs,
    container_suffixes,
    encode_video,
)
from indexer.video.motion.render import (
    Segment,
    frame_count,
    iter_scene,
    iter_sequence,
    render_scene,
    sequence_segments,
)
from indexer.video.motion.scene import (
    BACKDROPS,
    LABELS,
    LUMA_WEIGHTS,
    MIN_ACCENT_CONTRAST,
    MIN_CONTRAST,
    PALETTE,
    Backdrop,
    Colour,
    MotionScene,
    ObjectState,
    colour_pairs,
    luma,
    sample_scene,
)
from indexer.video.motion.shapes import SHAPES, TURNABLE_SHAPES

__all__ = [
    "BACKDROPS",
    "CODECS",
    "LABELS",
    "LUMA_WEIGHTS",
    "MIN_ACCENT_CONTRAST",
    "MIN_CONTRAST",
    "PALETTE",
    "SHAPES",
    "TURNABLE_SHAPES",
    "Backdrop",
    "Colour",
    "MotionScene",
    "ObjectState",
    "Quality",
    "Segment",
    "available_codecs",
    "colour_pairs",
    "container_suffixes",
    "encode_video",
    "frame_count",
    "iter_scene",
    "iter_sequence",
    "luma",
    "render_scene",
    "sample_scene",
    "sequence_segments",
]
