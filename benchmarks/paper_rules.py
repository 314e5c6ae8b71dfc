"""The rules of the verdicts: what answers and figures have to show for each claim of the papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paper_statistics import Check, Estimate, Seeds, estimate, find_mastered, is_robust, is_sensitive, pick

INF = float("inf")
ABOVE = 1e-9  # an interval that lies above zero
TRAINING_FREE = ("xattention", "triangle_mix", "infllm_v2", "moba")
TARGETS = (0.5, 0.7, 0.8, 0.9)
BUDGETS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Answers by entry, and single figures that are no answers."""

    answers: Mapping[str, Seeds]
    figures: Mapping[str, Estimate | None]

    def ratio(self, name: str, *, wanted: Callable | None = None) -> Estimate | None:
        """Score of an entry over the dense one's, where the dense model scores .50 or more."""
        return self._compare(name, "dense", "ratio", wanted)

    def difference(self, name: str, to: str, *, wanted: Callable | None = None) -> Estimate | None:
        """Score of an entry minus another's, where the dense model scores .50 or more."""
        return self._compare(name, to, "difference", wanted)

    def msr(self, name: str) -> Estimate | None:
        """Mean MSR of an entry."""
        return estimate(self.answers[name], measure=lambda line: line.msr)

    def separation(self, name: str, to: str | None = None) -> Estimate | None:
        """MSR, robust minus sensitive kinds; `to` another entry: how much further apart they are."""
        # Kinds are other samples, so each is signed and weighted so that the macro average is the difference.
        lists = [self.answers[entry] for entry in (name, to) if entry]
        cells = [
            {(x.task, x.length) for lines in lists[0] for x in lines if test(x)} for test in (is_robust, is_sensitive)
        ]
        if not all(cells):
            return None
        total = sum(map(len, cells))
        weight = {True: total / len(cells[0]), False: -total / len(cells[1])}
        return estimate(*lists, measure=lambda line: line.msr * weight[is_robust(line)])

    def _compare(self, name: str, to: str, how: str, wanted: Callable | None) -> Estimate | None:
        test = wanted or (lambda line: True)
        mastered = find_mastered(self.answers["dense"]) if "dense" in self.answers else None
        return estimate(pick(self.answers[name], test), pick(self.answers[to], test), how=how, cells=mastered)


def judge_static_msr(found: Found) -> list[Check]:
    """Fig. 2."""
    return [
        Check(
            text="sensitive kinds lose more than .20 between MSR .1 and .7",
            estimate=found.difference("heads_0.1", "heads_0.7", wanted=is_sensitive),
            at_least=0.20,
        ),
        Check(
            text="robust kinds keep .85 of dense at MSR .7",
            estimate=found.ratio("heads_0.7", wanted=is_robust),
            at_least=0.85,
        ),
        Check(
            text="sensitive kinds keep less than .85 of dense at MSR .7",
            estimate=found.ratio("heads_0.7", wanted=is_sensitive),
            at_most=0.85,
        ),
    ]


def judge_separation(found: Found) -> list[Check]:
    """Fig. 13: where the MSR of the categories ends."""
    gap = found.separation("fa_ssa")
    return [
        Check(text="robust kinds are sparser than sensitive ones", estimate=gap, at_least=ABOVE),
        Check(text="by .10 or more", estimate=gap, at_least=0.10),
    ]


def judge_retention(found: Found) -> list[Check]:
    """Tab. 1, routed beside dense."""
    return [
        Check(text="FA-SSA keeps .98 of dense", estimate=found.ratio("fa_ssa"), at_least=0.98),
        Check(text="at a suite-mean MSR of .75", estimate=found.msr("fa_ssa"), at_least=0.75),
    ]


def judge_methods(found: Found) -> list[Check]:
    """Tab. 1, routed beside static masks."""
    at_kind = "at the same MSR on these kinds"
    return [
        _beat_on_sensitive(found, "static", "a static mask", "at the same mean MSR"),
        _beat_on_sensitive(found, "static_on_kind", "a static mask", at_kind, counts=False),
    ]


