"""The `indexer` command: a thin shell around the library, which works without it."""

import os
import signal
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from indexer.cli_maintain import maintenance
from indexer.cli_query import queries
from indexer.cli_show import shows
from indexer.cli_terminal import OutFormat, print_rows
from indexer.errors import ConfigError, IndexerError
from indexer.redaction import redact_text
from indexer.render import Format

EXIT_SOME_FAILED = 1
EXIT_FATAL = 3
EXIT_INTERRUPTED = 130


def _exit_with(code: int, **_: object) -> NoReturn:
    """Makes what a command returns the exit code of the process."""
    raise typer.Exit(code)


app = typer.Typer(
    name="indexer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    result_callback=_exit_with,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "The open video label index: which clips of an archive show what.\n\n"
        "Start with `indexer demo`. Exit codes: 0 all well, 1 some videos failed, 2 usage or "
        "configuration, 3 storage, model or Ray, 130 interrupted (the same command resumes)."
    ),
)

app.add_typer(queries)
app.add_typer(shows)
app.add_typer(maintenance)

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, globs, s3://bucket/prefix, or manifests (.parquet .csv .jsonl .txt "
        "with a `uri` column).",
        show_default=False,
    ),
]


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code."""
    try:
        app(args)
    except IndexerError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
    except Exception:  # noqa: BLE001 - a fault of ours; Python's own code for it means "some failed"
        typer.echo(redact_text(traceback.format_exc()), err=True)
        sys.exit(EXIT_FATAL)
    sys.exit(EXIT_INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        import indexer

        typer.echo(f"video-indexer {indexer.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the videos and the index.")] = Path(
        "indexer-demo"
    ),
) -> int:
    """Make a few labelled videos, index them with the bundled model, and ask the index.

    Takes about a minute on two cores, needs no network and no GPU.
    """
    from indexer.demo import run_demo

    return run_demo(folder, typer.echo)


# The options of `run` and `plan`: any other key of the configuration is reached by --set.
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", help="TOML file with the job's configuration: a path or a URL."),
]
IndexOption = Annotated[
    str | None, typer.Option("--index", help="Folder or URL of the index.", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="`demo`, a Hugging Face hub id, a folder or a URL of one."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")
]
SamplingMode = Annotated[
    str | None, typer.Option("--sampling", help="windows, uniform, kinetics or random.")
]
IfExists = Annotated[
    str | None,
    typer.Option(
        "--if-exists",
        help="`resume` skips what is done (default), `error` refuses, `overwrite` does it again.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="The same as --if-exists resume.")]
Retry = Annotated[
    str | None, typer.Option("--retry", help="Try failed videos again: an error code, or `all`.")
]
MaxAttempts = Annotated[
    int | None,
    typer.Option("--max-attempts", help="Videos that failed this often are not tried again (3)."),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only the I-th of N equal parts of the videos."),
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many videos.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Any key of the configuration, such as `sampling.hop_seconds=4`; may be repeated.",
    ),
]


@app.command()
def plan(
    inputs: Inputs = None,
    index: IndexOption = None,
    model: ModelOption = None,
    revision: Revision = None,
    config: ConfigFile = None,
    sampling: SamplingMode = None,
    if_exists: IfExists = None,
    retry: Retry = None,
    max_attempts: MaxAttempts = None,
    shard: Shard = None,
    limit: Limit = None,
    settings: SetOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read only listings and headers; measure no speed.")
    ] = False,
    fmt: OutFormat = Format.table,
) -> int:
    """Say what a run would do, what it would skip, and how long it would take.

    Decodes and scores a few clips to find out, on this machine or on the cluster of the job.
    """
    job = _configuration(
        config, settings, inputs=inputs or None, index=index, model=model, revision=revision,
        sampling=sampling, if_exists=if_exists, retry=retry, limit=limit,
        max_attempts=max_attempts, shard=shard,
    )  # fmt: skip
    return _print_plan(job, fmt, measured=not quick)


@app.command()
def run(
    inputs: Inputs = None,
    index: IndexOption = None,
    model: ModelOption = None,
    revision: Revision = None,
    config: ConfigFile = None,
    sampling: SamplingMode = None,
    if_exists: IfExists = None,
    resume: Resume = False,
    retry: Retry = None,
    max_attempts: MaxAttempts = None,
    shard: Shard = None,
    limit: Limit = None,
    settings: SetOption = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What `plan --format json` printed: the report holds it against what comes.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as `plan --quick`.")] = False,
    fmt: OutFormat = Format.table,
) -> int:
    """Index videos. The same command resumes after any interruption.

    Configuration: built-in defaults, then --config, then INDEXER_SECTION_KEY variables, then flags.
    """
    job = _configuration(
        config, settings, inputs=inputs or None, index=index, model=model, revision=revision,
        sampling=sampling, if_exists="resume" if resume else if_exists, retry=retry, limit=limit,
        max_attempts=max_attempts, shard=shard, plan=plan,
    )  # fmt: skip
    if dry_run:
        return _print_plan(job, fmt, measured=False)
    return _run(job, fmt)


def _configuration(config: str | None, settings: list[str] | None, **flags: Any) -> Any:  # noqa: ANN401
    from indexer.config import IndexConfig

    overrides: dict[str, object] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            message = f"--set {setting}: should be SECTION.KEY=VALUE"
            raise ConfigError(message)
        overrides[key.strip()] = value.strip()
    names = {"model": "model.id", "revision": "model.revision", "sampling": "sampling.mode"}
    overrides |= {
        names.get(name, name): value for name, value in flags.items() if value is not None
    }
    return IndexConfig.load(config, env=os.environ, overrides=overrides)


def _print_plan(job: Any, fmt: Format, *, measured: bool) -> int:  # noqa: ANN401 - IndexConfig, imported late
    from indexer.runtime.estimate import describe_plan
    from indexer.runtime.todo import plan_job

    made = plan_job(job)
    rows = describe_plan(made, measured=measured)
    if fmt is Format.json:
        rows["skipped"] = list(made.skipped())
    _print([{"what": name, "value": value} for name, value in rows.items()], fmt, rows)
    return 0


def _run(job: Any, fmt: Format) -> int:  # noqa: ANN401 - IndexConfig, imported late
    from indexer.runtime.todo import check_target, plan_job

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same resumable end as Ctrl-C
    check_target(job)
    plan = plan_job(job)
    # Only a job that can work waits for the imports below: Ray and torch take seconds.
    from rich.console import Console

    from indexer.render import json_text
    from indexer.runtime.pipeline import run_plan
    from indexer.runtime.progress import ProgressReporter, result_text

    # Ray tells on stdout of workers that died
    with ProgressReporter(Console(stderr=True)) as reporter, redirect_stdout(sys.stderr):
        result = run_plan(plan, reporter)
    if fmt is Format.json:
        typer.echo(json_text(result.report), nl=False)
    typer.echo(result_text(result, job.index), err=True)
    if result.status == "interrupted":
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if result.videos_failed else 0


@app.command()
def doctor(
    index: Annotated[str | None, typer.Option(help="Can this index be written?")] = None,
    model: Annotated[str | None, typer.Option(help="Can this model be loaded?")] = None,
    input_: Annotated[str | None, typer.Option("--input", help="Can this be listed?")] = None,
    fmt: OutFormat = Format.table,
) -> int:
    """Check the machine, and what a job will need, before the job does."""
    from indexer.runtime.doctor import examine

    rows = [
        {"check": check.name, "ok": check.ok, "detail": check.detail}
        for check in examine(index=index, model=model, input_=input_)
    ]
    _print(rows, fmt, rows)
    return 0 if all(row["ok"] for row in rows) else 3


def _print(rows: list[dict[str, object]], fmt: Format, document: object) -> None:
    from indexer.render import json_text

    if fmt is Format.json:
        typer.echo(json_text(document), nl=False)
    else:
        print_rows(rows, list(rows[0]), fmt)
