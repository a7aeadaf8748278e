"""Preparation on Spark, through the same definition, for logs that outgrow one machine."""
