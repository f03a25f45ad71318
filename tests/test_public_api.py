"""The Python interface: the names that `import forty2` gives."""

from __future__ import annotations

import inspect

import pytest

import forty2


@pytest.mark.parametrize("name", forty2.__all__)
def test_every_public_name_is_there_typed_and_described(name: str) -> None:
    public = getattr(forty2, name)
    assert public.__name__ == name
    assert inspect.getdoc(public)
    assert inspect.isclass(public) or "return" in inspect.get_annotations(public)


def test_public_names_are_listed_for_completion() -> None:
    assert set(forty2.__all__) <= set(dir(forty2))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'forty2' has no attribute 'align'"):
        _ = forty2.align
