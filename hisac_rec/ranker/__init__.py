"""The DLRM-style ranker around a history method."""
