"""A run on disk: model, checkpoint, scores, verdicts, marks, neighbors."""
