import pytest

from indexer.errors import ConfigError
from indexer.gallery.links import LinkPrefix, link_to
from tests.gallery.hostile import NAMES

T = "#t=1.500,3.000"


def link(uri, *prefixes):
    return link_to(uri, 1.5, 3.0, [LinkPrefix.parse(text) for text in prefixes])


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/films/a b#1?x%41.mp4", f"file:///films/a%20b%231%3Fx%2541.mp4{T}"),
        ("//host/a.mp4", f"file:///host/a.mp4{T}"),
        ("https://user:pw@host:8443/a b.mp4?id=1&k=é#old", f"https://host:8443/a%20b.mp4?id=1&k=%C3%A9{T}"),
        ("http://host/a%20b.mp4", f"http://host/a%20b.mp4{T}"),
        ('https://host/"><script>.mp4', f"https://host/%22%3E%3Cscript%3E.mp4{T}"),
        ("s3://bucket/a.mp4", None),
        ("gs://bucket/a.mp4", None),
        ("ftp://host/a.mp4", None),
        ("javascript:alert(1)", None),
        ("JavaScript://host/%0aalert(1)", None),
        ("java\nscript:alert(1)", None),
        ("data:text/html,x", None),
        ("http://[broken/x", None),
        ("https:///no-host", None),
        ("a.mp4", None),
        ("", None),
    ],
)  # fmt: skip
def test_only_what_must_be_a_file_is_linked(uri, address):
    assert link(uri) == address


def test_a_prefix_leads_elsewhere():
    cdn = "s3://films/=https://cdn.example/f/"
    assert link("s3://films/a b.mp4", cdn) == f"https://cdn.example/f/a%20b.mp4{T}"
    assert link("s3://other/a.mp4", cdn) is None
    assert link("/data/x/a.mp4", "/data/=films/") == f"films/x/a.mp4{T}"
    assert link("/data/x/a.mp4", "/data/=") == f"./x/a.mp4{T}"
    assert link("/data/a.mp4", "/data/=one/", "/=two/") == f"one/a.mp4{T}"


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leaves_its_prefix(name):
    assert link(f"s3://films/{name}", "s3://films/=").startswith("./")
    assert link(f"s3://films/{name}", "s3://films/=https://cdn.example/").startswith(
        "https://cdn.example/"
    )
    address = link(name)
    assert address is None or address.startswith(("file:///", "http://", "https://"))


@pytest.mark.parametrize(
    "text", ["", "=x", "no-equals", "s3://b/=javascript:", "s3://b/= JavaScript:x", "a=data:,x"]
)
def test_prefixes_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="link prefix"):
        LinkPrefix.parse(text)
