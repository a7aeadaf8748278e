"""What is measured by ``make bench``: one topic a file, each figure a ratio taken in one run."""
