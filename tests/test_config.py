import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import errors, storage
from indexer.config import IndexConfig, fingerprint_digest
from indexer.errors import ConfigError

REQUIRED = {"inputs": ("videos",), "index": "out"}


def load(file=None, env=None, **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return IndexConfig.load(file, env=env, overrides=REQUIRED | dotted)


def refusal(**arguments):
    with pytest.raises(ConfigError) as caught:
        load(**arguments)
    return str(caught.value)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text("[sampling]\nmin_seconds = 1\nhop_seconds = 1\ntarget_fps = 1\n")
    env = {"INDEXER_SAMPLING_HOP_SECONDS": "2", "INDEXER_SAMPLING_TARGET_FPS": "2", "PATH": "x"}
    sampling = load(file, env, sampling__target_fps=3).sampling
    found = (sampling.seed, sampling.min_seconds, sampling.hop_seconds, sampling.target_fps)
    assert found == (0, 1, 2, 3)


def test_lists_may_be_written_with_commas():
    config = load(env={"INDEXER_DECODE_FORMATS": "avi, mpeg", "INDEXER_SCHEMES": "file"})
    assert (config.decode.formats, config.schemes) == (("avi", "mpeg"), ("file",))


def test_top_level_keys_with_underscores_are_no_sections():
    assert load(env={"INDEXER_IF_EXISTS": "error"}).if_exists == "error"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"env": {"INDEXER_SAMPLING_HOPS": "3"}}, ["sampling.hops", "no such key", "hop_seconds"]),
        ({"env": {"INDEXER_COLOUR": "3"}}, ["colour", "no such key", "sampling"]),
        ({"sampling__mode": "every"}, ["sampling.mode = 'every'", "'windows', 'uniform'"]),
        ({"sampling__target_fps": 0}, ["sampling.target_fps = 0", "greater than 0"]),
        ({"sampling__target_fps": float("inf")}, ["sampling.target_fps", "finite"]),
        ({"sampling__frame_rate_divisor": "x"}, ["sampling.frame_rate_divisor = 'x'", "integer"]),
        ({"sampling__views": 3}, ["sampling.views = 3", "sampling.mode = kinetics"]),
        ({"cluster__autoscaling": True}, ["needs cluster.decode_actors", "model.device = cpu or"]),
        ({"cluster__no_progress_seconds": 1800}, ["must be more than decode.deadline_seconds"]),
        ({"cluster__gpus_per_model_actor": 2}, ["cluster.gpus_per_model_actor = 2"]),
        ({"sampling": 3}, ["sampling = 3"]),
        ({"index": ""}, ["index = ''"]),
        ({"inputs": ()}, ["inputs = ()"]),
        ({"index__x": 1}, ["index.x", "not a section"]),
        ({"output__tag": "a/b"}, ["output.tag = 'a/b'"]),
        ({"precision__stored_mantissa_bits": 24}, ["stored_mantissa_bits = 24", "23"]),
    ],
)
def test_a_refusal_names_the_key_the_value_and_what_is_allowed(arguments, words):
    message = refusal(**arguments)
    assert [word for word in words if word not in message] == []


def test_all_faults_are_told_at_once():
    message = refusal(sampling__mode="every", model__top_k=0)
    assert "sampling.mode" in message
    assert "model.top_k" in message


def test_required_keys_are_named():
    with pytest.raises(ConfigError, match="index: is required"):
        IndexConfig.load(overrides={"inputs": ("a",)})


@pytest.mark.parametrize("content", [b"[sampling", b"index = '\xff'"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    file = tmp_path / "job.toml"
    file.write_bytes(content)
    assert f"{file} is not a TOML file" in refusal(file=file)


def test_an_absent_file_is_named(tmp_path):
    assert f"cannot read the configuration file {tmp_path}/x.toml" in refusal(
        file=tmp_path / "x.toml"
    )


def test_a_file_may_be_an_object(s3_folder):
    storage.write_bytes(f"{s3_folder}/job.toml", b"[sampling]\nseed = 7\n")
    assert load(f"{s3_folder}/job.toml").sampling.seed == 7
    absent = refusal(file=f"{s3_folder}/x.toml")
    assert f"cannot read the configuration file {s3_folder}/x.toml" in absent


@pytest.mark.parametrize("key", ["inputs", "index", "model__id", "cluster__address"])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:hunter2/with/slashes@bucket/prefix",
        "https://me:hunter2@host/prefix",
        "https://host/prefix?X-Amz-Signature=hunter2",
        "s3://bucket/prefix?X-Amz-Security-Token=hunter2&x=1",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(key, uri):
    message = refusal(**{key: (uri,) if key == "inputs" else uri})
    assert "belong into" in message
    assert "hunter2" not in message


def test_a_refused_value_is_shown_without_its_credentials():
    message = refusal(cluster__decode_actors="https://me:hunter2@host/?token=hunter2")
    assert "cluster.decode_actors = 'https://host/?token=***'" in message


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load().sampling.seed = 1


FACTS = {"id": "m", "weights_sha256": "00"}


def test_the_fingerprint_sees_what_decides_the_rows_and_nothing_else():
    base = fingerprint_digest(load().fingerprint(FACTS))
    same = [
        load(index="elsewhere"),
        load(limit=3),
        load(cluster__decode_actors=2),
        load(model__batch_size=7),
        load(output__commit_seconds=1),
    ]
    other = [
        load(sampling__hop_seconds=2),
        load(sampling__seed=1),
        load(precision__stored_mantissa_bits=23),
        load(precision__model="bfloat16"),
        load(model__top_k=3),
    ]
    assert {fingerprint_digest(c.fingerprint(FACTS)) for c in same} == {base}
    assert base not in {fingerprint_digest(c.fingerprint(FACTS)) for c in other}
    assert fingerprint_digest(load().fingerprint(FACTS | {"weights_sha256": "01"})) != base


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_digest_does_not_depend_on_the_order_of_keys(order):
    assert fingerprint_digest(dict.fromkeys(order, 1)) == fingerprint_digest(
        dict.fromkeys(sorted(order), 1)
    )


def subclasses(cls):
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in subclasses(sub))]


@pytest.mark.parametrize("cls", subclasses(errors.IndexerError))
def test_every_error_survives_pickling(cls):
    error = pickle.loads(pickle.dumps(cls("why")))
    assert (type(error), str(error)) == (cls, "why")


def test_every_error_code_of_the_contract_has_one_class():
    contract = (
        "missing, changed, access_denied, empty, not_a_video, unsupported_codec, corrupt, "
        "truncated, over_budget, timeout, decoder_crash, transient_io, no_frames, bad_output, "
        "internal"
    )
    assert tuple(sorted(contract.split(", "))) == errors.ERROR_CODES
