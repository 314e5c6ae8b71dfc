"""Where claims are studied: trains what is missing, asks what is missing, and keeps both for all claims."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mask_cutting import cut_mask
from paper_claims import Claim, Entry, Training
from paper_recipes import Scale, adapt_recipe, digest_files
from paper_samples import KeptSuite
from paper_sharing import Busy, TimedWork, TimeUp, hold
from paper_statistics import KIND_GROUPS, Seeds, estimate, pick
from pattern_exchange import exchange_pattern

from elastic_attention import ElasticConfig
from elastic_attention.config import StreamingConfig
from elastic_attention.errors import ElasticAttentionError, RecipeError
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method, settle_method
from elastic_attention.evaluation.plan import EvalPlan
from elastic_attention.evaluation.retrieval_heads import rank_retrieval_heads, save_retrieval_mask
from elastic_attention.evaluation.runner import find_lines, run_plan
from elastic_attention.evaluation.session import Base, describe_device
from elastic_attention.evaluation.suite_run import hush_transformers
from elastic_attention.models.checkpoint import STATIC_FILE
from elastic_attention.records import build_record, write_file
from elastic_attention.tasks import load_corpora
from elastic_attention.tasks.suite import Suite, open_suite
from elastic_attention.training.checkpoints import fingerprint
from elastic_attention.training.recipe import Recipe, load_recipe
from elastic_attention.training.trainer import train

RULER_TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt", "qa_1")
PLACE_FILE = "place.json"
PATIENCE = 100  # how often memory may be short
LEFT_OUT = {"almanac": ("overviews", "module_lines")}  # hundreds of tokens an answer


class StudyPlan(EvalPlan):
    """A plan that calls adapters by their fingerprint and not by their place, so answers may move to another folder."""

    def describe(self) -> dict[str, Any]:
        """As a run's file holds it."""
        methods = [asdict(method) | {"folder": name_adapter(method.folder)} for method in self.methods]
        return asdict(self) | {"methods": methods}


