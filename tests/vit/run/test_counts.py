"""Numbers of things are written as a person would."""

import pytest

from vit.run.counts import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "rank", "1 rank"),
        (2, "rank", "2 ranks"),
        (0, "image", "0 images"),
        (1, "class", "1 class"),
        (1000, "class", "1,000 classes"),
        (3, "entry", "3 entries"),
        (2, "day", "2 days"),
        (2, "batch", "2 batches"),
        (6, "epoch", "6 epochs"),
    ],
)
def test_a_noun_is_in_the_plural_unless_there_is_one(number: int, noun: str, text: str) -> None:
    """The plural is s, es or ies."""
    assert counted(number, noun) == text


def test_another_plural_can_be_given() -> None:
    """For the nouns that have one of their own."""
    assert [counted(n, "index", "indices") for n in (1, 2)] == ["1 index", "2 indices"]
