"""The comparison of `trine spectrum study`: models are pretrained, fine-tuned in every way on each data, scored.

`config` is the study's file, `layout` where things lie, `items` makes texts of filings, `prepare` makes models, tokens,
scans and selections, `cells` writes an ordinary study for each model on each data, `budget` says what it takes, and
`outcomes` and `page` say what came out.
"""
