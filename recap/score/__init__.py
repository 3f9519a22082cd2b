"""Numbers for rows: which text is better, which pair fits. One `Scorer`, as a column, a rule, a reward and a metric."""
