import csv
import io
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import manifest, storage
from indexer.errors import ConfigError, ManifestError, StorageError
from indexer.listing import UNKNOWN, find, glob_regex
from indexer.records import VideoRef
from indexer.s3 import S3Store
from tests.s3server import S3Server

SCHEMES = ("file", "s3")
ODD_NAMES = [
    "sp ace.mp4",
    " lead.mp4",
    "100%41.mp4",
    "a#b?c.mp4",
    "br[1].mp4",
    "new\nline.mp4",
    "ünï\u2028x.mp4",
    "k?versionId=3.mp4",
    "star*.mp4",
    "semi;colon,comma\"quote'.mp4",
    "a::b.mp4",
]


def uris(*inputs: str | Path, schemes: tuple[str, ...] = SCHEMES) -> list[str]:
    return manifest.discover([str(each) for each in inputs], schemes=schemes)["uri"].to_pylist()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for name in (
        "b.mp4",
        "a.MOV",
        "sub/c.mkv",
        "sub/deep/d.ts",
        "notes.md",
        ".hid/e.mp4",
        ".f.mp4",
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return root


@pytest.fixture
def requests(s3: S3Server) -> Iterator[list[str]]:
    """Names of the S3 operations that are asked for during the test."""
    fs, _ = storage.filesystem("s3://any/")
    made: list[str] = []

    def note(model, **_kwargs) -> None:
        made.append(model.name)

    fs.connect()
    fs.s3.meta.events.register("before-call.s3", note)
    yield made
    fs.s3.meta.events.unregister("before-call.s3", note)


class TestFolders:
    def test_videos_at_any_depth_sorted_without_hidden_ones(self, archive: Path) -> None:
        expected = ["a.MOV", "b.mp4", "sub/c.mkv", "sub/deep/d.ts"]
        assert uris(archive) == [f"{archive}/{name}" for name in expected]

    def test_rows_say_what_is_stored(self, archive: Path) -> None:
        table = manifest.discover([f"file://{archive}/b.mp4"], schemes=SCHEMES)
        uri = f"{archive}/b.mp4"
        size, mtime_ns = len("b.mp4"), (archive / "b.mp4").stat().st_mtime_ns
        identity = uuid.uuid5(uuid.NAMESPACE_URL, uri).hex
        assert table.schema == manifest.MANIFEST_SCHEMA
        assert list(manifest.refs(table)) == [
            VideoRef(identity, uri, size, f"{size}-{mtime_ns}", "{}")
        ]
        assert manifest.video_id(uri) == identity

    def test_content_key_follows_the_content(self, archive: Path) -> None:
        before = manifest.discover([str(archive)], schemes=SCHEMES)
        os.utime(archive / "b.mp4", ns=(0, 123))
        (archive / "sub" / "c.mkv").unlink()
        (archive / "new.mp4").write_bytes(b"")
        after = manifest.discover([str(archive)], schemes=SCHEMES)
        diff = manifest.diff_manifests(before, after)
        assert diff.added["uri"].to_pylist() == [f"{archive}/new.mp4"]
        assert diff.changed["uri"].to_pylist() == [f"{archive}/b.mp4"]
        assert diff.changed["content_key"].to_pylist() == ["5-123"]
        assert diff.removed["uri"].to_pylist() == [f"{archive}/sub/c.mkv"]
        assert diff.added.schema == before.schema

    def test_a_named_file_needs_no_extension(self, archive: Path) -> None:
        assert uris(archive / "notes.md") == [f"{archive}/notes.md"]

    def test_relative_and_duplicate_inputs(
        self, archive: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(archive)
        found = uris("b.mp4", ".", "sub/../b.mp4")
        assert found[0] == f"{archive}/b.mp4"
        assert sorted(found) == uris(archive)

    def test_limit(self, archive: Path) -> None:
        table = manifest.discover([str(archive)], schemes=SCHEMES, limit=2)
        assert table["uri"].to_pylist() == uris(archive)[:2]

    def test_loops_of_links(self, archive: Path) -> None:
        before = uris(archive)
        (archive / "sub" / "up").symlink_to(archive)
        (archive / "self.mp4").symlink_to(archive / "self.mp4")
        (archive / "gone.mp4").symlink_to(archive / "nothing")
        assert uris(archive) == before

    def test_a_linked_folder_outside_is_followed(self, archive: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "z.mp4").write_bytes(b"")
        (archive / "0link").symlink_to(tmp_path / "elsewhere")
        assert f"{archive}/0link/z.mp4" in uris(archive)

    def test_a_file_keeps_its_real_name(self, archive: Path) -> None:
        (archive / "0link").symlink_to(archive / "sub")
        assert f"{archive}/sub/c.mkv" in uris(archive)
        assert f"{archive}/0link/c.mkv" not in uris(archive)

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names(self, archive: Path, name: str) -> None:
        (archive / name).write_bytes(b"")
        assert f"{archive}/{name}" in uris(archive)
        assert uris(archive / name) == [f"{archive}/{name}"]

    def test_odd_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "season [1]"
        folder.mkdir()
        (folder / "e1.mp4").write_bytes(b"")
        assert uris(folder) == [f"{folder}/e1.mp4"]
        assert uris(f"{folder}/*.mp4") == [f"{folder}/e1.mp4"]

    def test_names_that_are_not_utf8_are_counted(
        self, archive: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = uris(archive)
        odd = os.path.join(os.fsencode(archive), b"caf\xe9.mp4")  # noqa: PTH118
        with open(odd, "wb"):  # noqa: PTH123
            pass
        with caplog.at_level(logging.WARNING):
            assert uris(archive) == before
        assert "skipped 1 files" in caplog.text
        with pytest.raises(ManifestError, match="not UTF-8"):
            uris(os.fsdecode(odd))

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=40))
    @settings(max_examples=50)
    def test_any_name_survives(self, name: str) -> None:
        folder = Path("/tmp") / f"manifest-{uuid.uuid4().hex}"  # noqa: S108 - hypothesis takes no fixture
        folder.mkdir()
        try:
            file = folder / f"x{name}.mp4"
            try:
                file.write_bytes(b"")
            except OSError:
                return  # longer than a name may be
            assert uris(folder) == [str(file)]
            assert uris(file) == [str(file)]
        finally:
            shutil.rmtree(folder)


class TestRefusals:
    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="nope: there is nothing of this name"):
            uris(tmp_path / "nope")

    def test_one_missing_path_among_others(self, archive: Path) -> None:
        with pytest.raises(ManifestError, match="nope"):
            uris(archive, archive / "nope")

    def test_empty_folder_says_what_was_looked_for(self, tmp_path: Path) -> None:
        (tmp_path / "readme.md").write_text("")
        with pytest.raises(ManifestError, match=r"holds no video; looked for .*\.mp4"):
            uris(tmp_path)

    def test_glob_without_a_match(self, archive: Path) -> None:
        with pytest.raises(ManifestError, match="nothing of this name"):
            uris(f"{archive}/*.webm")

    def test_scheme(self) -> None:
        with pytest.raises(ConfigError, match="'https' is not allowed"):
            uris("https://example.org/a.mp4")

    def test_scheme_inside_a_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "m.txt").write_text("http://169.254.169.254/latest/meta-data\n")
        with pytest.raises(ConfigError, match="'http' is not allowed"):
            uris(tmp_path / "m.txt")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_cannot_be_read_is_not_passed_over(self, archive: Path) -> None:
        (archive / "sub").chmod(0)
        with pytest.raises(StorageError, match="permission denied"):
            uris(archive)


