"""Examples: sources, columns, encoding, content keys, augmentation, the sequence of batches."""
