"""A message is one line, whatever a file that nobody vouches for put into it."""

from __future__ import annotations

import pickle

import pytest

from unimodal.errors import RecordError, UsageError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("columns a, b", "columns a, b"),
        ("a  b\tc – é", "a  b\tc – é"),
        ("first\n   second\r\nthird\n", "first second third "),
        ("a\n\n \nb", "a b"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("kind", [UsageError, RecordError])
def test_a_message_is_one_line(kind: type[UsageError], given: str, told: str) -> None:
    error = kind(given)
    assert str(error) == told
    assert str(pickle.loads(pickle.dumps(error))) == told  # as workers send it
