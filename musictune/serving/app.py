"""The endpoint over a worker, as a FastAPI application; needs the extra ``web``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.routing import compile_path

from musictune import console
from musictune.errors import InputError
from musictune.generation.request import Request as MusicRequest
from musictune.generation.sampling import Sampling
from musictune.serving.guard import Guard, Rules
from musictune.serving.jobs import Job, LineFullError, StoppedError
from musictune.serving.schemas import (
    Health,
    JobState,
    LimitsShown,
    Models,
    Problem,
    Wanted,
    wanted_within,
)
from musictune.serving.sound import WAV, Decoding, MusicResponse
from musictune.serving.worker import Worker

HEALTH = "/v1/health"

_ABOUT = """
Music from prompts. `POST /v1/music` gives a job; its audio can be heard from the first half second
on while the rest is made. With `?wait=true` or `Accept: audio/wav` the answer is the music itself.
A client that goes away while it listens or waits cancels the job, if it was the last one.
"""

Responses = dict[int | str, dict[str, Any]]
_SOUND = {WAV: {"schema": {"type": "string", "format": "binary"}}}
_JOB_OPERATIONS = ("look", "hear", "cancel")  # that take the name of a job


def create_app(
    worker: Worker,
    *,
    base: str,
    adapters: Sequence[str] = (),
    host: str = "127.0.0.1",
    token: str | None = None,
) -> FastAPI:
    """An endpoint over ``worker``, which the caller starts and stops.

    Args:
        worker: what plays.
        base: the name of its model.
        adapters: names that a request may ask for.
        host: the address or name it is bound to.
        token: what clients must bring, if anything.
    """
    decoding = Decoding(worker)
    app = FastAPI(
        title="musictune",
        version="1",
        description=_ABOUT,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the usual page loads its scripts from other people's servers
        redoc_url=None,
        responses=_REFUSALS,
    )
    rules = Rules(host, token, worker.limits.body, frozenset({HEALTH}))
    app.add_middleware(Guard, rules=rules)  # type: ignore[arg-type]
    _add_errors(app)
    _add_health(app, worker)
    # The guard has checked the token before; this is what clients are told of it.
    guarded = APIRouter(
        dependencies=[Security(HTTPBearer(auto_error=False))] if token else [],
        responses={401: _problem("A bearer token is needed.")} if token else {},
    )
    _add_music(guarded, worker, decoding, wanted_within(worker.limits, adapters))
    _add_models(guarded, worker, base, adapters)
    app.include_router(guarded)
    return app


def _add_music(
    app: APIRouter, worker: Worker, decoding: Decoding, wanted_model: type[Wanted]
) -> None:
    async def make(
        wanted: Any,
        request: Request,
        wait: Annotated[
            Literal["true", "false"], Query(description="Answer with the music, once it is made.")
        ] = "false",
    ) -> Response:
        """Ask for a clip."""
        job = worker.submit(_request(wanted))
        if wait == "true" or WAV in request.headers.get("accept", ""):
            return MusicResponse(decoding, job, streamed=False)
        state = JobState.of(job, worker.ahead(job)).model_dump(mode="json")
        return JSONResponse(state, 202, {"location": f"/v1/music/{job.id}"})

    # Its limits are known only now, and FastAPI reads them off the annotation.
    make.__annotations__["wanted"] = wanted_model
    app.post(
        "/v1/music",
        operation_id="make",
        status_code=202,
        response_model=JobState,
        responses=_made_responses(),
    )(make)

    def known(job_id: str) -> Job:
        job = worker.find(job_id)
        if job is None:
            raise HTTPException(404, "there is no such job; it may be too long ago")
        return job

    missing: Responses = {404: _problem("No such job.")}

    @app.get("/v1/music/{job_id}", operation_id="look", responses=missing)
    async def look(job_id: str) -> JobState:
        """How far a clip is."""
        job = known(job_id)
        return JobState.of(job, worker.ahead(job))

    @app.get(
        "/v1/music/{job_id}/audio",
        operation_id="hear",
        response_class=Response,
        responses=missing
        | _ended()
        | {
            200: {
                "content": _SOUND,
                "description": "16-bit WAV: whole if it is done, or else while it is made; then "
                "the answer begins with the first half second of music, and a connection that "
                "breaks off means that it failed.",
            }
        },
    )
    async def hear(job_id: str) -> Response:
        """The music, from the first half second on while the rest is made."""
        return MusicResponse(decoding, known(job_id), streamed=True)

    @app.delete(
        "/v1/music/{job_id}",
        operation_id="cancel",
        status_code=204,
        response_class=Response,
        responses=missing,
    )
    async def cancel(job_id: str) -> None:
        """Stop making it, and forget it."""
        worker.cancel(known(job_id), "its client asked so", forget=True)


def _add_health(app: FastAPI, worker: Worker) -> None:
    @app.get(HEALTH, operation_id="health", responses={503: _problem(_STOPPED)})
    async def health() -> Health:
        """Whether the server plays what comes."""
        if not worker.alive:
            raise HTTPException(503, "the server plays no more; start it again")
        playing, waiting = worker.counts
        return Health(playing=playing, waiting=waiting)


def _add_models(app: APIRouter, worker: Worker, base: str, adapters: Sequence[str]) -> None:
    @app.get("/v1/models", operation_id="models")
    async def models() -> Models:
        """What plays here, and what the limits are."""
        model, limits = worker.engine.model, worker.limits
        names = LimitsShown.model_fields
        return Models(
            base=base,
            adapters=list(adapters),
            precision=worker.engine.precision,
            sample_rate=model.sample_rate,
            channels=model.channels,
            limits=LimitsShown(**{name: getattr(limits, name) for name in names}),
        )


def _add_errors(app: FastAPI) -> None:
    """Every error is one line, and nothing of the request comes back in it."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(405)
    async def other_method(request: Request, _: Exception) -> JSONResponse:
        # The methods of one path are routes of their own, and each would name only itself.
        for path, operations in app.openapi()["paths"].items():
            if compile_path(path)[0].fullmatch(request.url.path):
                allowed = ", ".join(sorted(method.upper() for method in operations))
                return JSONResponse({"detail": f"use {allowed}"}, 405, {"allow": allowed})
        return JSONResponse({"detail": "use GET"}, 405, {"allow": "GET"})

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        console.note(" ".join(f"unforeseen {type(error).__name__}: {error}".split())[:300])
        return JSONResponse(
            {"detail": "something went wrong here; the server's log says what"}, 500
        )

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(LineFullError)
    async def full(_: Request, error: LineFullError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 429, {"retry-after": str(error.seconds)})

    @app.exception_handler(StoppedError)
    async def stopped(_: Request, error: StoppedError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)


