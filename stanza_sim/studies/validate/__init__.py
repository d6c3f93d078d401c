"""Validation: many cases predicted and then measured, with a report of how far apart the two are.

`suite` says which cases there are, `runner` predicts and measures them in random order against a `Bench`, `journal`
keeps what is done, `statistics` and `budget` make figures of it, `report` and `scatter` write them down. `live` is the
bench that runs the cases for real.
"""
