"""The page in a real browser: by keyboard, by two at once, on a phone, through a killed server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musictune.data.vote_store import VoteStore
from musictune.data.vote_types import Pair

pytestmark = pytest.mark.slow

SYSTEMS = ("hushhush", "clandestine")
PHONE = {"width": 360, "height": 740}  # pixels
TOUCH = 44
Live = Callable[..., str]
Open = Callable[..., Any]


def loaded(page: Any) -> str:
    """Wait until the sounds of a pair are there; its prompt."""
    page.locator(".time", has_text="/ 0:0").first.wait_for()
    return page.locator("#prompt").inner_text()


def hear(page: Any) -> None:
    """Both, by keyboard; the first is what is current at the beginning."""
    loaded(page)
    for side in (0, 1):
        if side:
            page.keyboard.press("x")
        page.keyboard.press("Space")
        page.locator(f"[data-side='{side}'] .heard", has_text="heard").wait_for()
        page.get_by_role("button", name=f"Play music {side + 1}").wait_for()  # it has ended


def sounds(page: Any) -> list[str]:
    return page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")


def position(page: Any, side: int) -> float:
    return float(page.locator("canvas").nth(side).get_attribute("aria-valuenow"))


def test_three_votes_by_keyboard_alone(live: Live, store: VoteStore, open_page: Open) -> None:
    page = open_page(live(store))
    page.keyboard.type("Ann")  # the field has the focus
    page.keyboard.press("Enter")
    for number, key in enumerate(("1", "=", "2")):
        hear(page)
        page.keyboard.press(key)
        if number < 2:
            page.locator("#count", has_text=f"{number + 1} of 3").wait_for()
    page.get_by_role("heading", name="Thank you").wait_for()
    assert "musictune votes STORE" in page.inner_text("main")
    votes = store.votes()
    shown = [{vote.first: "first"}.get(vote.choice, vote.choice) for vote in votes]
    assert shown[:2] == ["first", "tie"]
    assert votes[2].choice == {"a": "b", "b": "a"}[votes[2].first]
    page.keyboard.press("u")
    page.locator("#count", has_text="2 of 3").wait_for()
    assert len(store.votes()) == 2


def test_the_tab_key_reaches_everything_in_order(
    live: Live, store: VoteStore, open_page: Open
) -> None:
    page = open_page(live(store), "Ann")
    loaded(page)
    names = []
    for _ in range(20):
        page.keyboard.press("Tab")
        active = page.locator(":focus")
        if not active.count():
            break
        names.append(active.get_attribute("aria-label") or active.inner_text().split("\n")[0])
    wanted = ["Play music 1", "Position in music 1", "Play music 2", "Position in music 2"]
    wanted += ["Sound quality", "Music 1 is better", "About the same", "Music 2 is better"]
    wanted += ["Skip this pair", "Undo the last answer", "Keys"]
    places = [next(i for i, name in enumerate(names) if each in name) for each in wanted]
    assert places == sorted(places)
    page.get_by_role("button", name="Rhythm").focus()
    page.keyboard.press("Space")  # the button's, not the player's
    assert page.get_by_role("button", name="Rhythm").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Pause music 1").count() == 0


def test_a_screen_reader_finds_roles_and_names(
    live: Live, store: VoteStore, open_page: Open
) -> None:
    page = open_page(live(store))
    assert page.get_by_role("textbox", name=re.compile("Your name")).is_visible()
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    prompt = loaded(page)
    tree = page.locator("body").aria_snapshot()
    for line in (
        "banner",
        "main",
        f'heading "{prompt}" [level=1]',
        'article "Music 1"',
        'slider "Position in music 2"',
        "status",
        'progressbar "0 of 3"',
        'group "Why?',
        'group "Which do you prefer?"',
        'button "1 Music 1 is better" [disabled]',
    ):
        assert line in tree, (line, tree)
    assert page.locator("html").get_attribute("lang") == "en"


def test_music_plays_in_step_and_is_sought_in_both(
    live: Live, store: VoteStore, open_page: Open, make_pairs: Callable[..., list[Pair]]
) -> None:
    long = make_pairs(1, 8.0, store.path.parent / "long")
    with VoteStore(store.path.parent / "long.db") as other:
        other.add_pairs(long)
        page = open_page(live(other), "Ann")
        loaded(page)
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert [position(page, 0), position(page, 1)] == [3, 3]
        page.keyboard.press("ArrowLeft")
        assert [position(page, 0), position(page, 1)] == [2, 2]
        box = page.locator("canvas").nth(1).bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 10)
        assert [position(page, 0), position(page, 1)] == pytest.approx([4, 4], abs=0.1)
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        page.keyboard.press("x")
        page.keyboard.press("Space")
        at = position(page, 1)
        assert 4.1 < at < 8
        assert position(page, 0) == at
        # One second of each is not enough, nor is a jump to the end.
        page.keyboard.press("End")
        page.locator("canvas").first.focus()
        page.keyboard.press("End")
        page.keyboard.press("1")
        page.locator("#status", has_text="Listen to both first").wait_for()
        assert other.votes() == []


def test_a_reload_goes_on_where_it_was(live: Live, store: VoteStore, open_page: Open) -> None:
    page = open_page(live(store), "Ann")
    prompt = loaded(page)
    page.get_by_role("button", name="Melody").click()
    page.keyboard.press("Space")
    page.locator("[data-side='0'] .heard", has_text="heard").wait_for()
    before = {each for each in sounds(page) if "/api/sound/" in each}
    page.reload()
    assert loaded(page) == prompt  # the name is not asked again
    page.locator("[data-side='0'] .heard", has_text="heard").wait_for()
    assert {each for each in sounds(page) if "/api/sound/" in each} == before
    assert page.get_by_role("button", name="Melody").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Play music 1").is_visible()
    assert not any(system in page.content() for system in SYSTEMS)
    page.keyboard.press("x")
    page.keyboard.press("Space")
    page.locator("[data-side='1'] .heard", has_text="heard").wait_for()
    page.keyboard.press("1")
    page.locator("#count", has_text="1 of 3").wait_for()
    assert store.votes()[0].why == ("melody",)


def test_two_browsers_at_once(live: Live, store: VoteStore, open_page: Open) -> None:
    url = live(store)
    one, other = open_page(url, "Ann"), open_page(url, "Ben")
    for number in range(3):
        for page, key in ((one, "1"), (other, "2")):
            hear(page)
            page.keyboard.press(key)
            if number < 2:
                page.locator("#count", has_text=f"{number + 1} of 3").wait_for()
    for page in (one, other):
        page.get_by_role("heading", name="Thank you").wait_for()
    votes = store.votes()
    assert {rater: sum(vote.rater == rater for vote in votes) for rater in ("Ann", "Ben")} == {
        "Ann": 3,
        "Ben": 3,
    }
    assert all((vote.choice == vote.first) == (vote.rater == "Ann") for vote in votes)


def test_votes_outlive_a_killed_server_and_none_is_lost(
    tmp_path: Path, make_pairs: Callable[..., list[Pair]], open_page: Open
) -> None:
    make_pairs()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "musictune", "listen", "--store", str(tmp_path / "votes.db")]
    command += ["--pairs", str(tmp_path / "pairs"), "--port", str(port), "--no-open"]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert process.stdout and f"http://127.0.0.1:{port}/" in process.stdout.readline()
        return process

    server = start()
    try:
        page = open_page(f"http://127.0.0.1:{port}", "Ann")
        hear(page)
        page.keyboard.press("1")
        page.locator("#count", has_text="1 of 3").wait_for()
        prompt = loaded(page)
        hear(page)
        server.kill()
        server.wait()
        with VoteStore(tmp_path / "votes.db") as store:
            assert [vote.rater for vote in store.votes()] == ["Ann"]
            open_before = store.next_trial("Ann")
        page.keyboard.press("2")
        page.get_by_role("alert").get_by_text("could not be sent yet; it is kept").wait_for()
        assert page.locator("#prompt").inner_text() == prompt
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("alert").get_by_text("could not be sent yet").wait_for()
        server = start()
        page.reload()  # even so it is sent
        page.locator("#count", has_text="2 of 3").wait_for()
        with VoteStore(tmp_path / "votes.db") as store:
            _, second = store.votes()
            assert second.pair.prompt == prompt == (open_before and open_before.prompt)
            assert second.choice == {"a": "b", "b": "a"}[second.first]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


def test_a_pair_whose_music_is_gone_is_skipped_with_a_note(
    live: Live, store: VoteStore, pairs: list[Pair], open_page: Open
) -> None:
    trial = store.next_trial("Ann")
    gone = next(pair for pair in pairs if trial and pair.prompt == trial.prompt)
    gone.b.unlink()
    page = open_page(live(store), "Ann")
    page.locator("#note", has_text=f"“{gone.prompt}” is gone, so it was skipped").wait_for()
    page.locator("#count", has_text="1 of 3").wait_for()
    assert loaded(page) != gone.prompt
    (vote,) = store.votes()
    assert (vote.choice, vote.why) == ("skip", ("gone",))


def test_music_that_is_all_gone_is_not_skipped_through(
    live: Live, make_pairs: Callable[..., list[Pair]], tmp_path: Path, open_page: Open
) -> None:
    pairs = make_pairs(6)
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pairs(pairs)
        (tmp_path / "pairs").rename(tmp_path / "elsewhere")
        page = open_page(live(store), "Ann")
        page.get_by_role("alert").get_by_text("Put it back, then try again").wait_for()
        assert len(store.votes()) == 2
        (tmp_path / "elsewhere").rename(tmp_path / "pairs")
        page.get_by_role("button", name="Try again").click()
        loaded(page)
        assert page.get_by_role("alert").count() == 0


def test_ratings_from_bad_to_excellent(
    live: Live, store: VoteStore, pairs: list[Pair], open_page: Open
) -> None:
    store.add_clips((pair.a, pair.prompt, "s") for pair in pairs[:1])
    page = open_page(live(store, rate=True), "Ann")
    loaded(page)
    for word in ("Bad", "Poor", "Fair", "Good", "Excellent"):
        assert page.get_by_text(word, exact=True).is_visible()
    page.keyboard.press("Space")
    page.locator("[data-side='0'] .heard", has_text="heard").wait_for()
    page.keyboard.press("Enter")
    page.locator("#status", has_text="Move the slider").wait_for()  # 50 is not taken for granted
    page.get_by_role("slider", name=re.compile("How good")).focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Thank you").wait_for()
    assert [rating.value for rating in store.ratings()] == [62]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(live: Live, store: VoteStore, open_page: Open, scheme: str) -> None:
    page = open_page(live(store), viewport=PHONE, has_touch=True, color_scheme=scheme)

    def width() -> int:
        return page.evaluate("document.documentElement.scrollWidth")

    assert width() <= PHONE["width"]
    page.get_by_label("Your name").fill("N" * 80)
    page.get_by_role("button", name="Begin").tap()
    loaded(page)
    assert width() <= PHONE["width"]
    for target in page.locator("button:visible, canvas:visible, input:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= TOUCH, target.inner_text()
    page.get_by_role("button", name="Play music 2").tap()
    page.locator("[data-side='1'] .heard", has_text="heard").wait_for()
