"""Results in, plotly figures out: pure functions, one file for each family of figures."""
