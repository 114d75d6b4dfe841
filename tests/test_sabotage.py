"""The list of protections and their tests is current."""

import pytest

from tests.sabotage import REPOSITORY, SABOTAGES


@pytest.mark.parametrize("name", SABOTAGES)
def test_each_protection_is_where_it_is_said_to_be_and_has_its_test(name):
    sabotage = SABOTAGES[name]
    source = (REPOSITORY / "indexer" / sabotage.file).read_text(encoding="utf-8")
    assert source.count(sabotage.code) == 1
    path, *names = sabotage.test.split("::")
    test_source = (REPOSITORY / "tests" / path).read_text(encoding="utf-8")
    for part in names:
        assert f"def {part}(" in test_source or f"class {part}" in test_source
