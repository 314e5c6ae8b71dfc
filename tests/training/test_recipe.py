import pytest
from tiny_runs import make_recipe

from elastic_attention import RecipeError
from elastic_attention.config import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.training.recipe import Interval, load_recipe

GOOD = 'model = "smollm2"\nsteps = 3\n[intervals]\nrobust = { low = 0.8, high = 1.0 }\n'


def test_recipe_round_trip(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    recipe = load_recipe(path, steps=7)
    assert recipe.steps == 7
    assert recipe.intervals["robust"] == Interval(low=0.8, high=1.0)


def test_patterns_of_a_recipe(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD + '[pattern]\nkind = "triangle"\nlocal_window = 1024\n')
    assert load_recipe(path).pattern == TriangleConfig(local_window=1024)
    path.write_text(GOOD + "[pattern]\nlocal_window = 1024\n[full_pattern]\nthreshold = 0.8\n")
    recipe = load_recipe(path)
    assert recipe.pattern == StreamingConfig(local_window=1024)
    assert recipe.full_pattern == XAttentionConfig(threshold=0.8)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD + "[data]\nkindz = []\n", "kindz.*Did you mean 'kinds'"),
        (GOOD + "[data]\nworkers = -1\n", "data.workers=-1"),
        (GOOD + "[data]\nlengths = [0]\n", "data.lengths"),
        (GOOD + "[data]\nlengths = []\n", "data.lengths"),
        ("validate_every = -1\n" + GOOD, "validate_every=-1"),
        ("checkpoint_every = -1\n" + GOOD, "checkpoint_every=-1"),
        ("validation_samples = -1\n" + GOOD, "validation_samples=-1"),
        (f"seed = {2**64}\n" + GOOD, "seed=18446744073709551616 has more than 64 bits"),
        (GOOD + '[temperature]\nschedule = "linear"\n', "schedule='linear'.*exponential"),
        (GOOD + "[temperature]\nrate = -1.0\n", "temperature.rate=-1.0"),
        (GOOD + "[temperature]\nfinal_p = nan\n", "final_p=nan"),
        (GOOD + "[temperature]\nrate = inf\n", "rate=inf"),
        (GOOD + "[temperature]\nnoise_end = 1.5\n", "noise_end=1.5"),
        (GOOD + "[temperature]\nstart = inf\n", "start=inf"),
        (GOOD.replace("steps = 3", 'steps = "3"'), "steps"),
        (GOOD.replace("steps = 3\n", ""), "steps"),
        (GOOD.replace("0.8", "1.8"), "1.8"),
        (GOOD + '[routes]\nsource = "dice"\n', "dice.*layer_router.*hard_concrete"),
        (GOOD + '[objective]\nloss = "regret"\n', "regret.*distillation"),
        (GOOD + '[objective]\nconstraint = "hope"\n', "hope.*signed"),
        (GOOD + "[objective]\nramp_ratio = 2.0\n", "ramp_ratio=2.0"),
        (GOOD + "[optimizer]\nlearning_rate = 0.0\n", "optimizer.learning_rate=0.0"),
        (GOOD + "[optimizer]\nlearning_rate = inf\n", "optimizer.learning_rate=inf"),
        (GOOD + "[optimizer]\nweight_decay = inf\n", "optimizer.weight_decay=inf"),
        (GOOD + "[optimizer]\nmultiplier_learning_rate = inf\n", "multiplier_learning_rate=inf"),
        (GOOD + "[objective]\nfull_weight = nan\n", "objective.full_weight=nan"),
        (GOOD + "[objective]\nfull_weight = -1.0\n", "objective.full_weight=-1.0"),
        (GOOD + "[routes]\ninit_std = -1.0\n", "routes.init_std=-1.0"),
        (GOOD + '[data.packs]\nfiles = "a.jsonl"\n', "data.packs.files must be list, got 'a.jsonl'"),
        (GOOD + "[optimizer]\nmax_grad_norm = 0.0\n", "optimizer.max_grad_norm=0.0"),
        (GOOD + "[optimizer]\nmultiplier_learning_rate = -1.0\n", "multiplier_learning_rate=-1.0"),
        (GOOD + "[optimizer]\nwarmup_ratio = 1.5\n", "optimizer.warmup_ratio=1.5"),
        (GOOD + "[optimizer]\nbetas = [0.9]\n", "optimizer.betas"),
        (GOOD + "[temperature]\nend = 0.0\n", "temperature.*end=0.0"),
        (GOOD + '[pattern]\nkind = "dots"\n', "dots.*xattention"),
        (GOOD.replace("steps = 3", 'steps = 3\nfull_pattern = "dots"'), "full_pattern='dots'"),
        (GOOD + '[pattern]\nkind = "triangle"\n[full_pattern]\nstride = 8\n', "needs a streaming pattern"),
        (GOOD.replace("robust = { low = 0.8, high = 1.0 }\n", ""), "intervals.*is empty"),
        ("model = \n", "TOML"),
    ],
)
def test_bad_recipes_name_the_key(tmp_path, text, named):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=named):
        load_recipe(path)


def test_missing_recipe(tmp_path):
    with pytest.raises(RecipeError, match="nowhere"):
        load_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(RecipeError, match=f"no recipe {tmp_path}; see"):
        load_recipe(tmp_path)


def test_zero_steps():
    with pytest.raises(ValueError, match="steps=0"):
        make_recipe(steps=0)
