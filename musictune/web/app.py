"""The listening page over a store of votes, as a FastAPI application; needs the extra ``web``.

Names of systems and of files stay here: the browser gets prompts, sound, and ids that mean nothing
elsewhere.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, MutableMapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from musictune import console
from musictune.data.vote_store import RatingTrial, Trial, VoteStore
from musictune.data.vote_types import rater_name
from musictune.errors import AudioError, InputError
from musictune.serving.guard import App, Guard, Receive, Rules, Send, answer
from musictune.web.sounds import Sounds, part_of

BODY = 16 * 1024
"""Bytes that a request may have: a vote has some hundred."""

Tag = Literal[
    "sound quality", "fits the text", "rhythm", "melody", "instruments", "ending or noise"
]
"""What a rater may say a vote was about."""

GONE = "gone"
"""The ``why`` of a pair that was skipped because its audio could not be played."""


def _rater(given: str) -> str:
    try:
        return rater_name(given)
    except InputError as error:
        raise ValueError(str(error)) from error


Rater = Annotated[str, AfterValidator(_rater)]
_Id = Annotated[str, Field(min_length=1, max_length=64)]

_SOUNDS = frozenset({"first", "second", "sound"})
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("listen", "player", "wave", "server", "keys")
    },
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "media-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_ENCODED = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


class Making(Protocol):
    """Pairs that are made while somebody listens.

    Attributes:
        ready: pairs that can be heard.
        planned: pairs there will be.
        trouble: why no more will come; empty if all is well.
    """

    @property
    def ready(self) -> int: ...
    @property
    def planned(self) -> int: ...
    @property
    def trouble(self) -> str: ...


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VoteGiven(_Given):
    """An answer to a pair."""

    trial: _Id
    choice: Literal["first", "second", "tie", "skip"]
    why: list[Tag | Literal["gone"]] = Field(default=[], max_length=8)
    seconds: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)


class RatingGiven(_Given):
    """How good one clip is: 0 bad, 100 excellent."""

    trial: _Id
    value: float = Field(ge=0, le=100, allow_inf_nan=False)
    why: list[Tag] = Field(default=[], max_length=8)


class UndoGiven(_Given):
    """Whose last answer to open again."""

    rater: Rater


def create_app(
    store: VoteStore, *, rate: bool = False, host: str = "127.0.0.1", making: Making | None = None
) -> FastAPI:
    """The page and its interface.

    Args:
        store: what is asked and answered; the caller closes it.
        rate: one clip at a time on a scale, instead of pairs.
        host: the address or name it is bound to.
        making: what makes more pairs meanwhile.
    """
    app = FastAPI(title="musictune listen", openapi_url=None, docs_url=None, redoc_url=None)
    _add_page(app)
    shown: set[str] = set()
    _add_questions(app, store, rate, making, shown)
    _add_answers(app, store)
    _add_sound(app, store, shown)
    _add_errors(app)
    app.add_middleware(Guard, rules=Rules(host, None, BODY))  # type: ignore[arg-type]
    # Added last, it is asked first.
    app.add_middleware(_OwnPagesOnly)  # type: ignore[arg-type]
    return app


def _add_page(app: FastAPI) -> None:
    folder = resources.files("musictune.web")

    def serve(path: str, name: str, kind: str) -> None:
        content = folder.joinpath(name).read_bytes()
        app.get(path)(lambda: Response(content, media_type=kind))

    for path, (name, kind) in _PAGE.items():
        serve(path, name, kind)


def _add_questions(
    app: FastAPI, store: VoteStore, rate: bool, making: Making | None, shown: set[str]
) -> None:
    def progress(rater: str) -> dict[str, Any]:
        answered, total = store.progress(rater, rating=rate)
        if making is None:
            return {"answered": answered, "total": total, "making": None}
        ready, planned, each = making.ready, making.planned, 2 if rate else 1
        more = 0 if making.trouble else max(planned - ready, 0) * each
        state = {"ready": ready, "planned": planned, "trouble": bool(making.trouble)}
        return {"answered": answered, "total": total + more, "making": state}

    @app.get("/api/trial")
    def trial(rater: Annotated[Rater, Query()]) -> dict[str, Any]:
        """What this rater hears next: the same until it is answered."""
        # Looked at first: what comes in between is then not missed.
        more = making is not None and not making.trouble and making.ready < making.planned
        asked = store.next_clip(rater) if rate else store.next_trial(rater)
        state = "trial" if asked else "waiting" if more else "done"
        about = _shown(asked) if asked else None
        if about:
            shown.update(about[key] for key in about.keys() & _SOUNDS)
        mode = "rating" if rate else "pair"
        return {"state": state, "mode": mode, "trial": about, **progress(rater)}

    @app.get("/api/progress")
    def how_far(rater: Annotated[Rater, Query()]) -> dict[str, Any]:
        """How many this rater has answered, and of how many."""
        return progress(rater)


def _add_answers(app: FastAPI, store: VoteStore) -> None:
    only_json = [Depends(_json)]

    @app.post("/api/vote", dependencies=only_json)
    def vote(given: VoteGiven) -> dict[str, bool]:
        """Kept once this is answered, whatever happens then."""
        with _kept():
            store.vote(given.trial, given.choice, tuple(dict.fromkeys(given.why)), given.seconds)
        return {"kept": True}

    @app.post("/api/rate", dependencies=only_json)
    def rated(given: RatingGiven) -> dict[str, bool]:
        """Kept once this is answered."""
        with _kept():
            store.rate(given.trial, given.value, tuple(dict.fromkeys(given.why)))
        return {"kept": True}

    @app.post("/api/undo", dependencies=only_json)
    def undo(given: UndoGiven) -> dict[str, str | None]:
        """Open the last answer again; null if there is none."""
        return {"trial": store.undo(given.rater)}


def _add_sound(app: FastAPI, store: VoteStore, shown: set[str]) -> None:
    sounds = Sounds()

    def file_of(sound: str) -> Path:
        path = store.sound(sound) if sound.isascii() else None
        if path is None and sound in shown:  # the store does not give out what has changed
            raise HTTPException(410, "this music is gone")
        if path is None:
            raise HTTPException(404, "there is no such sound")
        return path

    @app.api_route("/api/sound/{sound}", methods=["GET", "HEAD"])
    def hear(
        sound: str,
        beside: str | None = None,
        wanted: Annotated[str | None, Header(alias="range")] = None,
    ) -> Response:
        """A clip as WAV, as loud as the one ``beside`` it."""
        path, other = file_of(sound), file_of(beside) if beside else None
        try:
            return part_of(sounds.wav(path, other), wanted)
        except AudioError as error:
            console.note(str(error))  # for who started the server; the page learns no name
            raise HTTPException(410, "this music cannot be played") from None


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Turns the store's refusal of an answer into one line that names no file."""
    try:
        yield
    except InputError as error:
        if isinstance(error.__cause__, sqlite3.Error):  # the disk is full, or held by another
            raise
        raise HTTPException(
            409, "this was not kept: it is no open question, or was answered otherwise before"
        ) from None


