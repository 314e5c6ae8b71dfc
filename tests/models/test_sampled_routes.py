"""`routed_by` with sampling: the forward that training differentiates."""

import pytest
import torch

from elastic_attention.router import RouteNoise, RouteSampler
from oracle_model import OracleModel
from tiny_models import LAYERS, attach_tiny, elastic_config, left_padded, make_model, random_routes, text


def gradients(model, handle, *, use_checkpointing, ids, mask=None, seed=0):
    """Loss and gradients of routers and model, routes sampled with noise of (seed, step, sample ids)."""
    model.train()
    if use_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    handle.routers.requires_grad_(True)
    noise = RouteNoise(seed=seed, step=0, sample_ids=torch.arange(len(ids)))
    sampler = RouteSampler(noise=noise, temperature=1.0)
    with handle.routed_by(lambda i, pooled: handle.routers[i](pooled, layer=i, sampler=sampler)) as record:
        loss = model(ids, attention_mask=mask, use_cache=False).logits.float().logsumexp(-1).mean()
        routes = record.stack()
        (loss + routes.mean()).backward()
    parameters = [*handle.routers.parameters(), *model.parameters()]
    return routes.detach(), [loss.detach(), *(p.grad.clone() for p in parameters)]


@pytest.mark.parametrize("is_padded", [False, True])
def test_gradient_checkpointing_is_bit_equal(is_padded):
    ids, mask, _ = left_padded([text(111), text(80, seed=3)]) if is_padded else (text(111, rows=2), None, None)
    results = []
    for use_checkpointing in (False, True):
        model = make_model()
        results.append(gradients(model, attach_tiny(model), use_checkpointing=use_checkpointing, ids=ids, mask=mask))
    assert torch.equal(results[0][0], results[1][0]) and 0 < results[0][0].mean() < 1
    for plain, checkpointed in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(plain, checkpointed)


def test_every_router_learns_and_the_record_is_differentiable(model, handle):
    _, grads = gradients(model, handle, use_checkpointing=False, ids=text(111, rows=2))
    routers = grads[1 : 1 + len(list(handle.routers.parameters()))]
    assert all(g.abs().sum() > 0 for g in routers)


@torch.no_grad()
def test_hard_routes_say_what_inference_says(model, handle):
    """Training and inference are one forward: float routes of 0 and 1 give what the same bool routes give."""
    routes = random_routes(model, batch=2)
    with handle.routed_by(lambda i, pooled: routes[:, i].float()) as record:
        blended = model(text(111, rows=2), use_cache=False).logits
    assert torch.equal(record.stack(), routes.float()) and handle.report()["msr"] == pytest.approx(
        routes.float().mean((1, 2)).tolist()
    )
    handle.set_routes(routes)
    torch.testing.assert_close(model(text(111, rows=2), use_cache=False).logits, blended, rtol=0, atol=2e-4)
    plain = make_model()
    wanted = OracleModel(plain, elastic_config(plain)).logits(text(111, rows=2), routes)
    torch.testing.assert_close(blended, wanted, rtol=0, atol=2e-4)


def test_route_gradient_by_finite_differences(model, handle):
    model.double()
    index, routes = (1, 0), torch.full((1, LAYERS, 2), 0.5, dtype=torch.float64)

    def loss(at):
        moved = routes.clone()
        moved[0, index[0], index[1]] += at
        with handle.routed_by(lambda i, pooled: moved[:, i].requires_grad_()) as record:
            value = model(text(111), use_cache=False).logits.logsumexp(-1).mean()
        return value, record.routes[index[0]]

    value, leaf = loss(0.0)
    (grad,) = torch.autograd.grad(value, leaf)
    with torch.no_grad():
        slope = (loss(1e-2)[0] - loss(-1e-2)[0]) / 2e-2
    # Llama's norms round to float32 even in a float64 model, hence the coarse step.
    assert grad[0, index[1]].item() == pytest.approx(slope.item(), rel=2e-3) and abs(slope) > 1e-4


@torch.no_grad()
def test_the_router_sees_only_the_prompt(model, handle):
    """`prompt_lengths` leaves the answer out of the pooled keys; padding never counts."""
    seen = []

    def note(index, pooled):
        seen.append(pooled)
        return torch.zeros(pooled.shape[:2])

    ids, mask, _ = left_padded([text(111), text(70, seed=2)])
    with handle.routed_by(note, prompt_lengths=torch.tensor([80, 50])):
        model(ids, attention_mask=mask, use_cache=False)
    for b, (row, n) in enumerate(((text(111), 80), (text(70, seed=2), 50))):
        with handle.routed_by(note):
            model(row[:, :n], use_cache=False)
        for layer in range(LAYERS):
            torch.testing.assert_close(seen[layer][b], seen[LAYERS * (1 + b) + layer][0], rtol=0, atol=1e-5)


def test_sampling_over_a_cache_is_refused(model, handle):
    with pytest.raises(ValueError, match="use_cache=False"), handle.routed_by(lambda i, p: torch.zeros(p.shape[:2])):
        model(text(111))
    model(text(111), use_cache=False)  # the handle works on


def test_routed_by_restores_what_was_there(model, handle):
    handle.set_routes("sparse")
    with pytest.raises(KeyError), handle.routed_by(lambda i, p: torch.zeros(p.shape[:2])):
        raise KeyError
    model(text(111), use_cache=False)
    assert handle.report()["msr"] == [1.0]
