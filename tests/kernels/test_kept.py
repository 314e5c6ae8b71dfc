import torch
from torch.utils.checkpoint import checkpoint

from elastic_attention.kernels.kept import compute_once, keep_results

CALLS = []


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        def compute():
            CALLS.append(x.detach().clone())
            return x * x, 2 * x

        out, slope = compute_once(compute)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def layer(x):
    return Square.apply(Square.apply(x) + 1).sin()


def run(**options):
    CALLS.clear()
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    y = x
    for _ in range(2):  # two layers, each with results of its own
        y = checkpoint(layer, y, use_reentrant=False, **options)
    y.sum().backward()
    return y.detach(), x.grad, len(CALLS)


def test_what_is_kept_is_not_computed_again():
    plain, gradient, calls = run()
    kept, kept_gradient, kept_calls = run(context_fn=keep_results)
    assert (calls, kept_calls) == (8, 4)
    assert torch.equal(plain, kept) and torch.equal(gradient, kept_gradient)


def test_nothing_is_kept_outside():
    CALLS.clear()
    Square.apply(torch.ones(1, requires_grad=True))
    Square.apply(torch.ones(1, requires_grad=True))
    assert len(CALLS) == 2
