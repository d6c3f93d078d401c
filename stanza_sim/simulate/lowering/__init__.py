"""From a schedule to what it takes: loads on resources, messages, collectives; and bounds from those alone."""
