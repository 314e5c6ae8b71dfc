from made_records import make_record

from elastic_attention.viz.recipe_tables import (
    render_recipe_gains,
    render_recipe_intervals,
    render_recipe_runs,
    render_recipes,
)

SHARE = {f"relative_{kinds}_{key}": 0.98 for kinds in ("all", "sensitive") for key in ("value", "low", "high")}
SPARSE = {"n": 1200, "msr_all": 0.76, "msr_sensitive": 0.7, "msr_robust": 0.83, "esr_prefill": 0.6}
RUNS = [
    {
        "label": "routed-head",
        "recipe": "head.toml",
        "pair": "FA-XA",
        "steps": 120,
        "tokens": 9_000_000,
        "seconds": 90.0,
    },
    {"label": "static-mask", "recipe": "mask.toml", "pair": "FA-SSA", "steps": 120, "tokens": 100, "seconds": 1.0},
]
RUNS[0] |= {"source": "head_router", "categories": {"qa": {"samples": 40, "msr": 0.69, "low": 0.66, "high": 0.7}}}
RUNS[1] |= {"source": "static", "categories": {"qa": {"samples": 40, "msr": 0.76, "low": 0.66, "high": 0.7}}}
RUNS = [run | {"peak_bytes": 2**30, "furthest_outside": 0.012} for run in RUNS]
GAIN = {"router": "routed-head", "mask": "static-mask", "value": 0.05, "low": 0.01, "high": 0.09}
METRICS = {
    "rows": [{"label": "dense", "n": 1200}, {"label": "routed-head"} | SPARSE | SHARE],
    "trainings": RUNS,
    "gains": [GAIN | {"kinds": kinds} for kinds in ("all", "sensitive")],
}


def test_what_recipes_keep():
    table = render_recipes(make_record("recipe_quality", METRICS)).splitlines()
    assert table[2].startswith("| dense | – | 1,200 |")
    assert table[3] == (
        "| head | FA-XA | 1,200 | 0.76 | 0.70 | 0.83 | 0.60 | 0.980 \\[0.980, 0.980\\] | 0.980 \\[0.980, 0.980\\] | – |"
    )


def test_gains_and_runs():
    record = make_record("recipe_quality", METRICS)
    assert render_recipe_gains(record).splitlines()[2] == "| head | mask | 0.050 \\[0.010, 0.090\\] | – |"
    assert render_recipe_runs(record).splitlines()[2] == "| head | 120 | 9,000,000 | 100,000 | 1.0 GiB | 0.01 |"
    joined = METRICS | {"trainings": [RUNS[0] | {"commit": "0123456789abcdef"}, RUNS[1]]}
    table = render_recipe_runs(make_record("recipe_quality", joined)).splitlines()
    assert [table[place].split(" | ")[-1] for place in (0, 2, 3)] == ["Commit |", "012345678 |", "– |"]


def test_sparsity_beside_its_interval_of_routers_alone():
    table = render_recipe_intervals(make_record("recipe_quality", METRICS)).splitlines()
    assert table[0] == "| Category | Interval | Held out | head |"
    assert table[2] == "| qa | 0.66 to 0.70 | 40 | 0.69 |"
