"""The teachers: a teacher, a replica of it, the pool of Ray actors, and the clients of the pool."""
