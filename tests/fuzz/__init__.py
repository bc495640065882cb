"""Random calls of every public function, right and wrong ones: ``python -m fuzz --help``."""
