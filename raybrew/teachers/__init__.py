"""The teachers: one, a replica of it, the pool of Ray actors, and who asks them."""
