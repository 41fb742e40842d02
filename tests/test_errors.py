"""Errors name what is wrong, what is near and what there is."""

import pytest

from policy_decorator.errors import MissingExtra, UserError, lookup, unknown


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)


def test_missing_extra_says_how_to_install_and_is_an_import_error() -> None:
    error = MissingExtra("Meta-World", "metaworld")
    assert isinstance(error, ImportError)
    assert isinstance(error, UserError)
    assert str(error) == 'Meta-World is not installed. Install it with: pip install "policy-decorator[metaworld]"'


@pytest.mark.parametrize(
    ("name", "hint"), [("paeg", "Did you mean 'peg'?"), ("peg", "Did you mean 'peg'?"), ("zzz", None)]
)
def test_unknown_suggests_the_nearest(name: str, hint: str | None) -> None:
    message = str(unknown("task", name, ["stick", "peg", "door"]))
    assert message.startswith(f"Unknown task {name!r}.")
    assert message.endswith("Known: door, peg, stick.")
    assert (hint in message) if hint else ("Did you mean" not in message)


def test_unknown_cuts_a_long_list_short() -> None:
    message = str(unknown("task", "x", [f"task-{i:02d}" for i in range(30)]))
    assert "task-11, ... (30 in all)" in message
    assert "task-12" not in message


def test_lookup() -> None:
    table = {"one": 1, "zero": 0}
    assert lookup("number", "zero", table) == 0
    with pytest.raises(UserError, match="Unknown number 'tow'") as caught:
        lookup("number", "tow", table)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # no KeyError above the message
