"""Models: loading them, building students, LoRA, sizes and speed."""
