"""History methods: how a long history becomes one interest vector per candidate."""
