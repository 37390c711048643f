"""What the system speaks about: ids, layers, models, records, messages, errors. No I/O."""
