"""Soft labels, kept once and found by content.

keys ──► store ── index ──► shards, mapped ──► payload ──► tensors
│ missing           ▲ read through a cache, if remote
▼                   │
asker ──► fresh ──► shard ──► location ── room · merging · manifest
└── survey · pruning: `raybrew store`
"""
