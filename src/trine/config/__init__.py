"""Configs: a YAML file, overrides and inputs enter; a frozen pydantic model leaves, or every error at once.

Public names: `base.Frozen` and `base.Count` (what a config model is), `inputs.InputConfig`,
`load.load_config` (file to model), `load.diff_config`, `load.to_yaml`, `schema.json_schema`. No torch here.
"""
