"""Many models on many data sets over several seeds, and the page that compares them."""
