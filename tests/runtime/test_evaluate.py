"""Top-1, top-5 and the classes, from known answers."""

import json

import pyarrow as pa
import pytest

from indexer.errors import ManifestError
from indexer.runtime.evaluate import evaluate, read_truths

LABELS = ("playing guitar", "tap-dancing", "Yoga", "running", "walking", "sitting")


def manifest(*labels, column="label"):
    return pa.table(
        {
            "video_id": [f"{i:032x}" for i in range(len(labels))],
            "uri": [f"/v/{i}.mp4" for i in range(len(labels))],
            "extra": [json.dumps({column: label}) for label in labels],
        }
    )


def truths_of(*labels, **options):
    return list(read_truths(manifest(*labels, **options), "label", LABELS).values())


def test_labels_may_be_spelt_as_lists_spell_them():
    spelt = ["playing_guitar", "Tap dancing", " yoga "]
    assert truths_of(*spelt) == ["playing guitar", "tap-dancing", "Yoga"]


def test_a_list_of_numbers_holds_label_ids():
    assert truths_of("0", 5, "2") == ["playing guitar", "sitting", "Yoga"]


def test_numbers_among_names_are_names():
    with pytest.raises(ManifestError, match=r"no label '0' \(it has 6\)"):
        truths_of("0", "yoga")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["yogaa"], {}, "no label 'yogaa' .* near are Yoga"),
        (["6", "0"], {}, r"no label '6' \(it has 6\)$"),
        ([""], {}, "/v/0.mp4: the manifest has no 'label'"),
        ([None], {}, "--label-column"),
        (["yoga"], {"column": "class"}, "--label-column"),
    ],
)
def test_labels_that_nobody_can_compare_are_refused(labels, options, message):
    with pytest.raises(ManifestError, match=message):
        truths_of(*labels, **options)


def test_shares_are_of_the_videos_that_were_scored():
    truths = {"a": "Yoga", "b": "Yoga", "c": "running", "d": "running", "lost": "Yoga"}
    answers = {
        "a": ["Yoga", "running"],
        "b": ["walking", "Yoga"],
        "c": ["walking", "sitting"],
        "d": ["sitting", "walking"],
        "not listed": ["Yoga"],
    }
    found = evaluate(truths, answers)
    assert (found.videos, found.scored, found.top1, found.top5) == (5, 4, 0.25, 0.5)
    assert found.classes.to_pylist() == [
        {"label": "running", "videos": 2, "top1": 0.0, "top5": 0.0, "mistaken_for": "sitting"},
        {"label": "Yoga", "videos": 2, "top1": 0.5, "top5": 1.0, "mistaken_for": "walking"},
    ]


def test_nothing_scored_is_no_division():
    assert evaluate({"a": "Yoga"}, {}).top1 == 0.0