def _json(request: Request) -> None:
    """A page of another origin can send forms and plain text without asking; JSON it cannot."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send application/json")


class _OwnPagesOnly:
    """ASGI middleware: the headers of every answer, and nothing to read for other pages.

    Where a browser says that another page asks, even a read is refused: it may open a question.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse with 403, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = dict(message) | {"headers": [*message["headers"], *_ENCODED]}
            await send(message)

        site = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
        if site not in (b"same-origin", b"none") and scope["path"].startswith("/api/"):
            await answer(sealed, 403, "pages of other origins may not ask here")
            return
        await self._app(scope, receive, sealed)


def _shown(asked: Trial | RatingTrial) -> dict[str, str]:
    shown = {"id": asked.id, "prompt": asked.prompt}
    if isinstance(asked, Trial):
        return shown | {"first": asked.first, "second": asked.second}
    return shown | {"sound": asked.sound}


def _add_errors(app: FastAPI) -> None:
    """Every error is one line, and nothing of the store's files comes with it."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(InputError)
    async def unkept(_: Request, error: InputError) -> JSONResponse:
        console.note(str(error))
        return JSONResponse({"detail": "the store cannot be used now; try again"}, 503)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        console.note(" ".join(f"unforeseen {type(error).__name__}: {error}".split())[:300])
        return JSONResponse(
            {"detail": "something went wrong here; the server's log says what"}, 500
        )
