"""How often a model is right, from an index of videos whose label is known."""

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.dataset as ds

from indexer.errors import ManifestError, QueryError
from indexer.table.delta import open_table
from indexer.table.paths import IndexPaths
from indexer.table.read import model_rows, read
from indexer.table.schema import CLIPS

TOP: Final = 5
"""Labels among which the right one counts for top-5."""

CLASSES: Final = pa.schema(
    [
        pa.field("label", pa.string()),
        pa.field("videos", pa.int32()),
        pa.field("top1", pa.float64()),
        pa.field("top5", pa.float64()),
        pa.field("mistaken_for", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of a labelled list of videos.

    Attributes:
        videos: on the list.
        scored: of these, the ones that the index has scores for; all shares are of these.
        top1: share of videos whose best label is the right one.
        top5: share of videos whose five best labels hold the right one.
        classes: rows of `CLASSES`, the worst first; `mistaken_for` is the most frequent wrong
            answer.
    """

    videos: int
    scored: int
    top1: float
    top5: float
    classes: pa.Table


def read_truths(manifest: pa.Table, column: str, labels: Sequence[str]) -> dict[str, str]:
    """The right label of each video, as the model spells it.

    Args:
        manifest: from `discover`, which keeps columns that it does not know as JSON.
        column: that holds the label: its name in any spelling that differs in case, spaces, hyphens
            or underscores only; or, throughout the list, the model's label id.
        labels: the model's vocabulary, by label id.

    Raises:
        ManifestError: a video has no label, or one that the model does not know.
    """
    values: dict[str, str] = {}
    for video_id, uri, extra in zip(
        *(manifest[name].to_pylist() for name in ("video_id", "uri", "extra")), strict=True
    ):
        value = json.loads(extra).get(column)
        if value is None or not str(value).strip():
            message = f"{uri}: the manifest has no {column!r} for it; name another --label-column"
            raise ManifestError(message)
        values[video_id] = str(value).strip()
    by_id = all(value.isdecimal() for value in values.values())
    known = {str(i) if by_id else _plain(name): name for i, name in enumerate(labels)}
    return {video_id: _known(value, known, by_id=by_id) for video_id, value in values.items()}


def read_answers(paths: IndexPaths, tag: str) -> dict[str, tuple[str, ...]]:
    """The labels that a model gives each video of an index, the best first.

    Raises:
        QueryError: a video has several clips, so that it has several answers.
        StorageError: the index cannot be read.
    """
    table = open_table(paths, CLIPS)
    if table is None:
        return {}
    columns = ["video_id", "uri", "clip_index", "top_labels"]
    rows = read(model_rows(table, tag), columns, ds.field("clip_index") >= 0)
    answers: dict[str, tuple[str, ...]] = {}
    for row in rows.to_pylist():
        if row["video_id"] in answers:
            message = (
                f"{row['uri']} has several clips; an evaluation needs one for each video:"
                " use --sampling kinetics or uniform"
            )
            raise QueryError(message)
        answers[row["video_id"]] = tuple(row["top_labels"][:TOP])
    return answers


def evaluate(truths: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> Evaluation:
    """Compares the right labels of videos with a model's answers."""
    given = {video_id: answers[video_id] for video_id in truths if video_id in answers}
    first = [truths[video_id] == answer[0] for video_id, answer in given.items()]
    among = [truths[video_id] in answer for video_id, answer in given.items()]
    return Evaluation(
        videos=len(truths),
        scored=len(given),
        top1=_share(first),
        top5=_share(among),
        classes=_classes(truths, given),
    )


def _classes(truths: Mapping[str, str], given: Mapping[str, Sequence[str]]) -> pa.Table:
    by_label: dict[str, list[Sequence[str]]] = {}
    for video_id, answer in given.items():
        by_label.setdefault(truths[video_id], []).append(answer)
    rows = []
    for label, answers in by_label.items():
        wrong = Counter(answer[0] for answer in answers if answer[0] != label)
        rows.append(
            {
                "label": label,
                "videos": len(answers),
                "top1": _share([answer[0] == label for answer in answers]),
                "top5": _share([label in answer for answer in answers]),
                "mistaken_for": min(wrong, key=lambda name: (-wrong[name], name), default=""),
            }
        )
    rows.sort(key=lambda row: (row["top1"], row["label"]))
    return pa.Table.from_pylist(rows, CLASSES)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _known(value: str, known: Mapping[str, str], *, by_id: bool) -> str:
    key = value if by_id else _plain(value)
    if key in known:
        return known[key]
    near = [known[name] for name in difflib.get_close_matches(key, known, n=3)]
    hint = f"; near are {', '.join(near)}" if near and not by_id else ""
    message = f"the model has no label {value!r} (it has {len(known)}){hint}"
    raise ManifestError(message)


def _plain(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split())
