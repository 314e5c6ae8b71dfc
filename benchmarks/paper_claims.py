"""The claims of the papers at the size of small models: what to train, what to ask, and the rule of the verdict.

A claim is one `Claim` in `CLAIMS`. Its rule stands in words beside its checks, and was written before anything ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import paper_rules as rules
from paper_rules import BUDGETS, TARGETS, TRAINING_FREE, Found
from paper_statistics import Check


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a run differs from the recipe of its model; None = as there.

    Attributes:
        source: of `[routes]`, or "retrieval_heads", which ranks heads and trains nothing.
        pair: "fa_ssa", "fa_xa" or "xa_ssa".
        target: mean MSR; or the name of an entry, whose measured MSR is the target: "fa_ssa" or "fa_ssa/sensitive".
        sensitive: MSR of the sensitive categories alone, low = high as in the paper.
        pooled, width: `pooled_tokens` and `hidden_factor` of the routers.
        temperature: start and end.
        noise: `noise_end` of the temperature.
        only: train on "sensitive" or "robust" categories alone.
        is_short: train on short samples alone.
    """

    source: str = "head_router"
    pair: str = "fa_ssa"
    target: float | str | None = None
    sensitive: float | None = None
    pooled: int | None = None
    width: int | None = None
    temperature: tuple[float, float] | None = None
    noise: float | None = None
    only: str | None = None
    is_short: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Who answers, under which name; `method` is a word of `METHODS`.

    Attributes:
        has_triangle: sparse heads are asked with the triangle of the streaming pattern that they were trained with.
    """

    name: str
    method: str = "routed"
    training: Training | None = None
    seeds: int = 1
    decode: str = "sparse"
    budget: float = 0.0
    has_triangle: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim, what has to be trained and asked for it, and how the answers decide.

    Attributes:
        paper: figure or table.
        rule: the checks in words.
        suites: of `tasks.suite`, each at all lengths of the model's scale.
        figures: of `paper_figures.MEASURES`, where something is measured that is no score.
    """

    title: str
    paper: str
    rule: str
    entries: Sequence[Entry]
    judge: Callable[[Found], list[Check]]
    suites: tuple[str, ...] = ("mixture",)
    figures: str | None = None


DENSE = Entry(name="dense", method="dense")
SSA, XA = Training(), Training(pair="fa_xa")
FA_SSA = Entry(name="fa_ssa", training=SSA, seeds=3)
FA_XA = Entry(name="fa_xa", training=XA)
ONE = Entry(name="fa_ssa", training=SSA)


def _train(name: str, **differences: object) -> Entry:
    return Entry(name=name, training=Training(**differences))  # type: ignore[arg-type]


def _mask(name: str, target: float | str, *, seeds: int = 1, source: str = "static") -> Entry:
    return Entry(name=name, method="static", training=Training(source=source, target=target), seeds=seeds)


SPOKEN = ("ruler", "almanac")
STATIC = _mask("static", "fa_ssa", seeds=3)
BASELINES = (
    DENSE,
    FA_SSA,
    FA_XA,
    _mask("prulong", "fa_ssa", source="hard_concrete"),
    _mask("duo", "fa_ssa", source="alpha"),
)

