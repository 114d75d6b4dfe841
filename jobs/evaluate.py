r"""Measures how often a model is right on videos whose label is known.

    ray job submit --working-dir . -- python jobs/evaluate.py s3://kinetics/val.csv \
        --index s3://kinetics/evaluation --model facebook/timesformer-base-finetuned-k400

The list is a manifest with a column of labels: `uri,label`. It is indexed like any other, in the
protocol of the TimeSformer paper (one stretch of each video, three crops, averaged probabilities),
so that an interrupted evaluation resumes; then the index is compared with the list. On the
Kinetics-400 validation set this reprints the paper's top-1 and top-5 accuracy (table 6: 78.0 and
93.7 for TimeSformer).

Exit codes are those of `indexer run`; videos that cannot be read are not scored, and are counted.
"""

import argparse
import os
import signal
import sys
from typing import Final

from rich.console import Console

from indexer.config import IndexConfig
from indexer.errors import IndexerError
from indexer.render import Format, json_text, rows_text
from indexer.runtime.evaluate import TOP, Evaluation, evaluate, read_answers, read_truths
from indexer.runtime.pipeline import run_plan
from indexer.runtime.progress import ProgressReporter, result_text
from indexer.runtime.todo import check_target, plan_job

EXIT_SOME_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


def main(args: list[str] | None = None) -> int:
    """Indexes the list, prints the accuracy and returns the exit code."""
    arguments = _parser().parse_args(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _evaluate(arguments)
    except IndexerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", help="a .csv, .parquet or .jsonl list of videos and labels")
    parser.add_argument("--index", required=True, help="folder or URL of the index to make")
    parser.add_argument("--label-column", default="label", help="default: %(default)s")
    parser.add_argument("--model", help="as in `indexer run`")
    parser.add_argument("--config", help="a TOML file or its URL, as in `indexer run`")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--sampling", choices=["kinetics", "uniform"], default="kinetics",
        help="uniform is the rule of Something-Something v2; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--views", type=int, default=1, help="stretches; default: %(default)s")
    parser.add_argument("--crops", type=int, default=3, help="1 or 3; default: %(default)s")
    parser.add_argument(
        "--fusion", choices=["probabilities", "logits"], default="probabilities",
        help="the paper averages probabilities, its code sums logits; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--format", choices=list(Format), type=Format, default=Format.table)
    return parser


def _configuration(arguments: argparse.Namespace) -> IndexConfig:
    settings = dict(setting.partition("=")[::2] for setting in arguments.set)
    protocol = {
        "inputs": (arguments.manifest,),
        "index": arguments.index,
        "model.id": arguments.model,
        "model.top_k": TOP,
        "model.min_score": 0.0,
        "sampling.mode": arguments.sampling,
        "sampling.views": arguments.views,
        "sampling.crops": arguments.crops,
        "sampling.fusion": arguments.fusion,
    }
    return IndexConfig.load(arguments.config, env=os.environ, overrides=settings | protocol)


def _evaluate(arguments: argparse.Namespace) -> int:
    config = _configuration(arguments)
    check_target(config)
    plan = plan_job(config)
    truths = read_truths(plan.manifest, arguments.label_column, plan.checkpoint.labels)
    with ProgressReporter(Console(stderr=True)) as reporter:
        result = run_plan(plan, reporter)
    print(result_text(result, config.index), file=sys.stderr)
    if result.status == "interrupted":
        return EXIT_INTERRUPTED
    evaluation = evaluate(truths, read_answers(plan.paths, plan.tag))
    print(_text(evaluation, arguments.format))
    return 0 if evaluation.scored == evaluation.videos else EXIT_SOME_FAILED


def _text(evaluation: Evaluation, fmt: Format) -> str:
    classes = evaluation.classes.to_pylist()
    if fmt is Format.json:
        facts = {name: getattr(evaluation, name) for name in ("videos", "scored", "top1", "top5")}
        return json_text(facts | {"classes": classes}).rstrip()
    table = rows_text(classes, evaluation.classes.column_names, fmt).rstrip()
    if fmt is Format.csv:
        return table
    return (
        f"{table}\n\ntop-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%}"
        f" of {evaluation.scored:,} videos scored ({evaluation.videos:,} listed)"
    )


if __name__ == "__main__":
    sys.exit(main())
