"""`elastic-attn serve`: an OpenAI-compatible server with routed heads."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from .options import Budget, Device, DtypeOption, Engine, Json, Model, open_console, open_model, write_json


class Policy(StrEnum):
    """When vLLM decides the routes of a prompt."""

    deferred = "deferred"
    first_chunk = "first_chunk"
    probe = "probe"


def serve(
    model: Model = "smollm2",
    routers: Annotated[
        list[str] | None, typer.Option(help="Adapter folder or hub id. Default: the routers that ship for this model.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="vllm, transformers, or vllm where it is installed.")] = Engine.auto,
    host: Annotated[str, typer.Option(help="Address to listen on. Default: this computer alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which it may be asked for, * = any; repeat it. Default: those of this "
            "computer where --host is this computer, else any.",
        ),
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="What requests call the model. Default: --model.")] = None,
    budget: Budget = 0.0,
    context: Annotated[int | None, typer.Option(min=1, help="Prompt and answer, tokens. Default: the model's.")] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="transformers: longest answer, tokens. Default: 4096.")
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(min=1, help="Largest body of a request. Default: 8 MiB.")
    ] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    policy: Annotated[
        Policy | None, typer.Option(help="vllm: when a prompt's routes are decided. Default: deferred.")
    ] = None,
    first_chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="vllm: tokens that first_chunk decides from. Default: 2048.")
    ] = None,
    vllm_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="vllm: any other of its flags; repeat it.")
    ] = None,
    json: Json = None,
) -> None:
    """Serve chat completions and completions, with heads routed per request, until stopped."""
    from ..errors import ElasticAttentionError
    from ..records import build_record
    from ..serving.address import check_address

    if routers is not None and len(routers) > 1:
        raise ElasticAttentionError(f"--routers was given {len(routers)} times; a server has one adapter.")
    started, console = time.perf_counter(), open_console()
    adapter, chosen = routers[0] if routers else None, _choose_engine(engine)
    _refuse_options_of_others(
        chosen,
        {
            Engine.vllm: {
                "--policy": policy,
                "--first-chunk-tokens": first_chunk_tokens,
                "--vllm-option": vllm_option[0] if vllm_option else None,
            },
            Engine.transformers: {
                "--max-new-tokens": max_new_tokens,
                "--device": device,
            },
        },
    )
    check_address(host, port)
    place: dict[str, Any] = {"host": host, "port": port}
    name = served_name or model
    dtype_name = None if dtype is None else dtype.value
    if chosen is Engine.vllm:
        from ..serving.server.guard import prepare_guard

        serving = _leave_out_unset(routers=adapter, policy=policy, first_chunk_tokens=first_chunk_tokens)
        flags = {"served-model-name": name, "max-model-len": context, "max-num-seqs": max_requests, "dtype": dtype_name}
        guard = prepare_guard(host, allowed_host or (), max_body_bytes)
        flags |= {"middleware": guard, "allowed-origins": "[]"}  # by default vLLM answers every web page that asks
        served = _serve_with_vllm(model, serving | {"budget": budget}, flags | place, vllm_option or [])
    else:
        session = open_model(model, routers=adapter, device=device, dtype=dtype)
        if (context or 0) > session.context:
            raise ElasticAttentionError(f"--context {context} is past the {session.context} tokens that {model} takes.")
        sizes = _leave_out_unset(max_new_tokens=max_new_tokens, max_body_bytes=max_body_bytes)
        sizes |= {"context": context or session.context, "max_requests": max_requests}
        console.print(f"{name} on http://{host}:{port}/v1, over transformers")
        served = _serve_with_transformers(session, sizes, name, place | {"allowed_hosts": allowed_host or ()}, budget)
    record = build_record(
        "serve",
        config={"engine": chosen.value, "policy": policy, "budget": budget, **place},
        model={"name": model, "routers": adapter},
        data=None,
        device=device or "auto",
        seed=None,
        n=int(sum(value for key, value in served.items() if key.startswith("requests"))),
        metrics={"rows": [served]},
        seconds=time.perf_counter() - started,
        bytes=None,
    )
    write_json(json, record, console)
    if served.get("exit_code"):
        raise typer.Exit(1)


def _choose_engine(engine: Engine) -> Engine:
    import importlib.util

    from ..errors import BackendUnavailable

    if engine is not Engine.transformers and importlib.util.find_spec("vllm") is not None:
        return Engine.vllm
    if engine is Engine.vllm:
        raise BackendUnavailable("--engine vllm needs vLLM: pip install 'elastic-attention[vllm]'.")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise BackendUnavailable(
                f"the server over transformers needs {package}: pip install 'elastic-attention[serve]'."
            )
    return Engine.transformers


def _refuse_options_of_others(chosen: Engine, options: dict[Engine, dict[str, Any]]) -> None:
    """An option that the chosen engine does not have is refused, not ignored."""
    from ..errors import ElasticAttentionError

    for engine, given in options.items():
        for option, value in given.items():
            if engine is not chosen and value is not None:
                raise ElasticAttentionError(
                    f"{option} {value} needs --engine {engine}, this server runs {chosen}; leave it out."
                )


def _leave_out_unset(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _serve_with_vllm(
    model: str, serving: dict[str, Any], flags: dict[str, Any], options: list[str]
) -> dict[str, float]:
    from ..models.embedded import resolve_model
    from ..serving.vllm.launch import build_flags, run_vllm

    return {"exit_code": run_vllm(resolve_model(model), build_flags(serving, flags, options))}


def _serve_with_transformers(
    session: Any, sizes: dict[str, int], name: str, place: dict[str, Any], budget: float
) -> dict[str, float]:
    from ..serving.server.limits import ServerLimits
    from ..serving.server.run import run_server

    limits = ServerLimits(**sizes)
    return run_server(session.handle, session.tokenizer, limits, name=name, budget=budget, **place)
