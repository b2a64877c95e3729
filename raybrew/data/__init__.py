"""Examples: sources, encoding, content keys, the sequence of batches, augmentation."""