@dataclass(kw_only=True)
class Lab(TimedWork):
    """One model, one output folder, one time limit.

    Attributes:
        recipes: folder of the recipes.
        corpora: folder of `tasks.corpora`; None = the texts in the package.
        trainings: rows of a record, of what the entries of a claim so far were trained with.
        places: device, model, package and versions behind its answers so far.
        began: of `time.time()`.
    """

    base: Base
    scale: Scale
    recipes: Path
    output: Path
    corpora: str | None
    batch_tokens: int = 1
    workers: int = 0
    trainings: list[dict[str, Any]] = field(default_factory=list)
    places: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    _suites: dict[str, KeptSuite] = field(default_factory=dict)
    _answers: dict[Path, list[Line]] = field(default_factory=dict)
    _ranking: Any = None
    _misses: int = 0
    _told: set[tuple[str, str, int]] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        """Since it was opened."""
        return time.time() - self.began

    def describe_model(self) -> dict[str, Any]:
        """The model as records name it; of a folder the last part."""
        facts = self.base.describe()
        return facts | ({"name": Path(self.base.name).name} if Path(self.base.name).is_dir() else {})

    def describe_place(self) -> dict[str, Any]:
        """Device, model, package and versions of this process, as records name them."""
        record = build_record(
            "",
            config={},
            model=self.describe_model(),
            data={},
            device=describe_device(self.base.device),
            seed=0,
            n=0,
            metrics={},
            seconds=0.0,
            bytes=None,
        )
        return {key: record[key] for key in ("device", "model", "package", "versions")}

    def tell(self, claim: str, entry: str, seeds: int) -> None:
        """Say once that so many seeds of an entry are answered, however often a waiting process asks for them."""
        if (claim, entry, seeds) not in self._told:
            self._told.add((claim, entry, seeds))
            print(f"{claim}: {entry}, {seeds} of its seeds, {self.seconds:.0f} s", flush=True)

    def list_lengths(self, suite: str) -> tuple[int, ...]:
        """Lengths at which a suite is asked: those of the scale that the model can read."""
        return tuple(n for n in self.scale.lengths[suite] if n <= self.base.context)

    def open(self, name: str) -> KeptSuite:
        """A suite that keeps its samples for the next method."""
        if name not in self._suites:
            options: dict[str, Any] = {"corpora": self.corpora} if name == "ruler" and self.corpora else {}
            data = self.corpora if name in ("mixture", "almanac") else None
            self._suites[name] = KeptSuite(open_suite(name, data=data, **options), self.output / "samples")
        return self._suites[name]

    def plan(self, entry: Entry, seed: int, suite: Suite, found: dict[str, Seeds]) -> EvalPlan:
        """The questions of one entry and seed; trains first what is missing."""
        folder = None if entry.training is None else self.train(entry, seed, found)
        if folder and entry.has_triangle:
            folder = exchange_pattern(folder, folder.parent.with_name(f"{folder.parent.name}-triangle") / "adapter")
        method = settle_method(Method(name=entry.method, folder=folder and str(folder), decode=entry.decode))
        tasks = RULER_TASKS if suite.name == "ruler" else suite.tasks
        return StudyPlan(
            tasks=tuple(task for task in tasks if task not in LEFT_OUT.get(suite.name, ())),
            lengths=self.list_lengths(suite.name),
            samples=self.scale.samples[suite.name],
            methods=(method,),
            batch_tokens=self.batch_tokens,
        )

    def ask(self, entry: Entry, seed: int, name: str, found: dict[str, Seeds]) -> list[Line]:
        """All answers of an entry and seed; those on the disk are not asked again.

        Raises:
            TimeUp: past the deadline, between two batches.
            Busy: another process asks them.
        """
        suite = self.open(name)
        plan = self.plan(entry, seed, suite, found)
        folder = self.output / "answers" / name / name_answers(entry, plan)
        if folder not in self._answers:
            with hold(folder):
                self._answers[folder] = find_lines(plan, suite, folder) or self._run(entry, plan, suite, folder)
        place = json.loads((folder / PLACE_FILE).read_text(encoding="utf-8"))
        if place not in self.places:
            self.places.append(place)
        return self._answers[folder]

    def _run(self, entry: Entry, plan: EvalPlan, suite: KeptSuite, folder: Path) -> list[Line]:
        self.check_time()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / PLACE_FILE, json.dumps(self.describe_place()) + "\n")
        with hush_transformers(), self._lending_memory():
            suite.prepare(plan, self.base.tokenizer, self.workers)
            lines = run_plan(
                plan,
                suite,
                self.base.model,
                self.base.tokenizer,
                folder,
                identity={"model": self.describe_model(), "budget": entry.budget},
                budget=entry.budget,
                advance=self.check_time,
            )
        assert lines is not None  # one shard is the whole run
        return lines

    @contextlib.contextmanager
    def _lending_memory(self) -> Iterator[None]:
        """What a GPU's memory lacks, another process may give back soon, as this one does at the end.

        Raises:
            Busy: too little memory.
            ElasticAttentionError: the same for the `PATIENCE`th time in a row.
        """
        torch.cuda.empty_cache()  # does nothing without a GPU
        try:
            yield
            self._misses = 0
        except (torch.OutOfMemoryError, RecipeError) as error:
            if not any(isinstance(one, torch.OutOfMemoryError) for one in (error, error.__cause__)):
                raise
            self._misses += 1
            if self._misses == PATIENCE:
                text = f"{str(error).splitlines()[0]} Lower --batch-tokens or --step-tokens, or end other processes."
                raise ElasticAttentionError(text) from error
            raise Busy("memory") from error
        finally:
            torch.cuda.empty_cache()

    def gather(self, claim: Claim) -> Iterator[dict[str, Seeds]]:
        """The answers by entry, growing entry by entry and seed by seed.

        Raises:
            TimeUp: past the deadline.
            Busy: at the end, if other processes are at some of them.
        """
        self.trainings, self.places = [], []
        found: dict[str, Seeds] = {}
        whole: dict[str, Seeds] = {}  # those with all their seeds, which others may aim at
        for entry in claim.entries:
            lists: list[list[Line]] = []
            for seed in range(entry.seeds):
                try:
                    if not claim.suites and entry.training is not None:
                        self.train(entry, seed, whole)
                    lists.append([line for name in claim.suites for line in self.ask(entry, seed, name, whole)])
                except Busy:
                    continue
                found = found | {entry.name: list(lists)}
                yield found
            if len(lists) == entry.seeds:
                whole[entry.name] = lists
        if len(whole) < len(claim.entries):
            raise Busy(", ".join(entry.name for entry in claim.entries if entry.name not in whole))

    def train(self, entry: Entry, seed: int, found: dict[str, Seeds] | None = None) -> Path:
        """The adapter or mask of an entry; trained, unless a run of the same recipe is on the disk.

        Raises:
            TimeUp: past the deadline, after a checkpoint.
            Busy: another process trains it, or answers the entry that it aims at.
        """
        wanted = entry.training
        assert wanted is not None
        target = settle_target(wanted, found or {})
        if wanted.source == "retrieval_heads":
            assert target is not None  # such entries say it
            return self._rank(target)
        if wanted.source in self.scale.masks and target is not None:
            return self._cut(entry, seed, target)
        wanted = dataclasses.replace(wanted, target=target)
        recipe = self.build_recipe(wanted, seed)
        folder = self.find_folder(wanted, recipe)
        facts = folder / "result.json"
        if not facts.exists():
            with hold(folder):
                self._run_recipe(recipe, folder, {"seed": seed, "target": target})
        row = {"entry": entry.name, "folder": folder.name} | json.loads(facts.read_text(encoding="utf-8"))
        if row not in self.trainings:
            self.trainings.append(row)
        return folder / "adapter"

    def _run_recipe(self, recipe: Recipe, folder: Path, facts: dict[str, Any]) -> None:
        if (folder / "result.json").exists():  # another process was quicker
            return
        self.check_time()
        left = self.deadline - time.monotonic()
        with self._lending_memory():
            result = train(recipe, folder, max_seconds=left, model=self.base.model, tokenizer=self.base.tokenizer)
        if not result["is_finished"]:
            raise TimeUp
        for path in (*folder.glob("checkpoint*.safetensors"), *folder.glob("tensorboard")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept = {key: result[key] for key in ("steps", "seconds", "tokens")}
        write_file(folder / "result.json", json.dumps(kept | facts) + "\n")

    def _cut(self, entry: Entry, seed: int, msr: float) -> Path:
        whole = dataclasses.replace(entry.training, target=None)  # type: ignore[type-var]
        adapter = self.train(dataclasses.replace(entry, training=whole), seed)
        folder = adapter.parent.with_name(f"{adapter.parent.name}-cut-{msr:.2f}")
        with hold(folder):
            return cut_mask(adapter, folder, msr)

    def find_folder(self, wanted: Training, recipe: Recipe) -> Path:
        """Where a training lies, by its recipe of `build_recipe` and the files that it reads."""
        name = f"{wanted.source}-{wanted.pair}-{fingerprint(recipe, digest_files(recipe))}"
        return self.output / "trained" / name

    def build_recipe(self, wanted: Training, seed: int) -> Recipe:
        """The recipe of a training whose target is a number."""
        file = self.scale.masks.get(wanted.source, self.scale.recipe)
        recipe = load_recipe(self.recipes / file, seed=seed)
        data = dataclasses.replace(recipe.data, corpora=self.corpora, workers=self.workers)
        return adapt_recipe(dataclasses.replace(recipe, data=data), wanted, self.scale, self.output / "data")

    def _rank(self, msr: float) -> Path:
        folder = self.output / "trained" / f"retrieval_heads-{msr:.2f}"
        if (folder / STATIC_FILE).exists():
            return folder
        with hold(folder.parent / "retrieval_heads"):
            self.check_time()
            recipe, (model, length) = load_recipe(self.recipes / self.scale.recipe), (self.base.model, 2048)
            pattern = recipe.pattern or ElasticConfig.for_model(model).sparse_pattern
            assert isinstance(pattern, StreamingConfig)  # of the head routers' recipes
            if self._ranking is None:
                corpora = load_corpora(self.corpora)
                self._ranking = rank_retrieval_heads(model, self.base.tokenizer, corpora, samples=32, length=length)
            facts = {"samples": 32, "length": length, "model": self.describe_model()}
            save_retrieval_mask(folder, model, self._ranking, msr=msr, pattern=pattern, facts=facts)
        return folder


def settle_target(wanted: Training, found: dict[str, Seeds]) -> float | None:
    """The number behind a target; that of an entry is its measured MSR, to two places.

    Raises:
        Busy: that entry is not answered yet.
        ElasticAttentionError: it answered nothing of the group.
    """
    if not isinstance(wanted.target, str):
        return wanted.target
    name, _, group = wanted.target.partition("/")
    if name not in found:
        raise Busy(name)
    msr = estimate(pick(found[name], KIND_GROUPS[group or "all"]), measure=lambda line: line.msr)
    if msr is None:
        raise ElasticAttentionError(
            f"entry {name!r} answered no {group} question, so nothing can be trained at its MSR; ask more --samples."
        )
    return round(msr.value, 2)


def name_answers(entry: Entry, plan: EvalPlan) -> str:
    """Folder of answers: what decides them besides suite and model, in a word."""
    adapter = name_adapter(plan.methods[0].folder)
    trained = f"-{adapter}" if adapter else ""
    budget = f"-budget{entry.budget:+g}" if entry.budget else ""
    return f"{entry.method}{trained}-{entry.decode}{budget}-{plan.samples}"


def name_adapter(folder: str | None) -> str | None:
    """What tells an adapter or a mask apart wherever it lies."""
    path = Path(folder) if folder else None
    return path and (path.parent.name if path.name == "adapter" else path.name)
