"""Safetensors on disk: folders of shards in, tensors or shards out. Knows tensor names, no model class.

`index` reads headers, `reader` tensors, `writer` streams shards, `names` maps stacked experts to Hub names.
"""
