"""AFMoE on one device: token ids enter, logits leave.

`afmoe.Afmoe` is the model, `config` its shape and the Trinity presets, `init` its initial weights, `decode`
generation, `cache` and `prompt_cache` what a model has read, `sampling` the draw of a token, `hf` Hugging Face folders,
`causal` dense models of transformers, `flops` parameter counts.
Parameter names are those of transformers: AfmoeForCausalLM's, or the architecture's own.
"""
