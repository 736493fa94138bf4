"""The page's interface, asked in this process."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from starlette.testclient import TestClient

from musictune.data.vote_store import VoteStore
from musictune.data.vote_types import Pair
from musictune.errors import InputError
from musictune.web import app as web
from musictune.web.app import BODY, create_app

SYSTEMS = ("hushhush", "clandestine")
URL = "http://127.0.0.1:8766"


def trial(client: TestClient, rater: str = "ann") -> dict[str, Any]:
    return client.get("/api/trial", params={"rater": rater}).json()


def vote(client: TestClient, name: str, choice: str = "first", **more: Any) -> httpx.Response:
    return client.post("/api/vote", json={"trial": name, "choice": choice} | more)


def test_three_votes_and_the_end(client: TestClient, store: VoteStore) -> None:
    heard = []
    for answered, choice in enumerate(["first", "tie", "skip"]):
        given = trial(client)
        assert (given["state"], given["mode"]) == ("trial", "pair")
        assert (given["answered"], given["total"]) == (answered, 3)
        assert trial(client) == given  # the same until it is answered
        heard.append(given["trial"]["prompt"])
        done = vote(client, given["trial"]["id"], choice, why=["rhythm"], seconds=4.5)
        assert (done.status_code, done.json()) == (200, {"kept": True})
    assert trial(client) | {"answered": 0} == {
        "state": "done", "mode": "pair", "trial": None, "answered": 0, "total": 3, "making": None,
    }  # fmt: skip
    kept = store.votes()
    assert [each.pair.prompt for each in kept] == heard
    assert [each.choice for each in kept] == [kept[0].first, "tie", "skip"]
    assert {(each.rater, each.why, each.seconds) for each in kept} == {("ann", ("rhythm",), 4.5)}


def test_raters_do_not_meet(client: TestClient, store: VoteStore) -> None:
    one, other = trial(client), trial(client, "ben")
    assert one["trial"]["id"] != other["trial"]["id"]
    assert {one["trial"]["first"], one["trial"]["second"]}.isdisjoint(
        {other["trial"]["first"], other["trial"]["second"]}
    )
    vote(client, one["trial"]["id"])
    assert trial(client, "ben") == other
    assert client.get("/api/progress", params={"rater": " ann "}).json()["answered"] == 1


def test_a_vote_may_be_sent_again_but_not_changed(client: TestClient, store: VoteStore) -> None:
    name = trial(client)["trial"]["id"]
    assert vote(client, name, why=["melody"]).status_code == 200
    assert vote(client, name, why=["melody"]).status_code == 200
    changed = vote(client, name, "second")
    assert changed.status_code == 409
    assert "answered otherwise before" in changed.json()["detail"]
    assert vote(client, "unknown").status_code == 409
    assert len(store.votes()) == 1


def test_undo_opens_the_last_answer(client: TestClient, store: VoteStore) -> None:
    assert client.post("/api/undo", json={"rater": "ann"}).json() == {"trial": None}
    given = trial(client)["trial"]
    vote(client, given["id"])
    trial(client)
    assert client.post("/api/undo", json={"rater": "ann"}).json() == {"trial": given["id"]}
    assert trial(client)["trial"] == given
    assert store.votes() == []


def test_one_clip_at_a_time(store: VoteStore, pairs: list[Pair]) -> None:
    store.add_clips((path, pair.prompt, "s") for pair in pairs for path in (pair.a, pair.b))
    with TestClient(create_app(store, rate=True), URL) as client:
        given = trial(client)
        assert (given["mode"], given["total"]) == ("rating", 6)
        assert set(given["trial"]) == {"id", "prompt", "sound"}
        assert client.get(f"/api/sound/{given['trial']['sound']}").status_code == 200
        body = {"trial": given["trial"]["id"], "value": 72, "why": ["instruments"]}
        assert client.post("/api/rate", json=body).json() == {"kept": True}
        for value in (-1, 101, None, "good"):
            assert client.post("/api/rate", json=body | {"value": value}).status_code == 422
        assert trial(client)["answered"] == 1
    (rating,) = store.ratings()
    assert (rating.value, rating.why, rating.rater) == (72, ("instruments",), "ann")


def test_sound_is_wav_in_parts(client: TestClient) -> None:
    given = trial(client)["trial"]
    path = f"/api/sound/{given['first']}?beside={given['second']}"
    whole = client.get(path)
    assert whole.headers["content-type"] == "audio/wav"
    assert soundfile.info(io.BytesIO(whole.content)).duration == 1.0
    part = client.get(path, headers={"range": "bytes=44-99"})
    assert (part.status_code, part.content) == (206, whole.content[44:100])
    head = client.head(path)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))


def test_neither_systems_nor_files_reach_the_browser(
    client: TestClient, store: VoteStore, pairs: list[Pair]
) -> None:
    """Every answer of a whole session, errors included, is searched, headers and all."""
    answers = [client.get(path) for path in [*web._PAGE, "/nothing", "/api/sound/nothing"]]
    for i in range(len(pairs)):
        answers.append(client.get("/api/trial?rater=ann"))
        given = answers[-1].json()["trial"]
        for sound, other in (("first", "second"), ("second", "first")):
            path = f"/api/sound/{given[sound]}"
            answers.append(client.get(path, params={"beside": given[other]}))
        if i == 1:
            pairs[0].a.unlink(missing_ok=True)
            for pair in pairs:
                pair.b.write_text("no music")
            answers.append(client.get(f"/api/sound/{given['first']}?beside={given['second']}"))
            assert answers[-1].status_code == 410
        answers += [vote(client, given["id"]), vote(client, given["id"], "tie")]
    answers += [client.get("/api/progress?rater=ann"), client.get("/api/trial?rater=ann")]
    answers += [client.post("/api/undo", json={"rater": "ann"}), vote(client, "x" * 500)]
    secrets = [*SYSTEMS, "pairs", "votes.db", str(store.path.parent), *(p.id for p in pairs)]
    for each in answers:
        lines = [f"{name}: {value}" for name, value in each.headers.items()]
        text = "\n".join(lines) + each.content.decode("latin-1")
        page = each.request.url.path in web._PAGE
        for secret in secrets:
            assert secret not in text or (page and secret == "pairs"), (each.request.url, secret)


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/sound/../../votes.db",
        "/api/sound/%2e%2e%2f%2e%2e%2fvotes.db", "/api/sound/..", "/api/sound/%2Fetc%2Fpasswd",
        "/api/sound//etc/passwd", "/votes.db", "/app.py", "/static/app.py", "/web/index.html",
        "/api/sound/\u00e9", "/api/sound/" + "a" * 3000, "/api", "/openapi.json", "/docs",
    ],
)  # fmt: skip
def test_paths_are_not_served(
    client: TestClient, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    assert client.get(path).status_code == 404
    assert capsys.readouterr() == ("", "")


def test_a_trial_does_not_open_other_sounds(client: TestClient, pairs: list[Pair]) -> None:
    first = trial(client)["trial"]["first"]
    for beside in ("nothing", str(pairs[0].a), pairs[0].id):
        answer = client.get(f"/api/sound/{first}", params={"beside": beside})
        assert answer.status_code == 404


def test_music_that_is_gone_is_said_to_be(
    client: TestClient, pairs: list[Pair], capsys: pytest.CaptureFixture[str]
) -> None:
    given = trial(client)["trial"]
    pair = next(each for each in pairs if each.prompt == given["prompt"])
    pair.a.unlink()
    statuses = [
        client.get(f"/api/sound/{given[one]}", params={"beside": given[other]}).status_code
        for one, other in (("first", "second"), ("second", "first"))
    ]
    assert statuses == [410, 410]
    assert vote(client, given["id"], "skip", why=["gone"]).status_code == 200
    assert trial(client)["trial"]["id"] != given["id"]


def test_every_answer_has_a_strict_policy(client: TestClient) -> None:
    for path in ("/", "/listen.js", "/nothing", "/api/trial?rater=a"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    page = client.get("/").text
    assert "<script>" not in page and "style=" not in page and "http" not in page


def test_the_page_offers_the_tags_that_are_taken(client: TestClient) -> None:
    page = client.get("/").text
    for tag in web.Tag.__args__:  # type: ignore[attr-defined]
        assert f'data-why="{tag}"' in page
    assert page.count("data-why=") == len(web.Tag.__args__)  # type: ignore[attr-defined]


def test_foreign_hosts_and_origins_are_refused(client: TestClient, store: VoteStore) -> None:
    name = trial(client)["trial"]["id"]
    body = {"trial": name, "choice": "first"}
    for host in ("evil.example", "127.0.0.1.evil.example:8766", ""):
        assert client.get("/", headers={"host": host}).status_code == 421
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = client.post("/api/vote", json=body, headers={"origin": origin})
        assert answer.status_code == 403
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site}
        assert client.post("/api/vote", json=body, headers=headers).status_code == 403
        assert client.get("/api/trial?rater=eve", headers=headers).status_code == 403
        assert client.get("/", headers=headers).status_code == 200  # a link may lead here
    assert store.votes() == []
    assert client.post("/api/vote", json=body, headers={"origin": URL}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_only_json_is_taken(client: TestClient, store: VoteStore, kind: str | None) -> None:
    body = json.dumps({"trial": trial(client)["trial"]["id"], "choice": "first"})
    headers = {"content-type": kind} if kind else {}
    assert client.post("/api/vote", content=body, headers=headers).status_code == 415
    assert store.votes() == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"trial": 1, "choice": "first"}', b"\xff\xfe",
        b'{"choice": "first"}', b'{"trial": "x", "choice": "a"}', b"[" * 5000,
        b'{"trial": "x", "choice": "tie", "seconds": NaN}',
        b'{"trial": "x", "choice": "tie", "seconds": -1}',
        b'{"trial": "x", "choice": "tie", "why": ["my own"]}',
        b'{"trial": "x", "choice": "tie", "more": 1}',
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_in_one_line(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/vote", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "\n" not in answer.json()["detail"]


def test_a_huge_body_is_not_read(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/api/vote", content=b" " * (BODY + 1), headers=headers).status_code == 413

    def endless() -> Any:
        for _ in range(100):
            yield b" " * 1000

    # FastAPI calls a body that ends early a bad one.
    answer = client.post("/api/vote", content=endless(), headers=headers)
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize("rater", ["", "  ", "x" * 81, "a\nb"])
def test_a_rater_needs_a_name(client: TestClient, rater: str) -> None:
    assert client.get("/api/trial", params={"rater": rater}).status_code == 422
    assert client.get("/api/progress", params={"rater": rater}).status_code == 422
    assert client.post("/api/undo", json={"rater": rater}).status_code == 422
    assert client.get("/api/trial").status_code == 422


def test_a_store_that_fails_asks_to_try_again(
    client: TestClient, store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: 503, which the page takes as a reason to keep the vote."""
    name = trial(client)["trial"]["id"]

    def full(*_: Any) -> None:
        error = InputError("disk full while writing vote store /secret/votes.db")
        raise error from sqlite3.OperationalError("full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "vote", full)
        answer = vote(client, name)
    assert answer.status_code == 503
    assert answer.json() == {"detail": "the store cannot be used now; try again"}
    assert vote(client, name).status_code == 200


class Maker:
    ready, planned, trouble = 3, 5, ""


def test_one_waits_for_pairs_that_are_made(store: VoteStore) -> None:
    making = Maker()
    with TestClient(create_app(store, making=making), URL) as client:
        for answered in range(3):
            given = trial(client)
            assert (given["answered"], given["total"]) == (answered, 5)
            vote(client, given["trial"]["id"])
        given = trial(client)
        assert given["state"] == "waiting"
        assert given["making"] == {"ready": 3, "planned": 5, "trouble": False}
        making.trouble = "no space left at /secret"
        given = trial(client)
        assert (given["state"], given["total"]) == ("done", 3)
        assert given["making"]["trouble"] is True


def test_a_vote_outlives_the_application(tmp_path: Path, store: VoteStore) -> None:
    with TestClient(create_app(store), URL) as client:
        given = trial(client)
        vote(client, given["trial"]["id"])
        after = trial(client)
    with VoteStore(store.path) as again, TestClient(create_app(again), URL) as client:
        assert trial(client) == after
        assert len(again.votes()) == 1
