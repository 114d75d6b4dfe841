"""How an evaluation is configured; what it measures is in `tests/e2e/test_evaluate.py`."""

from jobs import evaluate


def configuration(*arguments):
    parsed = evaluate._parser().parse_args(["list.csv", "--index", "index", *arguments])
    return evaluate._configuration(parsed)


def test_the_configuration_may_lie_behind_a_url(tmp_path):
    (tmp_path / "job.toml").write_text("[cluster]\ndecode_actors = 3\n", encoding="utf-8")
    assert configuration("--config", f"file://{tmp_path}/job.toml").cluster.decode_actors == 3


def test_the_protocol_is_not_to_be_configured(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('[sampling]\nmode = "windows"\n[model]\ntop_k = 2\n', encoding="utf-8")
    found = configuration("--config", str(file), "--set", "sampling.crops=1")
    assert (found.sampling.mode, found.sampling.crops, found.model.top_k) == ("kinetics", 3, 5)
