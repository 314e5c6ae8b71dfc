"""A whole model on a GPU: the fused kernels and the page pool against the plain path on the same device."""

import pytest
import torch

from captured_caches import CASES, run_cases
from elastic_attention import XAttentionConfig
from elastic_attention.models.captured import CapturedDecoder, SamplingConfig, generate_captured
from elastic_attention.models.replay import record_graph
from elastic_attention.types import HeadRoutes
from tiny_models import attach_tiny, elastic_config, left_padded, make_model, random_routes, text

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NEW = 40


def padded_batch(model):
    ids, mask, _ = left_padded([text(150, seed=s)[:, :n] for s, n in enumerate([150, 70, 47])])
    return ids.to(model.device), mask.to(model.device), random_routes(model, batch=3)


def generate(model, ids, mask, **options):
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("decode", ["sparse", "full"])
def test_triton_says_what_the_plain_path_says(family, decode):
    model = make_model(family).cuda()
    ids, mask, routes = padded_batch(model)
    said = []
    for backend in ("cpu", "triton"):
        handle = attach_tiny(model, backend=backend, decode=decode)
        handle.set_routes(routes)
        whole = generate(model, ids, mask)
        chunked = generate(model, ids, mask, prefill_chunk_size=64)
        beams = generate(model, ids, mask, num_beams=3)
        said.append((whole, chunked, beams, handle.report()["kv_bytes"]))
        handle.detach()
    for plain, fused in zip(*said, strict=True):
        assert torch.equal(plain, fused) if isinstance(plain, torch.Tensor) else plain == fused


def test_routes_are_those_of_the_cpu():
    model = make_model()
    handle = attach_tiny(model)
    model(text(150, rows=3))
    wanted = handle.report()["routes"]
    handle.detach()
    handle = attach_tiny(model.cuda())
    model(text(150, rows=3).cuda(), use_cache=True)
    assert handle.backend == "triton" and torch.equal(handle.report()["routes"], wanted)


XATTENTION = dict(
    num_sink_tokens=None, local_window=None, block_size=None, sparse_pattern=XAttentionConfig(block_size=16, stride=4)
)


@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("changes", [{}, XATTENTION], ids=["streaming", "xattention"])
def test_a_prefill_never_waits(backend, changes):
    model = make_model().cuda().bfloat16()
    handle = attach_tiny(model, config=elastic_config(model, **changes), backend=backend)
    ids = text(200, rows=2).cuda()
    with torch.no_grad():
        model(ids, use_cache=True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(ids, use_cache=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert handle.report()["prompt_tokens"] == [200, 200]


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("is_given", [True, False])
def test_replayed_steps_say_what_plain_ones_say(decode, is_given):
    model = make_model().cuda()
    ids, mask, routes = padded_batch(model)
    if not is_given:  # rows too short for routers would stay open, and their steps plain
        ids, mask, _ = (x.cuda() for x in left_padded([text(150, seed=s)[:, :n] for s, n in enumerate([150, 90, 101])]))
    handle = attach_tiny(model, decode=decode)
    handle.set_routes(routes if is_given else None)
    said = []
    for handle.replays_steps in (False, True):
        greedy, books = generate(model, ids, mask), handle.report()
        del books["kv_bytes_allocated"]  # pages are taken ahead
        said.append((greedy, books.pop("routes"), books, generate(model, ids, mask, num_beams=3)))
    for plain, replayed in zip(*said, strict=True):
        assert torch.equal(plain, replayed) if isinstance(plain, torch.Tensor) else plain == replayed


@pytest.mark.parametrize("decode", ["sparse", "full"])
def test_a_captured_step_says_what_generate_says(decode):
    model = make_model().cuda()
    ids, mask, routes = padded_batch(model)
    handle = attach_tiny(model, decode=decode)
    handle.set_routes(routes)
    wanted, books = generate(model, ids, mask), handle.report()
    got = generate_captured(handle, ids, mask, max_new_tokens=NEW)
    assert torch.equal(got, wanted)
    report = handle.report()
    for name in ("prompt_tokens", "esr_decode", "kv_bytes", "kv_bytes_read"):
        assert report[name] == pytest.approx(books[name])


@pytest.mark.parametrize("decode", ["sparse", "full"])
def test_one_graph_serves_every_length_and_routing(decode):
    model = make_model().cuda()
    handle = attach_tiny(model, decode=decode)
    wanted, got = run_cases(model, handle, CapturedDecoder, num_new=NEW)
    for name in CASES:
        assert torch.equal(got[name], wanted[name]), name


def test_sampling_in_the_graph_stays_inside_top_k():
    model = make_model().cuda()
    attach_tiny(model).set_routes("sparse")
    handle = model._elastic_handle
    ids = text(100, rows=2).cuda()
    greedy = generate_captured(handle, ids, max_new_tokens=8)
    assert torch.equal(
        generate_captured(handle, ids, max_new_tokens=8, sampling=SamplingConfig(do_sample=True, top_k=1)), greedy
    )
    torch.manual_seed(0)
    draws = {
        tuple(generate_captured(handle, ids, max_new_tokens=8, sampling=SamplingConfig(do_sample=True))[0].tolist())
        for _ in range(3)
    }
    assert len(draws) == 3


def test_a_capture_that_the_host_breaks_leaves_no_pool_open():
    device, side = torch.device("cuda", torch.cuda.current_device()), torch.cuda.Stream()
    x = torch.ones(4, device=device)

    def count_bytes():
        return torch.cuda.memory_stats()["active_bytes.all.current"]

    before = count_bytes()
    with pytest.raises(RuntimeError):
        record_graph(device, lambda: (torch.empty(1 << 22, device=device), x.sum().item()))
    shared = torch.ones(1 << 22, device=device)
    shared.record_stream(side)
    del shared
    torch.cuda.synchronize()
    torch.empty(1 << 22, device=device)  # who asks for memory collects what streams are done with
    assert count_bytes() == before
    graph, doubled = record_graph(device, lambda: x * 2)
    graph.replay()
    assert doubled.tolist() == [2.0] * 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_routes_of_another_gpu_are_waited_for():
    with torch.cuda.device(1):
        values = torch.zeros(2, 4, dtype=torch.bool, device="cuda")
        torch.cuda._sleep(10**9)  # the decision is still to come when the copy is asked for
        values.fill_(True)
    assert HeadRoutes(values).host().all()  # the present GPU is the first


def test_hopper_agrees_with_triton():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs capability 9")
    model = make_model(head_dim=64).cuda().bfloat16()
    outs = []
    for backend in ("triton", "hopper"):
        handle = attach_tiny(model, backend=backend)
        handle.set_routes(random_routes(model))
        with torch.no_grad():
            outs.append(model(text(300).cuda(), use_cache=True).logits.float())
        handle.detach()
    assert (outs[0] - outs[1]).norm() < 0.02 * outs[0].norm()
