"""Delta and Iceberg tables: the files of one version, with what the log knows about them."""
