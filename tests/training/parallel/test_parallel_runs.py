"""Whole runs on two processes: exact resumption, another number of processes, and a process that dies."""

import dataclasses
import json

import torch
from rank_jobs import Pair, differ, lose_one, place, stop_second, train_twice
from safetensors.torch import load_file
from tiny_runs import make_recipe, parts

from elastic_attention.training.checkpoints import FILE
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.trainer import train

TOLERANCE = 1e-3  # of a parameter's largest entry; Adam divides by the gradient's size and so amplifies its rounding


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_resumed_run_is_the_whole_run(pair, tmp_path):
    recipe = make_recipe(tmp_path, parallel=ParallelConfig(sequence=2))
    results = pair.run(train_twice, tmp_path, recipe, parts)
    assert results[0]["steps"] == results[1]["steps"] == [4, 1, 4]
    assert results[0]["validation"] == results[1]["validation"]
    whole, cut = (load_file(tmp_path / name / FILE) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")

    # The same run goes on alone: same packs, same noise, the same loss but for rounding.
    alone = dataclasses.replace(recipe, parallel=ParallelConfig())
    assert train(alone, tmp_path / "first", **place(parts()))["steps"] == 4
    for one, other in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "first"), strict=True):
        assert one["step"] == other["step"]
        assert abs(one["loss"] - other["loss"]) < TOLERANCE * abs(one["loss"])
        assert one["msr"] == other["msr"]
    for name, tensor in load_file(tmp_path / "first" / FILE).items():
        if name.startswith("source/"):
            torch.testing.assert_close(tensor, whole[name], rtol=0, atol=TOLERANCE * float(whole[name].abs().max()))


def test_one_process_that_is_asked_to_stop_stops_all(pair, tmp_path):
    assert pair.run(stop_second, tmp_path, make_recipe(tmp_path), parts) == [[2, 4], [2, 4]]


def test_processes_with_other_data_are_refused(pair, tmp_path):
    recipes = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        recipes.append(
            make_recipe(tmp_path / name, packs={"over_long": "skip", "tokens": 700 if name == "one" else 600})
        )
    for result in pair.run(differ, tmp_path, recipes, parts):
        assert result["error"] == "RecipeError"
        assert "rank 1 has another recipe or other data than rank 0" in result["message"]


def test_a_process_that_dies_is_named_and_nothing_is_lost(tmp_path):
    recipe, pair = make_recipe(tmp_path), Pair(tmp_path)
    survivor, dead = pair.run(lose_one, tmp_path, recipe, parts)
    pair.close()
    assert dead is None
    assert survivor["error"] == "LostRank"
    assert "the ranks [1] did not answer" in survivor["message"] and "last checkpoint" in survivor["message"]
    assert [line["step"] for line in read_log(tmp_path / "lost")] == [1]
    assert train(recipe, tmp_path / "lost", **place(parts()))["steps"] == 4