CLAIMS: dict[str, Claim] = {
    "retention": Claim(
        title="Routed heads keep the quality of full attention",
        paper="Elastic, Tab. 1 and 8",
        rule="FA-SSA >= .98 of dense at MSR >= .75, 3 seeds",
        entries=(DENSE, FA_SSA),
        judge=rules.judge_retention,
    ),
    "methods": Claim(
        title="Routed heads beat static masks on the kinds that sparsity hurts",
        paper="Elastic, Tab. 1 and 8",
        rule="FA-SSA above a static mask on sensitive kinds, 3 seeds of each",
        entries=(DENSE, FA_SSA, STATIC, _mask("static_on_kind", "fa_ssa/sensitive", seeds=3)),
        judge=rules.judge_methods,
    ),
    "baselines": Claim(
        title="So do they against published static methods, and with XAttention as the sparse half",
        paper="Elastic, Tab. 1",
        rule="FA-XA >= .99 of dense; FA-SSA above PruLong's and DuoAttention's masks on sensitive kinds",
        entries=BASELINES,
        judge=rules.judge_baselines,
    ),
    "training_free": Claim(
        title="Routed heads are above sparse methods that train nothing",
        paper="Elastic, Tab. 1",
        rule="FA-SSA above each of them",
        entries=(DENSE, ONE, *(Entry(name=name, method=name) for name in TRAINING_FREE)),
        judge=rules.judge_training_free,
    ),
    "kinds": Claim(
        title="The same on a suite of LongBench's shape",
        paper="Elastic, Tab. 1 and 8",
        rule="as retention and methods",
        suites=("almanac",),
        entries=(DENSE, FA_SSA, STATIC),
        judge=rules.judge_kinds,
    ),
    "separation": Claim(
        title="Kinds whose answer stands anywhere in the text get fewer sparse heads",
        paper="Elastic, Fig. 7 and 13",
        rule="held-out samples, 3 seeds: MSR of robust kinds is above that of sensitive ones, by .10 or more",
        entries=(FA_SSA,),
        judge=rules.judge_separation,
    ),
    "static_msr": Claim(
        title="Static sparsity costs sensitive kinds much and robust kinds little",
        paper="Elastic, Fig. 2 and Tab. 5",
        rule="heads ranked by needles: sensitive kinds fall by > .20 from MSR .1 to .7 and keep < .85, robust >= .85",
        entries=(DENSE, *(_mask(f"heads_{t}", t, source="retrieval_heads") for t in (0.1, 0.3, 0.5, 0.7, 0.9))),
        judge=rules.judge_static_msr,
    ),
    "length": Claim(
        title="Routers that were trained on short samples hold at longer ones",
        paper="Elastic, Tab. 2 and 10",
        rule=">= .95 of dense at every length, FA-SSA and FA-XA",
        suites=("ruler",),
        entries=(DENSE, _train("fa_ssa", is_short=True), _train("fa_xa", pair="fa_xa", is_short=True)),
        judge=rules.judge_length,
    ),
    "quality_esr": Claim(
        title="At equal sparsity routed heads are above static masks",
        paper="Elastic, Fig. 1 and 8",
        rule="routed - static > 0 at each target",
        entries=(
            DENSE,
            *(e for t in TARGETS for e in (_train(f"routed_{t}", target=t), _mask(f"static_{t}", t))),
        ),
        judge=rules.judge_quality_esr,
    ),
    "head_maps": Claim(
        title="Some heads change with the task, some never do",
        paper="Elastic, Fig. 6",
        rule=">= .1 of the heads change by .5 between categories, >= .1 by less than .1",
        entries=(ONE,),
        judge=rules.judge_head_maps,
        figures="head_maps",
    ),
    "map_overlap": Claim(
        title="The map of one kind of task is part of the map of all",
        paper="Elastic, Fig. 11",
        rule="on sensitive kinds, routers of all kinds and of those alone agree better than chance by .05",
        entries=(ONE, _train("sensitive_only", only="sensitive")),
        judge=rules.judge_map_overlap,
        figures="map_overlap",
    ),
    "task_similarity": Claim(
        title="The task MLP makes tasks less alike",
        paper="Elastic, Fig. 5 and 9",
        rule="the mean cosine between tasks falls, by .1 or more",
        entries=(ONE,),
        suites=(),
        judge=rules.judge_task_similarity,
        figures="task_similarity",
    ),
    "target_sweep": Claim(
        title="A lower target for sensitive kinds sets kinds further apart and keeps more",
        paper="Elastic, Fig. 7",
        rule="separation .4 > .7; sensitive kinds at .4 no worse by .02; .99 of dense at .4",
        entries=(DENSE, *(_train(f"target_{t}", sensitive=t) for t in (0.4, 0.5, 0.6, 0.7))),
        judge=rules.judge_target_sweep,
    ),
    "temperature": Claim(
        title="Cooling the samples of the routers helps",
        paper="Elastic, Eq. 14",
        rule="cooling to 1.0 and to 0.4 are each above a constant 1.5",
        entries=(
            DENSE,
            # With all of the noise, as in the papers; less of it in the end cools as well.
            *(
                _train(name, temperature=(1.5, end), noise=1.0)
                for name, end in (("to_0.4", 0.4), ("constant", 1.5), ("to_1.0", 1.0))
            ),
        ),
        judge=rules.judge_temperature,
    ),
    "width": Claim(
        title="The width of the routers matters little",
        paper="Elastic, Tab. 3",
        rule="2d, 6d and 8d within .03 of 4d",
        entries=(
            DENSE,
            Entry(name="width_4", training=SSA),  # what the recipes have
            *(_train(f"width_{width}", width=width) for width in (2, 6, 8)),
        ),
        judge=rules.judge_width,
    ),
    "pooling": Claim(
        title="A hundred tokens at each end are enough",
        paper="Elastic, Fig. 14",
        rule="200 within .02 of 100; neither 50 nor the whole prompt better than 100 by .02",
        entries=(
            DENSE,
            *(
                _train(f"pooled_{name}", pooled=tokens)
                for name, tokens in (("50", 50), ("100", 100), ("200", 200), ("all", 16_384))
            ),
        ),
        judge=rules.judge_pooling,
    ),
    "xa_ssa": Claim(
        title="Without any full attention quality stays close",
        paper="Elastic, Tab. 4",
        rule="XA-SSA >= .95 of dense and within .03 of FA-SSA",
        entries=(DENSE, ONE, _train("xa_ssa", pair="xa_ssa")),
        judge=rules.judge_xa_ssa,
    ),
    "layer_routing": Claim(
        title="Whole layers can be routed, and decode sparse",
        paper="Flux Attention",
        rule=">= .97 of dense; sparse decode within .02 of full; above a static mask on sensitive kinds",
        suites=("ruler",),
        entries=(
            DENSE,
            _train("flux", source="layer_router"),
            Entry(name="flux_full", training=Training(source="layer_router"), decode="full"),
            _mask("static", "flux"),
        ),
        judge=rules.judge_layer_routing,
    ),
    "budget": Claim(
        title="One number trades quality for sparsity without training",
        paper="not in the papers",
        rule="MSR rises with every step of the budget; the lowest budget is no worse than 0 by .02",
        entries=(DENSE, *(Entry(name=f"budget_{b}", training=SSA, budget=b) for b in BUDGETS)),
        judge=rules.judge_budget,
    ),
    "probe": Claim(
        title="Routes from a short pass over both ends are as good as exact ones",
        paper="not in the papers",
        rule=">= .9 of the routes agree, quality within .02",
        entries=(DENSE, ONE),
        judge=rules.judge_probe,
        figures="probe",
    ),
    "decode": Claim(
        title="Sparse reading while decoding costs nothing beyond sparse prefill",
        paper="not in the papers",
        rule="sparse within .02 of full decode on sensitive and on robust kinds",
        suites=SPOKEN,
        entries=(DENSE, ONE, Entry(name="fa_ssa_full", training=SSA, decode="full")),
        judge=rules.judge_decode,
    ),
    "exchange": Claim(
        title="Routers of streaming heads gain when the prompt's last queries read everything",
        paper="not in the papers",
        rule="trained with FA-SSA and asked with FA-TA: above FA-SSA, and >= .98 of dense",
        entries=(DENSE, ONE, Entry(name="fa_ta", training=SSA, has_triangle=True)),
        judge=rules.judge_exchange,
    ),
}
