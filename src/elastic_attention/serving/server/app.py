"""The web application: OpenAI's chat completions and completions over an `AnswerEngine`."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ...models.budget import check_budget
from ..requests import read_route_request
from .body import BodyLimit
from .engine import Answer, AnswerEngine, AnswerFailed, Ending, Job, ServerBusy
from .hosts import HostCheck
from .metrics import ServerMetrics
from .replies import Reply, make_error
from .schema import ChatRequest, CompletionRequest


class Refused(Exception):
    """A request that cannot be answered, with its status."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def build_app(
    engine: AnswerEngine,
    *,
    name: str,
    metrics: ServerMetrics,
    budget: float = 0.0,
    allowed_hosts: frozenset[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        name: of the model, as requests call it.
        budget: where a request names none.
        allowed_hosts: names under which it may be asked for; None = all.

    Raises:
        ValueError: a budget that is no finite number.
    """
    app = FastAPI(title="elastic-attention", docs_url=None, redoc_url=None, openapi_url=None)
    limits, note = engine.limits, metrics.note_refusal
    app.add_middleware(
        BodyLimit, max_bytes=limits.max_body_bytes, max_seconds=limits.max_body_seconds, note_refusal=note
    )
    if allowed_hosts is not None:
        app.add_middleware(HostCheck, allowed=allowed_hosts, note_refusal=note)
    _add_refusals(app, metrics)
    checks = _Checks(engine, name, budget)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        return Response()

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.active.set(engine.num_active)
        return Response(metrics.show(), media_type="text/plain; version=0.0.4")

    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "local"}
    model["max_model_len"] = engine.limits.context

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def retrieve(asked: str) -> dict[str, Any]:
        checks.check_name(asked)
        return model

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        engine.admit()
        prompt = await asyncio.to_thread(checks.encode_chat, body)
        return await reply(body, prompt, request, body.max_completion_tokens or body.max_tokens)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        engine.admit()
        prompt = await asyncio.to_thread(checks.encode_text, body)
        return await reply(body, prompt, request, body.max_tokens)

    async def reply(
        body: ChatRequest | CompletionRequest, prompt: list[int], request: Request, max_tokens: int | None
    ) -> Response:
        job = checks.make_job(body, prompt, max_tokens)
        form = Reply(model=name, is_chat=isinstance(body, ChatRequest), prompt_tokens=len(prompt))
        answer = engine.start(job)
        pieces = _count(answer.listen(), metrics)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return _AnswerResponse(answer, form.stream(pieces, include_usage=include_usage))
        gathered = await _gather(pieces, request)
        if gathered is None:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(form.whole(*gathered))

    return app


class _AnswerResponse(StreamingResponse):
    """A stream that abandons its answer even where the client left before the stream began."""

    def __init__(self, answer: Answer, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.abandon()


class _Checks:
    """What of a request the schema cannot know."""

    def __init__(self, engine: AnswerEngine, name: str, budget: float) -> None:
        self.engine, self.name, self.budget = engine, name, check_budget(budget)

    def check_name(self, model: str) -> None:
        """Is it this one?"""
        if model != self.name:
            raise Refused(f"There is no model {model!r} here, only {self.name!r}.", 404, "model_not_found")

    def encode_chat(self, body: ChatRequest) -> list[int]:
        """Token ids of a conversation, ready for the answer."""
        tokenizer = self.engine.tokenizer
        if tokenizer.chat_template is None:
            raise Refused(f"{self.name} has no chat template; use /v1/completions.")
        messages = [message.plain() for message in body.messages]
        try:
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # templates raise what they like about roles they do not know
            raise Refused(f"The chat template of {self.name} refuses these messages: {error}.") from error

    def encode_text(self, body: CompletionRequest) -> list[int]:
        """Token ids of a prompt."""
        if isinstance(body.prompt, list):
            size = self.engine.handle.model.get_input_embeddings().num_embeddings
            if wrong := [token for token in body.prompt if token >= size]:
                raise Refused(f"Token ids {wrong[:4]} are outside of the model's {size}.")
            return body.prompt
        return self.engine.tokenizer(body.prompt).input_ids

    def make_job(self, body: ChatRequest | CompletionRequest, prompt: list[int], max_tokens: int | None) -> Job:
        """The checked request."""
        limits = self.engine.limits
        self.check_name(body.model)
        if not prompt:
            raise Refused("The prompt has no tokens; send some text.")
        room = limits.context - len(prompt)
        if room < 1 or (max_tokens or 0) > room:
            raise Refused(
                f"The prompt has {len(prompt)} tokens and the answer up to {max_tokens or 1}, together more than the "
                f"{limits.context} that this server takes; shorten one of them.",
                code="context_length_exceeded",
            )
        if (max_tokens or 0) > limits.max_new_tokens:
            raise Refused(f"max_tokens={max_tokens} is more than the {limits.max_new_tokens} that this server gives.")
        try:
            routes = read_route_request(body.vllm_xargs, self.engine.handle.config, budget=self.budget)
        except ValueError as error:
            raise Refused(str(error)) from error
        return Job(
            prompt=prompt,
            max_new_tokens=max_tokens or min(room, limits.max_new_tokens),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stops=body.list_stops(),
            routes=routes,
        )


async def _gather(pieces: AsyncIterator[str | Ending], request: Request) -> tuple[str, Ending] | None:
    """The whole answer; None where the client left before it was there."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)

    async def collect() -> tuple[str, Ending]:
        texts: list[str] = []
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Ending):
                    return "".join(texts), piece
                texts.append(piece)
        raise Refused("The server is going down.", 503)

    watcher, collector = asyncio.create_task(watch()), asyncio.create_task(collect())
    try:
        await asyncio.wait({watcher, collector}, return_when=asyncio.FIRST_COMPLETED)
        return await collector if collector.done() else None
    finally:
        watcher.cancel()
        collector.cancel()


