"""C kernels for the CPU, compiled once per machine; each has a twin in torch for where they do not apply."""
