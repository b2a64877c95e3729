"""raybrew: label once, brew many."""
