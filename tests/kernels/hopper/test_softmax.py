"""The softmax that the hopper kernel carries as PTX, run here statement by statement for the 32 threads of a warp."""

import re

import numpy as np
import pytest
import torch

softmax = pytest.importorskip("elastic_attention.kernels.hopper.softmax", exc_type=ImportError)

LANES, ROWS, COLUMNS = 32, 16, 128
TYPES = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}
Registers = dict[str, np.ndarray]


def run_ptx(text: str, registers: Registers) -> None:
    """Execute the few instructions that the kernel uses, on arrays of one number a thread."""
    statements = [part.strip() for part in re.sub(r"\bdone:", "done: ;", text.strip("{} ")).split(";")]
    place = 0
    while place < len(statements):
        name, _, rest = statements[place].partition(" ")
        place += 1
        if name in ("", ".reg", "done:"):
            continue
        if name == "@!p":
            place = place if registers["p"].any() else statements.index("done:")
            continue
        target, *names = (part.strip() for part in rest.split(","))
        given = [registers.get(n, n) for n in names]
        with np.errstate(over="ignore"):  # the sums show it
            registers[target] = execute(name, given)


def execute(name: str, given: list) -> np.ndarray:
    numbers = [np.frombuffer(bytes.fromhex(x[2:]), ">f4")[0] if str(x).startswith("0f") else x for x in given]
    kind = name.split(".")
    if kind[0] == "mov":
        return np.broadcast_to(np.float32(numbers[0]), LANES)
    if kind[0] == "ex2":
        found = np.exp2(numbers[0].astype(np.float32))
        return np.where(found < 2.0**-126, np.float32(0), found)
    if kind[0] == "cvt":
        pair = torch.from_numpy(np.stack(numbers[::-1])).to(TYPES[kind[2]])  # the lower half comes last
        return pair.float().numpy()
    if kind[0] == "setp":
        return numbers[0] > numbers[1]
    if kind[0] == "vote":
        return np.broadcast_to(numbers[0].any(), LANES)
    if kind[0] == "shfl":
        return numbers[0][np.arange(LANES) ^ int(numbers[1])]
    if kind[0] == "neg":
        return -numbers[0]
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.fmax}[kind[0]]
    return operation(*numbers).astype(np.float32)


def scatter(tile: np.ndarray) -> np.ndarray:
    """A tile (16, C) as the registers of a warp (C / 2, 32): where the tensor cores leave it."""
    i, lane = np.arange(tile.shape[1] // 2)[:, None], np.arange(LANES)
    return tile[lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2]


def draw_scores(kind: str) -> np.ndarray:
    scores = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if kind == "wild":
        scores *= np.linspace(1, 300, ROWS)[:, None]
    if kind == "one":
        scores[11, 77] = 190
    if kind == "high":
        scores[11, 77] = 40
    if kind == "hidden":
        scores[3] = scores[:, 40:] = -np.inf
    return scores.astype(np.float32)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("kind", ["calm", "wild", "one", "high", "hidden"])
def test_weights_and_sums_of_a_tile(kind: str, dtype: str) -> None:
    scores = draw_scores(kind)  # relative to the reference of each row
    registers: Registers = {f"${160 + i}": x for i, x in enumerate(scatter(scores))}
    run_ptx(softmax._write_weights(dtype), registers)
    is_redone = kind in ("wild", "one") or (kind, dtype) == ("high", "f16x2")  # float16 does not hold 2 ** 40
    growth = np.where(scores.max(1) > 0, scores.max(1), 0) if is_redone else np.zeros(ROWS)
    wanted = np.exp2(scores.astype(np.float64) - growth[:, None])
    weights = np.stack([half for i in range(32) for half in registers[f"${i}"]])
    precision = torch.finfo(TYPES[dtype]).eps
    np.testing.assert_allclose(weights, scatter(wanted), rtol=precision, atol=1e-7)
    for row, rows in ((0, slice(None, 8)), (1, slice(8, None))):
        first = [registers[f"${base + 2 * row}"] for base in (32, 96)]
        parts = wanted[rows].reshape(8, COLUMNS // 8, 4, 2).sum((1, 3))
        np.testing.assert_allclose(first[0], parts.ravel(), rtol=1e-5, atol=1e-30)
        np.testing.assert_array_equal(first[1], growth[rows].repeat(4).astype(np.float32))


@pytest.mark.parametrize("growth", [0.0, 3.0, 200.0])
@pytest.mark.parametrize("width", [64, 128])
def test_results_shrink_with_the_growth_of_their_row(width: int, growth: float) -> None:
    acc = np.random.default_rng(1).standard_normal((ROWS, width)).astype(np.float32)
    grown = np.zeros((ROWS, width), np.float32)
    grown[5] = growth
    count = width // 2
    registers: Registers = {f"${i}": x for i, x in enumerate(scatter(acc))}
    registers |= {f"${2 * count + i}": x for i, x in enumerate(scatter(grown))}
    run_ptx(softmax._write_shrink(count), registers)
    found = np.stack([registers[f"${i}"] for i in range(count)])
    np.testing.assert_allclose(found, scatter(acc * np.exp2(-grown.astype(np.float64))), rtol=1e-6, atol=1e-37)
