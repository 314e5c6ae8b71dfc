"""What does not fit is refused where it is said: requests one by one, settings at the start."""

import shutil

import pytest
from served_models import BLOCK, HEADS, Engines, make_params, make_prompts, run_engine

from elastic_attention import attach
from elastic_attention.errors import AdapterError, RouterMismatch
from tiny_models import LAYERS, elastic_config, make_model


@pytest.mark.parametrize(
    "extra, word",
    [
        ({"elastic_budget": "low"}, "low"),
        ({"elastic_routes": "some"}, f"{LAYERS} x {HEADS}"),
        ({"elastic_bugdet": 1}, "elastic_bugdet"),
    ],
)
def test_a_bad_request_is_refused_and_the_engine_goes_on(engines, extra, word):
    engine = engines()
    with pytest.raises(Exception, match=word):  # vLLM's own class, which differs between its versions
        run_engine(engine, make_prompts([20]), make_params(2, **extra))
    with pytest.raises(Exception, match="1024"):
        run_engine(engine, make_prompts([1100]), make_params(2))
    assert len(run_engine(engine, make_prompts([20]), make_params(2))[0][0]) == 2


@pytest.fixture
def refuse(served, engines):
    """Starting an engine must raise this."""
    engines.close()

    def check(error, word, **options):
        with pytest.raises(error, match=word):
            Engines(served)(**options)

    return check


def test_settings_that_do_not_fit(refuse, tmp_path):
    refuse(ValueError, "router", serving={"router": "x"})
    refuse(ValueError, "guess", serving={"policy": "guess"})
    refuse(ValueError, "first_chunk_tokens", serving={"policy": "first_chunk", "first_chunk_tokens": 96})
    refuse(AdapterError, "nowhere", serving={"routers": str(tmp_path / "nowhere")})


def test_flags_that_do_not_fit(refuse):
    refuse(ValueError, "--block-size 64", block_size=2 * BLOCK)
    refuse(ValueError, "--kv-cache-dtype", kv_cache_dtype="fp8")
    refuse(ValueError, "--kv-transfer-config", kv_transfer_config={"kv_connector": "Any", "kv_role": "kv_both"})
    refuse(ValueError, "--kv-offloading-size", kv_offloading_size=1.0)
    refuse(ValueError, "--enable-dbo", enable_dbo=True)
    refuse(ValueError, "--ubatch-size", ubatch_size=2)
    refuse(ValueError, "--prefill-context-parallel-size", prefill_context_parallel_size=2)
    refuse(ValueError, "--worker-cls", worker_cls="vllm.v1.worker.cpu_worker.CPUWorker")


def test_the_adapter_of_another_model(refuse, served, tmp_path):
    other = make_model("llama")
    attach(other, elastic_config(other)).save_pretrained(tmp_path / "other")
    refuse(RouterMismatch, "head_dim: routers want 16, the model has 32", serving={"routers": str(tmp_path / "other")})
    broken = tmp_path / "broken"
    shutil.copytree(served.routers, broken)
    (broken / "elastic_routers.safetensors").write_bytes(b"nothing")
    refuse(AdapterError, "damaged", serving={"routers": str(broken)})
