"""Sending music: whole once it is done, or piece by piece while it is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from musictune.audio import Clip
from musictune.generation.streaming import StreamDecoder
from musictune.generation.wav import pcm16, wav_bytes, wav_header
from musictune.models.base import Batch
from musictune.serving.guard import answer
from musictune.serving.jobs import Job, State
from musictune.serving.worker import Worker

Result = TypeVar("Result")

WAV = "audio/wav"


class Decoding:
    """A worker's codec, one clip or piece at a time so that playing is not starved.

    Args:
        worker: whose jobs are decoded.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.model = worker.engine.model
        self._one = ThreadPoolExecutor(1, thread_name_prefix="musictune-codec")

    async def whole(self, job: Job) -> Clip:
        """A job that is done, decoded as ``musictune generate`` does."""
        assert job.codes is not None
        lengths = torch.tensor([job.codes.shape[-1]])
        batch = Batch(job.codes[None], lengths, (job.request.prompt,))
        return (await self._run(self.model.decode, batch))[0]

    async def pieces(
        self, job: Job, decoder: StreamDecoder, changed: asyncio.Event
    ) -> AsyncIterator[Clip]:
        """The audio of a job while it plays; ends early if the job does not get done.

        A client that comes late gets the same pieces as one that heard it from the beginning.
        """
        while True:
            changed.clear()
            final, over, codes = job.state is State.done, job.state.over, job.codes
            while codes is not None and decoder.wanted <= codes.shape[-1]:
                clip = await self._run(decoder.push, codes[:, : decoder.wanted], False)
                if clip is not None:
                    yield clip
            if final and codes is not None:
                clip = await self._run(decoder.push, codes, True)
                if clip is not None:
                    yield clip
            if over:
                return
            await changed.wait()

    async def _run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._one, function, *arguments)


class MusicResponse(Response):
    """A job's WAV. If the client goes away, nobody listens any more.

    Nothing is sent before the first audio is there, so that a job that fails before has a status
    of its own. One that fails later breaks the connection off: what came is not the whole.

    Args:
        decoding: how codes become audio.
        job: which one.
        streamed: piece by piece while it plays; otherwise whole, when it is done.
    """

    media_type = WAV

    def __init__(self, decoding: Decoding, job: Job, streamed: bool) -> None:
        super().__init__()
        self._decoding, self._job, self._streamed = decoding, job, streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and watch whether the client is still there."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(changed.set)

        with self._decoding.worker.listening(self._job, wake):
            sending = asyncio.create_task(self._send(send, changed))
            leaving = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                sending.cancel()
                leaving.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send, changed: asyncio.Event) -> None:
        job = self._job
        if self._streamed and not job.state.over:
            if await self._send_pieces(send, changed):
                return
        else:
            while not job.state.over:
                changed.clear()
                if not job.state.over:
                    await changed.wait()
        if job.state is State.done:
            wav = wav_bytes(await self._decoding.whole(job))
            await send(_start([(b"content-length", str(len(wav)).encode())]))
            await send({"type": "http.response.body", "body": wav})
        elif job.state is State.failed:
            await answer(send, 500, job.error)
        else:
            await answer(send, 409, f"this clip was cancelled: {job.error}")

    async def _send_pieces(self, send: Send, changed: asyncio.Event) -> bool:
        """Whether anything was sent."""
        begun, model = False, self._decoding.model
        decoder = StreamDecoder(model)
        async for clip in self._decoding.pieces(self._job, decoder, changed):
            head = b""
            if not begun:
                begun = True
                await send(_start([(b"x-accel-buffering", b"no")]))
                # The length is known beforehand, so that players can show it.
                samples = decoder.samples(model.frames(self._job.request.seconds))
                head = wav_header(clip.sample_rate, clip.channels, samples)
            body = head + pcm16(clip)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if begun and self._job.state is State.done:
            await send({"type": "http.response.body", "body": b""})
        # Otherwise the body is left open: the server then closes the connection, and the client
        # knows that this is not all.
        return begun


def _start(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    lines = [(b"content-type", WAV.encode()), (b"cache-control", b"no-store"), *headers]
    return {"type": "http.response.start", "status": 200, "headers": lines}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