async def _count(pieces: AsyncIterator[str | Ending], metrics: ServerMetrics) -> AsyncIterator[str | Ending]:
    """The same pieces, counted."""
    started, end = time.perf_counter(), "abandoned"
    is_first = True
    try:
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if is_first:
                    metrics.first_token.observe(time.perf_counter() - started)
                    is_first = False
                if isinstance(piece, Ending):
                    end = piece.reason
                    metrics.note_report(piece.report, piece.new_tokens)
                yield piece
    except Exception:
        end = "failed"
        raise
    finally:
        metrics.requests.labels(end).inc()


def _name_place(place: tuple[str | int, ...]) -> str:
    """Where in a body something is wrong; pydantic also names the type it tried there, with brackets."""
    return ".".join(str(part) for part in place[1:] if "[" not in str(part)) or "body"


def _add_refusals(app: FastAPI, metrics: ServerMetrics) -> None:
    def refuse(message: str, status: int, code: str | None = None, kind: str = "invalid_request_error") -> JSONResponse:
        metrics.note_refusal()
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse(make_error(message, kind=kind, code=code), status, headers)

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> JSONResponse:
        return refuse(str(error), error.status, error.code)

    @app.exception_handler(ServerBusy)
    async def on_busy(request: Request, error: ServerBusy) -> JSONResponse:
        return refuse(str(error), 429, kind="rate_limit_error")

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes) and error.body:  # nobody tried to read it
            given = request.headers.get("content-type", "none")
            return refuse(f"Send JSON with the header Content-Type: application/json; this request has {given}.", 400)
        problems = [f"{_name_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()[:4]]
        return refuse("; ".join(problems) + ".", 400)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        response = refuse(str(error.detail), error.status_code)
        response.headers.update(error.headers or {})  # Allow of status 405
        return response

    @app.exception_handler(AnswerFailed)
    async def on_failed_answer(request: Request, error: AnswerFailed) -> JSONResponse:
        return JSONResponse(make_error(str(error), kind="server_error"), 500)  # counted with its pieces

    @app.exception_handler(Exception)
    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        metrics.requests.labels("failed").inc()
        message = f"{type(error).__name__} while answering; see the server's log."
        return JSONResponse(make_error(message, kind="server_error"), 500)
