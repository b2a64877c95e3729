"""Soft labels, computed once and found by content.

keys ──► store ── index ──► shards, mapped ──► payload ──► tensors
│ missing          ▲ read through a cache, if remote
▼                  │
TeacherClient ──► write buffer ──► shard ──► location
├── leases: which process computes which label, among all that share the store
├── maintenance: eviction, compaction, pruning
└── contents: manifests, StoreStats, `raybrew store`
"""