class TestGlobs:
    def test_local(self, archive: Path) -> None:
        assert uris(f"{archive}/*.mp4") == [f"{archive}/b.mp4"]
        assert uris(f"{archive}/**/*.ts") == [f"{archive}/sub/deep/d.ts"]
        assert uris(f"{archive}/n*.md") == [f"{archive}/notes.md"]
        assert uris(f"{archive}/s*") == [f"{archive}/sub/c.mkv", f"{archive}/sub/deep/d.ts"]
        assert uris(f"{archive}/**") == uris(archive)

    @pytest.mark.parametrize(
        ("pattern", "key", "matches"),
        [
            ("a/*.mp4", "a/b.mp4", True),
            ("a/*.mp4", "a/b/c.mp4", False),
            ("a/**/*.mp4", "a/c.mp4", True),
            ("a/**/*.mp4", "a/b/x/c.mp4", True),
            ("a/b?.mp4", "a/b/.mp4", False),
            ("a/[bc].mp4", "a/c.mp4", True),
            ("a/[!bc].mp4", "a/c.mp4", False),
            ("a/[!bc].mp4", "a/d.mp4", True),
            ("a/[!bc].mp4", "a//.mp4", False),
            ("a/[\\].mp4", "a/\\.mp4", True),
            ("a/[.mp4", "a/[.mp4", True),
            ("a*", "abc/d/e.mp4", True),
            ("a/**", "a/b/c.mp4", True),
            ("a.mp4", "axmp4", False),
            ("a*", "a\nb", True),
        ],
    )
    def test_over_keys(self, pattern: str, key: str, matches: bool) -> None:
        assert bool(glob_regex(pattern).match(key)) is matches


