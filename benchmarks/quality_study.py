"""A study that processes share: who is trained, who is asked what, and what is answered so far."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mask_cutting import cut_mask
from paper_samples import KeptSuite
from paper_sharing import Busy, TimedWork, TimeUp, hold
from paper_statistics import ROBUST
from pattern_exchange import exchange_pattern

from elastic_attention import ElasticConfig, StreamingConfig
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method, settle_method
from elastic_attention.evaluation.plan import EvalPlan
from elastic_attention.evaluation.retrieval_heads import rank_retrieval_heads, save_retrieval_mask
from elastic_attention.evaluation.run_folder import RUN_FILE
from elastic_attention.evaluation.runner import find_lines, run_plan
from elastic_attention.evaluation.session import Base
from elastic_attention.evaluation.suite_run import digest_adapter, fingerprint_weights, hush_transformers
from elastic_attention.models.checkpoint import CONFIG_FILE, STATIC_FILE, read_static_routes
from elastic_attention.models.families import describe_model
from elastic_attention.models.pretrained import find_pretrained
from elastic_attention.tasks import KINDS, load_corpora
from elastic_attention.training.recipe import Recipe
from elastic_attention.training.trainer import train

RANKED_SAMPLES, RANKED_TOKENS = 64, 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """Who is asked.

    Attributes:
        method: with the folder of an adapter that others make and the study waits for, or without one.
        samples: of each kind.
        recipe: trains its adapter or mask; None for what is given, needs nothing, or is ranked (retrieval heads).
        like: label of the routers whose MSR its mask is cut at; "" for what is no mask.
        place: where the mask has that MSR, over the "suite" or on each sensitive "kind".
        budget: `Handle.budget` of routers; 0 is what training found.
        is_exchanged: its routers are those that are given, with a triangle in place of their sink and window, for
            which they were not trained.
    """

    method: Method
    samples: int
    recipe: Recipe | None = None
    like: str = ""
    place: str = "suite"
    budget: float = 0.0
    is_exchanged: bool = False


def is_saved(folder: Path) -> bool:
    """Is there an adapter or a mask, with the file that is written last? A process may have been killed before."""
    return any((folder / name).exists() for name in (CONFIG_FILE, STATIC_FILE))


@dataclass(kw_only=True)
class Study(TimedWork):
    """The model, its questions, and the folder where adapters and answers lie.

    Attributes:
        routers: adapter of "routed" without a folder of its own; None takes those that ship.
        answers, methods: all lines so far, and who gave them, by label of the method.
        budgets: of those that were asked with another one than 0, by label.
        cuts: labels of the masks of one name that were cut at the MSR of one router, by (router, name, place).
        awaited: folders that were missing when they were wanted.
        has_asked: whether this process asked anything itself.
    """

    base: Base
    suite: KeptSuite
    corpora: str | None
    output: Path
    lengths: tuple[int, ...]
    samples: int
    workers: int
    batch_tokens: int
    routers: str | None = None
    answers: dict[str, list[Line]] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    budgets: dict[str, float] = field(default_factory=dict)
    cuts: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    awaited: set[Path] = field(default_factory=set)
    has_asked: bool = False

    def take_all(self, contestants: Sequence[Contestant]) -> bool:
        """Always the first one that can answer and that no other process asks, until everybody has or time is up.

        Returns:
            Has everybody answered?
        """
        waiting, is_complete = list(contestants), True
        while waiting:
            for contestant in waiting:
                try:
                    for method, kinds in self.settle(contestant):
                        self.ask(method, kinds, contestant.samples, contestant.budget)
                except Busy:
                    continue
                except TimeUp:
                    is_complete = False
                waiting.remove(contestant)
                break
            else:
                if self.is_late:
                    return False
                time.sleep(1)
        return is_complete

    def settle(self, contestant: Contestant) -> list[tuple[Method, tuple[str, ...]]]:
        """The methods of a contestant with their folders, and the kinds that each is asked.

        Raises:
            Busy: another process trains or answers what this needs.
        """
        method, folder = contestant.method, self.prepare(contestant)
        if folder is None:
            return [(settle_method(method), self.suite.tasks)]
        method = settle_method(replace(method, folder=str(folder)))
        if not contestant.like:
            return [(method, self.suite.tasks)]
        places = self.find_suite(contestant.like) if contestant.place == "suite" else self.find_kinds(contestant.like)
        cut = [(self.cut(method, folder, msr), kinds) for msr, kinds in places]
        self.cuts[contestant.like, method.name, contestant.place] = [one.label for one, _ in cut]
        return cut

    def prepare(self, contestant: Contestant) -> Path | None:
        """The folder of its adapter or of its mask before cutting; None where a contestant needs none.

        Raises:
            Busy: another process makes it.
        """
        folder = Path(contestant.method.folder) if contestant.method.folder else None
        if folder and not is_saved(folder):
            if folder not in self.awaited:
                print(f"{contestant.method.label}: waits for an adapter in {folder}", flush=True)
                self.awaited.add(folder)
            raise Busy(f"{folder} is not there yet")
        if contestant.is_exchanged:
            return self.exchange(Path(folder or self.routers or find_pretrained(describe_model(self.base.model)[0])))
        if folder:
            return folder
        if contestant.recipe is not None:
            return self.train(contestant)
        return self.rank() if contestant.like else None

    def exchange(self, routers: Path) -> Path:
        """The routers with a triangle in place of sink and window, made unless it is there."""
        folder = self.output / "exchanged"
        with hold(folder):
            if not is_saved(folder):
                exchange_pattern(routers, folder)
        return folder

    def train(self, contestant: Contestant) -> Path:
        """The adapter of a contestant; trained, unless it is there."""
        method, recipe = contestant.method, contestant.recipe
        assert recipe is not None
        folder = self.output / "trained" / (method.name if contestant.like else method.label)
        with hold(folder):
            if not is_saved(folder / "adapter"):
                self.check_time()
                left, base = self.deadline - time.monotonic(), self.base
                found = train(recipe, folder, max_seconds=left, model=base.model, tokenizer=base.tokenizer)
                if not found["is_finished"]:
                    raise TimeUp
                print(f"{folder.name}: {found['steps']} steps, {found['seconds']:.0f} s", flush=True)
        return folder / "adapter"

    def rank(self) -> Path:
        """The mask of the heads with most attention on needles; ranked, unless it is there."""
        folder = self.output / "trained" / "retrieval_heads"
        with hold(folder):
            if not is_saved(folder):
                self.check_time()
                model, pattern = self.base.model, ElasticConfig.for_model(self.base.model).sparse_pattern
                assert isinstance(pattern, StreamingConfig)  # what `for_model` takes by default
                scores = rank_retrieval_heads(
                    model,
                    self.base.tokenizer,
                    load_corpora(self.corpora),
                    samples=RANKED_SAMPLES,
                    length=min(RANKED_TOKENS, self.base.context // 2),
                )
                save_retrieval_mask(folder, model, scores, msr=0.5, pattern=pattern, facts={})
        return folder

    def cut(self, method: Method, source: Path, msr: float) -> Method:
        """The mask in `source` with at most the share `msr` of its heads sparse."""
        heads = read_static_routes(source).numel()
        sparse = math.floor(msr * heads + 1e-6)
        folder = self.output / "cut" / f"{method.name}-{sparse}"
        with hold(folder):
            if not is_saved(folder):
                cut_mask(source, folder, sparse / heads)
        return replace(method, folder=str(folder), target=round(sparse / heads, 3))

    def find_suite(self, label: str) -> list[tuple[float, tuple[str, ...]]]:
        """The mean MSR that a method has over the suite, and all kinds.

        Raises:
            Busy: it has not answered yet.
        """
        return [(self._average_msr(label, self.suite.tasks), self.suite.tasks)]

    def find_kinds(self, label: str) -> list[tuple[float, tuple[str, ...]]]:
        """The MSR that a method has on each sensitive kind, in whole heads; kinds of the same one stand together.

        Raises:
            Busy: it has not answered yet.
        """
        found: dict[float, list[str]] = {}
        heads = self.base.describe()["layers"] * self.base.describe()["kv_heads"]
        for kind in self.suite.tasks:
            if KINDS[kind].category not in ROBUST:
                msr = math.floor(self._average_msr(label, (kind,)) * heads + 1e-6) / heads
                found.setdefault(msr, []).append(kind)
        return [(msr, tuple(kinds)) for msr, kinds in found.items()]

    def _average_msr(self, label: str, kinds: Sequence[str]) -> float:
        if label not in self.answers:
            raise Busy(label)
        own = [line.msr for line in self.answers[label] if line.task in kinds]
        return sum(own) / len(own)

    def plan(self, methods: Sequence[Method], kinds: tuple[str, ...], samples: int) -> EvalPlan:
        """`samples` of every kind, shared out over the lengths."""
        return EvalPlan(
            tasks=kinds,
            lengths=self.lengths,
            samples=-(-samples // len(self.lengths)),
            methods=tuple(methods),
            batch_tokens=self.batch_tokens,
        )

    def ask(self, method: Method, kinds: tuple[str, ...], samples: int, budget: float = 0.0) -> None:
        """Ask a method what it has not answered; processes share the kinds.

        Raises:
            TimeUp: past the deadline.
            Busy: other processes ask it the kinds that are left.
            ElasticAttentionError: the folder holds answers that other routers gave.
        """
        if method.label in self.answers:
            return
        lines: list[Line] = []
        busy: list[str] = []
        for kind in kinds:
            plan, folder = self.plan([method], (kind,), samples), self.output / "answers" / method.label / kind
            try:
                with hold(folder):
                    self._check_routers(folder, method)
                    lines += find_lines(plan, self.suite, folder) or self._run(plan, folder, method, budget)
            except Busy:
                busy.append(kind)
        if busy:
            raise Busy(f"{method.label}: {', '.join(busy)}")
        self.answers[method.label], self.methods[method.label] = lines, method
        if budget:
            self.budgets[method.label] = budget
        score, msr = (sum(getattr(x, key) for x in lines) / len(lines) for key in ("score", "msr"))
        print(f"{method.label}: {score:.3f} at MSR {msr:.3f}", flush=True)

    def _run(self, plan: EvalPlan, folder: Path, method: Method, budget: float) -> list[Line]:
        self.check_time()
        self.has_asked = True
        identity: dict[str, Any] = {
            "model": self.base.describe(),
            "weights": fingerprint_weights(self.base.model),
        }
        if adapter := self._digest(method):
            identity["adapter"] = adapter
        if budget:
            identity["budget"] = budget
        with hush_transformers():
            self.suite.prepare(self.plan([method], self.suite.tasks, self.samples), self.base.tokenizer, self.workers)
            lines = run_plan(
                plan,
                self.suite,
                self.base.model,
                self.base.tokenizer,
                folder,
                identity=identity,
                routers=self.routers,
                budget=budget,
                advance=self.check_time,
            )
        assert lines is not None  # one shard is the whole run
        return lines

    def _digest(self, method: Method) -> str | None:
        if method.folder or method.name == "routed":  # without a folder: what ships for the model
            return digest_adapter(method.folder or self.routers, self.base.model)
        return None

    def _check_routers(self, folder: Path, method: Method) -> None:
        # Answers may come from another computer and its precision, but not from other routers.
        path = folder / RUN_FILE
        if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("adapter") != self._digest(method):
            raise ElasticAttentionError(
                f"{folder} holds answers of other routers; choose another --output or remove that folder."
            )
