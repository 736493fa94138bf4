"""What goes over the wire, as pydantic models; needs the extra ``web``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from musictune.serving.jobs import Job, State
from musictune.serving.limits import Limits

_USUAL = 10.0  # seconds


def _whole(value: object) -> object:
    """JSON knows one kind of number: 3.0 is an integer there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Wanted(BaseModel):
    """A clip to make."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(description="What to play; empty: whatever the model likes.")
    seconds: float = Field(description="Length of the clip.")
    seed: Whole = Field(0, ge=0, le=2**53 - 1, description="The same one gives the same music.")
    temperature: float = Field(1.0, ge=0.01, le=100, description="Below 1 safer, above 1 wilder.")
    top_k: Whole = Field(250, ge=0, le=100_000, description="Draw from the k likeliest; 0: all.")
    top_p: float = Field(
        0.0, ge=0, le=1, description="Draw from the likeliest with this probability; 0: all."
    )
    guidance: float = Field(3.0, ge=1, le=100, description="How strictly to follow the prompt.")
    adapter: str | None = Field(None, description="One of the adapters of `GET /v1/models`.")


def wanted_within(limits: Limits, adapters: Sequence[str]) -> type[Wanted]:
    """:class:`Wanted` with the limits of this server in it, so that its schema tells them."""
    # mypy cannot know the names that a server is started with.
    names: Any = Literal[tuple(adapters)] | None if adapters else None
    fields: dict[str, Any] = {
        "prompt": (
            Annotated[str, Field(max_length=limits.prompt)],
            Field(description=Wanted.model_fields["prompt"].description),
        ),
        "seconds": (
            Annotated[float, Field(gt=0, le=limits.seconds)],
            Field(
                min(_USUAL, limits.seconds),
                description=Wanted.model_fields["seconds"].description,
            ),
        ),
        "adapter": (
            names,
            Field(None, description=Wanted.model_fields["adapter"].description),
        ),
    }
    return create_model("Music", __base__=Wanted, **fields)


class JobState(BaseModel):
    """How far a clip is."""

    id: str = Field(description="Name of the job.")
    state: State
    share: float = Field(ge=0, le=1, description="How much of it is made.")
    seconds: float = Field(gt=0, description="Length of the clip.")
    ahead: int = Field(ge=0, description="Jobs that wait before this one.")
    error: str | None = Field(description="Why it failed or was cancelled.")

    @classmethod
    def of(cls, job: Job, ahead: int) -> JobState:
        """What may be said of ``job``."""
        return cls(
            id=job.id,
            state=job.state,
            share=job.share,
            seconds=job.request.seconds,
            ahead=ahead,
            error=job.error or None,
        )


class Problem(BaseModel):
    """Every error is one line."""

    detail: str


class Health(BaseModel):
    """Whether the server plays what comes."""

    playing: int = Field(ge=0, description="Clips that play.")
    waiting: int = Field(ge=0, description="Clips that wait for a place.")


class LimitsShown(BaseModel):
    """What this server takes on."""

    seconds: float = Field(description="Longest clip.")
    prompt: int = Field(description="Characters of a prompt.")
    batch: int = Field(description="Clips that play at once.")
    waiting: int = Field(description="Clips that may wait.")
    kept: int = Field(description="Clips that are kept when they are over.")
    minutes: float = Field(description="How long they are kept.")


class Models(BaseModel):
    """What plays here."""

    base: str
    adapters: list[str]
    precision: str
    sample_rate: int = Field(description="Hz.")
    channels: int
    limits: LimitsShown
