import json

import pytest

from jobs.benchmark import main

SMALL = ["--seconds", "2.5", "--width", "64", "--height", "48"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_report_of_a_real_run_is_printed_and_the_videos_are_made_once(
    ray_session, tmp_path, capsys
):
    folder = str(tmp_path / "benchmark")
    assert main([folder, "--videos", "3", *SMALL]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "finished"
    assert (report["videos"]["indexed"], report["clips"]) == (3, 3)
    assert report["clips_per_second"] > 0
    videos = tmp_path / "benchmark" / "videos-64x48-2.5s"
    written = {path: path.stat().st_mtime_ns for path in videos.iterdir()}
    assert len(written) == 3
    assert main([folder, "--videos", "2", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out)["videos"]["indexed"] == 2
    assert {path: path.stat().st_mtime_ns for path in videos.iterdir()} == written


def test_a_job_that_cannot_work_says_why_with_its_exit_code(tmp_path, capsys):
    arguments = [str(tmp_path), "--videos", "1", *SMALL]
    assert main([*arguments, "--set", "sampling.mode=every"]) == 2
    assert "sampling.mode = 'every'" in capsys.readouterr().err
    assert main([*arguments, "--model", "/nowhere"]) == 3
