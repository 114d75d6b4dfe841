"""The commands that ask an index."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.cli_plot import Plot, draw_status, draw_video
from indexer.cli_terminal import ComparisonReporter, Index, OutFormat, print_rows
from indexer.errors import ERROR_CODES
from indexer.render import Format, json_text, size_text
from indexer.table.comparison import MAX_NEIGHBOURS, MIN_HITS, MIN_SIMILARITY

if TYPE_CHECKING:
    import pyarrow as pa

    from indexer.table.query import LabelIndex

queries = typer.Typer()

Tag = Annotated[
    str | None,
    typer.Option("--model", help="Tag of the model; by default the only one, else the newest."),
]
Video = Annotated[str | None, typer.Option(help="Glob over the videos' URIs.")]
Source = Annotated[str | None, typer.Option(help="What the videos' URIs begin with.")]

_CLIP_COLUMNS = ["score", "start_seconds", "end_seconds", "label", "uri"]
_SEGMENT_COLUMNS = ["peak_score", "mean_score", "start_ms", "end_ms", "label", "uri"]
_SIMILAR_COLUMNS = ["similarity", "start_seconds", "end_seconds", "uri", "clip_id"]
_VIDEO_COLUMNS = ["clip_index", "start_seconds", "end_seconds", "top_labels", "top_scores"]


@queries.command()
def status(
    index: Index, model: Tag = None, plot: Plot = None, fmt: OutFormat = Format.table
) -> int:
    """Print counts by outcome, sizes, models, and the last run of an index."""
    opened = _open(index, model)
    facts = opened.status()
    if plot is not None:
        draw_status(opened, plot)
    if fmt is Format.json:
        typer.echo(json_text(facts), nl=False)
    else:
        print_rows(_status_rows(facts), ["what", "value"], fmt)
    return 0


@queries.command()
def errors(
    index: Index,
    code: Annotated[str | None, typer.Option("--code", help="Only this error code.")] = None,
    model: Tag = None,
    fmt: OutFormat = Format.table,
) -> int:
    """List the videos that failed, and why."""
    table = _open(index, model).errors(code)
    known = code is None or code in ERROR_CODES
    empty = "no video failed" + (f" with {code}" if code else "")
    _print_table(table, fmt, empty if known else f"{empty}; codes are {', '.join(ERROR_CODES)}")
    return 0


@queries.command()
def labels(index: Index, model: Tag = None, fmt: OutFormat = Format.table) -> int:
    """List the labels that were found, with counts and best scores."""
    _print_table(_open(index, model).labels(), fmt, "the index has no clips yet")
    return 0


@queries.command()
def search(
    index: Index,
    label: Annotated[
        list[str],
        typer.Argument(
            help="A label, or words of its name; of several, any will do.", show_default=False
        ),
    ],
    without: Annotated[
        list[str] | None, typer.Option("--not", help="A label that the clips must not have.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least probability (segments: 0.5).")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="At most this many rows.")] = 20,
    video: Video = None,
    source: Source = None,
    before: Annotated[
        float | None, typer.Option(help="Clips that end at or before this second.")
    ] = None,
    after: Annotated[
        float | None, typer.Option(help="Clips that start at or after this second.")
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Merge clips that follow each other.")
    ] = False,
    leave_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="A segment goes on down to this probability."),
    ] = None,
    gap: Annotated[float, typer.Option(min=0, help="Seconds that a segment may bridge.")] = 0.0,
    model: Tag = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Find the clips of a label, best first; or the stretches of video that show it."""
    opened = _open(index, model)
    if segments:
        if without or before is not None or after is not None:
            message = "--segments takes no --not, --before or --after"
            raise typer.BadParameter(message)
        table = opened.segments(
            label, min_score=0.5 if min_score is None else min_score, leave_score=leave_score,
            gap_seconds=gap, top=top, video=video, source=source,
        )  # fmt: skip
        columns = _SEGMENT_COLUMNS
    else:
        table = opened.search(
            label, without=without or (), min_score=min_score or 0.0, top=top, video=video,
            source=source, before=before, after=after,
        )  # fmt: skip
        columns = _CLIP_COLUMNS
    empty = "" if table.num_rows else _nothing(opened, label)
    _print_table(table, fmt, empty, columns)
    return 0