class TestManifestFiles:
    @pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
    def test_round_trip(self, archive: Path, tmp_path: Path, suffix: str) -> None:
        for name in ODD_NAMES:
            (archive / name).write_bytes(b"")
        table = manifest.discover([str(archive)], schemes=SCHEMES)
        target = str(tmp_path / f"m{suffix}")
        manifest.write_manifest(table, target)
        shutil.rmtree(archive)  # sizes and keys of a manifest are believed
        assert manifest.discover([target], schemes=SCHEMES).equals(table)

    def test_other_extensions_are_refused(self, archive: Path, tmp_path: Path) -> None:
        table = manifest.discover([str(archive)], schemes=SCHEMES)
        with pytest.raises(ManifestError, match=r"\.parquet, \.csv or \.jsonl"):
            manifest.write_manifest(table, str(tmp_path / "m.xlsx"))

    def test_text_with_comments_and_relative_names(self, archive: Path) -> None:
        (archive / " lead.mp4").write_bytes(b"")
        lines = ["# videos", "", "b.mp4\r", " lead.mp4", f"{archive}/a.MOV", "./sub/c.mkv", "b.mp4"]
        (archive / "m.txt").write_text("\n".join(lines))
        names = [" lead.mp4", "a.MOV", "b.mp4", "sub/c.mkv"]
        assert uris(archive / "m.txt") == [f"{archive}/{name}" for name in names]

    def test_other_columns_travel_in_extra(self, archive: Path) -> None:
        table = pa.table(
            {
                "uri": ["b.mp4", "a.MOV"],
                "camera": ["é1", None],
                "score": [float("nan"), 0.5],
                "tags": [["x"], []],
            }
        )
        pq.write_table(table, archive / "m.parquet")
        rows = list(manifest.refs(manifest.discover([f"{archive}/m.parquet"], schemes=SCHEMES)))
        assert [json.loads(row.extra) for row in rows] == [
            {"camera": None, "score": 0.5, "tags": []},
            {"camera": "é1", "score": None, "tags": ["x"]},
        ]

    def test_addresses_in_other_columns_lose_their_credentials(self, archive: Path) -> None:
        signed = "https://cdn/a.jpg?w=1&X-Amz-Signature=hunter2"
        row = {"uri": "b.mp4", "preview": signed, "from": ["ftp://me:hunter2@nas/a"], "token": "7"}
        (archive / "m.jsonl").write_text(json.dumps(row))
        (ref,) = manifest.refs(manifest.discover([f"{archive}/m.jsonl"], schemes=SCHEMES))
        assert json.loads(ref.extra) == {
            "preview": "https://cdn/a.jpg?w=1&X-Amz-Signature=***",
            "from": ["ftp://nas/a"],
            "token": "7",
        }

    @pytest.mark.parametrize(
        "uri", ["s3://b/k.mp4?X-Amz-Credential=a&X-Amz-Signature=hunter2", "s3://me:hunter2@b/k"]
    )
    def test_a_signed_address_is_refused_and_not_repeated(self, archive: Path, uri: str) -> None:
        (archive / "m.txt").write_text(f"b.mp4\n{uri}\n")
        with pytest.raises(ConfigError, match="belong into") as caught:
            uris(archive / "m.txt")
        assert "hunter2" not in str(caught.value)

    def test_a_listed_file_may_be_called_like_a_signed_address(self, archive: Path) -> None:
        name = "b.mp4?X-Amz-Signature=1.mp4"
        (archive / "b.mp4").rename(archive / name)
        assert f"{archive}/{name}" in uris(archive)

    def test_csv_keeps_text_as_text(self, archive: Path) -> None:
        (archive / "m.csv").write_bytes('\ufeffuri,shot\n"b.mp4","007\nx"\n'.encode())
        (row,) = manifest.refs(manifest.discover([f"{archive}/m.csv"], schemes=SCHEMES))
        assert json.loads(row.extra) == {"shot": "007\nx"}
        assert row.uri == f"{archive}/b.mp4"

    def test_size_and_etag_are_believed(self, archive: Path) -> None:
        (archive / "m.jsonl").write_text(
            '{"uri": "s3://b/far.mp4", "size_bytes": 7, "etag": "\\"ab\\""}\n'
            '{"uri": "s3://b/key.mp4", "size_bytes": "8", "content_key": "8-x", "extra": "note"}\n'
            '{"uri": "s3://b/obj.mp4", "size_bytes": 9, "content_key": "9-x", "extra": {"a": 1}}\n'
        )
        rows = manifest.refs(manifest.discover([f"{archive}/m.jsonl"], schemes=SCHEMES))
        assert [(row.size_bytes, row.content_key, row.extra) for row in rows] == [
            (7, "7-ab", "{}"),
            (8, "8-x", '{"extra": "note"}'),
            (9, "9-x", '{"a": 1}'),
        ]

    def test_a_missing_video_stays_in_the_table(self, archive: Path) -> None:
        """It gets an outcome of its own; one lost file does not stop the job."""
        (archive / "m.txt").write_text("b.mp4\ngone.mp4\n")
        rows = list(manifest.refs(manifest.discover([f"{archive}/m.txt"], schemes=SCHEMES)))
        assert [row.content_key == UNKNOWN for row in rows] == [False, True]
        assert rows[1].size_bytes == 0

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("m.csv", b"path\na.mp4\n", "row 1 has no text in a column 'uri'"),
            ("m.jsonl", b'{"uri": 3}\n', "row 1 has no text"),
            ("m.jsonl", b"[1]\n", "line 1 is not a JSON object"),
            ("m.jsonl", b"{\n", "no readable manifest"),
            ("m.txt", b"# nothing\n\n", "the manifest is empty"),
            ("m.txt", b"caf\xe9.mp4\n", "no readable manifest"),
            ("m.parquet", b"PAR1", "no readable manifest"),
            ("m.csv", b'uri\n"a\n', "no readable manifest"),
            ("m.jsonl", b'{"uri": "/a", "size_bytes": "x", "etag": "y"}', "no whole number"),
        ],
    )
    def test_faults_name_the_manifest(
        self, tmp_path: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ManifestError, match=message):
            uris(tmp_path / name)

    def test_a_folder_with_a_manifest_name(self, tmp_path: Path) -> None:
        (tmp_path / "set.csv").mkdir()
        (tmp_path / "set.csv" / "a.mp4").write_bytes(b"")
        assert uris(tmp_path / "set.csv") == [f"{tmp_path}/set.csv/a.mp4"]