def _request(wanted: Wanted) -> MusicRequest:
    sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p, wanted.guidance)
    return MusicRequest(
        wanted.prompt, wanted.seconds, wanted.seed, sampling, adapter=wanted.adapter
    )


def _problem(description: str) -> dict[str, Any]:
    return {"model": Problem, "description": description}


def _ended() -> Responses:
    return {409: _problem("It was cancelled."), 500: _problem("It could not be made.")}


_STOPPED = "It plays no more."
_REFUSALS: Responses = {  # that any request may get
    400: _problem("The request cannot be read."),
    403: _problem("A page of another origin may not write here."),
    413: _problem("The request is too large."),
    421: _problem("Not a host name of this server."),
    422: _problem("The request is not as it should be."),
}


def _made_responses() -> Responses:
    text = {"schema": {"type": "string"}}
    parameters = {"job_id": "$response.body#/id"}
    links = {name: {"operationId": name, "parameters": parameters} for name in _JOB_OPERATIONS}
    return _ended() | {
        200: {"content": _SOUND, "description": "16-bit WAV, if the client waited."},
        202: {
            "description": "It is in line.",
            "headers": {"Location": {"description": "Where its state is.", **text}},
            "links": links,
        },
        503: _problem(_STOPPED),
        429: _problem("Too many clips wait.")
        | {
            "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
        },
    }
