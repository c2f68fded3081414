"""The node cache: decoded columns on local disk."""
