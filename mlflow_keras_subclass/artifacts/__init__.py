"""The parts of the artifact: one module each with a symmetrical ``write`` and ``read``; no part imports another."""
