"""Five hundred requests that come, go and are aborted at random: every answer right, nothing left behind."""

import os
import random
from pathlib import Path

from served_models import make_params, make_prompts, run_reference
from test_exact import MIXED

REQUESTS, CONCURRENCY, ABORTED = 500, 16, 25
KINDS = [{}, {}, {"elastic_budget": 0.5}, {"elastic_routes": "off"}, {"elastic_routes": MIXED}]


def read_resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def draw(chooser, prompts):
    return chooser.randrange(len(prompts)), chooser.choice(KINDS), chooser.choice([1, 6, 14, 30])


def test_five_hundred_requests(engines, served):
    engine = engines(
        enable_prefix_caching=True, max_num_batched_tokens=192, max_num_seqs=12, num_gpu_blocks_override=96
    )
    core = engine.llm_engine.engine_core.engine_core
    scheduler, books = core.scheduler, core.model_executor.driver_worker.worker._engine.books
    chooser, llm = random.Random(9), engine.llm_engine
    prompts = make_prompts([chooser.randint(20, 400) for _ in range(40)], seed=31)
    todo = [draw(chooser, prompts) for _ in range(REQUESTS)]
    doomed = {name: chooser.randrange(8) for name in chooser.sample(range(REQUESTS), ABORTED)}  # steps that are left
    running, results, aborted, resident = {}, {}, set(), []
    while todo or running:
        while todo and len(running) < CONCURRENCY:
            index, extra, new = todo.pop()
            name = str(len(todo))
            new = 30 if len(todo) in doomed else new
            prompt = {"prompt_token_ids": prompts[index]}
            llm.add_request(name, prompt, make_params(new, **extra))
            running[name] = (index, extra, new)
        for name in [name for name in running if int(name) in doomed]:
            doomed[int(name)] -= 1
            if doomed[int(name)] < 0:
                llm.abort_request([name])
                aborted.add(name)
                running.pop(name)
        for output in llm.step():
            if output.finished and output.request_id in running:
                results[output.request_id] = (*running.pop(output.request_id), output)
                resident.append(read_resident_bytes())
    assert len(results) + len(aborted) == REQUESTS and len(aborted) == ABORTED
    expected = {}
    for index, extra, new, output in results.values():
        key = (index, str(extra))
        if key not in expected:
            expected[key] = run_reference(served, prompts[index], 30, **extra)[0]
        assert list(output.outputs[0].token_ids) == expected[key][:new], (len(prompts[index]), extra)
    core.step()  # the last ones that finished leave the workers
    assert not books.requests and books.num_seated == 0
    assert not scheduler._plans and not scheduler._num_sparse and not scheduler.requests
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one is vLLM's own null block
    early, late = max(resident[150:200]), max(resident[-50:])
    assert late - early < 16 << 20, (early, late)
