"""One model, one thread: answers requests one after the other, and lets go of one whose client is gone."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...models.answers import pad_token
from ...models.families import find_attention_modules
from ..requests import RouteRequest
from .limits import ServerLimits
from .text import TextStream

GREEDY_BELOW = 1e-5
"""A temperature below this is 0: logits over it would not be finite."""

_logger = logging.getLogger(__name__)


class ServerBusy(Exception):
    """As many requests as the server takes are under way."""


class AnswerFailed(Exception):
    """The model could not answer; the log says why."""


class _Abandoned(Exception):
    """The client is gone, or a stop string came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One request, checked.

    Attributes:
        seed: of the sampling; None = whatever comes.
        routes: what it asks of its routes.
    """

    prompt: list[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stops: list[str]
    routes: RouteRequest
    is_abandoned: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended.

    Attributes:
        reason: "stop" or "length".
        new_tokens: generated tokens, an end mark included.
        report: what `Handle.report` says, as plain JSON values.
    """

    reason: str
    new_tokens: int
    report: dict[str, Any]


class AnswerEngine:
    """Generates with an attached model.

    Attributes:
        num_active: requests that are answered or wait.
    """

    def __init__(self, handle: Any, tokenizer: Any, limits: ServerLimits) -> None:
        self.handle, self.tokenizer, self.limits = handle, tokenizer, limits
        self.num_active = 0
        self._current: Job | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        # A long prompt is let go of between two layers, not at its end.
        self._hooks = [
            module.register_forward_pre_hook(self._check_client)
            for module in find_attention_modules(handle.model).values()
        ]

    def close(self) -> None:
        """Wait for the model's thread; waiting requests are dropped."""
        if self._current is not None:
            self._current.is_abandoned.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for hook in self._hooks:
            hook.remove()

    def admit(self) -> None:
        """Is there room for one more request?

        Raises:
            ServerBusy: there is not.
        """
        if self.num_active >= self.limits.max_requests:
            raise ServerBusy(
                f"{self.num_active} requests are under way, this server takes {self.limits.max_requests}; try again."
            )

    def start(self, job: Job) -> "Answer":
        """Begin with a request, or queue it.

        Returns:
            Pieces of text, then how it ended. Leaving early abandons the request, and so does `Answer.abandon`.

        Raises:
            ServerBusy: see `admit`.
        """
        self.admit()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Ending | Exception] = asyncio.Queue()

        def tell(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def finish(result: Ending | Exception) -> None:
            self.num_active -= 1  # before anybody hears the end, who may ask again at once
            pieces.put_nowait(result)

        def leave(future: Future[Ending | Exception]) -> None:
            result = _Abandoned() if future.cancelled() else future.result()
            with contextlib.suppress(RuntimeError):  # the loop is closed, because the server has gone down
                loop.call_soon_threadsafe(finish, result)

        self.num_active += 1
        future = self._pool.submit(self._run, job, tell)
        future.add_done_callback(leave)
        return Answer(job, future, pieces)

    def _check_client(self, module: Any, args: Any) -> None:
        if self._current is not None and self._current.is_abandoned.is_set():
            raise _Abandoned

    def _run(self, job: Job, tell: Callable[[str], None]) -> Ending | Exception:
        if job.is_abandoned.is_set():
            return _Abandoned()
        self._current = job
        try:
            return self._generate(job, tell)
        except _Abandoned:
            # A new one: the one that was raised holds the frames of `generate`, and with them the request's cache.
            return _Abandoned()
        except Exception as error:
            _logger.exception("An answer failed.")
            return AnswerFailed(f"{type(error).__name__} while answering; see the server's log.")
        finally:
            self._current = None

    def _generate(self, job: Job, tell: Callable[[str], None]) -> Ending:
        handle, model = self.handle, self.handle.model
        handle.budget = job.routes.budget
        handle.set_routes(job.routes.routes)
        if job.seed is None:
            torch.seed()  # else it would go on from the seed of the request before
        else:
            torch.manual_seed(job.seed)
        text = TextStream(self.tokenizer, job.stops)
        ids = torch.tensor([job.prompt], device=model.device)
        is_greedy = job.temperature < GREEDY_BELOW
        try:
            with torch.inference_mode():
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=job.max_new_tokens,
                    do_sample=not is_greedy,
                    temperature=None if is_greedy else job.temperature,
                    top_p=None if is_greedy else job.top_p,
                    top_k=None if is_greedy else 0,
                    num_beams=1,
                    pad_token_id=pad_token(self.tokenizer),
                    streamer=_Streamer(job, text, tell),
                )
        except _Abandoned:
            if not text.is_stopped:
                raise
        if rest := text.finish():
            tell(rest)
        is_full = len(text.tokens) >= job.max_new_tokens and text.tokens[-1] not in self._list_ends()
        reason = "length" if is_full and not text.is_stopped else "stop"
        return Ending(reason=reason, new_tokens=len(text.tokens), report=plain_report(handle))

    def _list_ends(self) -> list[int]:
        ends = self.handle.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])


class Answer:
    """One answer on its way."""

    def __init__(
        self, job: Job, future: "Future[Ending | Exception]", pieces: "asyncio.Queue[str | Ending | Exception]"
    ) -> None:
        self._job, self._future, self._pieces = job, future, pieces

    def abandon(self) -> None:
        """Nobody listens any more. A request that waits gives its place up at once."""
        self._job.is_abandoned.set()
        self._future.cancel()

    async def listen(self) -> AsyncIterator[str | Ending]:
        """Pieces of text, then how it ended.

        Raises:
            AnswerFailed: the model could not.
        """
        try:
            while True:
                piece = await self._pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if isinstance(piece, Ending):
                    return
        finally:
            self.abandon()


class _Streamer:
    """What `generate` calls with the prompt, then with each token."""

    def __init__(self, job: Job, text: TextStream, tell: Callable[[str], None]) -> None:
        self._job, self._text, self._tell, self._is_prompt = job, text, tell, True

    def put(self, tokens: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in tokens.flatten().tolist():
            if piece := self._text.add(token):
                self._tell(piece)
        if self._text.is_stopped or self._job.is_abandoned.is_set():
            raise _Abandoned

    def end(self) -> None:
        """Called after the last token."""


def plain_report(handle: Any) -> dict[str, Any]:
    """The numbers of the last generate of one prompt, without its routes."""
    report = {name: values[0] for name, values in handle.report().items() if name != "routes"}
    esr, read = report["esr_decode"] or 0.0, report["kv_bytes_read"]
    return report | {"kv_bytes_skipped": round(read * esr / (1 - esr))}
