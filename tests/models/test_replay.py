"""`generate` that replays its steps; on a CPU the graph is one that runs its step when it is replayed."""

import pytest
import torch
from transformers import DynamicCache

from elastic_attention.models import generation, replay
from elastic_attention.models.handle import Handle
from tiny_models import attach_tiny, make_model, text


class EagerGraph:
    """Runs its step when it is replayed, and takes back what the host counted."""

    made = 0

    def __init__(self, handle, run, output, cache):
        self.handle, self.run, self.output, self.cache = handle, run, output, cache
        type(self).made += 1

    def replay(self):
        with torch.no_grad(), self.handle.without_books():
            self.output.logits.copy_(self.run().logits)
        for layer in self.cache.layers:
            layer.advance(-1)


@pytest.fixture
def handle(monkeypatch):
    monkeypatch.setattr(Handle, "_is_paged", lambda self: True)
    handle = attach_tiny(make_model())

    def record(device, run):
        # A capture launches nothing: what the device would know afterwards is what it knew before.
        captured = find_cell(run, "self")
        before = [layer.store.device_lengths.clone() for layer in captured._cache.layers]
        output = run()
        for layer, lengths in zip(captured._cache.layers, before, strict=True):
            layer.store.device_lengths.copy_(lengths)
        return EagerGraph(handle, run, output, captured._cache), output

    monkeypatch.setattr(replay, "record_graph", record)
    monkeypatch.setattr(generation, "can_capture", lambda device: True)
    EagerGraph.made = 0
    return handle


def find_cell(function, name):
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents


def ask(handle, is_replayed, **options):
    handle.replays_steps = is_replayed
    padded, mask = text(120, rows=3), torch.ones(3, 120, dtype=torch.long)
    mask[1, :30] = mask[2, :7] = 0
    answer = handle.model.generate(padded, attention_mask=mask, **({"do_sample": False} | options))
    return answer, handle.report()


@pytest.mark.parametrize("routes", ["sparse", "full", None])
@pytest.mark.parametrize("reserved", [5, 128])
def test_answers_and_books_are_the_same(handle, monkeypatch, routes, reserved):
    monkeypatch.setattr(replay, "_RESERVED", reserved)
    handle.set_routes(routes)
    (wanted, books), (got, found) = (ask(handle, is_on, max_new_tokens=40) for is_on in (False, True))
    assert torch.equal(got, wanted)
    assert EagerGraph.made == -(-38 // reserved)
    allocated = books.pop("kv_bytes_allocated"), found.pop("kv_bytes_allocated")  # pages are taken ahead
    assert all(more >= less for less, more in zip(*allocated, strict=True))
    assert torch.equal(books.pop("routes"), found.pop("routes"))
    assert found == books


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_model_whose_steps_cannot_be_captured_runs_them_one_by_one(handle, monkeypatch, caplog, error):
    wanted, books = ask(handle, False, max_new_tokens=20)
    tried = []

    def refuse(device, run):
        tried.append(device)
        layers = find_cell(run, "self")._cache.layers
        layers[0].advance(1)  # the host was in the middle of the step
        raise error("Cannot copy between CPU and CUDA tensors during CUDA graph capture")

    monkeypatch.setattr(replay, "record_graph", refuse)
    got, found = ask(handle, True, max_new_tokens=20)
    assert torch.equal(got, wanted) and len(tried) == 1
    lasts = error is RuntimeError  # of memory there may be more for the next answer
    assert handle.replays_steps is not lasts and caplog.text.count("none can be captured") == lasts
    for report in (books, found):
        del report["kv_bytes_allocated"]  # pages are taken ahead
    assert torch.equal(books.pop("routes"), found.pop("routes")) and found == books


def test_the_sampled_token_is_chosen_outside(handle):
    answers = []
    for is_replayed in (False, True):
        torch.manual_seed(0)
        answers.append(ask(handle, is_replayed, max_new_tokens=20, do_sample=True, temperature=0.8)[0])
    assert torch.equal(*answers)


def test_beams_move_the_cache_and_stay_right(handle):
    wanted, got = (ask(handle, is_on, max_new_tokens=12, num_beams=3)[0] for is_on in (False, True))
    assert torch.equal(got, wanted)


def test_a_conversation_goes_on_with_the_same_cache(handle):
    turns = []
    for is_replayed in (False, True):
        handle.replays_steps = is_replayed
        cache, ids = DynamicCache(config=handle.model.config), text(100)
        for _ in range(2):
            ids = handle.model.generate(ids, past_key_values=cache, max_new_tokens=9, do_sample=False)
            ids = torch.cat([ids, text(40)], dim=1)
        turns.append(ids)
    assert torch.equal(*turns)


def test_the_model_is_itself_afterwards(handle):
    before = handle.model.forward
    assert "forward" not in handle.model.__dict__
    ask(handle, True, max_new_tokens=4)
    assert "forward" not in handle.model.__dict__ and handle.model.forward == before