def judge_kinds(found: Found) -> list[Check]:
    """Tab. 1 on another suite."""
    return [*judge_retention(found), _beat_on_sensitive(found, "static", "a static mask", "at the same mean MSR")]


def judge_baselines(found: Found) -> list[Check]:
    """Tab. 1, the trained baselines."""
    return [
        Check(text="FA-XA keeps .99 of dense", estimate=found.ratio("fa_xa"), at_least=0.99),
        _beat_on_sensitive(found, "prulong", "PruLong", "at the same mean MSR"),
        _beat_on_sensitive(found, "duo", "DuoAttention", "at the same mean MSR"),
    ]


def _beat_on_sensitive(found: Found, name: str, title: str, where: str, *, counts: bool = True) -> Check:
    gain = found.difference("fa_ssa", name, wanted=is_sensitive)
    return Check(text=f"FA-SSA beats {title} on sensitive kinds {where}", estimate=gain, at_least=ABOVE, counts=counts)


def judge_training_free(found: Found) -> list[Check]:
    """Tab. 1, the other half."""
    return [
        Check(text=f"FA-SSA is above {name}", estimate=found.difference("fa_ssa", name), at_least=ABOVE)
        for name in TRAINING_FREE
        if name in found.answers
    ]


def judge_length(found: Found) -> list[Check]:
    """Tab. 2."""
    lengths = sorted({line.length for lines in found.answers["dense"] for line in lines})
    return [
        Check(
            text=f"{name}, trained on short samples, keeps .95 of dense at {length:,} tokens",
            estimate=found.ratio(name, wanted=lambda line, length=length: line.length == length),
            at_least=0.95,
        )
        for name in ("fa_ssa", "fa_xa")
        for length in lengths
    ]


def judge_quality_esr(found: Found) -> list[Check]:
    """Fig. 1 and 8."""
    return [
        Check(
            text=f"routed is above static at a target of {target}",
            estimate=found.difference(f"routed_{target}", f"static_{target}"),
            at_least=ABOVE,
        )
        for target in TARGETS
        if {f"routed_{target}", f"static_{target}"} <= found.answers.keys()
    ]


def judge_head_maps(found: Found) -> list[Check]:
    """Fig. 6."""
    figures = found.figures
    return [
        Check(
            text="a tenth of the heads or more changes by .5 with the category",
            estimate=figures["changing"],
            at_least=0.1,
        ),
        Check(text="a tenth of the heads or more never changes by .1", estimate=figures["constant"], at_least=0.1),
    ]


def judge_map_overlap(found: Found) -> list[Check]:
    """Fig. 11."""
    text = "on sensitive kinds, routers of all kinds agree with those of one better than chance by .05"
    return [Check(text=text, estimate=found.figures["agreement_above_chance"], at_least=0.05)]


def judge_task_similarity(found: Found) -> list[Check]:
    """Fig. 5 and 9."""
    return [
        Check(
            text="the task MLP lowers the mean cosine between tasks", estimate=found.figures["change"], at_most=-ABOVE
        ),
        Check(text="by .1 or more", estimate=found.figures["change"], at_most=-0.1),
    ]


def judge_target_sweep(found: Found) -> list[Check]:
    """Fig. 7."""
    return [
        Check(
            text="a target of .4 sets kinds further apart than .7",
            estimate=found.separation("target_0.4", "target_0.7"),
            at_least=ABOVE,
        ),
        Check(
            text="sensitive kinds are no worse at .4 than at .7 by .02",
            estimate=found.difference("target_0.4", "target_0.7", wanted=is_sensitive),
            at_least=-0.02,
        ),
        Check(text="at .4 routed keeps all of dense", estimate=found.ratio("target_0.4"), at_least=0.99),
    ]


