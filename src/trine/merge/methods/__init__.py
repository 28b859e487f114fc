"""Merge methods as functions on blocks: `prepare(inputs)` reads what it must and gives block -> merged block.

`table.METHODS` names them; what each takes stands in `trine.merge.catalog`.
"""
