"""Checkpoints to one checkpoint: a recipe in mergekit's YAML and model folders enter, a published model folder leaves.

`reading` checks the recipe, `scopes` gives each tensor its parameters, `plan` checks everything from headers alone,
`engine` streams blocks through `methods`. Knows tensor names and shapes, no model class; needs numpy, not torch.
"""
