"""Answers as judges word them, and the rating that each gives."""

from __future__ import annotations

import pytest

from recap.generate.rating import parse_rating

READ = [
    ("4", 4), ("4.", 4), (" 4\n", 4), ("**4**", 4), ("(4)", 4), ("4/5", 4), ("4 / 5", 4), ("4 out of 5", 4), ("4.0", 4),
    ("4 stars", 4), ("Four", 4), ('"4"', 4), ("`4`", 4),
    ("Rating: 4", 4), ("rating: 4", 4), ("RATING: 4", 4), ("Rating:4", 4), ("Rating = 4", 4), ("Rating - 4", 4),
    ("Rating: (4)", 4), ("Rating: [4]", 4), ("Rating: **4**", 4), ("**Rating:** 4", 4), ("**Rating: 4**", 4),
    ("__Rating__: 4", 4), ("Rating: 4.", 4), ("Rating: 4.0", 4), ("Rating: 4/5", 4), ("Rating: 4 out of 5", 4),
    ("Rating: 4 - fluent and right", 4), ("Rating: 4 (good)", 4), ("Rating: four", 4), ("Rating:\n\n4", 4),
    ("### Rating: 4", 4), ("Final rating: 4", 4), ("Overall score: 4", 4), ("Score: 4/5", 4),
    ("Overall: 4 / 5", 4), ("The caption gets **2**/5, I would say.", 2),
    ("4/5 of the objects are named. Rating: 2", 2),
    ("Rating (1-5): 4", 4), ("**Rating (1-5):** 2", 2), ("Rating [1-5]: 3", 3), ("Rating 1-5: 5", 5),
    ("Rating (1 to 5): 4", 4), ("Rating: 1-5: 4", 4), ("Rating (out of 5): 4", 4), ("Rating (1–5): 4", 4),
    ("Rating (on a scale of 1 to 5): 1", 1), ("On a scale from 1 to 5, I would rate this a 3.", 3),
    ("I would rate this a 4.", 4), ("I rate the caption 2 out of 5.", 2), ("My rating is 4", 4), ("I give it a 5.", 5),
    ("My rating for this caption is 3.", 3), ("A rating of 4 is fair.", 4), ("The rating would be 2.", 2),
    ('{"rating": 4}', 4), ('{"rating": 4.0}', 4), ('{"rating": "4"}', 4), ('{"rating": "4/5"}', 4),
    ('{"Rating": 4}', 4), ("On a rating of 1-5: Rating: 2", 2), ("**Rating:** (3)", 3),
    ('```json\n{"rating": 4}\n```', 4), ('Here: {"rating": 4, "why": "ok"}', 4), ("{'rating': 4}", 4),
    ("<think>Rating: 2?</think> Rating: 4", 4), ("perhaps 3, or 2</think>\n5", 5),
    ("Rating: 2\n\nA rating of 5 would need more detail.", 2), ("Rating: 4\nThe rating 1 is for wrong captions.", 4),
    ("Rating: 2. On reflection: Rating: 3", 3), ("4\n\nThe caption names 2 of 3 objects.", 4),
    ("The caption is right.\n\n4", 4), ("Rating: 5, all 12 objects are named.", 5),
]  # fmt: skip

NOT_CLEAR = [
    "", "good", "The caption is fine.", "Rating:", "Rating: N/A", "Rating: good", "0", "6", "10", "3.5", "-1", "3-4",
    "3 - 4", "great", "45",
    "Rating: 0", "Rating: 6", "Rating: 10", "Rating: 3.5", "Rating: 3,5", "Rating: -1", "Rating: 3 - 4", "Rating: 3-4",
    "Rating: 3 to 4", "Rating: 3 or 4", "Rating (1-5):", "Rating: 1-5", "Rating: 45", "4/10",
    '{"rating": 0}', '{"rating": 3.5}', '{"rating": true}', '{"rating": null}', '{"rating": "3-4"}', '{"score": []}',
    "A rating of 2 is too low, a rating of 4 too high.", "There are 4 dogs in the image.",
]  # fmt: skip


@pytest.mark.parametrize(("answer", "rating"), READ)
def test_ratings_that_are_given(answer: str, rating: int) -> None:
    assert parse_rating(answer) == rating


@pytest.mark.parametrize("answer", NOT_CLEAR)
def test_ratings_that_are_not_clear_are_none(answer: str) -> None:
    assert parse_rating(answer) is None
