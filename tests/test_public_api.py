"""The Python interface: the names that `import forty2` gives."""

from __future__ import annotations

import inspect

import pytest
from support.processes import run_python

import forty2
from forty2.progress import bars


@pytest.mark.parametrize("name", forty2.__all__)
def test_every_public_name_is_there_typed_and_described(name: str) -> None:
    public = getattr(forty2, name)
    assert public.__name__ == name
    assert inspect.getdoc(public)
    assert inspect.isclass(public) or "return" in inspect.get_annotations(public)


def test_completion_lists_the_public_names_and_no_other() -> None:
    assert [name for name in dir(forty2) if not name.startswith("_")] == forty2.__all__


def test_long_work_draws_bars_unless_it_is_told_otherwise() -> None:
    for function in (forty2.run, forty2.train_phase, forty2.ablate, forty2.fuse, forty2.generate):
        assert inspect.signature(function).parameters["progress"].default is bars
        assert function is forty2.train_phase or hasattr(function, "__wrapped__")


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'mlx', 'mlx_lm', 'numpy', 'pydantic', 'tqdm', 'transformers', 'yaml', 'click'}"
    found = run_python("-c", f"import forty2, sys; print({heavy} & sys.modules.keys())")
    assert found.strip() == "set()"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'forty2' has no attribute 'align'"):
        _ = forty2.align
