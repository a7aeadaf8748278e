"""From predictions to exact metrics with intervals and slices."""
