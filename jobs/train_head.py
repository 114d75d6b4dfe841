r"""Fits a linear head on the stored embeddings of labelled clips, for `indexer relabel`.

    python jobs/train_head.py s3://archive/index labels.csv --out my-head
    indexer relabel s3://archive/index --head my-head/head.safetensors --labels my-head/labels.json

`labels.csv` has the columns `uri` and `label`, and, where a label is not of the whole video,
`start_seconds` and `end_seconds`: it then labels the clips of which at least half lies between
them. Nothing is decoded.

Some videos of each label are held out of the fit, with all their clips, because neighbouring clips
of one video look alike; the accuracies are of these. The same index, list and options give the same
head. Needs memory for the labelled embeddings, four times.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from indexer import storage
from indexer.errors import ConfigError, IndexerError
from indexer.model.linear import fit_linear
from indexer.render import Format, json_text, rows_text
from indexer.table.labelled import LabelledClips, labelled_clips, read_stretches
from indexer.table.paths import IndexPaths
from indexer.table.query import LabelIndex

FEW_CLIPS: Final = 20
"""Fewer training clips than this say little of a label."""

COLUMNS: Final = ["label", "train_videos", "train_clips", "held_out_videos", "held_out_clips",
                  "accuracy"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good a head is on the videos that were held out of its fit.

    Attributes:
        accuracy: share of the held-out clips that are right; None where there are none.
        macro_accuracy: mean of the labels' accuracies.
        rows: of each label, `COLUMNS`.
    """

    accuracy: float | None
    macro_accuracy: float | None
    rows: list[dict[str, Any]]


def main(args: list[str] | None = None) -> int:
    """Fits, prints, writes, and returns the exit code."""
    arguments = _parser().parse_args(args)
    try:
        return _train(arguments)
    except IndexerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", help="folder or URL of the index")
    parser.add_argument("list", help="a .csv list of labelled videos or stretches of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--model", help="tag; by default the only one, else the newest")
    parser.add_argument("--label-column", default="label", help="default: %(default)s")
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="share of each label's videos; %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that choice; default: %(default)s")
    parser.add_argument(
        "--l2", type=float, default=1e-3, help="weight of the penalty; default: %(default)s"
    )
    parser.add_argument("--format", choices=list(Format), type=Format, default=Format.table)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.held_out < 1 or not arguments.l2 > 0:
        message = "--held-out should be at least 0 and below 1, --l2 above 0"
        raise ConfigError(message)
    paths = IndexPaths(arguments.index)
    tag = LabelIndex.open(arguments.index, arguments.model).tag
    stretches = read_stretches(arguments.list, arguments.label_column)
    clips = labelled_clips(paths, tag, stretches)
    labels = sorted(set(clips.labels))
    if len(labels) < 2:  # noqa: PLR2004 - else there is nothing to tell apart
        message = f"all {len(clips.labels)} labelled clips are {labels[0]!r}: name a second label"
        raise ConfigError(message)
    held_N = held_out(clips, arguments.held_out, arguments.seed)
    classes_N = np.array([labels.index(name) for name in clips.labels])
    weight_KD, bias_K = fit_linear(
        clips.embeddings_ND[~held_N], classes_N[~held_N], len(labels), l2=arguments.l2
    )
    logits_NK = clips.embeddings_ND.astype(np.float64) @ weight_KD.T + bias_K
    outcome = judge(clips, labels, held_N, logits_NK.argmax(axis=1) == classes_N)
    _warn(clips, outcome)
    _write(arguments.out, weight_KD, bias_K, labels)
    print(_text(outcome, arguments.format))
    return 0


def held_out(clips: LabelledClips, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which clips are held out: all those of some videos of each label, one at least to train on.

    A video with several labels counts with the first of them by name.
    """
    label_of: dict[str, str] = {}
    for video_id, label in zip(clips.video_ids, clips.labels, strict=True):
        label_of[video_id] = min(label, label_of.get(video_id, label))
    videos: dict[str, list[str]] = {}
    for video_id in sorted(label_of, key=lambda name: _draw(seed, name)):
        videos.setdefault(label_of[video_id], []).append(video_id)
    chosen = {
        video_id
        for group in videos.values()
        for video_id in group[: min(len(group) - 1, max(1, round(share * len(group))))]
    }
    if not share:
        chosen = set()
    return np.array([video_id in chosen for video_id in clips.video_ids])


def _draw(seed: int, video_id: str) -> str:
    return hashlib.sha256(f"{seed}/{video_id}".encode()).hexdigest()


def judge(
    clips: LabelledClips,
    labels: Sequence[str],
    held_N: npt.NDArray[np.bool_],
    right_N: npt.NDArray[np.bool_],
) -> Outcome:
    """Counts clips and videos of each label, and how many of the held-out ones are right."""
    names_N, videos_N = np.array(clips.labels, object), np.array(clips.video_ids, object)
    rows: list[dict[str, Any]] = []
    for label in labels:
        own_N = names_N == label
        train_N, out_N = own_N & ~held_N, own_N & held_N
        values = (
            label, len(set(videos_N[train_N])), int(train_N.sum()), len(set(videos_N[out_N])),
            int(out_N.sum()), _share(right_N[out_N]),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    accuracies = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    macro = float(np.mean(accuracies)) if accuracies else None
    return Outcome(_share(right_N[held_N]), macro, rows)


def _share(right_N: npt.NDArray[np.bool_]) -> float | None:
    return float(right_N.mean()) if len(right_N) else None


def _warn(clips: LabelledClips, outcome: Outcome) -> None:
    def say(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    for uri, lines in Counter(stretch.uri for stretch in clips.unused).items():
        say(f"{uri}: no clip of the index lies in {lines} of its stretches")
    for row in outcome.rows:
        if row["train_clips"] < FEW_CLIPS:
            say(f"{row['label']!r} has only {row['train_clips']} clips to learn from")
        if not row["held_out_clips"]:
            say(f"{row['label']!r} has no held-out video, so its accuracy is unknown")


def _write(
    folder: Path,
    weight_KD: npt.NDArray[np.float32],
    bias_K: npt.NDArray[np.float32],
    labels: Sequence[str],
) -> None:
    weights = save({"weight": weight_KD, "bias": bias_K})
    storage.write_bytes(str(folder / "head.safetensors"), weights)
    names = json.dumps(list(labels), ensure_ascii=False, indent=1) + "\n"
    storage.write_bytes(str(folder / "labels.json"), names.encode())


def _text(outcome: Outcome, fmt: Format) -> str:
    if fmt is Format.json:
        facts = {name: getattr(outcome, name) for name in ("accuracy", "macro_accuracy")}
        return json_text(facts | {"labels": outcome.rows}).rstrip()
    table = rows_text(outcome.rows, COLUMNS, fmt).rstrip()
    if fmt is Format.csv or outcome.accuracy is None or outcome.macro_accuracy is None:
        return table
    clips = sum(row["held_out_clips"] for row in outcome.rows)
    return (
        f"{table}\n\naccuracy {outcome.accuracy:.2%}, mean of the labels"
        f" {outcome.macro_accuracy:.2%}, on {clips:,} clips of held-out videos"
    )


if __name__ == "__main__":
    sys.exit(main())
