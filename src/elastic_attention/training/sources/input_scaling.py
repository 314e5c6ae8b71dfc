"""What routers read, brought to mean 0 and about unit covariance in every layer while they learn.

Keys and queries may carry biases a hundred times larger than what tells one prompt from another. A router that reads
them as they are saturates before it has seen the difference, and each step of its first layer moves along the bias.
"""

import torch
from torch import Tensor, nn

from ...errors import RecipeError


class InputScaling:
    """x -> (x - shift) @ matrix in each layer.

    Attributes:
        is_fitted: False until `fit` or `load`.
        shift: (L, D) float32.
        matrix: (L, D, D) float32, symmetric.
    """

    def __init__(self, num_layers: int, width: int, device: torch.device) -> None:
        self.is_fitted = False
        self.shift = torch.zeros(num_layers, width, device=device)
        self.matrix = torch.eye(width, device=device).repeat(num_layers, 1, 1)

    def __call__(self, row: int, pooled: Tensor) -> Tensor:
        """Scaled inputs of the routed layer `row`, (B, G, D) -> (B, G, D) float32.

        Raises:
            RecipeError: they are not fitted.
        """
        if not self.is_fitted:
            raise RecipeError("routes.standardize: call training.fitted_inputs.fit_inputs before the first step.")
        return (pooled.float() - self.shift[row]) @ self.matrix[row]

    def fit(self, count: int, sums: Tensor, products: Tensor) -> None:
        """Take the moments of some samples.

        The difference between heads is often the largest by far. So the covariance of all inputs gets the mean variance
        within a head on its diagonal: directions that few samples show are not blown up.

        Args:
            count: samples, 2 or more.
            sums: (L, G, D) float64 of the inputs of each head.
            products: (L, D, D) float64 of their outer products, over samples and heads.
        """
        means = sums / count
        shift = means.mean(1)
        spread = means - shift[:, None]
        total = products / (count * sums.shape[1]) - shift[:, :, None] * shift[:, None]
        between = spread.mT @ spread / sums.shape[1]
        within = (total - between).diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
        values, vectors = torch.linalg.eigh(total + torch.diag_embed(within[:, None].expand(shift.shape)))
        matrix = vectors * values.clamp(min=within[:, None] / 2).rsqrt()[:, None] @ vectors.mT
        self.load(shift.float(), matrix.float())

    def load(self, shift: Tensor, matrix: Tensor) -> None:
        """Take what was fitted before."""
        self.shift, self.matrix = shift.to(self.shift.device), matrix.to(self.matrix.device)
        self.is_fitted = True

    def fold(self, row: int, first: nn.Linear) -> None:
        """Let a linear layer that learnt on the scaled inputs of `row` give the same for inputs as they are."""
        weight = first.weight.data.double() @ self.matrix[row].double()
        first.bias.data = (first.bias.data.double() - weight @ self.shift[row].double()).float()
        first.weight.data = weight.float()
