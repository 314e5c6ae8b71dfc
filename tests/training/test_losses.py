import torch

from elastic_attention.models.answers import Row, collate_rows, score_answers
from elastic_attention.training.losses import LOSSES, measure_distillation
from tiny_models import attach_tiny, random_routes, text


def make_batch():
    rows = [Row("k", "a", 0, text(90)[0].tolist(), [5, 6]), Row("k", "a", 1, text(70, seed=2)[0].tolist(), [7, 8, 9])]
    return collate_rows(rows, pad=0)


def test_distillation_is_the_distance_at_the_predicting_positions(model):
    handle, batch = attach_tiny(model), make_batch()
    with torch.no_grad():
        handle.set_routes("full")
        dense = model.base_model(batch.input_ids, use_cache=False).last_hidden_state
        handle.set_routes(random_routes(model))
        routed = model.base_model(batch.input_ids, use_cache=False).last_hidden_state
        found = measure_distillation(handle, batch)
    distance = (routed - dense).square().mean(-1)
    wanted = torch.stack([distance[0, 89:91].mean(), distance[1, 69:72].mean()])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)
    assert (found > 0).all()


def test_distillation_of_full_heads_is_zero_and_no_gradient_reaches_the_reference(model):
    handle, batch = attach_tiny(model), make_batch()
    model.requires_grad_(False)
    routes = torch.zeros(2, 2, requires_grad=True)
    with handle.routed_by(lambda index, pooled: routes, prompt_lengths=batch.prompt_lengths) as record:
        losses = measure_distillation(handle, batch)
    assert losses.max() < 1e-8 and len(record.routes) == 3  # the dense pass leaves no trace
    with handle.routed_by(lambda index, pooled: routes + 0.5, prompt_lengths=batch.prompt_lengths):
        measure_distillation(handle, batch).sum().backward()
    assert routes.grad.abs().sum() > 0


def test_lm_loss_is_that_of_the_answers(model):
    handle, batch = attach_tiny(model), make_batch()
    handle.set_routes("sparse")
    with torch.no_grad():
        assert torch.equal(LOSSES["lm"](handle, batch), score_answers(model, batch)[0])
