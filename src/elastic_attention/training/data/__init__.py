"""Training data: records from files, their tokens in a cache, and packs of many samples for each step.

`record` checks a record, `sources` and its readers fetch rows, `formats` makes records of other data sets' rows,
`encoding` makes tokens and spans, `store` keeps them on disk, `fitting` rules over long samples, `order` shuffles,
`packing` plans packs, `batch` cuts them out and `steps` serves the packs of a step to each rank. A run's place in the
data is its step number and nothing else.
"""
