"""What every other room may use: errors, units, configuration files, files, processes, the version."""
