import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from indexer.cli import app, main
from indexer.metrics import Counts
from indexer.render import Format
from indexer.runtime.pipeline import RunResult
from tests.model.stress import write_stress_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = typer.main.get_command(app).commands


def call(capsys, *args):
    """Runs the command line in this process; gives exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def test_the_commands_are_those_of_the_contract():
    assert sorted(COMMANDS) == [
        "compact", "delete", "demo", "doctor", "duplicates", "errors", "export", "gallery",
        "labels", "plan", "relabel", "run", "search", "similar", "sql", "status", "verify", "video",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_help(capsys, name):
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert (COMMANDS[name].help or "").split(".")[0].split()[0] in out
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", ""), parameter.name


def test_the_written_documentation_is_current():
    result = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


HEAVY = """
import sys
from indexer.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "ray", "av", "transformers"} & set(sys.modules)))
"""


def traced(*args, **env):
    """Runs the command line in a process that says at its end which heavy modules it loaded."""
    return subprocess.run(
        [sys.executable, "-c", HEAVY, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | env,
    )


@pytest.mark.parametrize("args", [["--help"], ["search", "{}", "x"], ["status", "{}"]])
def test_help_and_queries_load_neither_torch_nor_ray(tmp_path, args):
    result = traced(*(arg.format(tmp_path) for arg in args))
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert call(capsys, "--version")[:2] == (0, "video-indexer 0.1.0\n")


def test_a_fault_of_ours_is_fatal_and_its_traceback_is_redacted(capsys, monkeypatch):
    def fault(*_):
        message = "https://me:hunter2@host/?token=hunter2"
        raise KeyError(message)

    monkeypatch.setattr("indexer.cli.app", fault)
    code, _, err = call(capsys, "run")
    assert code == 3
    assert "KeyError: 'https://host/?token=***'" in err
    assert "in fault" in err
    assert "hunter2" not in err


def test_an_unknown_option_is_a_usage_error(capsys):
    code, _, err = call(capsys, "run", "--colour")
    assert code == 2
    assert "--colour" in err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_stress_checkpoint(tmp_path_factory.mktemp("model") / "stress")


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"not really")
    return path


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"--set": "sampling.hop=3"}, 2, "sampling.hop: no such key"),
        ({"--set": "sampling.mode"}, 2, "should be SECTION.KEY=VALUE"),
        ({"--sampling": "every"}, 2, "sampling.mode = 'every'"),
        ({"--config": "/no/job.toml"}, 2, "cannot read the configuration file /no/job.toml"),
        ({"--index": None}, 2, "index: is required"),
        ({"INPUT": "/no/videos"}, 2, "/no/videos"),
        ({"INPUT": "ftp://host/x"}, 2, "'ftp' is not allowed"),
        ({"--retry": "never"}, 2, "retry = 'never'"),
        ({"--shard": "3/2"}, 2, "shard = '3/2': should be i/n"),
        ({"--shard": "two"}, 2, "shard = 'two'"),
        ({"--max-attempts": "0"}, 2, "max_attempts = 0"),
        ({"--if-exists": "forget"}, 2, "if_exists = 'forget'"),
        ({"--model": "no-such/model"}, 3, "no-such/model"),
        ({"--index": "/proc/no/index"}, 3, "/proc/no/index"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name_and_code(
    capsys, tmp_path, video, model, changes, code, words
):
    arguments = {"INPUT": video, "--index": tmp_path / "index", "--model": model} | changes
    flat = [arguments.pop("INPUT")]
    for name, value in arguments.items():
        flat += [name, value] if value is not None else []
    found, out, err = call(capsys, "run", *flat)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("index", "env", "words"),
    [
        ("s3://no-such-bucket-here/index", {}, "bucket does not exist"),
        ("s3://{bucket}/index", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials were refused"),
        ("s3://{bucket}/index", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
    ],
)
def test_storage_that_refuses_is_named_before_ray_or_torch_is_loaded(
    s3, video, model, index, env, words
):
    uri = index.format(bucket=s3.bucket())
    result = traced("run", video, "--index", uri, "--model", model, **(s3.env | env))
    assert result.returncode == 3
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_model_that_is_unknown_is_named_before_ray_or_torch_is_loaded(tmp_path, video):
    result = traced("run", video, "--index", tmp_path / "i", "--model", "no-such/model")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (3, "[]")
    assert "no-such/model" in result.stderr


def test_a_plan_lists_what_it_skips_as_json(capsys, tmp_path, video, model):
    (tmp_path / "w.mp4").write_bytes(b"nor this")
    arguments = [tmp_path, "--index", tmp_path / "index", "--model", model, "--limit", "1"]
    code, out, _ = call(capsys, "plan", *arguments, "--format", "json")
    facts = json.loads(out)
    assert (code, facts["reasons"]) == (0, {"beyond the limit": 1, "new": 1})
    (skipped,) = facts["skipped"]
    assert (Path(skipped["uri"]).name, skipped["reason"]) == ("w.mp4", "beyond the limit")
    code, out, _ = call(capsys, "plan", *arguments)
    assert "1 beyond the limit" in out


def test_there_is_no_index_where_there_is_none(capsys, tmp_path):
    code, _, err = call(capsys, "search", tmp_path, "guitar")
    assert code == 2
    assert "there is no index" in err


def result(**changes):
    facts = {
        "run_id": "r", "tag": "t", "status": "finished", "videos_indexed": 1, "videos_failed": 0,
        "skipped_videos": 0, "skipped_failed_videos": 0, "counts": Counts(units=1),
        "report": {"verdict": "", "estimate": None},
    }  # fmt: skip
    return RunResult(**facts | changes)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (result(), 0),
        (result(videos_failed=1), 1),
        (result(status="interrupted"), 130),
    ],
)
def test_exit_codes_of_run(capsys, monkeypatch, tmp_path, video, model, outcome, code):
    monkeypatch.setattr("indexer.runtime.pipeline.run_plan", lambda plan, observer: outcome)
    assert call(capsys, "run", video, "--index", tmp_path / "i", "--model", model)[0] == code


def test_formats_are_three():
    assert [str(fmt) for fmt in Format] == ["table", "json", "csv"]


def test_doctor_examines_what_is_asked_for(capsys, tmp_path, video, model):
    args = ["--index", tmp_path / "i", "--model", model, "--input", "/no/videos"]
    code, out, _ = call(capsys, "doctor", *args, "--format", "json")
    checks = {row["check"]: row for row in json.loads(out)}
    assert code == 3
    assert checks["index"]["ok"]
    assert checks["model"]["ok"]
    assert not checks["input"]["ok"]
    assert "/no/videos" in checks["input"]["detail"]
    assert checks["ray"]["detail"]
    assert not (tmp_path / "i").exists() or not list((tmp_path / "i").iterdir())
    assert call(capsys, "doctor", "--input", video)[0] == 0
