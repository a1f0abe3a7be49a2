"""From a file to a `Classifier`."""
