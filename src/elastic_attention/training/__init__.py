"""Training routers on a frozen model; one recipe is one run.

`recipe` says what, `data` serves packs, `engine` computes them, `trainer` keeps steps and files. `sources` decide
routes, `losses` and `objective` say what is minimised, `parallel` spreads a run over processes, and `routed_loss` is
all of it for a loop of one's own.
"""