@queries.command()
def similar(
    index: Index,
    clip: Annotated[
        str,
        typer.Argument(
            help="A clip id, or VIDEO@SECONDS of a video of the index or of any file.",
            show_default=False,
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="At most this many clips.")] = 10,
    distinct_videos: Annotated[
        bool, typer.Option("--distinct-videos", help="The best clip of each other video.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Look into inverted lists only (compact --ivf)."),
    ] = False,
    video: Video = None,
    model: Tag = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Find the clips that look most like one, by their embeddings.

    A video that is not in the index is decoded and embedded with the index's own model. The answer
    is exact. With --approximate, for indexes of more than some 10 million clips, it is quicker and
    may miss some; the share that it finds, as measured on the index's own clips, is shown.
    """
    opened = _open(index, model)
    moment = _moment_of_file(opened, clip)
    if moment is None:
        table = opened.similar(
            clip, top=top, distinct_videos=distinct_videos, video=video, approximate=approximate
        )
    else:
        from indexer.runtime.moment import embed_moment

        embedding = embed_moment(opened.uri, opened.tag, *moment)
        table = opened.similar_to(
            embedding,
            top=top,
            distinct_videos=distinct_videos,
            video=video,
            approximate=approximate,
        )
    if approximate:
        typer.echo(f"approximate: recall@10 is {opened.recall():.3f}, as measured", err=True)
    empty = "there is no other clip to compare with" + ("; widen --video" if video else "")
    _print_table(table, fmt, empty, _SIMILAR_COLUMNS)
    return 0


@queries.command()
def duplicates(
    index: Index,
    min_similarity: Annotated[
        float, typer.Option(max=1, help="Of two clips that count as a hit: 1 for equal ones.")
    ] = MIN_SIMILARITY,
    min_hits: Annotated[
        int, typer.Option(min=1, help="Hits, the same time apart, that make a stretch.")
    ] = MIN_HITS,
    max_neighbours: Annotated[
        int, typer.Option(min=1, help="Ignore clips that are like more others than this.")
    ] = MAX_NEIGHBOURS,
    top: Annotated[int, typer.Option(min=1, help="At most this many pairs.")] = 100,
    video: Video = None,
    source: Source = None,
    model: Tag = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Find stretches of video that come back elsewhere: short clips in long videos, whole copies.

    Each row is a pair of stretches, each with its video, start and end. They are found by runs of
    clips that look alike and lie the same time apart, so that an index whose windows overlap
    (sampling.hop_seconds of a quarter of a window) finds shorter stretches, and more of them.
    --video and --source choose what is to be on one side of each pair. Every clip is compared with
    every other: the time grows with the square of their number.
    """
    table = _open(index, model).duplicates(
        min_similarity=min_similarity, min_hits=min_hits, max_neighbours=max_neighbours, top=top,
        video=video, source=source, observe=ComparisonReporter(),
    )  # fmt: skip
    empty = f"no {min_hits} clips in a row come back; --min-similarity or --min-hits could be lower"
    if video or source:
        empty += ", or --video and --source wider"
    _print_table(table, fmt, empty)
    return 0


@queries.command()
def video(
    index: Index,
    uri: Annotated[str, typer.Argument(help="The video's URI, or its end.", show_default=False)],
    model: Tag = None,
    plot: Plot = None,
    fmt: OutFormat = Format.table,
) -> int:
    """List all clips of one video, with their labels."""
    clips = _open(index, model).video(uri)
    if plot is not None:
        draw_video(clips, plot)
    _print_table(clips, fmt, "the video has no clips", _VIDEO_COLUMNS)
    return 0


@queries.command()
def sql(
    index: Index,
    query: Annotated[str, typer.Argument(help="One SELECT.", show_default=False)],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds it may take.")] = 60.0,
    model: Tag = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Ask in SQL, over the views clips, embeddings, labels, segments, videos and errors."""
    table = _open(index, model).sql(query, timeout_seconds=timeout)
    _print_table(table, fmt, "no rows")
    return 0


@queries.command()
def export(
    index: Index,
    to: Annotated[Path, typer.Option("--to", "-o", help="A new folder.")],
    kind: Annotated[
        str,
        typer.Option("--format", help="parquet, csv, jsonl, cuts, webvtt, nemo or fiftyone."),
    ] = "parquet",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of the segments.")] = 0.5,
    model: Tag = None,
) -> int:
    """Write an index as plain files, for programs that know nothing of it."""
    from indexer.table.export import export

    for path in export(_open(index, model), to, kind, min_score=min_score):
        typer.echo(path)
    return 0


def _moment_of_file(opened: "LabelIndex", clip: str) -> tuple[str, float] | None:
    """A file that is not in the index, and seconds; None where the index knows the video."""
    from indexer import storage

    name, _, text = clip.rpartition("@")
    try:
        seconds = float(text)
    except ValueError:
        return None
    if not name or opened.has_video(name) or not storage.exists(name):
        return None
    return name, seconds


def _open(index: str, model: str | None) -> "LabelIndex":
    from indexer.table.query import LabelIndex

    return LabelIndex.open(index, model=model)


def _nothing(opened: "LabelIndex", label: list[str]) -> str:
    """What would widen a question that has no answer."""
    best = opened.search(label, top=1).to_pylist()
    asked = ", ".join(label)
    if not best:
        return f"no clip of the index has {asked!r} among its labels"
    return (
        f"no clip of {asked!r} passes the filters; the best of all scores {best[0]['score']:.3f}:"
        " lower --min-score, or widen --video, --source, --before, --after or --not"
    )


def _print_table(
    table: "pa.Table", fmt: Format, empty: str, columns: list[str] | None = None
) -> None:
    shown = columns if columns and fmt is Format.table else table.column_names
    if table.num_rows == 0 and fmt is Format.table:
        typer.echo(empty, err=True)
        return
    print_rows(table.to_pylist(), shown, fmt)


def _status_rows(facts: dict[str, Any]) -> list[dict[str, object]]:
    """The facts of `LabelIndex.status` that fit two columns; all are in `--format json`."""
    from indexer.runtime.planned import estimate_text

    shown: dict[str, object] = {"index": facts["index"], "model": facts["model"]}
    shown |= {f"videos {outcome}": n for outcome, n in facts["videos"].items()}
    shown |= {f"failed with {code}": n for code, n in facts["errors"].items()}
    shown |= {"clips": facts["clips"], "video-hours": facts["hours"]}
    for name, size in facts["tables"].items():
        shown[f"table {name}"] = (
            f"{size['rows']:,} rows, {size['files']:,} files, {size_text(size['bytes'])}"
        )
    sidecar = facts["similarity"]
    shown["similarity sidecar"] = (
        f"{sidecar['rows']:,} clips, {sidecar['files']:,} files, {size_text(sidecar['bytes'])}"
    )
    shown["models"] = [model["tag"] for model in facts["models"]]
    shown["runs"] = len(facts["runs"])
    for run in facts["runs"][-1:]:
        shown["last run"] = f"{run['run_id']}, {run['status']} after {run['elapsed_seconds']:.0f} s"
        if run["clips"]:
            rate, hours = run["clips_per_second"], run["video_hours_per_hour"]
            shown["last run's rate"] = f"{rate} clips/s, {hours} video-hours an hour"
            shown["last run's verdict"] = run.get("verdict") or ""
        if run.get("estimate"):
            shown["last run's plan"] = estimate_text(run["estimate"])
    return [{"what": name, "value": value} for name, value in shown.items()]
