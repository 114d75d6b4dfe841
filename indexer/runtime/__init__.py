"""The only code that knows Ray: the pipeline, its workers, and their progress."""