def judge_temperature(found: Found) -> list[Check]:
    """Eq. 14: cooling brings training and argmax together."""
    return [
        Check(
            text=f"cooling to {end} beats a constant temperature",
            estimate=found.difference(f"to_{end}", "constant"),
            at_least=ABOVE,
        )
        for end in ("1.0", "0.4")
    ]


def judge_width(found: Found) -> list[Check]:
    """Tab. 3."""
    return [
        Check(
            text=f"a width of {width}d is within .03 of 4d",
            estimate=found.difference(f"width_{width}", "width_4"),
            at_least=-0.03,
            at_most=0.03,
        )
        for width in (2, 6, 8)
        if f"width_{width}" in found.answers
    ]


def judge_pooling(found: Found) -> list[Check]:
    """Fig. 14."""
    return [
        Check(text=text, estimate=found.difference(one, other), at_least=low, at_most=high)
        for text, one, other, low, high in (
            ("100 and 200 tokens are within .02", "pooled_200", "pooled_100", -0.02, 0.02),
            ("the whole prompt is no better than 100 tokens by .02", "pooled_all", "pooled_100", -INF, 0.02),
            ("50 tokens are no better than 100 by .02", "pooled_50", "pooled_100", -INF, 0.02),
        )
    ]


def judge_xa_ssa(found: Found) -> list[Check]:
    """Tab. 4."""
    return [
        Check(text="XA-SSA keeps .95 of dense", estimate=found.ratio("xa_ssa"), at_least=0.95),
        Check(text="and is within .03 of FA-SSA", estimate=found.difference("xa_ssa", "fa_ssa"), at_least=-0.03),
    ]


def judge_layer_routing(found: Found) -> list[Check]:
    """Flux Attention."""
    return [
        Check(text="layer routing keeps .97 of dense", estimate=found.ratio("flux"), at_least=0.97),
        Check(
            text="sparse decode is within .02 of full decode",
            estimate=found.difference("flux", "flux_full"),
            at_least=-0.02,
        ),
        Check(
            text="it beats a static mask on sensitive kinds at the same mean MSR",
            estimate=found.difference("flux", "static", wanted=is_sensitive),
            at_least=ABOVE,
        ),
    ]


def judge_budget(found: Found) -> list[Check]:
    """Not in the papers: one number moves the routes of trained routers."""
    names = [f"budget_{budget}" for budget in BUDGETS]
    checks = [
        Check(
            text=f"{after} is sparser than {before}",
            estimate=estimate(found.answers[after], found.answers[before], measure=lambda line: line.msr),
            at_least=ABOVE,
        )
        for before, after in zip(names, names[1:], strict=False)
    ]
    loss = found.difference(names[0], "budget_0.0")
    return [*checks, Check(text="fewer sparse heads are no worse", estimate=loss, at_least=-0.02)]


def judge_probe(found: Found) -> list[Check]:
    """Not in the papers: routes from a short pass over both ends, before the prompt is read."""
    return [
        Check(text="nine of ten routes are those of exact routing", estimate=found.figures["agreement"], at_least=0.9),
        Check(text="quality is within .02", estimate=found.difference("probe", "fa_ssa"), at_least=-0.02),
    ]


def judge_decode(found: Found) -> list[Check]:
    """Not in the papers: what sparse reading of the cache costs on top of sparse prefill."""
    return [
        Check(
            text=f"{kind} kinds: sparse decode is within .02 of full decode",
            estimate=found.difference("fa_ssa", "fa_ssa_full", wanted=test),
            at_least=-0.02,
        )
        for kind, test in (("sensitive", is_sensitive), ("robust", is_robust))
    ]


def judge_exchange(found: Found) -> list[Check]:
    """Not in the papers: the triangle in place of the streaming pattern, without training."""
    return [
        Check(text="FA-TA is above FA-SSA", estimate=found.difference("fa_ta", "fa_ssa"), at_least=ABOVE),
        Check(text="FA-TA keeps .98 of dense", estimate=found.ratio("fa_ta"), at_least=0.98),
    ]
