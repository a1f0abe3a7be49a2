"""Queues, batches and runs calls; the front end sees only `engine.api`, which needs no torch."""
