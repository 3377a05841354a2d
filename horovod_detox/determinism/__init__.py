"""Whether ranks compute the same bits: conditions, a trial, the first step, the verdict."""
