"""Quantized models as files that others can read: the workbench's own safetensors format."""
