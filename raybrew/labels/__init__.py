"""Soft labels, kept once and found by content.

keys ──► store ── index ──► shards, mapped ──► payload ──► tensors
│ missing           ▲ read through a cache, if remote
▼                   │
asker ──► fresh ──► shard ──► location ── room · merging · manifest
├── claims: who computes what right now, among all that share the store
└── survey · pruning: `raybrew store`
"""
