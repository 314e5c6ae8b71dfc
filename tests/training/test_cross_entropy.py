import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elastic_attention.models.answers import IGNORED
from elastic_attention.training.cross_entropy import linear_cross_entropy


def make_inputs(tokens=37, width=16, vocabulary=101, dtype=torch.float64, ignored=0.4):
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    targets[torch.rand(tokens) < ignored] = IGNORED
    return hidden, weight, targets


def torch_loss(hidden, weight, targets):
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def gradients(loss, weights, *inputs):
    return torch.autograd.grad((loss * weights).sum(), inputs)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 22, 1024])
@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
def test_loss_and_gradients_are_those_of_torch(chunk_tokens, ignored):
    hidden, weight, targets = make_inputs(ignored=ignored)
    losses = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens)
    expected = torch_loss(hidden, weight, targets)
    torch.testing.assert_close(losses, expected)
    token_weights = torch.rand(len(targets), dtype=torch.float64)
    for mine, theirs in zip(
        gradients(losses, token_weights, hidden, weight),
        gradients(expected, token_weights, hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_gradcheck():
    hidden, weight, targets = make_inputs(tokens=7, width=3, vocabulary=11)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, chunk_tokens=3), (hidden, weight), raise_exception=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_no_worse_than_torch(dtype):
    """Error against float64 at most that of torch's own loss on the same inputs, and rounding."""
    hidden, weight, targets = make_inputs(tokens=64, width=64, vocabulary=300, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    token_weights = torch.rand(64)
    losses, theirs, reference = (
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=20),
        torch_loss(hidden, weight, targets),
        torch_loss(*exact, targets),
    )
    assert losses.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    error, own = (losses - reference).abs().max(), (theirs - reference).abs().max()
    assert error <= own + rounding * reference.abs().max()
    mine = gradients(losses, token_weights, hidden, weight)
    other = gradients(theirs, token_weights, hidden, weight)
    wanted = gradients(reference, token_weights.double(), *exact)
    for a, b, c in zip(mine, other, wanted, strict=True):
        assert a.dtype == dtype
        assert (a - c).abs().max() <= (b - c).abs().max() + 4 * rounding * c.abs().max()


def test_equal_calls_give_equal_bits():
    hidden, weight, targets = make_inputs(dtype=torch.float32)
    results = []
    for _ in range(2):
        losses = linear_cross_entropy(hidden, weight, targets, chunk_tokens=8)
        results.append([losses.detach(), *gradients(losses, 1.0, hidden, weight)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_frozen_weight_gets_no_gradient():
    hidden, weight, targets = make_inputs()
    losses = linear_cross_entropy(hidden, weight.detach(), targets)
    losses.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[targets == IGNORED].any()


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_memory_never_holds_all_logits():
    hidden, weight, targets = make_inputs(tokens=512, width=8, vocabulary=1000, dtype=torch.float32, ignored=0.0)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight.detach(), targets, chunk_tokens=16).sum().backward()
    assert largest.numel == 16 * 1000
    with LargestTensor() as largest:
        torch_loss(hidden, weight, targets)
    assert largest.numel == 512 * 1000  # the test can see them


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden \(2, 3, 4\)"),
        ({"weight": torch.zeros(5, 9)}, r"weight \(5, 9\)"),
        ({"targets": torch.zeros(4, dtype=torch.long)}, r"targets \(4,\) must be \(3,\)"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.bfloat16)}, "of the dtype of weight"),
        ({"chunk_tokens": 0}, "chunk_tokens=0"),
    ],
)
def test_bad_inputs(change, said):
    inputs = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "targets": torch.zeros(3, dtype=torch.long)}
    inputs |= {"chunk_tokens": 8} | change
    with pytest.raises(ValueError, match=said):
        linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["targets"], chunk_tokens=inputs["chunk_tokens"])
