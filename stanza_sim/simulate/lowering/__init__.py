"""From a schedule to what it takes: activities on resources, messages, collectives; and bounds from those alone."""
