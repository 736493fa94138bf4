"""One vote in a real browser: the shortest look at whether the page works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from musictune.data.vote_store import VoteStore


def test_one_vote_by_keyboard(
    live: Callable[..., str], store: VoteStore, open_page: Callable[..., Any]
) -> None:
    page = open_page(live(store), "Ann")
    page.locator(".time", has_text="/ 0:01").first.wait_for()
    prompt = page.locator("#prompt").inner_text()
    assert prompt.startswith("tune number")
    page.keyboard.press("1")
    page.locator("#status", has_text="Listen to both first").wait_for()
    page.keyboard.press("Space")
    page.locator("[data-side='0'] .heard", has_text="heard").wait_for()
    page.keyboard.press("1")
    page.locator("#status", has_text="Now listen to music 2").wait_for()
    assert store.votes() == []
    page.get_by_role("button", name="Play music 1").wait_for()  # it has ended
    page.keyboard.press("x")
    page.keyboard.press("Space")
    page.locator("[data-side='1'] .heard", has_text="heard").wait_for()
    page.keyboard.press("2")
    page.locator("#count", has_text="1 of 3").wait_for()
    (vote,) = store.votes()
    assert (vote.rater, vote.pair.prompt) == ("Ann", prompt)
    assert vote.choice == {"a": "b", "b": "a"}[vote.first]
    assert 1 < vote.seconds < 60
    assert [line for line in page.said if line] == []