HUGE = [f"archive/{number:05}.mp4" for number in range(3100)]


@pytest.fixture(scope="module")
def huge(s3: S3Server) -> str:
    """A folder with thousands of videos, and a little more."""
    folder = f"s3://{s3.bucket()}/huge"
    _fill(s3, folder, [*HUGE, "archive/readme.md", "archive/.hidden.mp4", "other.mp4"])
    return folder


class TestS3:
    def test_a_prefix_is_listed_in_pages_without_a_head(
        self, huge: str, requests: list[str]
    ) -> None:
        assert uris(f"{huge}/archive") == [f"{huge}/{key}" for key in HUGE]
        assert set(requests) == {"ListObjectsV2"}
        assert len(requests) <= 4 + 4  # four pages; what the input is takes up to four

    def test_content_key_is_size_and_etag(self, s3_folder: str) -> None:
        uri = f"{s3_folder}/a.mp4"
        storage.write_bytes(uri, b"hello")
        (row,) = manifest.refs(manifest.discover([uri], schemes=SCHEMES))
        assert row.content_key == "5-5d41402abc4b2a76b9719d911017c592"
        assert (row.uri, row.size_bytes) == (uri, 5)
        assert row.video_id == uuid.uuid5(uuid.NAMESPACE_URL, uri).hex

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_keys(self, s3: S3Server, s3_folder: str, name: str) -> None:
        _fill(s3, s3_folder, [f"dir/{name}", "dir/k"])
        uri = f"{s3_folder}/dir/{name}"
        assert uris(uri) == [uri]
        assert uris(s3_folder) == uris(f"{s3_folder}/dir/") == [uri]
        assert storage.read_bytes(uri) == b"x"

    def test_odd_keys_through_a_manifest(self, s3: S3Server, s3_folder: str) -> None:
        _fill(s3, s3_folder, ODD_NAMES)
        expected = sorted(f"{s3_folder}/{name}" for name in ODD_NAMES)
        for suffix in ("parquet", "csv", "jsonl"):
            target = f"{s3_folder}/m.{suffix}"
            _write_uris(target, expected)
            table = manifest.discover([target], schemes=SCHEMES)
            assert table["uri"].to_pylist() == expected
            assert set(table["size_bytes"].to_pylist()) == {1}

    def test_object_folder_prefix_and_glob(self, s3: S3Server, s3_folder: str) -> None:
        keys = ("y/1.mp4", "y-old/2.mp4", "y.dat", "z/.h/3.mp4", "z/q/4.dat", "[1]/5.mp4")
        _fill(s3, s3_folder, list(keys))
        base = f"{s3_folder}/"
        assert uris(f"{base}y") == [f"{base}y/1.mp4"]
        assert uris(f"{base}y-") == [f"{base}y-old/2.mp4"]
        assert uris(f"{base}y.dat") == [f"{base}y.dat"]
        assert uris(f"{base}y*/*.mp4") == [f"{base}y-old/2.mp4", f"{base}y/1.mp4"]
        assert uris(f"{base}z/*/*.dat") == [f"{base}z/q/4.dat"]
        assert uris(f"{base}y*") == [f"{base}y-old/2.mp4", f"{base}y/1.mp4"]
        assert uris(f"{base}[1]/") == [f"{base}[1]/5.mp4"]
        with pytest.raises(ManifestError, match="holds no video"):
            uris(f"{base}z/q")
        with pytest.raises(ManifestError, match="nothing of this name"):
            uris(f"{base}none/")
        with pytest.raises(ManifestError, match="nothing of this name"):
            uris(f"{base}none*.mp4")

    def test_a_manifest_asks_in_pages_for_neighbours(
        self, s3: S3Server, s3_folder: str, requests: list[str]
    ) -> None:
        keys = [f"v/{number:03}.mp4" for number in range(100)]
        _fill(s3, s3_folder, keys)
        expected = [f"{s3_folder}/{key}" for key in keys]
        _write_uris(f"{s3_folder}/m.csv", expected)
        table = manifest.discover([f"{s3_folder}/m.csv"], schemes=SCHEMES)
        assert UNKNOWN not in table["content_key"].to_pylist()
        assert "HeadObject" not in requests

    def test_a_manifest_asks_for_scattered_objects_singly(
        self, s3: S3Server, s3_folder: str, requests: list[str]
    ) -> None:
        keys = [f"{number}/a.mp4" for number in range(5)]
        _fill(s3, s3_folder, keys)
        expected = [f"{s3_folder}/{key}" for key in [*keys, "9/gone.mp4"]]
        _write_uris(f"{s3_folder}/m.csv", expected)
        table = manifest.discover([f"{s3_folder}/m.csv"], schemes=SCHEMES)
        assert table["size_bytes"].to_pylist() == [1] * 5 + [0]
        assert requests.count("HeadObject") == 6

    def test_a_huge_folder_is_not_listed_for_a_few_of_it(
        self, huge: str, requests: list[str]
    ) -> None:
        _write_uris(f"{huge}/m.csv", [f"{huge}/{key}" for key in HUGE[-20:]])
        table = manifest.discover([f"{huge}/m.csv"], schemes=SCHEMES)
        assert UNKNOWN not in table["content_key"].to_pylist()
        assert requests.count("ListObjectsV2") == 3
        assert requests.count("HeadObject") == 20

    @pytest.mark.usefixtures("s3")
    def test_missing_bucket(self, tmp_path: Path) -> None:
        _fails_fast(lambda: uris("s3://no-such-bucket/a"), "the bucket does not exist")
        (tmp_path / "m.txt").write_text("s3://no-such-bucket/a.mp4\n")
        _fails_fast(lambda: uris(tmp_path / "m.txt"), "the bucket does not exist")

    def test_wrong_credentials(
        self, s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = f"{s3_folder}/a.mp4"
        storage.write_bytes(uri, b"x")
        (tmp_path / "m.txt").write_text(uri)
        S3Store.clear_instance_cache()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        try:
            _fails_fast(lambda: uris(uri), "SignatureDoesNotMatch")
            _fails_fast(lambda: uris(tmp_path / "m.txt"), "SignatureDoesNotMatch")
        finally:
            S3Store.clear_instance_cache()


class TestOtherStores:
    @pytest.fixture
    def memory(self) -> Iterator[str]:
        fs = fsspec.filesystem("memory")
        for name in ("v/a.mp4", "v/b.md", "v/.c.mp4", "v/d/e.mp4"):
            fs.pipe_file(f"/{name}", b"xy")
        yield "memory://v"
        fs.store.clear()

    def test_folder_file_and_glob(self, memory: str) -> None:
        schemes = (*SCHEMES, "memory")
        expected = ["memory:///v/a.mp4", "memory:///v/d/e.mp4"]
        assert [uri.replace(":///", "://") for uri in uris(memory, schemes=schemes)] == [
            uri.replace(":///", "://") for uri in expected
        ]
        assert uris(f"{memory}/b.md", schemes=schemes) == [f"{memory}/b.md"]
        assert len(uris(f"{memory}/*.mp4", schemes=schemes)) == 1
        with pytest.raises(ManifestError, match="nothing of this name"):
            uris(f"{memory}/none", schemes=schemes)

    def test_in_a_manifest(self, memory: str, tmp_path: Path) -> None:
        (tmp_path / "m.txt").write_text(f"{memory}/a.mp4\n{memory}/none.mp4\n")
        table = manifest.discover([str(tmp_path / "m.txt")], schemes=(*SCHEMES, "memory"))
        assert table["size_bytes"].to_pylist() == [2, 0]

    def test_a_file_that_changes_has_another_key(self, memory: str) -> None:
        (before,) = find(f"{memory}/a.mp4", bool)
        time.sleep(0.01)
        fsspec.filesystem("memory").pipe_file("/v/a.mp4", b"zz")
        (after,) = find(f"{memory}/a.mp4", bool)
        assert before.content_key != after.content_key


def test_empty_manifests_differ_in_nothing() -> None:
    empty = manifest.MANIFEST_SCHEMA.empty_table()
    diff = manifest.diff_manifests(empty, empty)
    assert diff.added.num_rows == diff.changed.num_rows == diff.removed.num_rows == 0


def _write_uris(target: str, found: list[str]) -> None:
    text, sink = io.StringIO(newline=""), io.BytesIO()
    if target.endswith(".csv"):
        csv.writer(text).writerows([("uri",), *((uri,) for uri in found)])
    elif target.endswith(".jsonl"):
        text.write("\n".join(json.dumps({"uri": uri}) for uri in found))
    else:
        pq.write_table(pa.table({"uri": found}), sink)
    storage.write_bytes(target, sink.getvalue() or text.getvalue().encode())


def _fill(s3: S3Server, folder: str, keys: list[str]) -> None:
    _, _, bucket, prefix = folder.split("/", 3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.put(bucket, f"{prefix}/{key}", b"x"), keys))


def _fails_fast(attempt: Callable[[], object], match: str) -> None:
    started = time.monotonic()
    with pytest.raises(StorageError, match=match):
        attempt()
    assert time.monotonic() - started < 5
